"""Alerts fire and stay silent as their tests say, tell installations apart, and are described."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "deploy" / "prometheus"


def rules(name: str) -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((FOLDER / name).read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


ALERTS = {rule["alert"]: rule for rule in rules("alerts.yml")}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool of Prometheus")
@pytest.mark.parametrize("command", ["check rules rules.yml alerts.yml", "test rules alerts_test.yml"])
def test_promtool_accepts_the_rules_and_their_tests(command):
    done = subprocess.run(
        ["promtool", *command.split()], cwd=FOLDER, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_test_in_which_it_fires_for_one_of_two_installations():
    document = yaml.safe_load((FOLDER / "alerts_test.yml").read_text())
    tested: set[str] = set()
    for case in document["tests"]:
        num_installations = len({_installation(each["series"]) for each in case["input_series"]})
        fired = [
            sample["labels"] for query in case.get("promql_expr_test", ()) for sample in query["exp_samples"]
        ]
        fired += [
            f'alertname="{check["alertname"]}", namespace="{alert["exp_labels"].get("namespace", "")}"'
            for check in case.get("alert_rule_test", ())
            for alert in check["exp_alerts"]
        ]
        if num_installations == 2 and len({_installation(labels) for labels in fired}) == 1:
            tested |= {name for labels in fired for name in re.findall(r'alertname="(\w+)"', labels)}
    assert tested == ALERTS.keys()


def _installation(labels: str) -> str:
    return ", ".join(re.findall(r'namespace="\w+"', labels))


@pytest.mark.parametrize(
    "rule", [*rules("rules.yml"), *ALERTS.values()], ids=lambda rule: rule.get("record", rule.get("alert"))
)
def test_rule_keeps_installations_apart(rule):
    aggregations = re.findall(r"\b(?:max|sum|count|group|min|avg)\b\s*(\S+ ?\([^)]*\)|\()", rule["expr"])
    assert all("(namespace, job" in each or "without (outcome)" in each for each in aggregations), (
        aggregations
    )


@pytest.mark.parametrize("name", ALERTS)
def test_summary_of_every_alert_names_its_installation(name):
    summary = ALERTS[name]["annotations"]["summary"]
    assert re.match(
        r"{{ with \$labels.namespace }}{{ . }}/{{ end }}{{ (\$labels.job|or \$labels.job .*) }}: ", summary
    )


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_leads_to_its_entry_in_the_documentation(name):
    page, _, anchor = ALERTS[name]["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^## (\w+)$", (ROOT / page).read_text(), re.MULTILINE)
    assert anchor in {heading.lower() for heading in headings}


def test_rules_query_exported_metrics(client: TestClient):
    exported = set(re.findall(r"^# TYPE (longcat_\w+)", client.get("/metrics").text, re.MULTILINE))
    recorded = {rule["record"] for rule in rules("rules.yml")}
    for rule in (*rules("rules.yml"), *ALERTS.values()):
        for name in re.findall(r"longcat[:_][a-z_:0-9]+", rule["expr"]):
            assert name in exported | recorded, name
