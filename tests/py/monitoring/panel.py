"""A panel of the dashboard as data, and what its queries are made of.

In expressions `{~}` stands for the selector of the dashboard's variables, `{k}` for that of the figures
which Kubernetes has about the gateway's containers, and `{relay}` for that of relays, which are no pods of the
variable's.
"""

from dataclasses import dataclass, field

SELECTOR = 'job="tollgate",namespace=~"$namespace",pod=~"$pod"'
CONTAINER = 'container="tollgate",namespace=~"$namespace",pod=~"$pod"'
RELAY = 'job="tollgate-relay",namespace=~"$namespace"'
RATE = "$__rate_interval"


def query(text: str) -> str:
    return text.replace("{~", "{" + SELECTOR).replace("{k", "{" + CONTAINER).replace("{relay", "{" + RELAY)


@dataclass
class Panel:
    title: str
    # Pairs of expression and legend.
    queries: list[tuple[str, str]]
    kind: str = "graph"  # graph | stacked | heatmap | stat | states | table
    unit: str = "short"
    width: int = 8
    height: int = 8
    says: str = ""
    # Names of alerts, whose runbooks are linked.
    runbooks: list[str] = field(default_factory=list)
    # From that value on it is yellow, and red.
    limits: tuple[float, float] | None = None
    # The least is what is bad.
    low_is_bad: bool = False
    top: float | None = None

    def __post_init__(self):
        self.queries = [(query(expr), legend) for expr, legend in self.queries]


def rate(metric: str, by: str = "", labels: str = "") -> str:
    by = f" by ({by})" if by else ""
    return f"sum{by} (rate({metric}{{~{labels}}}[{RATE}]))"


def quantile(q: float, metric: str, by: str = "") -> str:
    by = f"{by}, " if by else ""
    return f"histogram_quantile({q}, sum by ({by}le) (rate({metric}_bucket{{~}}[{RATE}])))"


def quantiles(metric: str) -> list[tuple[str, str]]:
    return [(quantile(q, metric), f"{q:.0%}") for q in (0.5, 0.9, 0.99)]


def stat(title: str, expr: str, **more) -> Panel:
    return Panel(title, [(expr, "")], kind="stat", width=3, height=4, **more)
