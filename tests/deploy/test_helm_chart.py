"""The Helm chart renders valid objects, and its processes accept their environment."""

from __future__ import annotations

import json
import re
from argparse import Namespace
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

import kubernetes_validate
import pytest
import yaml
from helm_python import Chart, HelmError, chart
from pydantic import BaseModel, ConfigDict, ValidationError

from docs import setting_names
from model.weights.__main__ import build_parser
from service.settings import Settings as ApiSettings
from tests.docker.compose import read_compose
from tests.service.conftest import CAPABILITY
from worker.settings import Endpoint, WorkerSettings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "helm" / "longcat-video"
VERSIONS = [f"1.{minor}" for minor in range(30, 38)]
OLDEST, NEWEST = VERSIONS[0], VERSIONS[-1]
SECRETS = Path("/run/secrets/longcat")

Object = dict[str, Any]
Values = dict[str, Any]

WEIGHTS = {"persistentVolumeClaim": {"claimName": "weights", "readOnly": True}}
FETCHED: Values = {"weights": {"source": "https://models.example.com/next"}}
SMALL: Values = {"redis": {"enabled": True}, "poolDefaults": {"checkpoint": WEIGHTS}}
LARGE: Values = {
    "storage": {"url": "s3://videos/of-us", "s3": {"endpointUrl": "https://s3.example.com"}},
    "secrets": {"redisUrl": "rediss://redis.example.com", "s3AccessKeyId": "id", "s3SecretAccessKey": "key"},
    "settings": {"RETENTION_S": 86_400},
    "api": {
        "image": {"digest": f"sha256:{'0' * 64}"},
        "capability": CAPABILITY.model_dump_json(),
        "publicUrl": "https://video.example.com",
        "allowedHosts": ["a.example.com", "b.example.com"],
        "ingress": {"enabled": True, "className": "nginx", "host": "video.example.com", "tlsSecret": "tls"},
        "autoscaling": {"enabled": True},
        "settings": {"OWNER_QUEUED_JOBS": 50},
        "tolerations": [{"key": "a", "operator": "Exists"}],
        "nodeSelector": {"disk": "ssd"},
    },
    "poolDefaults": {"checkpoint": WEIGHTS},
    "pools": {
        "h200": {"gpus": 8, "contextParallel": 4, "maxUnavailable": "10%", "autoscaling": {"enabled": True}},
        "canary": {"modelId": "a.b_c", "settings": {"QUANTIZE": "int8"}, "runtimeClassName": "nvidia"},
        "wide": {"gpus": 8, "nodes": 2, "replicas": 3},
        "scaled": {"modelId": "scaled", "gpus": 8, "nodes": 4, "autoscaling": {"enabled": True}},
        "trial": {
            "gpus": 0,
            "checkpoint": {"emptyDir": {}},
            "compileCache": {"hostPath": {"path": "/cache"}},
        },
        "fetched": {
            "checkpoint": {"hostPath": {"path": "/var/lib/longcat-weights", "type": "Directory"}},
            "checkpointSubPath": "next",
            "weights": {"source": "s3://models/next"},
        },
    },
    "monitoring": {
        "serviceMonitor": True,
        "rules": True,
        "labels": {"release": "prometheus"},
        "prometheusUrl": "http://prometheus:9090",
        "authentication": {"name": "prometheus", "modes": "bearer"},
    },
    "networkPolicy": {"metricsFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]},
    "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn"}},
}

POOL_LIKE_NUMBERS: Values = {
    "runtimeClassName": "123",
    "priorityClassName": "true",
    "checkpointSubPath": "1e3",
    "checkpoint": {"emptyDir": {}},
    "weights": {"source": "s3://models/1", "s3": {"region": "1"}},
    "settings": {"WORKER_NAME": "{a: 1}", "COMPILE": "$(HOME) # {{ .Values }}"},
}
LIKE_NUMBERS: Values = {
    "fullnameOverride": "null",
    "redis": {"enabled": True, "storageClass": "1"},
    "storage": {"volume": {"storageClass": "1"}},
    "api": {"ingress": {"enabled": True, "className": "1", "host": "*.1.2", "tlsSecret": "0x1"}},
    "pools": {"main": None, "1": POOL_LIKE_NUMBERS, "no": {**POOL_LIKE_NUMBERS, "nodes": 2}},
    "monitoring": {"serviceMonitor": True, "rules": True},
}
"""Names that YAML reads as something else unless they are quoted."""

CUSTOM_KINDS = frozenset({"PrometheusRule", "ScaledObject", "ServiceMonitor"})


@cache
def custom_resources() -> dict[str, type[BaseModel]]:
    """Return the types of custom resources by kind. Their modules take seconds to import."""
    from cloudcoil.models.keda.v1alpha1 import ScaledObject
    from cloudcoil.models.prometheus_operator.v1 import PrometheusRule, ServiceMonitor

    return {
        "PrometheusRule": PrometheusRule,
        "ScaledObject": ScaledObject,
        "ServiceMonitor": ServiceMonitor,
    }


class Strict(BaseModel):
    """Refuse fields that the custom resource does not have."""

    model_config = ConfigDict(extra="forbid")


class LeaderWorkerTemplate(Strict):
    """The fields of a LeaderWorkerSet that the chart uses, as its API of version 1 defines them."""

    size: int
    restartPolicy: Literal["RecreateGroupOnPodRestart", "RecreateGroupAfterStart", "None"]  # noqa: N815
    leaderTemplate: Object  # noqa: N815
    workerTemplate: Object  # noqa: N815


class RollingUpdateConfiguration(Strict):
    maxUnavailable: int | str  # noqa: N815
    maxSurge: int  # noqa: N815


class RolloutStrategy(Strict):
    type: Literal["RollingUpdate"]
    rollingUpdateConfiguration: RollingUpdateConfiguration  # noqa: N815


class LeaderWorkerSetSpec(Strict):
    replicas: int = 1
    startupPolicy: Literal["LeaderCreated", "LeaderReady"]  # noqa: N815
    rolloutStrategy: RolloutStrategy  # noqa: N815
    leaderWorkerTemplate: LeaderWorkerTemplate  # noqa: N815


class LeaderWorkerSet(Strict):
    apiVersion: Literal["leaderworkerset.x-k8s.io/v1"]  # noqa: N815
    kind: Literal["LeaderWorkerSet"]
    metadata: Object
    spec: LeaderWorkerSetSpec


@pytest.fixture(scope="module", autouse=True)
def _schemas_read_once() -> Iterator[None]:
    """Let all validations share the schemas: to read the definitions takes longer than to validate."""
    read = cache(kubernetes_validate.utils.schema_contents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kubernetes_validate.utils.schema_contents", read)
        yield


def render(values: Values, name: str = "video") -> list[Object]:
    """Return the objects that the chart makes of these values for a release of this name."""
    with Chart.load(FOLDER) as loaded:
        files = loaded.render(values, name=name, namespace="ours")
    texts = (text for path, text in files.items() if path.endswith(".yaml"))
    documents = (yaml.load_all(text, yaml.CSafeLoader) for text in texts)
    return [document for file in documents for document in file if document]


def named(objects: list[Object], kind: str, name: str = "") -> Object:
    (found,) = (each for each in objects if each["kind"] == kind and each["metadata"]["name"].endswith(name))
    return found


WORKLOADS = frozenset({"Deployment", "StatefulSet", "LeaderWorkerSet"})


def templates_of(workload: Object) -> list[Object]:
    """Return the templates of its pods. The first is that of the pods that claim jobs."""
    spec = workload["spec"]
    if workload["kind"] != "LeaderWorkerSet":
        return [spec["template"]]
    group = spec["leaderWorkerTemplate"]
    return [group["leaderTemplate"], group["workerTemplate"]]


def pod_templates(objects: list[Object]) -> Iterator[Object]:
    for each in objects:
        if each["kind"] in WORKLOADS:
            yield from templates_of(each)


def containers_of(template: Object) -> list[Object]:
    return [*template["spec"].get("initContainers", ()), *template["spec"]["containers"]]


def container_of(workload: Object) -> Object:
    (container,) = templates_of(workload)[0]["spec"]["containers"]
    found: Object = container
    return found


def check(resource: Object, version: str = NEWEST) -> None:
    """Raise ValidationError if a field is unknown or has a wrong type.

    The models of custom resources ignore unknown fields, so these are found by what is lost.
    """
    if resource["kind"] == "LeaderWorkerSet":
        LeaderWorkerSet.model_validate(resource)
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": resource["metadata"]}
        for template in templates_of(resource):
            kubernetes_validate.validate({**pod, "template": template}, version, strict=True)
    elif resource["kind"] in CUSTOM_KINDS:
        model = custom_resources()[resource["kind"]]
        kept = model.model_validate(resource).model_dump(mode="json", by_alias=True, exclude_unset=True)
        if json.loads(json.dumps(resource)) != kept:
            raise kubernetes_validate.ValidationError(ValueError("a field is unknown"), version)
    else:
        kubernetes_validate.validate(resource, version, strict=True)


def test_lint_finds_no_error():
    found = chart.lint(FOLDER, values=SMALL)
    assert found["errors"] == []
    assert [message for message in found["messages"] if message["severity"] > 1] == []


@pytest.mark.parametrize(
    "version",
    [OLDEST, *(pytest.param(each, marks=pytest.mark.integration) for each in VERSIONS[1:-1]), NEWEST],
)
@pytest.mark.parametrize("values", [SMALL, LARGE], ids=["small", "large"])
def test_every_object_is_valid_in_every_kubernetes(values, version):
    objects = render(values)
    for each in objects:
        if each["kind"] not in CUSTOM_KINDS:
            check(each, version)
    names = [(each["kind"], each["metadata"]["name"]) for each in objects]
    assert len(set(names)) == len(names)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("values", "release"), [(LARGE, "video"), (LIKE_NUMBERS, "1e3")], ids=["large", "like_numbers"]
)
def test_every_custom_resource_is_valid(values, release):
    found = [each for each in render(values, release) if each["kind"] in CUSTOM_KINDS]
    assert found
    for each in found:
        check(each)


@pytest.mark.parametrize(
    "kind",
    [
        *("Deployment", "LeaderWorkerSet", "NetworkPolicy"),
        *(pytest.param(kind, marks=pytest.mark.integration) for kind in sorted(CUSTOM_KINDS)),
    ],
)
def test_misspelt_field_is_found(kind):
    resource = next(each for each in render(LARGE) if each["kind"] == kind)
    resource["spec"]["misspelt"] = 1
    with pytest.raises((kubernetes_validate.ValidationError, ValidationError)):
        check(resource)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "poolDefaults|checkpoint|redisUrl"),
        ({**SMALL, "poolDefaults": {}}, r"pools\.main\.checkpoint is needed"),
        ({**SMALL, "redis": {"enabled": False}}, "secrets.redisUrl"),
        ({**SMALL, "storage": {"url": "s3://videos"}}, "secrets.s3AccessKeyId"),
        ({**SMALL, "replicas": 2}, "replicas"),
        ({**SMALL, "pools": {"main": {"gpu": 2}}}, "gpu"),
        ({**SMALL, "pools": {"Main": {}}}, "Main"),
        ({**SMALL, "pools": {"main": {"nodes": 0}}}, "nodes"),
        (
            {**SMALL, "pools": {"main": {"nodes": 2, "contextParallel": 2}}},
            r"pools\.main\.contextParallel must be 0",
        ),
        ({**SMALL, "settings": {"LONGCAT_RETENTION_S": 1}}, "LONGCAT_RETENTION_S"),
        ({**SMALL, "storage": {"url": "gs://videos"}}, "url"),
        ({**SMALL, "pools": {"main": {"autoscaling": {"enabled": True}}}}, "monitoring.prometheusUrl"),
        ({**SMALL, "pools": {"main": {"weights": {"source": "/models"}}}}, "source"),
        ({**SMALL, "pools": {"main": {"weights": {"url": "s3://models"}}}}, "url"),
        ({**SMALL, "pools": {"main": FETCHED}}, r"pools\.main\.checkpoint must not be readOnly"),
        ({**SMALL, "poolDefaults": {}, "pools": {"main": FETCHED}}, r"pools\.main\.checkpoint is needed"),
        ({**SMALL, "fullnameOverride": "My Video"}, "fullnameOverride"),
        ({**SMALL, "nameOverride": "a\nb: c"}, "nameOverride"),
        ({**SMALL, "fullnameOverride": "a" * 40, "pools": {"p" * 16: {}}}, "longer than 52 characters"),
        (
            {**SMALL, "fullnameOverride": "a" * 37, "pools": {"wide": {"nodes": 2}}},
            "longer than 48 characters",
        ),
        ({**SMALL, "existingSecret": "a: b"}, "existingSecret"),
        ({**SMALL, "imagePullSecrets": ["registry"]}, "imagePullSecrets"),
        ({**SMALL, "serviceAccount": {"annotations": {"a": 1}}}, "annotations"),
        ({**SMALL, "networkPolicy": {"egressExcept": ["metadata"]}}, "egressExcept"),
        ({**SMALL, "redis": {"enabled": True, "image": "redis: 7"}}, "redis/image"),
        ({**SMALL, "monitoring": {"prometheusUrl": "prometheus:9090"}}, "prometheusUrl"),
        ({**SMALL, "api": {"service": {"port": 70_000}}}, "port"),
        ({**SMALL, "api": {"image": {"repository": "a b"}}}, "repository"),
        ({**SMALL, "api": {"ingress": {"enabled": True}}}, r"api\.ingress\.host is needed"),
        ({**SMALL, "api": {"ingress": {"enabled": True, "host": "a b"}}}, "host"),
        ({**SMALL, "api": {"autoscaling": {"enabled": True, "minReplicas": 9}}}, "minReplicas is larger"),
        ({**SMALL, "pools": {"main": {"gpus": 8, "contextParallel": 3}}}, "must divide gpus"),
        ({**SMALL, "pools": {"main": {"gpus": 6, "contextParallel": "auto"}}}, "2, 4, 8 or 16"),
        ({**SMALL, "pools": {"main": {"drainS": 90}}}, "drainS must be at least 8 s less"),
        ({**SMALL, "pools": {"main": {"workSize": "1.2.3"}}}, "workSize"),
        ({**SMALL, "pools": {"main": {"sharedMemorySize": "1ki"}}}, "sharedMemorySize"),
        ({**SMALL, "pools": {"main": {"checkpointSubPath": "../other"}}}, "checkpointSubPath"),
        ({**SMALL, "pools": {"main": {"checkpoint": {"emptyDir": {}, "hostPath": {}}}}}, "checkpoint"),
        ({**SMALL, "pools": {"main": {"nodeSelector": {"gpu": True}}}}, "nodeSelector"),
        ({**SMALL, "pools": {"main": {"tolerations": ["gpu"]}}}, "tolerations"),
        ({**SMALL, "pools": {"main": {"runtimeClassName": 'nvidia"'}}}, "runtimeClassName"),
        ({**SMALL, "pools": {"main": {"autoscaling": {"scaleDownStabilizationS": 7200}}}}, "3,?600"),
        ({**SMALL, "pools": {"main": {"autoscaling": {"minReplicas": 9}}}}, "minReplicas is larger"),
        ({**SMALL, "settings": {"RETENTON_S": 5}}, "settings.RETENTON_S is not a setting"),
        ({**SMALL, "pools": {"main": {"settings": {"HEALTH_PORT": 9}}}}, "HEALTH_PORT cannot be changed"),
        ({**SMALL, "settings": {"OPS_PORT_FILE": "/run/port"}}, "OPS_PORT_FILE cannot be changed"),
        ({**SMALL, "api": {"capability": "nope"}}, "api.capability must be what"),
        ({**SMALL, "api": {"capability": "{}"}}, "api.capability must be what"),
        ({**SMALL, "secrets": {"redisUrl": "redis://other"}}, "secrets.redisUrl would not be used"),
        (
            {**SMALL, "existingSecret": "ours", "secrets": {"apiKey": "k"}},
            "secrets.apiKey would not be used",
        ),
        ({**SMALL, "pools": {"main": {"resources": {"limits": {"memory": "64 Gi"}}}}}, "memory"),
        ({**SMALL, "pools": {"main": {"tolerations": [{"effect": "Foo"}]}}}, "effect"),
        ({**SMALL, "pools": {"main": {"checkpoint": {"persistentVolumeClam": {}}}}}, "persistentVolumeClam"),
        ({**SMALL, "networkPolicy": {"egressExcept": ["999.1.1.1/99"]}}, "egressExcept"),
        ({**SMALL, "pools": {"main": {"maxUnavailable": "0%"}}}, "maxUnavailable"),
        (
            {
                **SMALL,
                "monitoring": {"prometheusUrl": "http://prometheus"},
                "poolDefaults": {"checkpoint": WEIGHTS, "autoscaling": {"enabled": True}},
                "pools": {"spot": {}},
            },
            "pools.main and pools.spot have the same modelId",
        ),
    ],
)
def test_impossible_values_are_refused_by_name(values, message):
    with pytest.raises(HelmError, match=message):
        render(values)


@pytest.mark.parametrize("release", ["123", "a.b"])
def test_release_whose_name_a_service_cannot_have_needs_another_one(release):
    with pytest.raises(HelmError, match="set fullnameOverride"):
        render(SMALL, release)


def test_names_that_yaml_would_read_as_something_else_stay_text():
    objects = render(LIKE_NUMBERS, "1e3")
    for each in objects:
        if each["kind"] not in CUSTOM_KINDS:
            check(each)
    setting = LIKE_NUMBERS["pools"]["1"]["settings"]["COMPILE"]
    assert environment(named(objects, "StatefulSet", "-worker-1"))["LONGCAT_COMPILE"] == setting
    assert named(objects, "Ingress")["spec"]["rules"][0]["host"] == "*.1.2"
    quoted = [each["metadata"]["labels"]["app.kubernetes.io/instance"] for each in objects]
    assert set(quoted) == {"1e3"}


def test_installation_without_pools_has_an_api():
    kinds = {each["kind"] for each in render({**SMALL, "pools": {"main": None}})}
    assert "Deployment" in kinds
    assert "ScaledObject" not in kinds


def test_chart_knows_the_names_of_all_settings():
    assert (FOLDER / "settings.txt").read_text() == setting_names.of_chart(), "run `make generate`"
    settings = {"S3_SECRET_ACCESS_KEY_FILE": "/run/key", "REDIS_CA_FILE": "/run/ca"}
    assert render({**SMALL, "settings": settings})


def test_several_pods_of_a_pool_may_be_away_at_a_time():
    objects = render({**LARGE, "poolDefaults": {"checkpoint": WEIGHTS, "maxUnavailable": 5}})
    for kind, name in (("StatefulSet", "-canary"), ("PodDisruptionBudget", "-canary")):
        spec = named(objects, kind, name)["spec"]
        assert (spec.get("updateStrategy", {}).get("rollingUpdate") or spec)["maxUnavailable"] == 5
    rollout = named(objects, "LeaderWorkerSet", "-wide")["spec"]["rolloutStrategy"]
    assert rollout["rollingUpdateConfiguration"]["maxUnavailable"] == 5
    assert named(objects, "PodDisruptionBudget", "-h200")["spec"]["maxUnavailable"] == "10%"
    assert "updateStrategy" not in named(render(SMALL), "StatefulSet", "-main")["spec"]


def test_large_numbers_of_settings_keep_their_digits():
    """Helm reads numbers as floats, whose text has an exponent from a million on."""
    settings = {"MIN_FREE_BYTES": 10_000_000_000, "STUCK_S": 1_000_000, "STALL_S": 0.5}
    read = environment(named(render({**SMALL, "settings": settings}), "StatefulSet", "-main"))
    assert [read[f"LONGCAT_{name}"] for name in settings] == ["10000000000", "1000000", "0.5"]


@pytest.mark.parametrize("values", [SMALL, LARGE], ids=["small", "large"])
def test_every_service_and_policy_selects_pods_of_the_chart(values):
    objects = render(values)
    labels = [template["metadata"]["labels"] for template in pod_templates(objects)]
    selectors = [
        *(each["spec"]["selector"] for each in objects if each["kind"] == "Service"),
        *(each["spec"]["podSelector"]["matchLabels"] for each in objects if each["kind"] == "NetworkPolicy"),
        *(
            each["spec"]["selector"]["matchLabels"]
            for each in objects
            if each["kind"] in {"PodDisruptionBudget", "Deployment", "StatefulSet"}
        ),
    ]
    for selector in selectors:
        assert any(selector.items() <= each.items() for each in labels), selector


@pytest.mark.parametrize("values", [SMALL, LARGE], ids=["small", "large"])
def test_no_container_runs_as_root_or_writes_to_its_image(values):
    for template in pod_templates(render(values)):
        assert template["spec"]["automountServiceAccountToken"] is False
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True
        assert template["spec"]["securityContext"]["runAsUser"] > 0
        for container in containers_of(template):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


@pytest.mark.parametrize("values", [SMALL, LARGE], ids=["small", "large"])
def test_entrypoint_of_our_images_is_kept(values):
    """It passes signals on to a process that starts. `command` would replace it."""
    ours = [each for each in pod_templates(render(values)) if "serviceAccountName" in each["spec"]]
    assert ours
    assert not any("command" in container for each in ours for container in containers_of(each))


def test_redis_has_the_image_of_the_compose_file():
    compose = read_compose(ROOT / "docker-compose.yml")
    redis = container_of(named(render(SMALL), "StatefulSet", "-redis"))
    assert redis["image"] == compose.services["redis"].image


@pytest.mark.parametrize("values", [SMALL, LARGE], ids=["small", "large"])
def test_every_mount_and_port_by_name_exists(values):
    for template in pod_templates(render(values)):
        (container,) = template["spec"]["containers"]
        volumes = {volume["name"] for volume in template["spec"]["volumes"]}
        claims = {"data"}  # of Redis, made from the claim template
        mounts = {mount["name"] for each in containers_of(template) for mount in each["volumeMounts"]}
        assert mounts <= volumes | claims
        ports = {port["name"] for port in container["ports"]}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            for check_by in ("httpGet", "tcpSocket"):
                if check_by in container[probe]:
                    assert container[probe][check_by]["port"] in ports


def environment(workload: Object, node: int = 0) -> dict[str, str]:
    """Return the environment of the API or a worker; `node` is the number of its pod in a LeaderWorkerSet."""
    (container,) = templates_of(workload)[min(node, 1)]["spec"]["containers"]
    found = {each["name"]: each["value"] for each in container["env"]}
    assert len(found) == len(container["env"]), "a name is there twice"
    # what the controller of a LeaderWorkerSet puts in front of the environment
    for name, value in {"LWS_LEADER_ADDRESS": "wide-0.wide.ours", "LWS_WORKER_INDEX": str(node)}.items():
        found = {key: text.replace(f"$({name})", value) for key, text in found.items()}
    return found


@pytest.mark.parametrize("values", [SMALL, LARGE], ids=["small", "large"])
def test_processes_accept_their_environment(values, monkeypatch, tmp_path):
    for name in ("redis_url", "api_key", "s3_access_key_id", "s3_secret_access_key"):
        (tmp_path / name).write_text("redis://redis" if name == "redis_url" else "secret")
    (tmp_path / "capability.json").write_text(CAPABILITY.model_dump_json())
    objects = render(values)
    workloads = [each for each in objects if each["kind"] in WORKLOADS]
    for workload in workloads:
        if workload["metadata"]["name"].endswith("-redis"):
            continue
        settings = ApiSettings if workload["kind"] == "Deployment" else WorkerSettings
        with monkeypatch.context() as patch:
            for name, value in environment(workload).items():
                if field := name.removeprefix("LONGCAT_").removesuffix("_FILE").lower() * (name[0] == "L"):
                    assert {field, f"{field}_file"} & settings.model_fields.keys(), name
                path = Path(value)
                is_mounted = SECRETS in path.parents or path.name == "capability.json"
                patch.setenv(name, str(tmp_path / path.name) if is_mounted else value)
            read = settings()
        assert read.redis_url == "redis://redis"


def test_worker_has_neither_the_key_of_the_api_nor_more_secrets_than_it_reads():
    worker = named(render(LARGE), "StatefulSet", "-worker-h200")
    (secrets,) = (
        volume for volume in worker["spec"]["template"]["spec"]["volumes"] if volume["name"] == "secrets"
    )
    files = {item["key"] for item in secrets["secret"]["items"]}
    assert files == {"redis_url", "s3_access_key_id", "s3_secret_access_key"}
    read = {Path(value).name for value in environment(worker).values() if SECRETS in Path(value).parents}
    assert read == files


def files_of_secrets(template: Object) -> set[str]:
    volumes = [volume for volume in template["spec"]["volumes"] if volume["name"] == "secrets"]
    return {item["key"] for volume in volumes for item in volume["secret"]["items"]}


@pytest.mark.parametrize(
    ("source", "files"),
    [
        ("", set()),
        ("https://models.example.com/next", set()),
        ("s3://models/next", {"s3_access_key_id", "s3_secret_access_key"}),
    ],
)
def test_pod_that_claims_no_jobs_has_the_keys_of_its_weights_alone(source, files):
    pool = {"nodes": 2, "checkpoint": {"emptyDir": {}}, "weights": {"source": source}}
    workload = named(render({**LARGE, "pools": {"one": pool}}), "LeaderWorkerSet", "-one")
    leader, follower = templates_of(workload)
    assert files_of_secrets(leader) == {"redis_url", "s3_access_key_id", "s3_secret_access_key"}
    assert files_of_secrets(follower) == files
    assert not {name for name in environment(workload, node=1) if re.search("REDIS|S3|STORAGE", name)}
    (worker,) = follower["spec"]["containers"]
    assert not {mount["name"] for mount in worker["volumeMounts"]} & {"secrets", "storage"}


def test_pod_that_claims_no_jobs_mounts_no_storage():
    values = {**SMALL, "pools": {"one": {"nodes": 2}}}
    leader, follower = templates_of(named(render(values), "LeaderWorkerSet", "-one"))
    assert "storage" in {volume["name"] for volume in leader["spec"]["volumes"]}
    assert "storage" not in {volume["name"] for volume in follower["spec"]["volumes"]}


@pytest.mark.parametrize(
    ("pool", "request_", "limit"),
    [
        ({"gpus": 8}, "64Gi", "128Gi"),
        ({"gpus": 8, "settings": {"STREAM_WEIGHTS": True}}, "144Gi", "208Gi"),
        ({"gpus": 2, "settings": {"STREAM_WEIGHTS": True}}, "128Gi", "192Gi"),
        ({"gpus": 1, "settings": {"STREAM_WEIGHTS": "on"}}, "96Gi", "160Gi"),
        ({"gpus": 8, "settings": {"STREAM_WEIGHTS": "off"}}, "64Gi", "128Gi"),
        ({"resources": {"limits": {"memory": "90Gi"}}}, "64Gi", "90Gi"),
    ],
)
def test_memory_has_room_for_streamed_weights(pool, request_, limit):
    worker = named(render({**SMALL, "pools": {"one": pool}}), "StatefulSet", "-one")
    resources = container_of(worker)["resources"]
    assert resources["requests"] == {"cpu": "4", "memory": request_}
    assert resources["limits"]["memory"] == limit


def test_own_settings_replace_those_of_all_and_those_of_the_chart():
    """Helm 4 applies objects on the server, which refuses an environment with a name twice."""
    settings = {"STREAM_WEIGHTS": True, "LOG_FORMAT": "text", "RETENTION_S": 1}
    api = {"settings": {"RETENTION_S": 2}}
    pools = {"one": {}, "two": {"settings": {"STREAM_WEIGHTS": False, "DRAIN_S": 5}}}
    objects = render({**SMALL, "settings": settings, "api": api, "pools": pools})
    one, two = (named(objects, "StatefulSet", f"-{name}") for name in pools)
    assert environment(one)["LONGCAT_STREAM_WEIGHTS"] == "true"
    assert environment(two)["LONGCAT_STREAM_WEIGHTS"] == "false"
    assert (environment(one)["LONGCAT_DRAIN_S"], environment(two)["LONGCAT_DRAIN_S"]) == ("60", "5")
    assert environment(named(objects, "Deployment"))["LONGCAT_RETENTION_S"] == "2"
    assert {environment(each)["LONGCAT_LOG_FORMAT"] for each in (one, two)} == {"text"}
    limits = [container_of(each)["resources"]["limits"]["memory"] for each in (one, two)]
    assert limits == ["160Gi", "128Gi"]


def init_container_of(workload: Object) -> Object:
    (container,) = templates_of(workload)[0]["spec"]["initContainers"]
    found: Object = container
    return found


def fetch_options(container: Object) -> Namespace:
    """Return the options of the command, which its own parser accepts."""
    python, dash_m, module, *arguments = container["args"]
    assert (python, dash_m, module) == ("python", "-m", "model.weights")
    return build_parser().parse_args(arguments)


def test_weights_are_fetched_where_the_worker_reads_them():
    worker = named(render(LARGE), "StatefulSet", "-worker-fetched")
    init, main = init_container_of(worker), container_of(worker)
    options = fetch_options(init)
    (written,) = (mount for mount in init["volumeMounts"] if mount["name"] == "checkpoint")
    (read,) = (mount for mount in main["volumeMounts"] if mount["name"] == "checkpoint")
    assert (options.command, options.source) == ("fetch", "s3://models/next")
    assert options.folder == Path(written["mountPath"], read["subPath"])
    assert read["mountPath"] == environment(worker)["LONGCAT_CHECKPOINT"]
    assert "readOnly" not in written
    assert read["readOnly"] is True
    assert init["image"] == main["image"]
    assert "nvidia.com/gpu" not in init["resources"]["limits"]


def test_fetch_has_the_keys_of_s3_only_for_a_source_in_s3():
    from_s3 = init_container_of(named(render(LARGE), "StatefulSet", "-worker-fetched"))
    options = fetch_options(from_s3)
    assert options.s3_endpoint_url == "https://s3.example.com"
    assert options.s3_access_key_id_file == SECRETS / "s3_access_key_id"
    assert options.s3_secret_access_key_file == SECRETS / "s3_secret_access_key"
    assert "secrets" in {mount["name"] for mount in from_s3["volumeMounts"]}
    pool = {"checkpoint": {"emptyDir": {"sizeLimit": "100Gi"}}, **FETCHED}
    from_http = init_container_of(
        named(render({**LARGE, "pools": {"one": pool}}), "StatefulSet", "-worker-one")
    )
    assert fetch_options(from_http).s3_access_key_id_file is None
    assert "secrets" not in {mount["name"] for mount in from_http["volumeMounts"]}


def test_source_of_weights_may_be_on_another_s3_server():
    weights = {"source": "s3://models/next", "s3": {"endpointUrl": "https://models", "region": "eu"}}
    values = {**LARGE, "pools": {"one": {"checkpoint": {"emptyDir": {}}, "weights": weights}}}
    options = fetch_options(init_container_of(named(render(values), "StatefulSet", "-worker-one")))
    assert (options.s3_endpoint_url, options.s3_region) == ("https://models", "eu")


def test_no_init_container_without_a_source():
    worker = named(render(SMALL), "StatefulSet", "-worker-main")
    assert "initContainers" not in worker["spec"]["template"]["spec"]


def test_volume_of_a_pool_replaces_the_default_one():
    values = {**SMALL, "pools": {"one": {"checkpoint": {"emptyDir": {"sizeLimit": "90Gi"}}}}}
    volumes = named(render(values), "StatefulSet", "-worker-one")["spec"]["template"]["spec"]["volumes"]
    (checkpoint,) = (volume for volume in volumes if volume["name"] == "checkpoint")
    assert checkpoint == {"name": "checkpoint", "emptyDir": {"sizeLimit": "90Gi"}}


def test_compiled_kernels_are_kept_in_the_volume_of_a_pool():
    kept, not_kept = (named(render(LARGE), "StatefulSet", f"-worker-{name}") for name in ("trial", "h200"))
    mounts = {mount["name"]: mount["mountPath"] for mount in container_of(kept)["volumeMounts"]}
    assert environment(kept)["LONGCAT_COMPILE_CACHE_DIR"] == mounts["compile-cache"]
    assert "LONGCAT_COMPILE_CACHE_DIR" not in environment(not_kept)


def test_gpus_of_a_pod_are_its_ranks():
    objects = render(LARGE)
    large, canary, trial = (
        named(objects, "StatefulSet", f"-worker-{name}") for name in ("h200", "canary", "trial")
    )
    assert container_of(large)["resources"]["limits"]["nvidia.com/gpu"] == 8
    assert (environment(large)["LONGCAT_RANKS"], environment(large)["LONGCAT_CONTEXT_PARALLEL"]) == ("8", "4")
    assert (environment(canary)["LONGCAT_RANKS"], environment(canary)["LONGCAT_QUANTIZE"]) == ("1", "int8")
    assert "nvidia.com/gpu" not in container_of(trial)["resources"]["limits"]
    assert (environment(trial)["LONGCAT_RANKS"], environment(trial)["LONGCAT_DEVICE"]) == ("1", "cpu")


def test_pool_of_several_nodes_is_a_leader_worker_set_of_so_many_pods():
    objects = render(LARGE)
    workload = named(objects, "LeaderWorkerSet", "-wide")
    assert workload["spec"]["replicas"] == 3
    assert workload["spec"]["leaderWorkerTemplate"]["size"] == 2
    assert not [
        each for each in objects if each["kind"] == "Service" and each["metadata"]["name"].endswith("-wide")
    ]
    assert environment(workload)["LONGCAT_NODE_RANK"] == "0"
    read = environment(workload, node=1)
    assert (read["LONGCAT_NODES"], read["LONGCAT_RANKS"], read["LONGCAT_NODE_RANK"]) == ("2", "8", "1")
    endpoint = Endpoint.parse(read["LONGCAT_RENDEZVOUS"])
    assert endpoint.host == "wide-0.wide.ours"
    assert endpoint.port in {port["containerPort"] for port in container_of(workload)["ports"]}


def test_autoscaler_of_several_nodes_counts_groups():
    scaler = named(render(LARGE), "ScaledObject", "-scaled")
    target = scaler["spec"]["scaleTargetRef"]
    assert (target["apiVersion"], target["kind"]) == ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet")
    (demand,) = (each["metadata"] for each in scaler["spec"]["triggers"] if each["name"] == "demand")
    query = " ".join(demand["query"].split())
    assert "or vector(0)) / 1 + (" in query, "one replica is one group"
    gpus = LARGE["pools"]["scaled"]["gpus"] * LARGE["pools"]["scaled"]["nodes"]
    assert f"/ {600 * gpus})" in query


def test_only_pods_of_its_pool_reach_the_ranks_of_a_group_over_several_pods():
    objects = render(LARGE)
    policy = named(objects, "NetworkPolicy", "-wide-nodes")["spec"]
    selector = {"podSelector": policy["podSelector"]}
    assert (policy["ingress"], policy["egress"]) == ([{"from": [selector]}], [{"to": [selector]}])
    selected = policy["podSelector"]["matchLabels"].items()
    templates = [each for each in pod_templates(objects) if selected <= each["metadata"]["labels"].items()]
    assert templates == templates_of(named(objects, "LeaderWorkerSet", "-wide"))
    with_role = named(objects, "NetworkPolicy", "-workers")["spec"]
    assert with_role["ingress"] == [{"ports": [{"port": "health"}]}]
    off = render({**LARGE, "networkPolicy": {"enabled": False}})
    assert not [each for each in off if each["kind"] == "NetworkPolicy"]


def test_worker_knows_when_it_will_be_killed():
    worker = named(render(LARGE), "StatefulSet", "-worker-h200")
    grace_s = worker["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert int(environment(worker)["LONGCAT_TERMINATION_GRACE_S"]) == grace_s


def test_pod_disruption_budgets_can_be_left_out():
    assert named(render(SMALL), "PodDisruptionBudget", "-api")
    kinds = {each["kind"] for each in render({**SMALL, "podDisruptionBudgets": False})}
    assert {"Deployment", "StatefulSet"} <= kinds
    assert "PodDisruptionBudget" not in kinds


def test_autoscalers_own_the_number_of_pods():
    objects = render(LARGE)
    assert "replicas" not in named(objects, "Deployment")["spec"]
    assert "replicas" not in named(objects, "StatefulSet", "-worker-h200")["spec"]
    assert named(objects, "StatefulSet", "-worker-canary")["spec"]["replicas"] == 1
    assert "replicas" not in named(objects, "LeaderWorkerSet", "-scaled")["spec"]
    scaler = named(objects, "ScaledObject", "-h200")
    assert scaler["spec"]["scaleTargetRef"]["name"] == "video-longcat-video-worker-h200"


def test_queries_of_autoscalers_select_exported_metrics_of_the_pool():
    values = {**LARGE, "pools": {"one": {"modelId": "a.b_c", "autoscaling": {"enabled": True}}}}
    exported = set(re.findall(r'"(longcat_\w+)"', (ROOT / "service/ops/metrics.py").read_text()))
    for trigger in named(render(values), "ScaledObject")["spec"]["triggers"]:
        query = trigger["metadata"]["query"]
        assert set(re.findall(r"longcat_\w+", query)) <= exported
        selectors = re.findall(r"longcat_\w+\{(.*?)(?:,pool=~.*?\{8\}\")?\}", query)
        assert len(selectors) == query.count("longcat_")
        assert set(selectors) == {'namespace="ours",service="video-longcat-video-api-ops"'}
        for pattern in re.findall(r'pool=~"([^"]+)"', query):
            expression = pattern.replace("\\\\", "\\")  # PromQL's own escapes
            assert re.fullmatch(expression, "a.b_c-0123abcd")
            assert not re.fullmatch(expression, "axb_c-0123abcd")


def test_only_the_port_of_requests_is_behind_the_ingress():
    objects = render(LARGE)
    (path,) = named(objects, "Ingress")["spec"]["rules"][0]["http"]["paths"]
    service = named(objects, "Service", path["backend"]["service"]["name"])
    assert [port["targetPort"] for port in service["spec"]["ports"]] == ["http"]


def test_rules_are_those_that_are_tested():
    rule = named(render(LARGE), "PrometheusRule")
    files = [
        yaml.safe_load((ROOT / "deploy/prometheus" / name).read_text())
        for name in ("rules.yml", "alerts.yml")
    ]
    assert rule["spec"]["groups"] == [group for file in files for group in file["groups"]]


def test_packaged_chart_contains_what_it_links_to(tmp_path):
    archive = chart.package(FOLDER, destination=tmp_path)
    with Chart.load(archive) as loaded:
        assert loaded.render(SMALL, name="video").keys() >= {"longcat-video/templates/workers.yaml"}
        assert {"rules/rules.yml", "rules/alerts.yml", "settings.txt"} <= {
            file["name"] for file in loaded.files
        }
