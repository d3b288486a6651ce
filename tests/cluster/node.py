"""Run a Kubernetes of one node in the namespaces of this process."""

from __future__ import annotations

import json
import logging
import secrets
import shutil
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stack.die_with_parent import dies_with_parent
from tests.cluster.programs import CNI_FOLDER
from tests.waiting import wait_until

logger = logging.getLogger(__name__)

NODE_IP = "10.90.0.1"
POD_NETWORK = "10.91.0.0/16"
SERVICE_NETWORK = "10.92.0.0/16"
API_PORT = 6443
PAUSE_IMAGE = "localhost/pause:latest"
START_TIMEOUT_S = 300.0
PODS_LOGS = Path("/var/log/pods")
HIDDEN = ("/run", "/var/log")
"""Folders that containerd and kubelet write to at fixed paths; they get empty ones."""

Object = dict[str, Any]

CONTAINERD = """
version = 2
root = "{images}"
state = "{folder}/containerd"

[grpc]
address = "{folder}/containerd.sock"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
restrict_oom_score_adj = true
disable_apparmor = true

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{cni}"
conf_dir = "{folder}/cni"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"""


@dataclass(frozen=True)
class Node:
    """A running Kubernetes of one node.

    Attributes:
        folder: where everything of it lies.
        kubeconfig: the file by which clients reach it as administrator.
    """

    folder: Path
    kubeconfig: Path

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl and return its output. Raises CalledProcessError."""
        command = ["kubectl", f"--kubeconfig={self.kubeconfig}", *arguments]
        done = subprocess.run(command, check=False, input=stdin, capture_output=True, text=True)
        if done.returncode:
            logger.error("%s\n%s", " ".join(command), done.stderr)
            done.check_returncode()
        return done.stdout

    def list(self, kind: str, selector: str = "") -> list[Object]:
        """Return the objects of a kind in the default namespace."""
        items: list[Object] = json.loads(self.kubectl("get", kind, "-o", "json", "-l", selector))["items"]
        return items

    def apply(self, *objects: Object) -> None:
        """Create or change objects."""
        self.kubectl(
            "apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        )

    def publish_services(self) -> None:
        """Give the names of all services to the DNS server."""
        names = "".join(
            f"{service['spec']['clusterIP']} {service['metadata']['name']}.default.svc.cluster.local\n"
            for service in self.list("services")
            if service["spec"]["clusterIP"] != "None"
        )
        (self.folder / "hosts" / "services").write_text(names)

    def import_image(self, archive: Path) -> None:
        """Load an image from a file."""
        socket = self.folder / "containerd.sock"
        command = ["ctr", f"--address={socket}", "--namespace=k8s.io", "images", "import", str(archive)]
        subprocess.run(command, check=True, capture_output=True)


@contextmanager
def run_node(binaries: Path, images: Path, folder: Path) -> Iterator[Node]:
    """Start a node and yield it when it is ready.

    Args:
        binaries: the folder of the programs of Kubernetes.
        images: the folder of images, which is kept.
        folder: where everything else of the node lies.

    Raises:
        TimeoutError: a part did not start.
    """
    _isolate(folder)
    token = secrets.token_hex()
    kubeconfig = _write_files(images, folder, token)
    with ExitStack() as programs:

        def start(name: str, *command: str | Path) -> None:
            programs.enter_context(_running(name, [str(part) for part in command], folder))

        start("containerd", "containerd", f"--config={folder / 'containerd.toml'}")
        start("dnsmasq", *_dns_server(folder))
        start("etcd", *_etcd(folder))
        start("kube-apiserver", binaries / "kube-apiserver", *_api_server(folder))
        wait_until(lambda: _is_healthy(token), START_TIMEOUT_S, every_s=0.5)
        as_admin = f"--kubeconfig={kubeconfig}"
        start(
            "kube-controller-manager",
            binaries / "kube-controller-manager",
            as_admin,
            f"--service-account-private-key-file={folder / 'service-account.key'}",
            "--leader-elect=false",
        )
        start("kube-scheduler", binaries / "kube-scheduler", as_admin, "--leader-elect=false")
        wait_until((folder / "containerd.sock").exists, START_TIMEOUT_S)
        start("kubelet", binaries / "kubelet", as_admin, *_kubelet(folder))
        node = Node(folder, kubeconfig)
        wait_until(lambda: node.list("nodes"), START_TIMEOUT_S, every_s=0.5)
        start(
            "kube-proxy",
            binaries / "kube-proxy",
            as_admin,
            "--proxy-mode=iptables",
            "--hostname-override=node",
            f"--cluster-cidr={POD_NETWORK}",
            *("--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0"),
            "--conntrack-tcp-timeout-close-wait=0",
        )
        wait_until(lambda: _is_ready(node), START_TIMEOUT_S, every_s=0.5)
        wait_until(lambda: node.list("serviceaccounts"), START_TIMEOUT_S, every_s=0.5)
        logger.info("the node is ready")
        yield node


def _isolate(folder: Path) -> None:
    """Hide folders of this machine and make a network, in the namespaces of this process."""
    for hidden in HIDDEN:
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", hidden], check=True)
    for command in (
        "link set lo up",
        "link add eth0 type veth peer name peer0",
        f"address add {NODE_IP}/24 dev eth0",
        "link set eth0 up",
        "link set peer0 up",
        "route add default dev eth0",
    ):
        subprocess.run(["ip", *command.split()], check=True)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    for name in ("cni", "hosts", "volumes", "certificates"):
        (folder / name).mkdir()


def _write_files(images: Path, folder: Path, token: str) -> Path:
    (folder / "containerd.toml").write_text(
        CONTAINERD.format(images=images, folder=folder, pause=PAUSE_IMAGE, cni=CNI_FOLDER)
    )
    network = {
        "cniVersion": "0.4.0",
        "name": "pods",
        # each pod has a link of its own, so that the node routes between them and sees every connection
        "plugins": [
            {
                "type": "ptp",
                "ipMasq": False,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": POD_NETWORK}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                    "dataDir": str(folder / "addresses"),
                },
            }
        ],
    }
    (folder / "cni" / "pods.conflist").write_text(json.dumps(network))
    (folder / "resolv.conf").touch()
    (folder / "tokens.csv").write_text(f'{token},admin,admin,"system:masters"\n')
    command = ["openssl", "genrsa", "-out", str(folder / "service-account.key"), "2048"]
    subprocess.run(command, check=True, capture_output=True)
    kubeconfig = folder / "kubeconfig"
    cluster = {"server": f"https://{NODE_IP}:{API_PORT}", "insecure-skip-tls-verify": True}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "cluster", "cluster": cluster}],
        "users": [{"name": "admin", "user": {"token": token}}],
        "contexts": [{"name": "admin", "context": {"cluster": "cluster", "user": "admin"}}],
        "current-context": "admin",
    }
    kubeconfig.write_text(json.dumps(content))
    return kubeconfig


def _dns_server(folder: Path) -> Sequence[str]:
    return (
        "dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--user=root",
        "--pid-file=",
        f"--listen-address={NODE_IP}",
        "--bind-interfaces",
        "--no-hosts",
        "--no-resolv",
        "--local=/#/",  # there is nobody else to ask
        f"--hostsdir={folder / 'hosts'}",
    )


def _etcd(folder: Path) -> Sequence[str]:
    return (
        "etcd",
        f"--data-dir={folder / 'etcd'}",
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--unsafe-no-fsync",
        "--heartbeat-interval=1000",
        "--election-timeout=10000",
    )


def _api_server(folder: Path) -> Sequence[str]:
    key = folder / "service-account.key"
    return (
        "--etcd-servers=http://127.0.0.1:2379",
        f"--bind-address={NODE_IP}",
        f"--advertise-address={NODE_IP}",
        f"--secure-port={API_PORT}",
        f"--cert-dir={folder / 'certificates'}",
        f"--service-cluster-ip-range={SERVICE_NETWORK}",
        f"--token-auth-file={folder / 'tokens.csv'}",
        "--authorization-mode=AlwaysAllow",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--kubelet-preferred-address-types=InternalIP",
        f"--service-account-key-file={key}",
        f"--service-account-signing-key-file={key}",
    )


def _kubelet(folder: Path) -> Sequence[str]:
    return (
        f"--root-dir={folder / 'kubelet'}",
        f"--cert-dir={folder / 'certificates'}",
        f"--volume-plugin-dir={folder / 'volume-plugins'}",
        "--container-runtime=remote",
        f"--container-runtime-endpoint=unix://{folder / 'containerd.sock'}",
        "--hostname-override=node",
        f"--node-ip={NODE_IP}",
        f"--cluster-dns={NODE_IP}",
        "--cluster-domain=cluster.local",
        f"--resolv-conf={folder / 'resolv.conf'}",
        "--cgroups-per-qos=false",
        "--enforce-node-allocatable=",
        "--oom-score-adj=0",
        "--fail-swap-on=false",
        "--eviction-hard=memory.available<1Mi",  # disks are as full as they are
        "--image-gc-high-threshold=100",
        "--authorization-mode=AlwaysAllow",
        "--anonymous-auth=true",
    )


@contextmanager
def _running(name: str, command: Sequence[str], folder: Path) -> Iterator[None]:
    with (
        (folder / f"{name}.log").open("wb") as log,
        subprocess.Popen(dies_with_parent(command), stdout=log, stderr=log) as process,
    ):
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _is_healthy(token: str) -> bool:
    url = f"https://{NODE_IP}:{API_PORT}/readyz"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    unchecked = ssl._create_unverified_context()
    try:
        with urllib.request.urlopen(request, timeout=10.0, context=unchecked) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _is_ready(node: Node) -> bool:
    conditions = [each for found in node.list("nodes") for each in found["status"]["conditions"]]
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def save_logs(node: Node, folder: Path) -> None:
    """Copy the logs of Kubernetes and of all pods, their state and the events into a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(PODS_LOGS, folder / "pods")
    for log in node.folder.glob("*.log"):
        shutil.copy(log, folder)
    for name, arguments in {
        "events.txt": ("get", "events", "--sort-by=.lastTimestamp"),
        "pods.txt": ("describe", "pods"),
        "objects.txt": ("get", "all", "-o", "wide"),
    }.items():
        (folder / name).write_text(node.kubectl(*arguments))
