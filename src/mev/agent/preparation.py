"""Models are loaded outside the path that obeys orders: each in a thread of its own, for a bounded time, a few at once.

Of the swaps of one role only the newest is prepared; an older one that is still loading is answered `rolled_back`, and what its thread
brings is dropped. Belongs to the event loop.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from mev.agent.clock import Clock
from mev.agent.judge import Prepared, Wanted
from mev.agent.model import Loaded, ModelSource
from mev.agent.refusal import FailedError, ModelLoadTimeoutError, RolledBackError
from mev.agent.seats import Seats
from mev.agent.thread import in_thread
from mev.core.errors import MevError
from mev.crypto.trust import TrustStore
from mev.predict.errors import BadManifestError
from mev.wire.orders import order, subject
from mev.wire.pb.control_pb2 import Command, SwapModel

LOG = logging.getLogger(__name__)
_LONGEST_S = 90.0
_THREADS = 4
_KEPT_REFUSALS = 64
_AGAIN_AFTER_S = 60.0


@dataclass(frozen=True, slots=True)
class _Work:
    wanted: Wanted
    task: asyncio.Task[None]


class Preparations:
    """Loads what is wanted from `source`; `done` hears of each that was not overtaken, `refuse` of each that was, or is not begun."""

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
        # Held by threads, not by those who wait for them: a thread that hangs stays, however often somebody asks again.
        self._threads = asyncio.Semaphore(_THREADS)

    def begin(self, wanted: Wanted, trust: TrustStore) -> None:
        """Load the model of `wanted` under the keys of `trust`, unless that or something newer is being done."""
        place = (subject(wanted.command), wanted.accepted)
        current = self._work.get(place)
        if current is not None and _version(current.wanted) >= _version(wanted):
            if current.wanted.command.id != wanted.command.id:
                self._say(wanted, RolledBackError(f"version {_version(current.wanted)} is being loaded"))
        elif (error := self._lately(wanted)) is not None:
            self._say(wanted, error)
        else:
            self._drop(place, f"version {_version(wanted)} came while the model was being loaded")
            task = asyncio.create_task(self._prepare(place, wanted, trust))
            self._work[place] = _Work(wanted, task)

    def overtaken(self, command: Command) -> None:
        """Note that `command` is in force: what is older need not be loaded any more."""
        for accepted in (False, True):
            place = (subject(command), accepted)
            current = self._work.get(place)
            if current is not None and _version(current.wanted) < order(command.version):
                self._drop(place, f"version {order(command.version)} was accepted while the model was being loaded")

    def close(self) -> None:
        """Wait for nothing any more."""
        for work in self._work.values():
            work.task.cancel()
        self._work.clear()

    async def _prepare(self, place: tuple[str, bool], wanted: Wanted, trust: TrustStore) -> None:
        outcome = await self._outcome(wanted, trust)
        del self._work[place]
        if isinstance(outcome, MevError):
            self._note(wanted, outcome)
        self._done(Prepared(wanted, outcome, trust.epoch))

    async def _outcome(self, wanted: Wanted, trust: TrustStore) -> Loaded | MevError:
        model = wanted.command.model
        try:
            async with asyncio.timeout(self._longest_s):
                await self._threads.acquire()
                return await in_thread("model-load", partial(self._load, wanted, trust))
        except TimeoutError:
            return ModelLoadTimeoutError(f"{model.model_path} was not loaded within {self._longest_s:g} s")
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
            with suppress(RuntimeError):  # the event loop has ended: nobody waits any more
                self._loop.call_soon_threadsafe(self._threads.release)

    def _drop(self, place: tuple[str, bool], why: str) -> None:
        if (work := self._work.pop(place, None)) is not None:
            work.task.cancel()
            self._refuse(work.wanted, RolledBackError(why))

    def _say(self, wanted: Wanted, error: MevError) -> None:
        """Refuse what somebody sent; a snapshot only repeats what was answered before."""
        if not wanted.in_snapshot:
            self._refuse(wanted, error)

    def _note(self, wanted: Wanted, error: MevError) -> None:
        LOG.warning("model %s: %s: %s", wanted.command.model.model_id, error.code, error.detail, extra={"action": "model_refused"})
        if not wanted.accepted:
            self._refused[wanted.command.id] = (time.monotonic(), error)
            if len(self._refused) > _KEPT_REFUSALS:
                self._refused.popitem(last=False)

    def _lately(self, wanted: Wanted) -> MevError | None:
        """Return why this swap was refused a moment ago: snapshots may bring it again and again."""
        at, error = self._refused.get(wanted.command.id, (0.0, None))
        return error if error is not None and not wanted.accepted and time.monotonic() - at < _AGAIN_AFTER_S else None


def _check(swap: SwapModel, loaded: Loaded, clock: Clock) -> None:
    """Check that a model will sit in its place and can be reported: after the order was accepted it is too late to refuse."""
    if loaded.predictor.model_id != swap.model_id:
        raise BadManifestError(f"model {loaded.predictor.model_id} was loaded for model {swap.model_id}")
    trial = Seats(clock)
    trial.put(swap, loaded)
    trial.uses()


def _version(wanted: Wanted) -> tuple[int, int]:
    return order(wanted.command.version)
