"""Training on the workers of a Dask cluster: each reads its share of the Parquet files, and XGBoost adds up what they find.

It goes in segments of some rounds, each from the booster of the one before. A segment that loses a worker, or takes too long, is given up
and begun again with the workers that are left: nothing but its own rounds is lost.
"""

import asyncio
import hashlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xgboost as xgb
from numpy.typing import NDArray

import mev
from mev.jobs.errors import CancelledJobError
from mev.training import data
from mev.training.errors import (
    DamagedExportError,
    DistributedUnavailableError,
    SchedulerUnavailableError,
    TooFewWorkersError,
    UnequalWorkersError,
    WorkersLostError,
)
from mev.training.fit import CHECKPOINT, Checkpoint, Fitted, Report, fitted, learning, stalled, tell
from mev.training.goals import GOALS, Goal
from mev.training.rows import Material
from mev.training.spec import Distributed, TrainSpec

try:
    from dask.array import concatenate, from_delayed
    from dask.delayed import delayed
    from distributed import Client, KilledWorker
    from xgboost import collective
    from xgboost import dask as dxgb
except ImportError:
    raise DistributedUnavailableError(
        "training on several machines needs Dask, which is not installed: pip install 'mev[dist]', or leave distributed out"
    ) from None

LOG = logging.getLogger(__name__)
_CONNECT_S = 10.0
_ANSWER_S = 10.0
_SILENT_S = 300.0
_LOOK_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Some rows of one file: of those of slots from `first` up to `end`, which is not included, `rows` from number `start` on."""

    path: str
    sha256: str
    columns: tuple[str, ...]
    first: int | None
    end: int | None
    start: int
    rows: int


@dataclass(slots=True)
class _Run:
    """What a training has come to."""

    booster: xgb.Booster | None
    history: list[float]
    losses: int = 0
    workers: set[str] = field(default_factory=set)


class _LostError(Exception):
    """A segment has to be begun again."""


class Cluster:
    """The workers behind one scheduler."""

    def __init__(self, asked: Distributed) -> None:
        self._asked = asked

    def fit(self, spec: TrainSpec, params: Mapping[str, Any], material: Material, work: Path, key: str, report: Report) -> Fitted:
        """Train, or go on from the checkpoint in `work` when it is of the same training, which `key` names.

        :raises SchedulerUnavailableError: when the scheduler does not answer any longer.
        :raises TooFewWorkersError: when there are too few, or not any more.
        :raises UnequalWorkersError: when a worker has other code or another export.
        :raises WorkersLostError: when that happened too often.
        :raises CancelledJobError: when the report says so.
        """
        return asyncio.run(self._fit(spec, dict(params), material, Checkpoint(work / CHECKPOINT, key), report))

    async def answers(self) -> None:
        """Speak to the scheduler, and wait for the workers.

        :raises SchedulerUnavailableError: when it does not answer.
        :raises TooFewWorkersError: when there are too few.
        """
        async with self._client() as client:
            await self._workers(client)

    async def _fit(self, spec: TrainSpec, params: dict[str, Any], material: Material, checkpoint: Checkpoint, report: Report) -> Fitted:
        goal = GOALS[spec.objective]
        run = _Run(*checkpoint.load())
        resumed_from = len(run.history) or None
        # Each worker takes the threads that it was given.
        params = {name: value for name, value in params.items() if name not in {"nthread", "device"}}
        async with self._client() as client:
            with client.as_current():
                while len(run.history) < spec.rounds and not (run.history and stalled(spec, goal, run.history)):
                    await self._advance(client, run, spec, goal, params, material, checkpoint, report)
        if run.booster is None:
            raise CancelledJobError
        lineage = {"distributed": {"workers": len(run.workers), "losses": run.losses}}
        return fitted(spec, goal, run.booster, run.history, resumed_from, lineage)

    async def _advance(
        self,
        client: Any,
        run: _Run,
        spec: TrainSpec,
        goal: Goal,
        params: dict[str, Any],
        material: Material,
        checkpoint: Checkpoint,
        report: Report,
    ) -> None:
        """Grow the trees up to the next checkpoint, or count a loss."""
        if report.is_cancelled():
            raise CancelledJobError
        workers = await self._workers(client, report)
        done = len(run.history)
        rounds = min(spec.checkpoint_every or spec.rounds, spec.rounds - done)
        # Seeded by its first round: sampling must not repeat itself, and a segment that is begun again must draw the same.
        given = learning({**params, "seed": spec.seed + done}, goal)
        segment = asyncio.ensure_future(_segment(client, workers, given, material, spec.params.max_bin, rounds, run.booster, self._asked))
        try:
            booster, found = await self._watch(client, segment, workers, report)
        except _LostError as error:
            run.losses += 1
            LOG.warning("rounds %d to %d are begun again: %s", done + 1, done + rounds, error, extra={"action": "workers_lost"})
            if run.losses > self._asked.losses_max:
                raise WorkersLostError(
                    f"workers were lost, or took too long, {run.losses} times, the last time because {error}; "
                    f"{done} rounds were done: look at the workers' logs, and train again"
                ) from None
            return
        run.booster = booster
        run.workers.update(workers)
        for value in found[goal.metric]:
            run.history.append(float(value))
            if stalled(spec, goal, run.history):
                break
        if spec.checkpoint_every:
            checkpoint.save(booster, run.history)
        tell(report, spec, goal, run.history, f" on {len(workers)} workers")

    async def _watch(
        self, client: Any, segment: "asyncio.Future[tuple[xgb.Booster, dict[str, list[float]]]]", workers: Sequence[str], report: Report
    ) -> tuple[xgb.Booster, dict[str, list[float]]]:
        """Return what a segment has come to.

        :raises _LostError: when a worker is gone, or the deadline is.
        """
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._asked.deadline_s
        try:
            while True:
                await asyncio.wait({segment}, timeout=_LOOK_S)
                if segment.done():
                    return segment.result()
                if report.is_cancelled():
                    raise CancelledJobError
                if loop.time() > deadline_s:
                    raise _LostError(f"it was not done within {self._asked.deadline_s:g} s")
                if gone := sorted(set(workers) - set(await self._known(client))):
                    raise _LostError(f"{', '.join(gone)} is gone")
        except (xgb.core.XGBoostError, KilledWorker, RuntimeError, OSError) as error:
            # What a lost worker looks like to the others. A mistake of ours does too, and then ends the training after some attempts.
            raise _LostError(str(error).strip().splitlines()[0][:200] if str(error) else type(error).__name__) from None
        except asyncio.CancelledError:
            if segment.cancelled():  # by Dask, which cancels what nobody can compute any longer
                raise _LostError("the scheduler gave it up") from None
            raise
        finally:
            segment.cancel()
            await asyncio.wait({segment}, timeout=_ANSWER_S)
            if segment.done() and not segment.cancelled():
                segment.exception()

    async def _workers(self, client: Any, report: Report | None = None) -> list[str]:
        """Return the workers that answer, in a fixed order, once they are enough."""
        asked, loop = self._asked, asyncio.get_running_loop()
        deadline_s, alive = loop.time() + asked.wait_s, list[str]()
        while True:
            known = await self._known(client)
            if len(known) >= asked.workers_min:
                alive = await _answering(client, known)
                if len(alive) >= asked.workers_min:
                    return alive
            if report is not None and report.is_cancelled():
                raise CancelledJobError
            if loop.time() > deadline_s:
                raise TooFewWorkersError(
                    f"{asked.scheduler} has {len(known)} workers after {asked.wait_s:g} s, {len(alive)} of them do tasks, "
                    f"and {asked.workers_min} are wanted; "
                    f"start more with `dask worker {asked.scheduler}`, or make workers_min smaller"
                )
            await asyncio.sleep(_LOOK_S)

    async def _known(self, client: Any) -> list[str]:
        try:
            return sorted((await asyncio.wait_for(client.nthreads(), _ANSWER_S)).keys())
        except (OSError, TimeoutError) as error:
            raise self._away(error) from None

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except (OSError, TimeoutError, TypeError, ValueError) as error:  # a TypeError: tls:// without certificates
            raise self._away(error) from None

    def _client(self) -> "_Connection":
        return _Connection(self._asked.scheduler, self._named())

    def _away(self, error: Exception) -> SchedulerUnavailableError:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        return SchedulerUnavailableError(
            f"the scheduler at {self._asked.scheduler} does not answer: {reason}; start it with `dask scheduler`, or leave distributed out"
        )


class _Connection:
    """A connection to a scheduler that is named when it cannot be made."""

    def __init__(self, address: str, named: Any) -> None:
        self._client = partial(Client, address, asynchronous=True, timeout=_CONNECT_S, set_as_default=False)
        self._named = named
        self._open: Any = None

    async def __aenter__(self) -> Any:
        self._open = self._client()
        with self._named:
            try:
                await self._open
            except BaseException:
                await self._open.close()
                raise
        return self._open

    async def __aexit__(self, *_: object) -> None:
        await self._open.close()


@contextmanager
def connected(asked: Distributed) -> Iterator[Cluster]:
    """Give the cluster, which has answered.

    :raises SchedulerUnavailableError: when the scheduler does not answer.
    :raises TooFewWorkersError: when there are too few workers.
    """
    cluster = Cluster(asked)
    asyncio.run(cluster.answers())
    yield cluster


async def _answering(client: Any, workers: Sequence[str]) -> list[str]:
    """Return those that do a task: one that was cut off stays on the scheduler's list for minutes, and one that has lost another may
    wait for it in XGBoost, deaf to Dask, until `_SILENT_S` are over."""

    async def one(address: str) -> str | None:
        task = client.submit(_nothing, workers=[address], pure=False)
        try:
            await asyncio.wait_for(task.result(), _ANSWER_S)
        except (OSError, TimeoutError, KilledWorker):
            return None
        finally:
            task.release()
        return address

    return [address for address in await asyncio.gather(*(one(address) for address in workers)) if address]


async def _compare(client: Any, workers: Sequence[str], material: Material) -> None:
    """Look whether all have the same code and see the same export.

    :raises UnequalWorkersError: naming one that does not.
    :raises OSError: when one is gone.
    """
    export = material.export
    manifest = str(export.parts[0].resolve().with_name(data.MANIFEST))
    wanted = {"mev": mev.__version__, "xgboost": xgb.__version__, "export": export.manifest_sha256}
    found = await client.run(_identify, manifest, workers=list(workers), on_error="return")
    for address, answer in found.items():
        if isinstance(answer, OSError):
            raise answer
        if isinstance(answer, Exception):
            raise UnequalWorkersError(f"worker {address} cannot run mev: {answer}; install mev[train,dist] {mev.__version__} there")
        for name, value in wanted.items():
            if answer[name] != value:
                remedy = "let it see the folder under the same path" if name == "export" else f"install {name} {value} there"
                raise UnequalWorkersError(f"worker {address} has {answer[name] or 'nothing'} as {name} ({manifest}); {remedy}")


async def _segment(
    client: Any,
    workers: Sequence[str],
    params: dict[str, Any],
    material: Material,
    max_bin: int,
    rounds: int,
    booster: xgb.Booster | None,
    asked: Distributed,
) -> tuple[xgb.Booster, dict[str, list[float]]]:
    await _compare(client, workers, material)
    learned, held = shares(material)
    train = await dxgb.DaskQuantileDMatrix(client, *_arrays(client, workers, learned, material), max_bin=max_bin)
    validation = await dxgb.DaskQuantileDMatrix(client, *_arrays(client, workers, held, material), max_bin=max_bin, ref=train)
    result = await dxgb.train(
        client,
        params,
        train,
        rounds,
        evals=[(validation, "validation")],
        xgb_model=booster,
        verbose_eval=False,
        coll_cfg=collective.Config(retry=3, timeout=math.ceil(min(_SILENT_S, asked.deadline_s))),
    )
    trained: xgb.Booster = result["booster"]
    return trained, {name: list(values) for name, values in result["history"]["validation"].items()}


def shares(material: Material) -> tuple[list[Share], list[Share]]:
    """Return what is learned from and what validates, file by file."""
    export, cut = material.export, material.cut
    columns = (*material.features, material.target, data.SLOT)
    ends = np.cumsum([0, *(pq.ParquetFile(part).metadata.num_rows for part in export.parts)])
    places = [slice(int(first), int(end)) for first, end in pairwise(ends)]

    def side(keep: data.Mask, first: int | None, end: int | None) -> list[Share]:
        return [
            Share(path=str(part.resolve()), sha256=digest, columns=columns, first=first, end=end, start=0, rows=int(keep[place].sum()))
            for part, digest, place in zip(export.parts, export.part_sha256, places, strict=True)
            if keep[place].any()
        ]

    return side(cut.train, None, cut.cutoff_slot - cut.embargo_slots), side(cut.validation, cut.cutoff_slot, None)


def _arrays(client: Any, workers: Sequence[str], parts: Sequence[Share], material: Material) -> tuple[Any, Any]:
    """Return features and target, spread so that every worker has about as many rows: XGBoost moves nothing."""
    load = dict.fromkeys(workers, 0)
    blocks = []
    width = len(material.features) + 1
    most = math.ceil(sum(part.rows for part in parts) / len(workers))
    for piece in (piece for part in parts for piece in _divide(part, most)):
        address = min(load, key=lambda each: (load[each], each))
        load[address] += piece.rows
        future = client.submit(read, piece, workers=[address], pure=False)
        blocks.append(from_delayed(delayed(future), (piece.rows, width), np.float32))
    rows = concatenate(blocks)
    return rows[:, :-1], rows[:, -1]


def _divide(share: Share, most: int) -> Iterator[Share]:
    """Yield `share` in pieces of about the same size, none of more than `most` rows."""
    bounds = np.linspace(0, share.rows, math.ceil(share.rows / most) + 1).astype(int)
    for start, end in pairwise(bounds):
        yield replace(share, start=int(start), rows=int(end - start))


def read(share: Share) -> NDArray[np.float32]:
    """Return the features and, last, the target of some rows; called where they are learned from.

    :raises DamagedExportError: when the file is another one here.
    """
    content = Path(share.path).read_bytes()
    if hashlib.sha256(content).hexdigest() != share.sha256:
        raise DamagedExportError(f"{share.path} is another file on a worker than where the training was started")
    table = pq.read_table(pa.BufferReader(content), columns=list(share.columns))
    slots = data.whole_numbers(table, data.SLOT)
    keep = np.ones(len(slots), np.bool_)
    if share.first is not None:
        keep &= slots >= share.first
    if share.end is not None:
        keep &= slots < share.end
    return data.numbers(table.filter(pa.array(keep)).slice(share.start, share.rows), share.columns[:-1])


def _identify(manifest: str) -> dict[str, str | None]:
    try:
        digest = hashlib.sha256(Path(manifest).read_bytes()).hexdigest()
    except OSError:
        digest = None
    return {"mev": mev.__version__, "xgboost": xgb.__version__, "export": digest}


def _nothing() -> None:
    """Answer."""
