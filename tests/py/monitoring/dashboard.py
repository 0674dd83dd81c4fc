"""Grafana's JSON of panels.py. `python dashboard.py` says whether the file is stale, `--write` writes it."""

import json
import sys

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as c
from grafana_foundation_sdk.models import dashboard as d
from grafana_foundation_sdk.models import heatmap as h
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from panel import Panel
from panels import ANNOTATIONS, ROWS
from paths import DASHBOARD, RUNBOOKS

SOURCE = d.DataSourceRef(type_val="prometheus", uid="${datasource}")


def target(panel: Panel, n: int, expr: str, legend: str) -> prometheus.Dataquery:
    built = prometheus.Dataquery().expr(expr).ref_id("ABCDEFGH"[n]).datasource(SOURCE)
    if panel.kind == "table":
        return built.instant().format(PromQueryFormat.TABLE)
    built = built.range()
    if panel.kind == "heatmap":
        built = built.format(PromQueryFormat.HEATMAP)
    return built.legend_format(legend) if legend else built


def thresholds(panel: Panel) -> dashboard.ThresholdsConfig:
    low, high = panel.limits
    colours = ["red", "orange", "green"] if panel.low_is_bad else ["green", "orange", "red"]
    steps = [d.Threshold(value=None, color=colours[0])]
    if low != high:
        steps.append(d.Threshold(value=low, color=colours[1]))
    steps.append(d.Threshold(value=high, color=colours[2]))
    return dashboard.ThresholdsConfig().mode(d.ThresholdsMode.ABSOLUTE).steps(steps)


def graph(panel: Panel):
    built = (
        timeseries.Panel()
        .min(0)
        .line_width(1)
        .fill_opacity(40 if panel.kind == "stacked" else 8)
        .show_points(c.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(c.LegendDisplayMode.LIST)
            .placement(c.LegendPlacement.BOTTOM)
            .calcs([])
        )
        .tooltip(common.VizTooltipOptions().mode(c.TooltipDisplayMode.MULTI).sort(c.SortOrder.DESCENDING))
    )
    if panel.kind == "stacked":
        built = built.stacking(common.StackingConfig().mode(c.StackingMode.NORMAL).group("A"))
    if panel.limits:
        built = built.thresholds_style(common.GraphThresholdsStyleConfig().mode(c.GraphTresholdsStyleMode.DASHED))
    return built


def heat(panel: Panel):
    return (
        heatmap.Panel()
        .calculate(False)
        .color(
            heatmap.HeatmapColorOptions()
            .mode(h.HeatmapColorMode.SCHEME)
            .scheme("Oranges")
            .steps(64)
            .exponent(0.5)
            .fill("orange")
            .reverse(False)
        )
        .y_axis(heatmap.YAxisConfig().unit(panel.unit))
        .rows_frame(heatmap.RowsHeatmapOptions().layout(c.HeatmapCellLayout.AUTO))
        .show_tooltip()
        .show_y_histogram()
        .show_legend()
    )


def states(_: Panel):
    yes_no = d.ValueMap(
        options={
            "1": d.ValueMappingResult(text="yes", color="green", index=0),
            "0": d.ValueMappingResult(text="no", color="red", index=1),
        }
    )
    return statetimeline.Panel().mappings([yes_no]).fill_opacity(70).line_width(0).row_height(0.8)


def number(_: Panel):
    last = common.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False)
    return stat.Panel().reduce_options(last).graph_mode(c.BigValueGraphMode.AREA).color_mode(c.BigValueColorMode.VALUE)


KINDS = {
    "graph": graph,
    "stacked": graph,
    "heatmap": heat,
    "states": states,
    "stat": number,
    "table": lambda _: table.Panel().show_header(True),
}


def runbook(name: str, target_blank: bool = True) -> dashboard.DashboardLink:
    return (
        dashboard.DashboardLink(name)
        .type(d.DashboardLinkType.LINK)
        .url(f"{RUNBOOKS}{name}.md")
        .target_blank(target_blank)
    )


def panel_of(panel: Panel, number_: int):
    built = KINDS[panel.kind](panel).id(number_).title(panel.title).datasource(SOURCE)
    built = built.span(panel.width).height(panel.height).unit(panel.unit)
    if panel.says:
        built = built.description(panel.says)
    if panel.top is not None:
        built = built.max(panel.top)
    if panel.limits:
        built = built.thresholds(thresholds(panel))
    if panel.runbooks:
        built = built.links([runbook(name) for name in panel.runbooks])
    for n, (expr, legend) in enumerate(panel.queries):
        built = built.with_target(target(panel, n, expr, legend))
    return built


def variables():
    """Where targets have no such label, as outside of Kubernetes, `All` takes them too."""

    def of_label(label: str, text: str, selector: str):
        return (
            dashboard.QueryVariable(label)
            .label(text)
            .datasource(SOURCE)
            .query(f"label_values(up{{{selector}}}, {label})")
            .include_all(True)
            .all_value(".*")
            .multi(True)
            .current(d.VariableOption(selected=True, text="All", value="$__all"))
            .refresh(d.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(d.VariableSort.ALPHABETICAL_ASC)
        )

    yield dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
    yield of_label("namespace", "Namespace", 'job="tollgate"')
    yield of_label("pod", "Pod", 'job="tollgate",namespace=~"$namespace"')


def build() -> d.Dashboard:
    built = (
        dashboard.Dashboard("Tollgate")
        .uid("tollgate")
        .tags(["tollgate"])
        .timezone("browser")
        .description("Clients, tokens, events, Redis and resources of the gateway.")
        .time("now-1h", "now")
        .refresh("10s")
        .tooltip(d.DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("Runbooks")
            .type(d.DashboardLinkType.LINK)
            .icon("doc")
            .url(f"{RUNBOOKS}README.md")
            .target_blank(True)
        )
    )
    for variable in variables():
        built = built.with_variable(variable)
    for name, colour, expr in ANNOTATIONS:
        built = built.annotation(
            dashboard.AnnotationQuery().name(name).enable(True).icon_color(colour).datasource(SOURCE).expr(expr)
        )
    number_ = 0
    for title, panels in ROWS.items():
        number_ += 1
        built = built.with_row(dashboard.Row(title).id(number_))
        for panel in panels:
            number_ += 1
            built = built.with_panel(panel_of(panel, number_))
    return built.build()


def without_nulls(value):
    """Grafana's importer and the schema's reader stumble over `null`; only a threshold's first step has one."""
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None or k == "value"}
    return [without_nulls(v) for v in value] if isinstance(value, list) else value


def text() -> str:
    encoded = json.loads(JSONEncoder(sort_keys=True).encode(build()))
    return json.dumps(without_nulls(encoded), indent=1, sort_keys=True) + "\n"


def main() -> int:
    if "--write" in sys.argv:
        DASHBOARD.write_text(text())
    elif not DASHBOARD.exists() or DASHBOARD.read_text() != text():
        print(f"{DASHBOARD.name} is not what panels.py says: make monitoring-write")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
