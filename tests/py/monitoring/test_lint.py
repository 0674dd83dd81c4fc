"""The checks of lint.py find what is wrong."""

import copy
import json
import unittest

import lint
import schema
from paths import ALERTS, DASHBOARD, ROOT

GOOD = "# A\n\n## What it means\n\nx\n\n## How to confirm\n\nx\n\n## What to do\n\nx\n"


class Runbooks(unittest.TestCase):
    def test_a_page_for_each_alert_and_the_other_way_round(self):
        self.assertEqual(lint.runbooks([{"alert": "A"}], {"A": GOOD}), [])
        self.assertEqual(lint.runbooks([{"alert": "A"}, {"alert": "B"}], {"A": GOOD}), ["B: no runbook"])
        self.assertEqual(lint.runbooks([], {"A": GOOD}), ["A.md: no such alert"])

    def test_the_parts_in_their_order(self):
        for bad in [
            GOOD.replace("## What to do\n\nx\n", ""),
            GOOD.replace("confirm\n\nx", "confirm\n\n"),
            GOOD.replace("# A", "# B", 1),
            "# A\n\n## What to do\n\nx\n\n## What it means\n\nx\n",
        ]:
            self.assertTrue(lint.runbooks([{"alert": "A"}], {"A": bad}), bad)

    def test_links_lead_somewhere(self):
        page = ROOT / "docs/runbooks/README.md"
        self.assertEqual(lint.links({page: "[x](../tokens.md#causes) [y](https://example.org)"}), [])
        self.assertEqual(len(lint.links({page: "[x](../nothing.md)"})), 1)


class Alerts(unittest.TestCase):
    def test_annotations(self):
        good = lint.rules(ALERTS.read_text())[0]
        self.assertEqual(lint.annotated([good]), [])
        for key in ("runbook_url", "summary", "description"):
            bad = copy.deepcopy(good)
            del bad["annotations"][key]
            self.assertEqual(len(lint.annotated([bad])), 1, key)
        self.assertEqual(len(lint.annotated([{**good, "labels": {"severity": "high"}}])), 1)

    def test_an_alert_without_tests(self):
        fires, quiet = {"alertname": "A", "exp_alerts": [{}]}, {"alertname": "A", "exp_alerts": []}
        tests = [{"tests": [{"alert_rule_test": [fires, quiet]}]}]
        self.assertEqual(lint.tested([{"alert": "A"}], tests), [])
        self.assertEqual(len(lint.tested([{"alert": "B"}], tests)), 2)

    def test_stale_tables(self):
        alerts = lint.rules(ALERTS.read_text())
        old = lint.generated("a<!-- generated: alerts -->\nold<!-- end -->b", lint.table(alerts[1:], ""))
        self.assertNotEqual(old, lint.generated(old, lint.table(alerts, "")))
        self.assertTrue(old.startswith("a") and old.endswith("b"))


class Dashboard(unittest.TestCase):
    def setUp(self):
        self.raw = json.loads(DASHBOARD.read_text())
        self.graph = next(p for p in self.raw["panels"] if p["type"] == "timeseries")

    def test_it_is_good(self):
        self.assertEqual(lint.drawn(self.raw, set()), [])

    def test_keys_that_grafana_does_not_know(self):
        for bad in (self.raw, self.graph, self.graph["fieldConfig"]["defaults"]["custom"], self.graph["targets"][0]):
            bad["tittle"] = "x"
            self.assertEqual(len(schema.unknown(self.raw)), 1)
            del bad["tittle"]

    def test_queries_that_are_none(self):
        for bad in ("sum(ratee(up[5m]))", "sum(up", "up[$__nothing]"):
            self.graph["targets"][0]["expr"] = bad
            self.assertEqual(len(schema.unparsable(self.raw)), 1, bad)

    def test_links_and_ids(self):
        self.graph["links"] = [{"title": "x", "url": "docs/runbooks/Nothing.md"}]
        self.graph["id"] = 1
        self.assertIn("dashboard: docs/runbooks/Nothing.md does not exist", lint.drawn(self.raw, set()))
        self.assertIn("dashboard: a panel's id comes twice", lint.drawn(self.raw, set()))
        self.assertIn("dashboard: no panel links TollgateNew", lint.drawn(self.raw, {"TollgateNew"}))


if __name__ == "__main__":
    unittest.main()
