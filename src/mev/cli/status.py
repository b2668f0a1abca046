"""Command ``mev status``: the running system on one screen.

Each part is requested separately: a part that cannot be read is shown as unknown.
"""

import json as json_module
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import typer

from mev.cli.api import ApiError, ask_api, ask_pages, ask_readiness
from mev.cli.command_answers import COMMANDS, Json, about, listed
from mev.cli.tables import Id, print_table
from mev.core.errors import MevError
from mev.core.text import counted, sol

Items = list[dict[str, Any]]
_LEVELS = ("HALTED", "REDUCING", "NO_NEW", "ACTIVE")
_REPLICAS = "control-plane"
_UNDER_WAY = frozenset({"rolling_out", "watching", "ready"})
_ROWS = 20
"""Maximum number of agents and policies on the screen; those with problems come first."""
_BUNDLES = 1000
_NAMED = 5
_METRIC = re.compile(
    r"^(mev_(?:sink|tail)_lag_messages|mev_sink_retrying_blocks)(?:\{[^}]*\})? (\S+)$", re.MULTILINE
)
_MODULES = ("module", "level", "online", "held", "ends", "by", "reason")
_AGENTS = ("agent_id", "module", "state", "level", "reported", "lag_ms", "on paper", "trouble")
_POLICIES = ("policy_id", "type", "state", "acknowledged", "refused", "waiting")
_MODELS = ("module", "stage", "model", "agents", "state")
_SPARE = ("lag_ms", "by", "type", "module")
"""Columns left out in a terminal that is too narrow, the first ones first."""
_REMEDIES = {
    "min_score_without_model": (
        "deploy a model, or trade without one: `mev command config min_score 0 --module MODULE`"
    ),
    "policy_missing": "set the policy with `mev policy set`",
    "unsigned_manifest": "`mev models sign --all`",
}
"""What to do, by the reason that an agent gives."""


class SystemTroubleError(MevError):
    """The system is not ready, agents disobey or send nothing, or a part cannot be read."""

    code = "system_trouble"


def status(json: Json = False) -> None:
    """Show levels, agents, policies, models, lag and paper profit of the running system.

    Exit code 1 while the system is not ready, an online agent has not obeyed an active command or
    sends nothing although its level allows it, an offline agent has not confirmed a stop, or a part
    cannot be read. Each problem is printed with its reason and what to do.
    """
    found = gathered()
    if json:
        typer.echo(json_module.dumps(found))
    else:
        _print(found)
    if found["problems"]:
        raise SystemTroubleError("; ".join(found["problems"]))


def gathered() -> dict[str, Any]:
    """Return the status as printed by `mev status --json`."""
    found: dict[str, Any] = {"ready": False, "degraded": [], "dependencies": {}} | ask_readiness()
    problems = [] if found["ready"] else [f"not ready: {_failing(found['dependencies'])}"]

    def part(name: str, ask: Callable[[], Any]) -> Any:
        try:
            found[name] = ask()
        except ApiError as error:
            found[name] = None
            problems.append(f"{name} cannot be read: {error.detail}")
        return found[name]

    agents = part("agents", lambda: list(ask_pages("/api/control/agents")))
    orders = part("orders", lambda: list(ask_pages(COMMANDS, in_force="true")))
    part("policies", lambda: list(ask_pages("/api/control/policies")))
    deployments = part(
        "deployments",
        lambda: ask_api("GET", "/api/training/deployments", params={"limit": "100"}).json()[
            "items"
        ],
    )
    part("lag", lambda: _lag(ask_api("GET", "/metrics").text))
    part(
        "on_paper",
        lambda: _on_paper(
            ask_api(
                "GET", "/api/events/bundle", params={"simulated": "true", "limit": str(_BUNDLES)}
            ).json()
        ),
    )
    found["modules"] = _modules(agents or [], orders or [])
    found["models"] = _models(agents or [], deployments or [])
    disobeyed = part("disobeyed", lambda: _disobeyed(orders or [], agents or []))
    problems += [_problem(one) for one in disobeyed or []]
    found["problems"] = [*problems, *_held_agents(agents or [])]
    return found


def _failing(dependencies: Mapping[str, Mapping[str, Any]]) -> str:
    return ", ".join(
        f"{name} ({one['error']})"
        for name, one in dependencies.items()
        if one["required"] and not one["ok"]
    )


def _disobeyed(orders: Items, agents: Items) -> Items:
    """Return the active commands that agents refused or have not answered.

    Offline agents count only for stops: whether they obeyed is unknown.
    """
    online = {agent["agent_id"]: agent["online"] for agent in agents}
    found = []
    for order in orders:
        is_stop = order["kind"] == "level" and order["body"]["level"] != "ACTIVE"
        states = order["states" if is_stop else "states_online"]
        if not (states["ERROR"] or states["STALE"] or states["NOT_SENT"]):
            continue
        answers = ask_api("GET", f"{COMMANDS}/{order['id']}").json()["deliveries"]
        bad = {
            one["agent_id"]: _reason(one)
            for one in answers
            if (one["online"] or (is_stop and one["agent_id"] in online)) and _disobeys(one)
        }
        if bad:
            found.append({"id": order["id"], "order": about(order), "agents": bad})
    return found


def _disobeys(answer: Mapping[str, Any]) -> bool:
    # A setting that an agent lacks has no effect there, and its refusal would stay forever.
    return (
        answer["state"] != "SYNCED"
        and not answer["superseded_by"]
        and answer["reason_code"] != "unsupported_config"
    )


def _reason(answer: Mapping[str, Any]) -> dict[str, str]:
    """Return the state of an agent that disobeys, its reason, and what to do."""
    code = answer["reason_code"] or ""
    if not answer["online"]:
        return {
            "state": "OFFLINE",
            "reason": "not confirmed; its lease stops it",
            "remedy": f"start it, or `mev agents revoke {answer['agent_id']}` if it is gone",
        }
    if answer["state"] == "ERROR":
        detail = f"{code}: {answer['detail']}" if answer["detail"] else code
        return {"state": "ERROR", "reason": detail, "remedy": _REMEDIES.get(code, "")}
    reason = "sent, not answered" if answer["state"] == "STALE" else "Kafka has not taken it"
    return {"state": answer["state"], "reason": reason, "remedy": ""}


def _problem(disobeyed: Mapping[str, Any]) -> str:
    agents = disobeyed["agents"]
    states = [f"{agent_id} {one['state']} ({one['reason']})" for agent_id, one in agents.items()]
    rest = f" and {len(states) - _NAMED} more" if len(states) > _NAMED else ""
    remedies = dict.fromkeys(one["remedy"] for one in agents.values() if one["remedy"])
    return "; ".join(
        [
            f"{disobeyed['order']}: {', '.join(states[:_NAMED])}{rest}",
            *list(remedies)[:_NAMED],
            f"`mev command show {disobeyed['id']}` shows the answers",
        ]
    )


def _held_agents(agents: Items) -> list[str]:
    """Return why online agents send nothing although the ordered level allows it."""
    held: dict[tuple[str, str], list[str]] = defaultdict(list)
    for agent in agents:
        if not agent["online"]:
            continue
        if agent["stepped_down"]:
            reason = f"stepped down from {agent['ordered_level']}: {agent['stepped_down']}"
            resume = f"`mev resume --level {agent['ordered_level']}`"
            code = agent["stepped_down"].partition(":")[0]
            held[reason, _REMEDIES.get(code, resume)].append(agent["agent_id"])
        if agent["level"] == "ACTIVE" and agent["blocked_by"]:
            remedies = [_REMEDIES[name] for name in agent["blocked_by"] if name in _REMEDIES]
            remedy = ", ".join(remedies).replace("MODULE", agent["module"])
            reason = f"nothing is sent ({', '.join(agent['blocked_by'])})"
            held[reason, remedy].append(agent["agent_id"])
    return [
        f"{listed(names)}: {reason}" + (f"; {remedy}" if remedy else "")
        for (reason, remedy), names in held.items()
    ]


def _modules(agents: Items, orders: Items) -> Items:
    """Return the ordered level of each module, its issuer, and the number of agents per level."""
    levels: dict[str, dict[str, Any]] = {}
    for order in orders:  # newest first
        if order["kind"] == "level":
            levels.setdefault(_scope(order["target"]), order)
    by_module: dict[str, Items] = defaultdict(list)
    for agent in agents:
        if agent["module"] != _REPLICAS:
            by_module[agent["module"]].append(agent)
    rows = []
    for module in sorted(by_module) or ["all"]:
        ordered = [levels[scope] for scope in ("all", f"module {module}") if scope in levels]
        lowest = min(ordered, key=lambda one: _LEVELS.index(one["body"]["level"]), default=None)
        members = by_module[module]
        held = Counter(agent["level"] for agent in members if agent["online"])
        rows.append(
            {
                "module": module,
                "level": lowest["body"]["level"] if lowest else None,
                "enrolled": len(members),
                "online": sum(held.values()),
                "held": {level: held[level] for level in reversed(_LEVELS) if held[level]},
                "by": lowest["issuer"] if lowest else None,
                "reason": lowest["body"]["reason"] if lowest else None,
                "until": _iso(int(lowest["body"]["until_ns"])) if lowest else None,
            }
        )
    return rows


def _scope(target: Mapping[str, Any]) -> str:
    names = [
        *(f"module {name}" for name in target.get("modules", ())),
        *(f"agent {name}" for name in target.get("agent_ids", ())),
    ]
    return names[0] if names else "all"


def _models(agents: Items, deployments: Items) -> Items:
    """Return the models that online agents use for decisions, and the models in rollout."""
    trials = {
        (one["module"], one["model_id"]): one
        for one in reversed(deployments)
        if one["state"] in _UNDER_WAY
    }
    newest = {(one["module"], one["model_id"]): one for one in reversed(deployments)}
    deciding = Counter(
        (agent["module"], agent["model"]["id"])
        for agent in agents
        if agent["online"] and agent["model"]["id"]
    )
    rows = []
    for (module, model_id), number in deciding.items():
        deployment = newest.get((module, model_id))
        stage = deployment["stage"] if (module, model_id) in trials and deployment else "production"
        rows.append(
            _model(module, stage, model_id, number, deployment["state"] if deployment else None)
        )
    for (module, model_id), trial in trials.items():
        if (module, model_id) not in deciding:
            rows.append(_model(module, trial["stage"], model_id, None, trial["state"]))
    return sorted(rows, key=lambda row: (row["module"], row["stage"]))


def _model(
    module: str, stage: str, model_id: str, agents: int | None, state: str | None
) -> dict[str, Any]:
    return {"module": module, "stage": stage, "model": model_id, "agents": agents, "state": state}


def _lag(metrics: str) -> dict[str, int]:
    """Return the lag of the stream and of the sink, and the number of blocks being retried."""
    sums: Counter[str] = Counter()
    for name, value in _METRIC.findall(metrics):
        sums[name] += int(float(value))
    return {
        "stream_messages": sums["mev_tail_lag_messages"],
        "sink_messages": sums["mev_sink_lag_messages"],
        "sink_retrying_blocks": sums["mev_sink_retrying_blocks"],
    }


def _on_paper(page: Mapping[str, Any]) -> dict[str, Any]:
    bundles = page["items"]
    by_agent: Counter[str] = Counter()
    for bundle in bundles:
        by_agent[bundle["agent_id"]] += bundle["profit_lamports"]
    return {
        "bundles": len(bundles),
        "are_all": page["next_cursor"] is None,
        "landed": sum(bundle["landed"] for bundle in bundles),
        "profit_lamports": sum(by_agent.values()),
        "profit_lamports_by_agent": dict(by_agent),
    }


def _print(found: Mapping[str, Any]) -> None:
    degraded = f", without {', '.join(found['degraded'])}" if found["degraded"] else ""
    ready = "ready" if found["ready"] else f"NOT READY: {_failing(found['dependencies'])}"
    trouble = f", but {counted(len(found['problems']), 'problem')}" if found["problems"] else ""
    typer.echo(ready + degraded + (trouble if found["ready"] else ""))
    if (lag := found["lag"]) is not None:
        retried = (
            f", {counted(lag['sink_retrying_blocks'], 'block')} tried again"
            if lag["sink_retrying_blocks"]
            else ""
        )
        typer.echo(
            f"lag: stream {counted(lag['stream_messages'], 'message')}, sink "
            f"{counted(lag['sink_messages'], 'message')}{retried}"
        )
    if (paper := found["on_paper"]) is not None:
        bundles = ("" if paper["are_all"] else "the newest ") + counted(paper["bundles"], "bundle")
        typer.echo(
            f"on paper: {sol(paper['profit_lamports'])} by {bundles}, {paper['landed']} landed"
        )
    _print_part(_MODULES, map(_module_row, found["modules"]))
    _print_part(_AGENTS, _agent_rows(found), "mev agents list")
    _print_part(_POLICIES, _policy_rows(found["policies"] or []), "mev policy list")
    _print_part(
        _MODELS,
        (
            [_text(row[name]) if name != "model" else Id(row[name]) for name in _MODELS]
            for row in found["models"]
        ),
    )


def _print_part(
    columns: tuple[str, ...], rows: Iterable[list[object]], more: str = "mev deployments"
) -> None:
    if not (found := list(rows)):
        return
    typer.echo("")
    print_table(columns, found[:_ROWS], spare=[name for name in _SPARE if name != columns[0]])
    if len(found) > _ROWS:
        typer.echo(f"and {len(found) - _ROWS} more: `{more}`")


def _module_row(row: Mapping[str, Any]) -> list[object]:
    held = ", ".join(f"{number} {level}" for level, number in row["held"].items())
    ends = (
        f"in {_duration(datetime.fromisoformat(row['until']) - datetime.now(UTC))}"
        if row["until"]
        else ""
    )
    level, by, reason = (_text(row[name]) for name in ("level", "by", "reason"))
    return [row["module"], level, f"{row['online']} of {row['enrolled']}", held, ends, by, reason]


def _agent_rows(found: Mapping[str, Any]) -> Iterator[list[object]]:
    profits = (found["on_paper"] or {}).get("profit_lamports_by_agent", {})
    disobeying: dict[str, list[str]] = defaultdict(list)
    for order in found["disobeyed"] or []:
        for agent_id, one in order["agents"].items():
            reason = one["reason"].partition(":")[0]
            disobeying[agent_id].append(f"{one['state']}: {order['order']} ({reason})")
    rows = [(_trouble(each, disobeying[each["agent_id"]]), each) for each in found["agents"] or []]
    for trouble, agent in sorted(
        rows,
        key=lambda row: (
            not row[0],
            row[1]["online"],
            row[1]["module"] == _REPLICAS,
            row[1]["agent_id"],
        ),
    ):
        name = agent["agent_id"]
        yield [
            name,
            agent["module"],
            "online" if agent["online"] else "OFFLINE",
            _text(agent["level"]),
            _age(agent["last_seen"]),
            f"{-agent['clock_offset_ms']:.0f}" if agent["online"] else "",
            sol(profits[name]) if name in profits else "",
            trouble,
        ]


def _trouble(agent: Mapping[str, Any], disobeyed: list[str]) -> str:
    if not agent["online"]:
        return ", ".join(disobeyed)
    stepped_down = (
        [f"stepped down from {agent['ordered_level']}: {agent['stepped_down']}"]
        if agent["stepped_down"]
        else []
    )
    missing = [f"policy {name} is missing" for name in agent["missing_policies"]]
    return ", ".join([*disobeyed, *stepped_down, *missing, *agent["blocked_by"]])


def _age(moment: str | None) -> str:
    return (
        f"{_duration(datetime.now(UTC) - datetime.fromisoformat(moment))} ago"
        if moment
        else "never"
    )


def _duration(length: timedelta) -> str:
    seconds = max(0.0, length.total_seconds())
    for unit, unit_s in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds:.0f} s"


def _policy_rows(policies: Items) -> Iterator[list[object]]:
    for item in sorted(policies, key=lambda one: (one["state"] == "in_force", one["policy_id"])):
        counts = [len(item[name]) for name in ("acknowledged_by", "refused_by", "waiting_for")]
        yield [item["policy_id"], item["body"]["policy_type"], item["state"], *counts]


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _iso(ns: int) -> str | None:
    return datetime.fromtimestamp(ns / 1e9, UTC).isoformat(timespec="seconds") if ns else None
