"""Process that runs one job until killed: ``python -m tests.unit.jobs.parent FOLDER KIND SPEC``."""

import asyncio
import json
import sys
from pathlib import Path

from mev.jobs.boot import running_jobs
from mev.jobs.model import JobKind
from tests.unit.jobs.work import count

KINDS = (JobKind(name="count", run=count), JobKind(name="steady", run=count, resumable=True))


async def main() -> None:
    async with running_jobs(Path(sys.argv[1]), KINDS) as runner:
        job = await runner.submit(sys.argv[2], json.loads(sys.argv[3]), owner="me")
        await runner.wait(job.id)


if __name__ == "__main__":
    asyncio.run(main())
