"""Levels ordered by several replicas at once: whatever order they get in the topic, the lowest of them stays.

A replica orders by what it has read. What it had not read yet, another one's stop above all, may be undone by its order, or may make
agents refuse its order as older. So a replica that reads its own order back looks at what came between, and orders the lowest again
where the agents now hold a higher one.
"""

from collections.abc import Iterable

from mev.wire.orders import order, scopes
from mev.wire.pb.control_pb2 import Command

_MAX_UNDER_WAY = 1000


class Races:
    """Levels of our own that are not read back yet, each with those of others that were read meanwhile."""

    def __init__(self) -> None:
        self._under_way: dict[str, list[Command]] = {}

    def begin(self, command: Command) -> None:
        """Note a level that is about to be published."""
        if command.WhichOneof("body") == "level" and len(self._under_way) < _MAX_UNDER_WAY:
            self._under_way[command.id] = []

    def read(self, command: Command, *, is_new: bool) -> Command | None:
        """Take a level as the topic has it, and return what has to be ordered again, if anything."""
        rivals = self._under_way.pop(command.id, None)
        if rivals is not None:
            return undone(command, rivals)
        if is_new:
            for others in self._under_way.values():
                others.append(command)
        return None


def undone(command: Command, rivals: Iterable[Command]) -> Command | None:
    """Return the lowest of levels for one scope that were ordered at once, unless it is what agents hold: the one of the newest version."""
    ours = set(scopes(command.target))
    contenders = [command, *(rival for rival in rivals if ours.intersection(scopes(rival.target)))]
    lowest = min(contenders, key=lambda one: one.level.level)
    held = max(contenders, key=lambda one: order(one.version))
    return lowest if lowest.level.level < held.level.level else None
