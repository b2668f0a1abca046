"""Commands for tests."""

from itertools import count

from mev.wire.pb.control_pb2 import Command, Level, Report, Result, SetLevel, Target, Version

_ids = count(1)
ALL = Target(all=True)


def level_command(
    level: "Level | str",
    target: Target = ALL,
    *,
    counter: int = 0,
    until_ns: int = 0,
    epoch: int = 1,
) -> Command:
    """Return a level command with a name of its own."""
    number = next(_ids)
    version = Version(epoch=epoch, counter=counter or number)
    body = SetLevel(level=level, reason="test", until_ns=until_ns)
    return Command(id=f"c{number}", version=version, target=target, issued_at_ns=1_000, level=body)


def answer(
    command: Command, agent_id: str, result: "Result | str", *, reason_code: str = ""
) -> Report:
    """Return an agent's answer."""
    return Report(agent_id=agent_id, command_id=command.id, result=result, reason_code=reason_code)
