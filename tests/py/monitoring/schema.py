"""What the dashboard's JSON says that Grafana's schema does not know, and what its queries are."""

import json
import re

import promql_parser
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

VARIABLES = {"$__rate_interval": "1m", "$__interval": "15s", "$__range": "1h", "$namespace": ".*", "$pod": ".*"}


def lost(before, after, path="dashboard") -> list[str]:
    """Keys and values of `before` that did not survive."""
    if isinstance(before, dict) and isinstance(after, dict):
        found = []
        for key, value in before.items():
            at = f"{path}.{key}"
            found += lost(value, after[key], at) if key in after else [at]
        return found
    if isinstance(before, list) and isinstance(after, list):
        if len(before) != len(after):
            return [path]
        return [one for n, (b, a) in enumerate(zip(before, after, strict=True)) for one in lost(b, a, f"{path}[{n}]")]
    return [] if before == after else [path]


def unknown(raw: dict) -> list[str]:
    plugins.register_default_plugins()
    again = json.loads(JSONEncoder().encode(Dashboard.from_json(raw)))
    return lost(raw, again)


def panels(raw: dict):
    for panel in raw["panels"]:
        yield panel
        yield from panel.get("panels", [])


def expressions(raw: dict) -> list[tuple[str, str]]:
    """Every query: where it stands, and the query."""
    found = [(f"{p['title']} {t['refId']}", t["expr"]) for p in panels(raw) for t in p.get("targets", [])]
    return found + [(f"annotation {a['name']}", a["expr"]) for a in raw["annotations"]["list"]]


def concrete(expr: str, interval: str = "1m") -> str:
    for name, value in {**VARIABLES, "$__rate_interval": interval}.items():
        expr = expr.replace(name, value)
    left = re.search(r"\$\w+", expr)
    if left:
        raise ValueError(f"unknown variable {left.group()}")
    return expr


def unparsable(raw: dict) -> list[str]:
    found = []
    for where, expr in expressions(raw):
        try:
            promql_parser.parse(concrete(expr))
        except ValueError as error:
            found.append(f"{where}: {error}")
    return found
