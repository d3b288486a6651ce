"""The values of the cluster's test fit the chart."""

from __future__ import annotations

import pytest
import yaml
from helm_python import Chart

from tests.cluster.release import CHART, cpu_values, old_chart

IMAGES = {
    "api": "localhost/api",
    "worker": "localhost/worker",
    "redis": "redis:7",
    "pause": "localhost/pause",
}
OLD_VERSIONS = {"v1", "apps/v1", "networking.k8s.io/v1"}


def test_only_the_version_of_kubernetes_is_taken_from_the_chart(tmp_path):
    copied = old_chart(tmp_path / "chart")
    ours = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert ours.pop("kubeVersion")
    assert yaml.safe_load((copied / "Chart.yaml").read_text()) == ours
    assert {path.relative_to(copied) for path in copied.rglob("*")} == {
        path.relative_to(CHART) for path in CHART.rglob("*")
    }


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    """Return the objects that the chart makes of the test's values."""
    with Chart.load(old_chart(tmp_path_factory.mktemp("old") / "chart")) as loaded:
        files = loaded.render(cpu_values(IMAGES), name="video", namespace="default")
    documents = (yaml.safe_load_all(text) for path, text in files.items() if path.endswith(".yaml"))
    return [each for file in documents for each in file if each]


def test_values_render_objects_that_an_old_kubernetes_has(objects):
    assert {each["apiVersion"] for each in objects} == OLD_VERSIONS


def test_ports_of_services_name_their_protocol(objects):
    """Server-side apply of an old Kubernetes knows no default of this key of the list."""
    ports = [port for each in objects if each["kind"] == "Service" for port in each["spec"]["ports"]]
    assert ports
    assert {port.get("protocol") for port in ports} == {"TCP"}
