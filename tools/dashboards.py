"""Generate the dashboards of Grafana; ``--check`` fails when the committed ones are stale.

The pages are in `dashboard_pages.py`. Every query selects by the variables job and cluster.
"""

import argparse
import sys
from pathlib import Path

from dashboard_pages import PAGES, Chart, Number, Page, Table
from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    DataTransformerConfig,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

TARGET = Path(__file__).resolve().parent.parent / "deploy/monitoring/grafana/dashboards"
_SOURCE = DataSourceRef(type_val="prometheus", uid="$datasource")
_SELECTOR = 'job=~"$job",cluster=~"$cluster"'
_WINDOW = "$__rate_interval"
_HEIGHT, _STAT_HEIGHT = 8, 4


def expand(expression: str) -> str:
    """Return an expression with the dashboard's variables."""
    return expression.replace("{{s}", "{" + _SELECTOR).replace("{w}", _WINDOW)


def build(page: Page) -> str:
    """Return a dashboard as JSON."""
    built = (
        dashboard.Dashboard(page.title)
        .uid(page.uid)
        .description(page.about)
        .tags(["mev"])
        .time("now-1h", "now")
        .refresh("30s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("MEV")
            .type(DashboardLinkType.DASHBOARDS)
            .tags(["mev"])
            .as_dropdown(True)
            .keep_time(True)
            .include_vars(True)
        )
        .annotation(
            dashboard.AnnotationQuery()
            .name("Alerts")
            .datasource(_SOURCE)
            .enable(True)
            .icon_color("red")
            .expr(f'ALERTS{{{_SELECTOR},alertstate="firing",severity="page"}}')
        )
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
        )
        .with_variable(_variable("job", "label_values(mev_native, job)"))
        .with_variable(_variable("cluster", 'label_values(mev_native{job=~"$job"}, cluster)'))
    )
    if page.has_simulated:
        built.with_variable(
            dashboard.QueryVariable("simulated")
            .label("Simulated")
            .datasource(_SOURCE)
            .query(f"label_values(mev_agent_bundles_total{{{_SELECTOR}}}, simulated)")
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(VariableSort.ALPHABETICAL_ASC)
        )
    number = 0
    for title, charts in page.rows.items():
        number += 1
        built.with_row(dashboard.Row(title).id(number))
        for chart in charts:
            number += 1
            built.with_panel(_panel(chart).id(number))
    return JSONEncoder(sort_keys=True, indent=2).encode(built.build()) + "\n"


def _variable(name: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(name.capitalize())
        .datasource(_SOURCE)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(selected=True, text="All", value="$__all"))
    )


def _panel(chart: Chart) -> timeseries.Panel | stat.Panel | table.Panel:
    built: timeseries.Panel | stat.Panel | table.Panel
    match chart:
        case Number():
            built = stat.Panel().height(_STAT_HEIGHT)
        case Table():
            built = table.Panel().height(_HEIGHT)
            built.with_transformation(DataTransformerConfig(id_val="merge", options={}))
            names = {
                f"Value #{letter}": legend
                for letter, legend in zip("ABCDEFGH", chart.queries, strict=False)
            }
            names |= {"Value": next(iter(chart.queries))}
            built.with_transformation(
                DataTransformerConfig(
                    id_val="organize",
                    options={"excludeByName": {"Time": True}, "renameByName": names},
                )
            )
        case _:
            built = timeseries.Panel().height(_HEIGHT).fill_opacity(10)
            built.legend(
                common.VizLegendOptions()
                .display_mode(LegendDisplayMode.LIST)
                .placement(LegendPlacement.BOTTOM)
                .show_legend(True)
            )
    built.title(chart.title).unit(chart.unit).span(chart.width).datasource(_SOURCE)
    if chart.about:
        built.description(chart.about)
    for letter, (legend, expression) in zip("ABCDEFGH", chart.queries.items(), strict=False):
        query = prometheus.Dataquery().expr(expand(expression)).ref_id(letter).datasource(_SOURCE)
        if isinstance(chart, Number | Table):
            query.instant()
        else:
            query.range()
        if isinstance(chart, Table):
            query.format(PromQueryFormat.TABLE)
        elif legend:
            query.legend_format(legend)
        built.with_target(query)
    return built


def main() -> None:
    """Generate, or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit 1 when a file is stale"
    )
    wanted = {f"{page.uid}.json": build(page) for page in PAGES}
    if not parser.parse_args().check:
        for old in TARGET.glob("*.json"):
            old.unlink()
        for name, text in wanted.items():
            (TARGET / name).write_text(text)
    elif {path.name: path.read_text() for path in TARGET.glob("*.json")} != wanted:
        sys.exit("deploy/monitoring/grafana/dashboards is stale: run `make dashboards`")


if __name__ == "__main__":
    main()
