"""The dashboards: their panels and queries.

In an expression, `{s}` is the selector of the dashboard's job and cluster, and `{w}` the window
that fits the chosen time range.
"""

from collections.abc import Mapping
from dataclasses import dataclass

_SOL = "1e9"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A panel of curves; `queries` are expressions by the legend of their curves."""

    title: str
    queries: Mapping[str, str]
    unit: str = "short"
    width: int = 8
    about: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Number(Chart):
    """A panel of single values."""

    width: int = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Table(Chart):
    """A panel with a row for each combination of labels, and a column for each query."""

    width: int = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A dashboard: rows of panels by title."""

    uid: str
    title: str
    about: str
    rows: Mapping[str, list[Chart]]
    has_simulated: bool = False


def rate(metric: str, by: str, labels: str = "") -> str:
    """Return events per second."""
    return f"sum by ({by}) (rate({metric}{{{{s}}{labels}}}[{{w}}]))"


def quantile(share: float, metric: str, by: str = "", labels: str = "") -> str:
    """Return a quantile of a histogram."""
    groups = f"le, {by}" if by else "le"
    return f"histogram_quantile({share:g}, {rate(f'{metric}_bucket', groups, labels)})"


def quantiles(metric: str, labels: str = "") -> dict[str, str]:
    """Return curves of three quantiles."""
    return {f"p{share * 100:g}": quantile(share, metric, "", labels) for share in (0.5, 0.9, 0.99)}


def trades(metric: str, by: str, window: str = "") -> str:
    """Return the increase of a figure of trades in a window, or its rate an hour.

    Every replica counts all trades: the maximum over them, not their sum.
    """
    series = f'mev_{by}_{metric}_total{{{{s}},simulated="$simulated"}}'
    inner = f"increase({series}[{window}])" if window else f"3600 * rate({series}[{{w}}])"
    return f"sum by ({by}) (max by (job, cluster, {by}) ({inner}))"


def profit(by: str, window: str = "") -> str:
    """Return the profit less the loss in SOL."""
    gains = trades("profit_lamports", by, window)
    return f"({gains} - {trades('loss_lamports', by, window)}) / {_SOL}"


def landed_share(by: str, window: str = "") -> str:
    """Return the share of the bundles that landed."""
    return f"{trades('bundles_landed', by, window)} / ({trades('bundles', by, window)} > 0)"


def total(expression: str) -> str:
    """Return the sum of all curves."""
    return f"sum({expression})"


def or_zero(expression: str) -> str:
    """Return an expression whose series begin with their first event, and 0 before it."""
    return f"{expression} or vector(0)"


PERFORMANCE = Page(
    uid="mev-performance",
    title="MEV: real-time performance",
    about="Rates and latencies of requests, publishing and streams.",
    rows={
        "HTTP": [
            Chart(
                title="Requests by status",
                queries={"{{status}}": rate("mev_http_requests_total", "status")},
                unit="reqps",
            ),
            Chart(title="Time to answer", queries=quantiles("mev_http_seconds"), unit="s"),
            Chart(
                title="Slowest routes, p99",
                queries={"{{route}}": f"topk(10, {quantile(0.99, 'mev_http_seconds', 'route')})"},
                unit="s",
            ),
        ],
        "Ingest and publishing": [
            Chart(
                title="Events of POST /api/events/{type}",
                queries={
                    "accepted {{type}}": rate("mev_ingest_events_total", "type"),
                    "refused {{type}}": rate("mev_ingest_rejected_total", "type"),
                },
                unit="cps",
            ),
            Chart(
                title="Time to the brokers' acknowledgement",
                queries=quantiles("mev_publish_seconds"),
                unit="s",
            ),
            Chart(
                title="Messages not acknowledged",
                queries={"{{topic}}": rate("mev_publish_failed_total", "topic")},
                unit="cps",
            ),
        ],
        "Streams": [
            Chart(
                title="Connections",
                queries={
                    "{{transport}} {{encoding}}": or_zero(
                        "sum by (transport, encoding) (mev_realtime_connections{{s}})"
                    )
                },
            ),
            Chart(
                title="From publishing to the hub",
                queries=quantiles("mev_realtime_stage_seconds", ',stage="receive"'),
                unit="s",
            ),
            Chart(
                title="In the hub and in queues, p99",
                queries={"{{stage}}": quantile(0.99, "mev_realtime_stage_seconds", "stage")},
                unit="s",
                about="flush: until the frame is made; queue: until a slow client took it.",
            ),
            Chart(
                title="Events handed to clients",
                queries={
                    "{{transport}}": or_zero(rate("mev_realtime_events_sent_total", "transport"))
                },
                unit="cps",
            ),
            Chart(
                title="Bytes handed to clients",
                queries={
                    "{{transport}}": or_zero(rate("mev_realtime_bytes_sent_total", "transport"))
                },
                unit="Bps",
            ),
            Chart(
                title="Events that clients lost",
                queries={
                    "{{policy}}": or_zero(rate("mev_realtime_events_dropped_total", "policy"))
                },
                unit="cps",
            ),
        ],
    },
)
SYSTEM = Page(
    uid="mev-system",
    title="MEV: system health",
    about="Processes, dependencies and limits.",
    rows={
        "State": [
            Number(title="Targets that answer", queries={"": "sum(up{{s}})"}),
            Number(
                title="Dependencies that do not answer",
                queries={"": "count(mev_dependency_up{{s}} == 0) or vector(0)"},
            ),
            Number(
                title="Restarts of child processes",
                queries={"": "sum(increase(mev_child_restarts_total{{s}}[$__range]))"},
            ),
            Number(
                title="Running since",
                queries={
                    "{{instance}}": "1000 * min by (instance) (process_start_time_seconds{{s}})"
                },
                unit="dateTimeFromNow",
            ),
            Chart(
                title="Dependencies (1: answers)",
                queries={
                    "{{instance}} {{dependency}}": (
                        "min by (instance, dependency) (mev_dependency_up{{s}})"
                    )
                },
                width=12,
            ),
            Chart(
                title="Native module (1: used)",
                queries={"{{instance}} {{worker}}": "mev_native{{s}}"},
                width=12,
            ),
        ],
        "Processes": [
            Chart(
                title="Processors used",
                queries={
                    "{{instance}} {{worker}}": rate("process_cpu_seconds_total", "instance, worker")
                },
            ),
            Chart(
                title="Resident memory",
                queries={"{{instance}} {{worker}}": "process_resident_memory_bytes{{s}}"},
                unit="bytes",
            ),
            Chart(
                title="File descriptors used",
                queries={"{{instance}} {{worker}}": "process_open_fds{{s}} / process_max_fds{{s}}"},
                unit="percentunit",
            ),
            Chart(
                title="How late the event loop is",
                queries=quantiles("mev_event_loop_lag_seconds"),
                unit="s",
            ),
            Chart(
                title="Time in the garbage collector",
                queries={
                    "generation {{generation}}": rate("mev_gc_pause_seconds_sum", "generation")
                },
                unit="percentunit",
            ),
            Chart(
                title="Restarts",
                queries={
                    "{{child}}": "sum by (child) (increase(mev_child_restarts_total{{s}}[{w}]))"
                },
            ),
        ],
        "Load and access": [
            Chart(
                title="Requests refused under load",
                queries={"{{reason}}": rate("mev_shed_requests_total", "reason")},
                unit="reqps",
            ),
            Chart(
                title="Connections closed by a limit",
                queries={
                    "{{reason}}": or_zero(rate("mev_http_connections_refused_total", "reason"))
                },
                unit="cps",
            ),
            Chart(
                title="Logins",
                queries={"{{outcome}}": or_zero(rate("mev_auth_logins_total", "outcome"))},
                unit="cps",
                width=4,
            ),
            Chart(
                title="Log records left out",
                queries={"{{logger}}": or_zero(rate("mev_log_left_out_total", "logger"))},
                unit="cps",
                width=4,
            ),
        ],
    },
)
BUSINESS = Page(
    uid="mev-business",
    title="MEV: profit, landed share and tips",
    about=(
        "Bundles of agents, as stored. Profit is after fees and tips. A bundle through two venues"
        " counts in full for both. Simulated bundles are never in one sum with others."
    ),
    has_simulated=True,
    rows={
        "In the time range": [
            Number(
                title="Profit", queries={"": total(profit("agent", "$__range"))}, unit="suffix: SOL"
            ),
            Number(
                title="Tips",
                queries={"": f"{total(trades('tip_lamports', 'agent', '$__range'))} / {_SOL}"},
                unit="suffix: SOL",
            ),
            Number(title="Bundles", queries={"": total(trades("bundles", "agent", "$__range"))}),
            Number(
                title="Landed share",
                queries={
                    "": (
                        f"{total(trades('bundles_landed', 'agent', '$__range'))} / "
                        f"({total(trades('bundles', 'agent', '$__range'))} > 0)"
                    )
                },
                unit="percentunit",
            ),
        ],
        **{
            title: [
                Chart(
                    title=f"Profit an hour by {by}",
                    queries={f"{{{{{by}}}}}": f"topk(10, {profit(by)})"},
                    unit="suffix: SOL",
                ),
                Chart(
                    title=f"Landed share by {by}",
                    queries={f"{{{{{by}}}}}": landed_share(by)},
                    unit="percentunit",
                ),
                Chart(
                    title=f"Tips an hour by {by}",
                    queries={f"{{{{{by}}}}}": f"topk(10, {trades('tip_lamports', by)}) / {_SOL}"},
                    unit="suffix: SOL",
                ),
                Table(
                    title=f"Totals by {by}",
                    queries={
                        "bundles": trades("bundles", by, "$__range"),
                        "landed share": landed_share(by, "$__range"),
                        "profit (SOL)": profit(by, "$__range"),
                        "tips (SOL)": f"{trades('tip_lamports', by, '$__range')} / {_SOL}",
                    },
                ),
            ]
            for title, by in (("Bots", "agent"), ("Venues", "venue"))
        },
    },
)
ALERTS = Page(
    uid="mev-alerts",
    title="MEV: alert status",
    about="Alerts and objectives; docs/runbook.md says what to do.",
    rows={
        "Alerts": [
            Number(
                title="Firing: act now",
                queries={
                    "": or_zero('count(ALERTS{{s},alertstate="firing",severity="page"})'),
                },
                width=8,
            ),
            Number(
                title="Firing: within working hours",
                queries={
                    "": or_zero('count(ALERTS{{s},alertstate="firing",severity="ticket"})'),
                },
                width=8,
            ),
            Number(
                title="Pending",
                queries={"": or_zero('count(ALERTS{{s},alertstate="pending"})')},
                width=8,
            ),
            Table(
                title="Firing and pending alerts",
                queries={
                    "number": (
                        "count by (alertname, alertstate, severity, cluster, job) "
                        '(ALERTS{{s},alertname=~"Mev.*"}) '
                        'or label_replace(vector(0), "alertname", "none", "", "")'
                    )
                },
            ),
            Chart(
                title="Alerts over time",
                queries={
                    "{{alertname}}": or_zero(
                        'count by (alertname) (ALERTS{{s},alertstate="firing"})'
                    )
                },
                width=24,
            ),
        ],
        "Objectives": [
            Chart(
                title="Burn rate, 5 minutes",
                queries={"{{slo}}": "max by (slo) (mev:slo_burn:ratio5m{{s}})"},
                about="1 uses up the error budget in 30 days; 14.4 for an hour fires.",
            ),
            Chart(
                title="Burn rate, 1 hour",
                queries={"{{slo}}": "max by (slo) (mev:slo_burn:ratio1h{{s}})"},
            ),
            Chart(
                title="Burn rate, 3 days",
                queries={"{{slo}}": "max by (slo) (mev:slo_burn:ratio3d{{s}})"},
            ),
            Chart(
                title="Events of the last hour",
                queries={"{{slo}}": "sum by (slo) (mev:slo_events:increase1h{{s}})"},
                width=12,
            ),
            Chart(
                title="Errors of the last hour",
                queries={"{{slo}}": "sum by (slo) (mev:slo_errors:increase1h{{s}})"},
                width=12,
            ),
        ],
    },
)
KAFKA = Page(
    uid="mev-kafka",
    title="MEV: Kafka and sink",
    about="The path of events from Kafka to ClickHouse and to the streams.",
    rows={
        "Kafka": [
            Chart(
                title="Messages published",
                queries={"{{topic}}": rate("mev_publish_messages_total", "topic")},
                unit="cps",
            ),
            Chart(
                title="Messages read for streams and control",
                queries={"{{topic}}": rate("mev_tail_messages_total", "topic")},
                unit="cps",
            ),
            Chart(
                title="Messages not read yet",
                queries={"{{topic}}": "sum by (topic) (mev_tail_lag_messages{{s}})"},
            ),
        ],
        "Sink": [
            Chart(
                title="Rows stored",
                queries={"{{topic}}": rate("mev_sink_rows_total", "topic")},
                unit="cps",
            ),
            Chart(
                title="Messages not stored yet",
                queries={"{{topic}}": "sum by (topic) (mev_sink_lag_messages{{s}})"},
            ),
            Chart(
                title="Age of the oldest waiting event",
                queries={"{{instance}}": "max by (instance) (mev_sink_oldest_seconds{{s}})"},
                unit="s",
            ),
            Chart(
                title="Time to insert a block",
                queries=quantiles("mev_sink_insert_seconds"),
                unit="s",
            ),
            Chart(
                title="Blocks that ClickHouse refuses now",
                queries={"{{instance}}": "sum by (instance) (mev_sink_retrying_blocks{{s}})"},
            ),
            Chart(
                title="Since the last stored block",
                queries={
                    "{{instance}}": (
                        "time() - max by (instance) (mev_sink_stored_timestamp_seconds{{s}})"
                    )
                },
                unit="s",
            ),
        ],
        "Faults": [
            Chart(
                title="Messages lost before they were stored",
                queries={"{{topic}}": "sum by (topic) (increase(mev_sink_lost_total{{s}}[{w}]))"},
            ),
            Chart(
                title="Dead letters",
                queries={
                    "{{topic}}": "sum by (topic) (increase(mev_sink_dead_letters_total{{s}}[{w}]))"
                },
            ),
            Chart(
                title="Stalled Kafka clients",
                queries={
                    "sink": "sum(increase(mev_sink_stalls_total{{s}}[{w}]))",
                    "streams and control": "sum(increase(mev_tail_stalls_total{{s}}[{w}]))",
                },
            ),
        ],
    },
)
FLEET = Page(
    uid="mev-fleet",
    title="MEV: fleet and control",
    about="Agents, commands, deployments and the audit trail.",
    rows={
        "Agents": [
            Chart(
                title="Agents",
                queries={
                    f"{{{{module}}}} {state}": (
                        f"max by (job, cluster, module) (mev_agents_{state}{{{{s}}}})"
                    )
                    for state in ("enrolled", "online", "stepped_down")
                },
                width=12,
            ),
            Chart(
                title="Agents by level",
                queries={
                    "{{module}} {{level}}": (
                        "max by (job, cluster, module, level) (mev_agents_level{{s}})"
                    )
                },
                width=12,
            ),
        ],
        "Commands": [
            Chart(
                title="Answers of agents",
                queries={"{{result}}": rate("mev_command_answer_seconds_count", "result")},
                unit="cps",
            ),
            Chart(
                title="From acceptance to an agent's answer",
                queries={
                    f"p{share * 100:g}": (
                        f"histogram_quantile({share}, sum by (le) "
                        "(mev_command_answer_seconds_bucket{{s}}))"
                    )
                    for share in (0.5, 0.99)
                },
                unit="s",
                about="Since the start of the process: commands are rare.",
            ),
            Chart(
                title="Commands that wait for an approval",
                queries={"{{instance}}": "max by (instance) (mev_control_proposals{{s}})"},
            ),
            Chart(
                title="Messages of control and reports",
                queries={
                    "{{topic}}": rate(
                        "mev_tail_messages_total", "topic", ',topic=~"mev.(control|report).v1"'
                    )
                },
                unit="cps",
            ),
            Chart(
                title="Messages refused",
                queries={"{{instance}}": rate("mev_control_messages_refused_total", "instance")},
                unit="cps",
            ),
            Chart(
                title="Deployments",
                queries={
                    "rolled back": "sum(increase(mev_deployment_rollbacks_total{{s}}[{w}]))",
                    "rollbacks refused": (
                        "sum(increase(mev_deployment_rollback_refusals_total{{s}}[{w}]))"
                    ),
                },
            ),
        ],
        "Audit trail": [
            Chart(
                title="Records written",
                queries={"{{instance}}": rate("mev_audit_records_total", "instance")},
                unit="cps",
            ),
            Chart(
                title="Waiting",
                queries={
                    "not in ClickHouse yet": "sum(mev_audit_copy_lag_records{{s}})",
                    "cannot be written": "sum(mev_audit_spooled{{s}})",
                    "control journal": "sum(mev_control_unkept{{s}})",
                },
            ),
            Chart(
                title="Refused",
                queries={"{{instance}}": rate("mev_audit_failed_total", "instance")},
                unit="cps",
            ),
        ],
    },
)
PAGES = (PERFORMANCE, SYSTEM, BUSINESS, ALERTS, KAFKA, FLEET)
