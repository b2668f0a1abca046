"""The result of a check."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from mev.core.text import counted


class State(StrEnum):
    """State of a finding."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One property of the machine: wanted value, effective value, cost of the difference, remedy.

    `cost` and `remedy` are empty when the state is ok or not applicable; `found` is then the
    reason why the property does not apply.
    """

    name: str
    state: State
    found: str
    wanted: str = ""
    cost: str = ""
    remedy: str = ""


def judged(
    name: str,
    *,
    good: bool,
    wanted: str,
    found: str,
    cost: str,
    remedy: str,
    otherwise: State = State.WARNING,
) -> Finding:
    """Return a finding that is ok if `good`, else has the state `otherwise`, cost and remedy."""
    if good:
        return Finding(name=name, state=State.OK, wanted=wanted, found=found)
    return Finding(name=name, state=otherwise, wanted=wanted, found=found, cost=cost, remedy=remedy)


def not_applicable(name: str, reason: str) -> Finding:
    """Return a finding of a property that this machine or configuration lacks."""
    return Finding(name=name, state=State.NOT_APPLICABLE, found=reason)


def verdict(findings: Sequence[Finding]) -> str:
    """Return one line with the number of findings in each state."""
    count = Counter(finding.state for finding in findings)
    bad = [counted(count[state], state.value) for state in (State.PROBLEM, State.WARNING)]
    return ", ".join((*bad, *(f"{count[s]} {s}" for s in (State.OK, State.NOT_APPLICABLE))))
