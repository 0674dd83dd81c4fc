"""Where things are."""

from support import ROOT

FILES = ROOT / "charts/tollgate/files"
ALERTS = FILES / "alerts.yaml"
DASHBOARD = FILES / "dashboard.json"
RULE_TESTS = ROOT / "tests/py/monitoring/rules"
# As it stands in alerts and in the dashboard: a path in this tree, before which a chart can put an address.
RUNBOOKS = "docs/runbooks/"
GUIDE = ROOT / "docs/monitoring.md"
PICTURE = ROOT / "docs/dashboard.png"
