"""The dashboard queries metrics that the service exports, and Prometheus scrapes the service."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from service.ops.metrics import POOL_GAUGES, SERIES
from tests.docker.compose import Bind, read_compose

DOCKER = Path(__file__).parents[2] / "docker"
DASHBOARD = json.loads((DOCKER / "grafana" / "longcat.json").read_text())
PANELS = {panel["title"]: panel for panel in DASHBOARD["panels"]}
GAUGES = {"longcat_queued_jobs", "longcat_oldest_queued_seconds", "longcat_groups", *POOL_GAUGES}
OF_REQUESTS = {"longcat_http_requests_total", "longcat_http_request_seconds_bucket"}


def exported() -> dict[str, str | None]:
    """Return the names of all exported job metrics, with their labels."""
    names: dict[str, str | None] = {}
    for series in SERIES:
        ends = ("_sum", "_count") if series.is_summary else ("_total",)
        names |= {f"longcat_{series.name}{end}": series.label for end in ends}
    return names


@pytest.mark.parametrize("title", PANELS)
def test_panel_queries_exported_metrics(title):
    for target in PANELS[title]["targets"]:
        names = set(re.findall(r"longcat_\w+", target["expr"]))
        assert names
        assert names <= exported().keys() | GAUGES | OF_REQUESTS


@pytest.mark.parametrize("title", PANELS)
def test_legend_uses_labels_of_its_query(title):
    for target in PANELS[title]["targets"]:
        for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
            assert re.search(rf"by \([^)]*\b{label}\b", target["expr"])


def test_dashboard_shows_every_job_metric_except_attempts():
    asked = " ".join(target["expr"] for panel in PANELS.values() for target in panel["targets"])
    assert {s.name for s in SERIES if f"longcat_{s.name}" not in asked} == {"attempts"}


def test_panels_do_not_overlap():
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in PANELS.values()]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in PANELS.values()}) == len(PANELS)


def test_prometheus_scrapes_the_api_of_the_compose_file():
    compose = read_compose(DOCKER.parent / "docker-compose.yml")
    (job,) = yaml.safe_load((DOCKER / "prometheus.yml").read_text())["scrape_configs"]
    host, port = job["static_configs"][0]["targets"][0].split(":")
    assert compose.services[host].ports[0].endswith(f":{port}")


@pytest.mark.parametrize("name", ["prometheus", "grafana"])
def test_mounted_files_exist(name):
    service = read_compose(DOCKER.parent / "docker-compose.yml").services[name]
    for mount in service.volumes:
        assert isinstance(mount, str) or (DOCKER.parent / mount.source).exists()
    assert any(isinstance(mount, Bind) for mount in service.volumes)


def test_grafana_finds_prometheus_and_the_dashboard():
    provisioning = DOCKER / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert {panel["datasource"]["uid"] for panel in PANELS.values()} == {source["uid"]}
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "longcat.yml").read_text())["providers"]
    compose = read_compose(DOCKER.parent / "docker-compose.yml")
    targets = [mount.target for mount in compose.services["grafana"].volumes if isinstance(mount, Bind)]
    assert any(target.startswith(provider["options"]["path"]) for target in targets)
