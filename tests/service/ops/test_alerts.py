"""Alerts fire and stay silent as their tests say, query exported metrics, and are described."""

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


def test_every_alert_has_a_test_in_which_it_fires_and_one_in_which_it_does_not():
    document = yaml.safe_load((FOLDER / "alerts_test.yml").read_text())
    outcomes = [
        (re.findall(r'alertname="(\w+)"', query["expr"])[0], bool(query["exp_samples"]))
        for case in document["tests"]
        for query in case["promql_expr_test"]
    ]
    assert set(outcomes) == {(name, fires) for name in ALERTS for fires in (False, True)}


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
