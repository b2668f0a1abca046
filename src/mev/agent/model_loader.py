"""Background loading of models: one thread each, with a time limit and limited concurrency.

Of the swaps of one role only the newest is loaded; an older one in progress is answered
`rolled_back`, and its result is dropped. A swap whose manifest is not signed by an active key is
tried again from time to time: after a key rotation manifests are signed again. Runs in the event
loop.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from mev.agent.active_models import ActiveModels
from mev.agent.command_verifier import Prepared, Wanted
from mev.agent.model_source import Loaded, ModelSource
from mev.agent.refusal import FailedError, ModelLoadTimeoutError, RolledBackError
from mev.core.clock import Clock
from mev.core.errors import MevError
from mev.core.tasks import in_thread
from mev.crypto.trust import TrustStore
from mev.scoring.errors import BadManifestError, UnsignedManifestError
from mev.wire.orders import subject, version_key
from mev.wire.pb.control_pb2 import Command, SwapModel

LOG = logging.getLogger(__name__)
_LONGEST_S = 90.0
_THREADS = 4
_KEPT_REFUSALS = 64
_AGAIN_AFTER_S = 60.0
_UNSIGNED_AGAIN_AFTER_S = 30.0


@dataclass(frozen=True, slots=True)
class _Work:
    wanted: Wanted
    task: asyncio.Task[None]


class ModelLoader:
    """Loads models from `source`.

    `done` receives each result that was not superseded; `refuse` receives swaps that were
    superseded or not started.
    """

    def __init__(
        self,
        source: ModelSource,
        done: Callable[[Prepared], None],
        refuse: Callable[[Wanted, MevError], None],
        clock: Clock,
        *,
        longest_s: float = _LONGEST_S,
    ) -> None:
        self._source = source
        self._done = done
        self._refuse = refuse
        self._clock = clock
        self._longest_s = longest_s
        self._loop = asyncio.get_running_loop()
        self._work: dict[tuple[str, bool], _Work] = {}
        self._refused: OrderedDict[str, tuple[float, MevError]] = OrderedDict()
        self._unsigned: dict[str, tuple[float, Wanted]] = {}
        """By subject, the newest swap if its manifest is unsigned, and when to try it again."""
        # Permits are held by threads, not by tasks: a hanging thread counts until it ends.
        self._threads = asyncio.Semaphore(_THREADS)

    def begin(self, wanted: Wanted, trust: TrustStore) -> None:
        """Load the model of `wanted`, unless it or a newer one is in progress.

        `trust` holds the active keys.
        """
        place = (subject(wanted.command), wanted.accepted)
        current = self._work.get(place)
        if current is not None and _version(current.wanted) >= _version(wanted):
            if current.wanted.command.id != wanted.command.id:
                self._say(
                    wanted, RolledBackError(f"version {_version(current.wanted)} is being loaded")
                )
        elif (error := self._lately(wanted)) is not None:
            self._say(wanted, error)
        else:
            self._forget_unsigned(wanted.command)
            self._drop(place, f"version {_version(wanted)} came while the model was being loaded")
            task = asyncio.create_task(self._prepare(place, wanted, trust))
            self._work[place] = _Work(wanted, task)

    def try_unsigned_again(self, trust: TrustStore) -> None:
        """Load the models again whose manifests were unsigned some time ago."""
        for due_s, wanted in list(self._unsigned.values()):
            if time.monotonic() >= due_s:
                self._refused.pop(wanted.command.id, None)
                self.begin(wanted, trust)

    def overtaken(self, command: Command) -> None:
        """Cancel loading of models older than the accepted `command`."""
        self._forget_unsigned(command)
        for accepted in (False, True):
            place = (subject(command), accepted)
            current = self._work.get(place)
            if current is not None and _version(current.wanted) < version_key(command.version):
                self._drop(
                    place,
                    f"version {version_key(command.version)} was accepted while the model was "
                    "being loaded",
                )

    def close(self) -> None:
        """Cancel all tasks."""
        for work in self._work.values():
            work.task.cancel()
        self._work.clear()

    async def _prepare(self, place: tuple[str, bool], wanted: Wanted, trust: TrustStore) -> None:
        outcome = await self._outcome(wanted, trust)
        del self._work[place]
        if isinstance(outcome, MevError):
            self._note(wanted, outcome)
        self._done(Prepared(wanted, outcome, trust.epoch))

    def _forget_unsigned(self, command: Command) -> None:
        """Forget the unsigned swap that `command` repeats or supersedes."""
        _, known = self._unsigned.get(subject(command), (0.0, None))
        if known is not None and _version(known) <= version_key(command.version):
            del self._unsigned[subject(command)]

    async def _outcome(self, wanted: Wanted, trust: TrustStore) -> Loaded | MevError:
        model = wanted.command.model
        try:
            async with asyncio.timeout(self._longest_s):
                await self._threads.acquire()
                return await in_thread("model-load", partial(self._load, wanted, trust))
        except TimeoutError:
            return ModelLoadTimeoutError(
                f"{model.model_path} was not loaded within {self._longest_s:g} s"
            )
        except MevError as error:
            return error
        except Exception as error:
            LOG.exception("model %s", model.model_id, extra={"action": "model_failed"})
            return FailedError(f"{model.model_path} could not be loaded: {error!r}")

    def _load(self, wanted: Wanted, trust: TrustStore) -> Loaded:
        swap = wanted.command.model
        try:
            loaded = self._source.load(swap, trust, self._clock())
            _check(swap, loaded, self._clock)
            return loaded
        finally:
            with suppress(RuntimeError):  # the event loop has ended
                self._loop.call_soon_threadsafe(self._threads.release)

    def _drop(self, place: tuple[str, bool], why: str) -> None:
        if (work := self._work.pop(place, None)) is not None:
            work.task.cancel()
            self._refuse(work.wanted, RolledBackError(why))

    def _say(self, wanted: Wanted, error: MevError) -> None:
        """Refuse a swap; swaps of a snapshot have been answered before."""
        if not wanted.in_snapshot:
            self._refuse(wanted, error)

    def _note(self, wanted: Wanted, error: MevError) -> None:
        LOG.warning(
            "model %s: %s: %s",
            wanted.command.model.model_id,
            error.code,
            error.detail,
            extra={"action": "model_refused"},
        )
        if not wanted.accepted:
            self._refused[wanted.command.id] = (time.monotonic(), error)
            if len(self._refused) > _KEPT_REFUSALS:
                self._refused.popitem(last=False)
            if isinstance(error, UnsignedManifestError):
                due_s = time.monotonic() + _UNSIGNED_AGAIN_AFTER_S
                self._unsigned[subject(wanted.command)] = due_s, wanted

    def _lately(self, wanted: Wanted) -> MevError | None:
        """Return the recent refusal of this swap, or None: snapshots may repeat it."""
        at, error = self._refused.get(wanted.command.id, (0.0, None))
        return (
            error
            if error is not None and not wanted.accepted and time.monotonic() - at < _AGAIN_AFTER_S
            else None
        )


def _check(swap: SwapModel, loaded: Loaded, clock: Clock) -> None:
    """Check that a model can be activated and reported: later refusal is not possible."""
    if loaded.predictor.model_id != swap.model_id:
        raise BadManifestError(
            f"model {loaded.predictor.model_id} was loaded for model {swap.model_id}"
        )
    trial = ActiveModels(clock)
    trial.put(swap, loaded)
    trial.uses()


def _version(wanted: Wanted) -> tuple[int, int]:
    return version_key(wanted.command.version)
