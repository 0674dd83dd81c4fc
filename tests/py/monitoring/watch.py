"""What Prometheus says: alerts, rules, and whether every query of the dashboard has an answer."""

import json
import math
import re
import urllib.parse

import schema
from paths import ALERTS, DASHBOARD
from support.net import get

# Queries that rightly have no result here, and why. The key is a part of the query.
EMPTY = {
    "container_memory_working_set_bytes": "cAdvisor and kube-state-metrics: only in Kubernetes",
    "tollgate_redis_sentinels_reached": "only with Sentinel; this Redis is a single one",
}
# Queries whose values rightly are all zero here.
ZERO = {
    "tollgate_revocations_unusable": "nobody writes an entry that cannot be used",
    "tollgate_log_lines_dropped_total": "the logs of these gateways can be written",
    "tollgate_relay_repeated_total": "a row comes twice only if its relay ends between its publication and its mark",
    "tollgate_duplicates_dropped_total": "an event comes twice only beside a reading of its history, in a race",
}
LAPSE = 20
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def time_lapse(text: str) -> str:
    """The rules with every duration a twentieth of what it is, so that an hour passes in three minutes; counts stay."""

    def shorter(found: re.Match) -> str:
        seconds = int(found[2]) * UNITS[found[3]] / LAPSE
        return f"{found[1]}{max(1, round(seconds))}s"

    text = re.sub(r"(\[|\[\d+[smhd]:|offset |for: )(\d+)([smhd])\b", shorter, text)
    text = re.sub(r"(\[\d+s:)(\d+)([smhd])\b", shorter, text)
    text = re.sub(r"labels: \{ ", 'labels: { lapse: "yes", ', text)
    return re.sub(r"- name: (\S+)", r"- name: \1-lapse", text)


class Prometheus:
    def __init__(self, url: str):
        self.url = url

    def ask(self, path: str, **args):
        status, answer = get(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(args)}")
        if status != 200:
            raise ValueError(answer[:300])
        return json.loads(answer)["data"]

    def query(self, expr: str) -> list:
        return self.ask("query", query=expr)["result"]

    def range(self, expr: str, begin: float, end: float, step: int = 1) -> list:
        return self.ask("query_range", query=expr, start=begin, end=end, step=step)["result"]

    def alerts(self, state: str, lapse: bool | None, begin: float, end: float, labels: str = "") -> dict[str, float]:
        """Alerts that were in that state between two moments, and for how many seconds at most."""
        selector = {None: "", True: ',lapse="yes"', False: ',lapse=""'}[lapse]
        found: dict[str, float] = {}
        for series in self.range(f'ALERTS{{alertstate="{state}"{selector}{labels}}}', begin, end):
            name = series["metric"]["alertname"]
            found[name] = max(found.get(name, 0), len(series["values"]))
        return found

    def unhealthy(self) -> list[str]:
        rules = [rule for group in self.ask("rules")["groups"] for rule in group["rules"]]
        expected = 2 * ALERTS.read_text().count("- alert:")
        found = [f"rule {r['name']}: {r['health']} {r.get('lastError', '')}" for r in rules if r["health"] != "ok"]
        return found + ([] if len(rules) == expected else [f"{len(rules)} rules are loaded, and {expected} written"])


def listed(table: dict[str, str], expr: str) -> bool:
    return any(part in expr for part in table)


def values(result: list) -> list[float]:
    return [v for v in (float(v) for series in result for _, v in series["values"]) if math.isfinite(v)]


def dashboard(prometheus: Prometheus, begin: float, end: float) -> list[str]:
    """Runs every query over the whole time."""
    wrong, used = [], set()
    for where, expr in schema.expressions(json.loads(DASHBOARD.read_text())):
        used |= {part for part in {**EMPTY, **ZERO} if part in expr}
        try:
            found = values(prometheus.range(schema.concrete(expr, "10s"), begin, end, 2))
        except ValueError as error:
            wrong.append(f"{where}: {error}")
            continue
        if not found and not listed(EMPTY, expr):
            wrong.append(f"{where}: no result for {expr}")
        elif found and listed(EMPTY, expr):
            wrong.append(f"{where}: has a result, so EMPTY need not list it")
        elif found and not any(found) and not listed(ZERO, expr):
            wrong.append(f"{where}: only zeros for {expr}")
    return wrong + [
        f"no query has {part}: take it out of EMPTY or ZERO" for part in {**EMPTY, **ZERO} if part not in used
    ]
