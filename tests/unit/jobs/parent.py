"""A process that runs one job, until it is killed: ``python -m tests.unit.jobs.parent <folder> <kind> <spec>``."""

import asyncio
import json
import sys
from pathlib import Path

from mev.jobs.model import Kind
from mev.jobs.runner import running
from tests.unit.jobs.work import count

KINDS = (Kind(name="count", run=count), Kind(name="steady", run=count, resumable=True))


async def main() -> None:
    async with running(Path(sys.argv[1]), KINDS) as runner:
        job = await runner.submit(sys.argv[2], json.loads(sys.argv[3]), owner="me")
        await runner.wait(job.id)


if __name__ == "__main__":
    asyncio.run(main())
