"""The dashboards query metrics that the service exports, and Prometheus scrapes the service."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from service.ops.metrics import POOL_GAUGES, SERIES
from tests.docker.compose import Bind, read_compose

DOCKER = Path(__file__).parents[2] / "docker"
DASHBOARDS = {
    path.stem: json.loads(path.read_text()) for path in sorted((DOCKER / "grafana" / "dashboards").iterdir())
}
PANELS = {panel["title"]: panel for dashboard in DASHBOARDS.values() for panel in dashboard["panels"]}
TARGETS = [target for panel in PANELS.values() for target in panel["targets"]]
GAUGES = {
    *("longcat_queued_jobs", "longcat_oldest_queued_seconds", "longcat_groups", "longcat_jobs_without_group"),
    *POOL_GAUGES,
}
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


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool of Prometheus")
def test_prometheus_understands_every_query(tmp_path):
    values = {"$__rate_interval": "1m", "$pool": ".*", "$namespace": "production", "$job": "longcat-api-ops"}
    queries = [re.sub(r"\$\w+", lambda found: values[found[0]], target["expr"]) for target in TARGETS]
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_dashboards_show_every_job_metric_except_attempts():
    asked = " ".join(target["expr"] for target in TARGETS)
    assert {s.name for s in SERIES if f"longcat_{s.name}" not in asked} == {"attempts"}
    assert {name for name in POOL_GAUGES if name not in asked} == {"longcat_pool_backlog_work_units"}


def test_queries_of_pools_follow_the_choice_of_pools():
    *_, variable = DASHBOARDS["fleet"]["templating"]["list"]
    assert (variable["name"], variable["multi"], variable["includeAll"]) == ("pool", True, True)
    for target in TARGETS:
        if "by (pool)" in target["expr"]:
            assert target["expr"].count(', pool=~"$pool"}') == len(re.findall(r"longcat_\w+", target["expr"]))


@pytest.mark.parametrize("name", DASHBOARDS)
def test_dashboard_shows_the_chosen_installation_only(name):
    namespace, job, *others = DASHBOARDS[name]["templating"]["list"]
    assert [(each["name"], each["multi"], each["includeAll"]) for each in (namespace, job)] == [
        ("namespace", False, False),
        ("job", False, False),
    ]
    assert 'namespace="$namespace"' in job["definition"]
    expressions = [target["expr"] for panel in DASHBOARDS[name]["panels"] for target in panel["targets"]]
    for expression in (*expressions, *(each["definition"] for each in others)):
        for selector in re.findall(r"longcat_\w+([^}]*)", expression):
            assert selector.startswith('{namespace="$namespace", job="$job"'), expression


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_do_not_overlap(name):
    panels = DASHBOARDS[name]["panels"]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({dashboard["uid"] for dashboard in DASHBOARDS.values()}) == len(DASHBOARDS)


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


def test_grafana_finds_prometheus_and_the_dashboards():
    provisioning = DOCKER / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert {panel["datasource"]["uid"] for panel in PANELS.values()} == {source["uid"]}
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "longcat.yml").read_text())["providers"]
    compose = read_compose(DOCKER.parent / "docker-compose.yml")
    targets = [mount.target for mount in compose.services["grafana"].volumes if isinstance(mount, Bind)]
    assert any(target.startswith(provider["options"]["path"]) for target in targets)
