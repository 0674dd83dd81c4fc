"""Everything about alerts, runbooks and dashboard that needs no gateway. Exit code 1 lists what is wrong.

`--write` writes what is generated: the dashboard's JSON, the tables in docs/runbooks/README.md and docs/monitoring.md.
"""

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import yaml

import dashboard
import schema
from paths import ALERTS, DASHBOARD, GUIDE, ROOT, RULE_TESTS, RUNBOOKS

HEADINGS = ["What it means", "How to confirm", "What to do"]


def rules(text: str) -> list[dict]:
    return [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


def run(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return [f"{' '.join(command[:3])}:\n{done.stdout}{done.stderr}"] if done.returncode else []


def promtool() -> list[str]:
    # The longest first, so that no processor waits for another at the end.
    tests = [str(path) for path in sorted(RULE_TESTS.glob("*.yaml"), key=lambda path: -path.stat().st_size)]
    checks = [("promtool", "check", "rules", "--lint=all", "--lint-fatal", str(ALERTS))]
    checks += [("promtool", "test", "rules", test) for test in tests]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [wrong for found in pool.map(lambda check: run(*check), checks) for wrong in found]


def annotated(alerts: list[dict]) -> list[str]:
    """Whether each alert says what a person who is woken needs."""
    found = []
    for rule in alerts:
        name, notes = rule["alert"], rule.get("annotations", {})
        if notes.get("runbook_url") != f"{RUNBOOKS}{name}.md":
            found.append(f"{name}: runbook_url is not {RUNBOOKS}{name}.md")
        if not notes.get("summary") or not notes.get("description"):
            found.append(f"{name}: no summary or no description")
        if rule.get("labels", {}).get("severity") not in ("critical", "warning"):
            found.append(f"{name}: no severity")
    return found


def tested(alerts: list[dict], tests: list[dict]) -> list[str]:
    """Each alert has a test in which it fires, and one in which it does not."""
    firing, quiet = set(), set()
    for group in (group for test in tests for group in test["tests"]):
        for case in group.get("alert_rule_test", []):
            (firing if case.get("exp_alerts") else quiet).add(case["alertname"])
    names = [rule["alert"] for rule in alerts]
    return [f"{n}: no test in which it fires" for n in names if n not in firing] + [
        f"{n}: no test in which it is quiet" for n in names if n not in quiet
    ]


def runbooks(alerts: list[dict], pages: dict[str, str]) -> list[str]:
    """A page for each alert, an alert for each page, and the three parts in every page."""
    names = {rule["alert"] for rule in alerts}
    found = [f"{n}: no runbook" for n in sorted(names - set(pages))]
    found += [f"{n}.md: no such alert" for n in sorted(set(pages) - names)]
    for name, text in pages.items():
        parts = re.split(r"^## (.+)$", text, flags=re.M)
        if parts[1::2] != HEADINGS:
            found.append(f"{name}.md: its parts are not {HEADINGS}")
        elif not all(part.strip() for part in parts[2::2]):
            found.append(f"{name}.md: an empty part")
        if not text.startswith(f"# {name}\n"):
            found.append(f"{name}.md: its title is not {name}")
    return found


def links(texts: dict, root=ROOT) -> list[str]:
    """Links between documents lead somewhere."""
    found = []
    for path, text in texts.items():
        for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
            if not (path.parent / link).exists():
                found.append(f"{path.relative_to(root)}: {link} does not exist")
    return found


def drawn(raw: dict, names: set[str], root=ROOT) -> list[str]:
    """What is wrong with the dashboard, and where its links lead."""
    found = [f"dashboard: the schema does not know {at}" for at in schema.unknown(raw)]
    found += [f"dashboard: {wrong}" for wrong in schema.unparsable(raw)]
    ids = [panel["id"] for panel in schema.panels(raw)]
    if len(ids) != len(set(ids)):
        found.append("dashboard: a panel's id comes twice")
    linked = set()
    for link in [*raw["links"], *(link for panel in schema.panels(raw) for link in panel.get("links", []))]:
        linked.add(link["title"])
        if not (root / link["url"]).exists():
            found.append(f"dashboard: {link['url']} does not exist")
    return found + [f"dashboard: no panel links {name}" for name in sorted(names - linked)]


def table(alerts: list[dict], base: str) -> str:
    rows = [
        f"| [{r['alert']}]({base}{r['alert']}.md) | {r['labels']['severity']} | {r.get('for', 'at once')} | "
        f"{r['annotations']['summary']} |\n"
        for r in alerts
    ]
    return "| alert | severity | after | what |\n| --- | --- | --- | --- |\n" + "".join(rows)


def generated(text: str, table_: str) -> str:
    begin, end = "<!-- generated: alerts -->\n", "<!-- end -->"
    head, rest = text.split(begin, 1)
    return head + begin + table_ + end + rest.split(end, 1)[1]


def main() -> int:
    alerts = rules(ALERTS.read_text())
    folder = ROOT / RUNBOOKS
    tables = {folder / "README.md": "", GUIDE: "runbooks/"}
    if "--write" in sys.argv:
        DASHBOARD.write_text(dashboard.text())
        for path, base in tables.items():
            path.write_text(generated(path.read_text(), table(alerts, base)))
    pages = {path.stem: path.read_text() for path in folder.glob("*.md") if path.stem != "README"}
    documents = {path: path.read_text() for path in [*folder.glob("*.md"), GUIDE]}
    wrong = promtool()
    wrong += annotated(alerts)
    wrong += tested(alerts, [yaml.safe_load(path.read_text()) for path in RULE_TESTS.glob("*.yaml")])
    wrong += runbooks(alerts, pages) + links(documents)
    wrong += drawn(json.loads(DASHBOARD.read_text()), {rule["alert"] for rule in alerts})
    if DASHBOARD.read_text() != dashboard.text():
        wrong.append(f"{DASHBOARD.name} is not what panels.py says: make monitoring-write")
    for path, base in tables.items():
        if documents[path] != generated(documents[path], table(alerts, base)):
            wrong.append(f"{path.relative_to(ROOT)} has another table of alerts: make monitoring-write")
    queries = schema.expressions(json.loads(DASHBOARD.read_text()))
    print("\n".join(wrong) or f"monitoring: {len(alerts)} alerts and {len(queries)} queries are well")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
