"""Install the chart with Helm, change its values, and reach the service."""

from __future__ import annotations

import base64
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helm_python import Config

from longcat_video_client import Client
from longcat_video_client.retries import RetryPolicy
from tests.cluster.node import Node, Object
from tests.images.engine import ROOT
from tests.waiting import wait_until

logger = logging.getLogger(__name__)

CHART = ROOT / "deploy" / "helm" / "longcat-video"
NAME = "video"
FULL_NAME = "video-longcat-video"
INSTANCE = f"app.kubernetes.io/instance={NAME}"
WORKERS = f"{INSTANCE},app.kubernetes.io/component=worker-main"
API = f"{INSTANCE},app.kubernetes.io/component=api"
TIMEOUT_S = 900.0
RETRY = RetryPolicy(total_s=600.0)

Values = dict[str, Any]


@dataclass
class Release:
    """The installed chart. Its client repeats failed requests for ten minutes.

    Attributes:
        node: the Kubernetes in which it is.
        values: those of the last revision.
        chart: the folder of the chart.
    """

    node: Node
    values: Values
    chart: Path

    def install(self) -> None:
        """Install the chart, and wait until all pods are ready."""
        logger.info("helm install")
        self._config().install(str(self.chart), NAME, self.values)
        self.node.publish_services()
        self.wait_until_ready()

    def upgrade(self, change: Callable[[Values], object], *, wait: bool = True) -> None:
        """Change the values, and wait until all pods are of this revision and ready."""
        change(self.values)
        logger.info("helm upgrade")
        self._config().upgrade(str(self.chart), NAME, self.values)
        if wait:
            self.wait_until_ready()

    def uninstall(self) -> None:
        """Remove the release, and wait until all its pods are gone."""
        logger.info("helm uninstall")
        self._config().uninstall(NAME)
        wait_until(lambda: not self.pods(), TIMEOUT_S, every_s=0.5)

    def wait_until_ready(self) -> None:
        """Wait until every workload has all its pods, of the last revision, ready, and no others."""
        wait_until(lambda: all(map(_is_rolled_out, self._workloads())), TIMEOUT_S, every_s=0.5)
        wanted = sum(each["spec"]["replicas"] for each in self._workloads())
        wait_until(lambda: len(self.pods()) == wanted, TIMEOUT_S, every_s=0.5)

    def pods(self, selector: str = INSTANCE) -> list[Object]:
        """Return pods of the release, also those that are ending."""
        return self.node.list("pods", selector)

    def url(self) -> str:
        """Return the URL of the API's Service."""
        (service,) = self.node.list("services", API)
        return f"http://{service['spec']['clusterIP']}"

    def client(self) -> Client:
        """Return a client of the API's Service."""
        secret = json.loads(self.node.kubectl("get", "secret", FULL_NAME, "-o", "json"))
        key = base64.b64decode(secret["data"]["api_key"]).decode()
        return Client(self.url(), key, retry=RETRY)

    def _workloads(self) -> list[Object]:
        return [each for kind in ("deployments", "statefulsets") for each in self.node.list(kind, INSTANCE)]

    def _config(self) -> Config:
        return Config(kubeconfig_path=self.node.kubeconfig)


def new_release(node: Node, images: dict[str, str]) -> Release:
    """Return the release, not installed yet, with volumes for it.

    Args:
        node: the Kubernetes.
        images: the names of the images by repository.
    """
    volumes = node.folder / "volumes"
    for name, claim, mode, owner in (
        ("storage", f"{FULL_NAME}-storage", "ReadWriteMany", 10001),
        ("redis", f"data-{FULL_NAME}-redis-0", "ReadWriteOnce", 999),
    ):
        folder = volumes / name
        folder.mkdir()
        shutil.chown(folder, owner, owner)  # kubelet changes no owner in a hostPath
        node.apply(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": name},
                "spec": {
                    "capacity": {"storage": "100Gi"},
                    "accessModes": [mode],
                    "claimRef": {"namespace": "default", "name": claim},
                    "hostPath": {"path": str(folder), "type": "Directory"},
                },
            }
        )
    return Release(node, cpu_values(images), old_chart(node.folder / "chart"))


def cpu_values(images: dict[str, str]) -> Values:
    """Return values for a small machine without GPUs, and the checkpoint of this repository."""
    small = {"requests": {"cpu": "50m", "memory": "256Mi"}}
    return {
        "redis": {"enabled": True, "image": images["redis"], "resources": small},
        "podDisruptionBudgets": False,  # of policy/v1, which came with 1.21
        "settings": {"MAX_ATTEMPTS": 20},
        "api": {
            "image": {"repository": images["api"], "tag": "latest", "pullPolicy": "Never"},
            "replicas": 2,
            "resources": small,
        },
        "poolDefaults": {
            "image": {"repository": images["worker"], "tag": "latest", "pullPolicy": "Never"},
            "gpus": 0,
            "checkpoint": {"hostPath": {"path": str(ROOT / "pocket"), "type": "Directory"}},
            "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "8Gi"}},
        },
    }


def old_chart(folder: Path) -> Path:
    """Copy the chart without the version that it asks for: Debian 12 has the source of an older one."""
    shutil.copytree(CHART, folder)
    file = folder / "Chart.yaml"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if not line.startswith("kubeVersion:")))
    return folder


def _is_rolled_out(workload: Object) -> bool:
    status, wanted = workload["status"], workload["spec"]["replicas"]
    is_current = status.get("observedGeneration") == workload["metadata"]["generation"]
    # a StatefulSet without pods has no count of updated ones
    counts = [status.get(name, 0) for name in ("replicas", "readyReplicas", "updatedReplicas")]
    return is_current and counts == [wanted] * 3
