"""A picture of the dashboard's main panels from live data: not Grafana, but the same queries and numbers."""

from datetime import datetime

import matplotlib

matplotlib.use("Agg")

import matplotlib.dates as mdates
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.ticker import EngFormatter, FuncFormatter, PercentFormatter

import schema
from panel import Panel
from panels import ANNOTATIONS, ROWS

BACK, PANEL, TEXT, FAINT = "#111217", "#181b1f", "#ccccdc", "#2c3235"
COLOURS = ["#73bf69", "#f2cc0c", "#5794f2", "#ff780a", "#f2495c", "#b877d9", "#8ab8ff", "#ffa6b0", "#96d98d", "#ffee52"]
NAMED = {"orange": "#ff9830", "red": "#f2495c", "blue": "#5794f2", "green": "#73bf69"}
# In rows of three.
SHOWN = [
    "Connections",
    "Opened",
    "Closed, by reason",
    "Refused tokens, by reason",
    "What the doctor found",
    "Do the issuers sign with our keys?",
    "Published",
    "Delivered",
    "From publication to socket",
    "Gaps declared",
    "Canary through Redis",
    "Bytes that wait in queues",
    "Memory for each connection",
    "Connections of limits.connections",
    "Draining",
]
SCALES = {
    "s": EngFormatter("s"),
    "bytes": EngFormatter("B"),
    "percentunit": PercentFormatter(1),
    "cps": EngFormatter("/s"),
    "short": EngFormatter(""),
}


def legend(template: str, labels: dict) -> str:
    for name, value in labels.items():
        template = template.replace("{{" + name + "}}", value)
    return template


class Picture:
    def __init__(self, prometheus, begin: float, end: float):
        self.prometheus, self.begin, self.end = prometheus, begin, end
        self.times = np.arange(int(begin), int(end), 2)
        self.dates = [datetime.fromtimestamp(t) for t in self.times]

    def series(self, expr: str):
        for one in self.prometheus.range(schema.concrete(expr, "10s"), self.times[0], self.times[-1], 2):
            line = np.full(len(self.times), np.nan)
            for at, value in one["values"]:
                line[round((at - self.times[0]) / 2)] = float(value)
            yield one["metric"], line

    def lines(self, axes, panel: Panel):
        found = [(legend(text, labels), line) for expr, text in panel.queries for labels, line in self.series(expr)]
        # The largest; more would not be legible.
        found = sorted(found, key=lambda f: -np.nan_to_num(f[1]).max())[:8]
        found = [one for one in found if np.nan_to_num(one[1]).max() > 0] or found[:1]
        if panel.kind == "stacked":
            axes.stackplot(
                self.dates,
                [np.nan_to_num(line) for _, line in found],
                labels=[n for n, _ in found],
                colors=COLOURS,
                alpha=0.75,
                linewidth=0,
            )
        else:
            for (name, line), colour in zip(found, COLOURS, strict=False):
                axes.plot(self.dates, line, label=name, color=colour, linewidth=1)
        axes.set_ylim(bottom=0, top=panel.top)
        axes.yaxis.set_major_formatter(SCALES[panel.unit])
        axes.legend(
            loc="upper left",
            bbox_to_anchor=(0, -0.12),
            ncols=4,
            fontsize=6.5,
            frameon=False,
            labelcolor=TEXT,
            handlelength=1,
            columnspacing=1,
        )

    def heat(self, axes, panel: Panel):
        rows = sorted(self.series(panel.queries[0][0]), key=lambda row: float(row[0]["le"]))
        counts = np.diff(np.nan_to_num(np.array([line for _, line in rows])), axis=0, prepend=0).clip(0)
        axes.imshow(
            counts,
            aspect="auto",
            origin="lower",
            cmap="inferno",
            norm=PowerNorm(0.4),
            interpolation="nearest",
            extent=(mdates.date2num(self.dates[0]), mdates.date2num(self.dates[-1]), 0, len(rows)),
        )
        axes.xaxis_date()
        name = EngFormatter("s", places=0)
        bounds = ["more" if labels["le"] == "+Inf" else name(float(labels["le"])) for labels, _ in rows]
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: bounds[int(y)] if 0 <= y < len(bounds) else ""))

    def states(self, axes, panel: Panel):
        names = []
        for n, (labels, line) in enumerate(self.series(panel.queries[0][0])):
            names.append(legend(panel.queries[0][1], labels))
            for value, colour in ((1, "green"), (0, "red")):
                axes.fill_between(
                    self.dates, n + 0.1, n + 0.9, where=line == value, color=NAMED[colour], alpha=0.7, step="post"
                )
        axes.set_yticks([n + 0.5 for n in range(len(names))], names)

    def events(self, axes):
        for _, colour, expr in ANNOTATIONS:
            for _, line in self.series(expr):
                there = ~np.isnan(line)
                for at in np.flatnonzero(there & ~np.roll(there, 1)):
                    axes.axvline(self.dates[at], color=NAMED[colour], linewidth=0.6, linestyle="--", alpha=0.6)

    def panel(self, axes, panel: Panel):
        axes.set_facecolor(PANEL)
        axes.set_title(panel.title, loc="left", fontsize=9, color=TEXT)
        {"heatmap": self.heat, "states": self.states}.get(panel.kind, self.lines)(axes, panel)
        axes.set_xlim(self.dates[0], self.dates[-1])
        axes.xaxis.set_major_locator(mdates.MinuteLocator())
        axes.xaxis.set_major_formatter(mdates.DateFormatter("%H:%M"))
        axes.tick_params(colors=TEXT, labelsize=6.5, length=0)
        for spine in axes.spines.values():
            spine.set_color(FAINT)
        if panel.kind != "heatmap":
            axes.grid(color=FAINT, linewidth=0.5)
            axes.set_axisbelow(True)
            self.events(axes)


def draw(prometheus, begin: float, end: float, path):
    panels = {panel.title: panel for row in ROWS.values() for panel in row}
    picture = Picture(prometheus, begin, end)
    figure, axes = plt.subplots(5, 3, figsize=(15, 13), facecolor=BACK)
    for one, title in zip(axes.flat, SHOWN, strict=True):
        picture.panel(one, panels[title])
    figure.suptitle("Tollgate", x=0.02, ha="left", color=TEXT, fontsize=14)
    figure.subplots_adjust(left=0.045, right=0.985, top=0.945, bottom=0.05, hspace=0.5, wspace=0.14)
    figure.savefig(path, dpi=88, facecolor=BACK)
    # Flat colours: a palette makes it a third as large.
    from PIL import Image

    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)
