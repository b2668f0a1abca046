"""Distributed training on a Dask cluster.

Each worker reads its share of the Parquet files, and XGBoost aggregates the results. Training runs
in segments of some rounds, each from the booster of the one before. A segment that loses a worker
or times out is repeated with the remaining workers, so only its own rounds are lost.
"""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xgboost as xgb

from mev.core.files import write_atomically
from mev.jobs.errors import CancelledJobError
from mev.training.errors import (
    DistributedUnavailableError,
    SchedulerUnavailableError,
    TooFewWorkersError,
    WorkersLostError,
)
from mev.training.fit import CHECKPOINT, Checkpoint, Fitted, Report, fitted, learning, stalled, tell
from mev.training.rows import TrainingData
from mev.training.shares import Share, divided, read, shares
from mev.training.spec import GOALS, Distributed, Goal, TrainSpec
from mev.training.workers import check_equal

try:
    from dask.array import concatenate, from_delayed
    from dask.delayed import delayed
    from distributed import Client, KilledWorker
    from distributed.security import Security
    from xgboost import collective
    from xgboost import dask as dxgb
except ImportError:
    raise DistributedUnavailableError(
        "training on several machines needs Dask, which is not installed: "
        "`.venv/bin/pip install -e '.[dist]'`,"
        " or leave distributed out"
    ) from None

LOG = logging.getLogger(__name__)
_CONNECT_S = 10.0
_ANSWER_S = 10.0
_SILENT_S = 300.0
_LOOK_S = 0.25


@dataclass(slots=True)
class _Run:
    """Progress of a training."""

    booster: xgb.Booster | None
    history: list[float]
    losses: int = 0
    workers: set[str] = field(default_factory=set)


class _LostError(Exception):
    """The segment must be repeated."""


class DaskCluster:
    """Workers of one scheduler."""

    def __init__(self, asked: Distributed, security: Security | None) -> None:
        self._asked = asked
        self._security = security

    def fit(
        self,
        spec: TrainSpec,
        params: Mapping[str, Any],
        training_data: TrainingData,
        work: Path,
        key: str,
        report: Report,
    ) -> Fitted:
        """Train, resuming from the checkpoint in `work` if it has the same `key`.

        :raises SchedulerUnavailableError: when the scheduler stops answering.
        :raises TooFewWorkersError: when too few workers are left.
        :raises UnequalWorkersError: when a worker has other code or another export.
        :raises WorkersLostError: when workers were lost too often.
        :raises CancelledJobError: when the job was cancelled.
        """
        return asyncio.run(
            self._fit(spec, dict(params), training_data, Checkpoint(work / CHECKPOINT, key), report)
        )

    async def answers(self) -> None:
        """Connect to the scheduler and wait for the workers.

        :raises SchedulerUnavailableError: when it does not answer.
        :raises TooFewWorkersError: when there are too few.
        """
        async with self._client() as client:
            await self._workers(client)

    async def _fit(
        self,
        spec: TrainSpec,
        params: dict[str, Any],
        training_data: TrainingData,
        checkpoint: Checkpoint,
        report: Report,
    ) -> Fitted:
        goal = GOALS[spec.objective]
        run = _Run(*checkpoint.load())
        resumed_from = len(run.history) or None
        # Each worker uses the threads assigned to it.
        params = {
            name: value for name, value in params.items() if name not in {"nthread", "device"}
        }
        async with self._client() as client:
            with client.as_current():
                while len(run.history) < spec.rounds and not (
                    run.history and stalled(spec, goal, run.history)
                ):
                    await self._advance(
                        client, run, spec, goal, params, training_data, checkpoint, report
                    )
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
        training_data: TrainingData,
        checkpoint: Checkpoint,
        report: Report,
    ) -> None:
        """Grow the trees up to the next checkpoint, or count a loss."""
        if report.is_cancelled():
            raise CancelledJobError
        workers = await self._workers(client, report)
        done = len(run.history)
        rounds = min(spec.checkpoint_every or spec.rounds, spec.rounds - done)
        # Seeded by the first round, so that segments differ but a repeated one does not.
        given = learning({**params, "seed": spec.seed + done}, goal)
        segment = asyncio.ensure_future(
            _segment(
                client,
                workers,
                given,
                training_data,
                spec.params.max_bin,
                rounds,
                run.booster,
                self._asked,
            )
        )
        try:
            booster, found = await self._watch(client, segment, workers, report)
        except _LostError as error:
            run.losses += 1
            LOG.warning(
                "rounds %d to %d are begun again: %s",
                done + 1,
                done + rounds,
                error,
                extra={"action": "workers_lost"},
            )
            if run.losses > self._asked.losses_max:
                raise WorkersLostError(
                    f"workers were lost, or took too long, {run.losses} times, the last time"
                    f" because {error}; {done} rounds were done: look at the workers' logs, and"
                    " train again"
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
        self,
        client: Any,
        segment: "asyncio.Future[tuple[xgb.Booster, dict[str, list[float]]]]",
        workers: Sequence[str],
        report: Report,
    ) -> tuple[xgb.Booster, dict[str, list[float]]]:
        """Return the result of a segment.

        :raises _LostError: when a worker is lost or the deadline has passed.
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
            # A lost worker shows up as this error at the others. A bug does too, and then fails the
            # training after some attempts.
            raise _LostError(
                str(error).strip().splitlines()[0][:200] if str(error) else type(error).__name__
            ) from None
        except asyncio.CancelledError:
            if segment.cancelled():  # Dask cancels what no worker can compute
                raise _LostError("the scheduler gave it up") from None
            raise
        finally:
            segment.cancel()
            await asyncio.wait({segment}, timeout=_ANSWER_S)
            if segment.done() and not segment.cancelled():
                segment.exception()

    async def _workers(self, client: Any, report: Report | None = None) -> list[str]:
        """Return the responsive workers in a fixed order, once there are enough."""
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
                    f"{asked.scheduler} has {len(known)} workers after {asked.wait_s:g} s,"
                    f" {len(alive)} of them do tasks, and {asked.workers_min} are wanted; start"
                    f" more with `dask worker {asked.scheduler}`, or make workers_min smaller"
                )
            await asyncio.sleep(_LOOK_S)

    async def _known(self, client: Any) -> list[str]:
        try:
            return sorted((await asyncio.wait_for(client.nthreads(), _ANSWER_S)).keys())
        except (OSError, TimeoutError) as error:
            raise self._away(error) from None

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[Any]:
        """Yield a connection to the scheduler."""
        connect: Any = Client
        client = connect(
            self._asked.scheduler,
            security=self._security,
            asynchronous=True,
            timeout=_CONNECT_S,
            set_as_default=False,
        )
        try:
            try:
                await client
            except (OSError, TimeoutError, TypeError, ValueError) as error:
                # a TypeError: tls:// without certificates
                raise self._away(error) from None
            yield client
        finally:
            await client.close()

    def _away(self, error: Exception) -> SchedulerUnavailableError:
        reason = (
            str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        )
        return SchedulerUnavailableError(
            f"the scheduler at {self._asked.scheduler} does not answer: {reason}; start it with"
            " `dask scheduler`, or leave distributed out"
        )


@contextmanager
def connected(asked: Distributed, security: Security | None = None) -> Iterator[DaskCluster]:
    """Give the cluster, which has answered.

    :raises SchedulerUnavailableError: when the scheduler does not answer.
    :raises TooFewWorkersError: when there are too few workers.
    """
    cluster = DaskCluster(asked, security)
    asyncio.run(cluster.answers())
    yield cluster


@contextmanager
def secured(work: Path, tls: Mapping[str, str] | None) -> Iterator[Security | None]:
    """Yield the TLS configuration with the PEM texts ``ca``, ``cert`` and ``key``, or None.

    The texts are in files in `work` until the context ends.
    """
    files = {name: work / f"tls-{name}.pem" for name in tls or {}}
    try:
        for name, text in (tls or {}).items():
            write_atomically(files[name], text.encode(), durable=False)
        if not tls:
            yield None
            return
        ca, cert, key = (str(files[name]) for name in ("ca", "cert", "key"))
        make: Any = Security
        yield make(
            tls_ca_file=ca, tls_client_cert=cert, tls_client_key=key, require_encryption=True
        )
    finally:
        for file in files.values():
            file.unlink(missing_ok=True)


async def _answering(client: Any, workers: Sequence[str]) -> list[str]:
    """Return the workers that complete a task.

    A disconnected worker stays on the scheduler's list for minutes, and a worker that lost a peer
    may block in XGBoost for up to `_SILENT_S`.
    """

    async def one(address: str) -> str | None:
        task = client.submit(_nothing, workers=[address], pure=False)
        try:
            await asyncio.wait_for(task.result(), _ANSWER_S)
        except (OSError, TimeoutError, KilledWorker):
            return None
        finally:
            task.release()
        return address

    return [
        address
        for address in await asyncio.gather(*(one(address) for address in workers))
        if address
    ]


async def _segment(
    client: Any,
    workers: Sequence[str],
    params: dict[str, Any],
    training_data: TrainingData,
    max_bin: int,
    rounds: int,
    booster: xgb.Booster | None,
    asked: Distributed,
) -> tuple[xgb.Booster, dict[str, list[float]]]:
    await check_equal(client, workers, training_data)
    learned, held = shares(training_data)
    train = await dxgb.DaskQuantileDMatrix(
        client, *_arrays(client, workers, learned, training_data), max_bin=max_bin
    )
    validation = await dxgb.DaskQuantileDMatrix(
        client, *_arrays(client, workers, held, training_data), max_bin=max_bin, ref=train
    )
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


def _arrays(
    client: Any, workers: Sequence[str], parts: Sequence[Share], training_data: TrainingData
) -> tuple[Any, Any]:
    """Return features and target, balanced over the workers, so that XGBoost moves no data."""
    load = dict.fromkeys(workers, 0)
    blocks = []
    width = len(training_data.features) + 1
    most = math.ceil(sum(part.rows for part in parts) / len(workers))
    for piece in (piece for part in parts for piece in divided(part, most)):
        address = min(load, key=lambda each: (load[each], each))
        load[address] += piece.rows
        future = client.submit(read, piece, workers=[address], pure=False)
        blocks.append(from_delayed(delayed(future), (piece.rows, width), np.float32))
    rows = concatenate(blocks)
    return rows[:, :-1], rows[:, -1]


def _nothing() -> None:
    """Do nothing; used as a liveness check."""
