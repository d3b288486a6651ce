"""The compose file says what compose understands, and names only what exists."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from service.settings import Settings
from tests.docker.compose import Bind, Service, read_compose
from tests.docker.dockerfile import PINNED_IMAGE, read_dockerfile
from worker.settings import END_S, WorkerSettings

ROOT = Path(__file__).parents[2]
COMPOSE = read_compose(ROOT / "docker-compose.yml")
SERVICES = sorted(COMPOSE.services)
OURS = {"api": Settings, "worker": WorkerSettings}
WORKER = COMPOSE.services["worker"]


def own_environment(service: Service) -> dict[str, str | int | None]:
    return {name: value for name, value in service.environment.items() if name.startswith("LONGCAT_")}


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_ours_or_have_a_tag_and_a_digest(name):
    service = COMPOSE.services[name]
    assert service.build is not None or PINNED_IMAGE.fullmatch(service.image)


@pytest.mark.parametrize("name", OURS)
def test_our_images_are_built_from_dockerfiles_that_exist(name):
    build = COMPOSE.services[name].build
    assert build is not None
    assert (ROOT / build.context / build.dockerfile).is_file()


@pytest.mark.parametrize(("name", "settings"), OURS.items())
def test_every_variable_is_a_setting_of_its_process(name, settings):
    names = {variable.removesuffix("_FILE") for variable in own_environment(COMPOSE.services[name])}
    known = {f"LONGCAT_{field.upper()}" for field in settings.model_fields}
    assert names <= known


@pytest.mark.parametrize("name", OURS)
def test_variables_taken_from_the_shell_keep_their_name(name):
    for variable, value in own_environment(COMPOSE.services[name]).items():
        taken = re.match(r"\$\{(\w+)", str(value))
        assert taken is None or taken[1] == variable


@pytest.mark.parametrize("name", SERVICES)
def test_every_secret_is_declared_and_every_secret_file_is_given(name):
    service = COMPOSE.services[name]
    read = set(re.findall(r"/run/secrets/(\w+)", service.model_dump_json()))
    assert read == set(service.secrets)
    assert read <= set(COMPOSE.secrets)


@pytest.mark.parametrize("name", SERVICES)
def test_no_secret_stands_in_the_environment(name):
    secret = re.compile(r"(KEY|SECRET|PASSWORD|TOKEN)")
    for variable in COMPOSE.services[name].environment:
        assert not secret.search(variable) or variable.endswith("_FILE")


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_loopback_unless_widened(name):
    for port in COMPOSE.services[name].ports:
        assert port.startswith(("127.0.0.1:", "${LONGCAT_BIND_ADDRESS:-127.0.0.1}:"))


def test_the_root_of_the_store_is_known_to_the_store_and_its_setup_alone():
    knowing = {name for name in SERVICES if "s3_root_password" in COMPOSE.services[name].secrets}
    assert knowing == {"s3", "s3-bucket"}
    assert COMPOSE.services["s3"].environment["MINIO_ROOT_USER_FILE"] == "/run/secrets/s3_root_user"


@pytest.fixture
def store_commands(tmp_path):
    """Runs the script that sets the store up, twice, and returns what it ran each time."""
    secrets = {"root_user": "root", "root_password": "r", "access_key_id": "me", "secret_access_key": "s"}
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "S3_URL": "http://s3:9000"}
    for name, value in secrets.items():
        (tmp_path / name).write_text(value)
        environment[f"S3_{name.upper()}_FILE"] = str(tmp_path / name)
    mc = tmp_path / "mc"  # as the real one, it fails to detach what is not attached
    mc.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/log\n[ "$3" != detach ]\n')
    mc.chmod(0o755)
    for _ in range(2):
        subprocess.run(["sh", ROOT / "docker" / "make-bucket.sh"], env=environment, check=True)
    return (tmp_path / "log").read_text().splitlines()


def test_the_service_has_a_user_of_its_own_in_the_store(store_commands):
    assert "admin user add store me s" in store_commands
    assert store_commands[-1] == "admin policy attach store longcat --user me"
    mounted = {volume.target for volume in COMPOSE.services["s3-bucket"].volumes if isinstance(volume, Bind)}
    (created,) = {line for line in store_commands if "policy create" in line}
    assert created.split()[-1] in mounted


def test_the_policy_is_for_one_bucket_and_names_what_the_storage_does():
    policy = json.loads((ROOT / "docker" / "s3-policy.json").read_text())
    resources = {resource for statement in policy["Statement"] for resource in statement["Resource"]}
    assert resources == {"arn:aws:s3:::longcat", "arn:aws:s3:::longcat/*"}
    actions = {action for statement in policy["Statement"] for action in statement["Action"]}
    assert not any("*" in action for action in actions)
    assert {"s3:PutObject", "s3:GetObject", "s3:DeleteObject", "s3:ListBucket"} <= actions
    assert {"s3:ListBucketMultipartUploads", "s3:AbortMultipartUpload"} <= actions


def test_the_maker_of_secrets_makes_what_is_missing_and_keeps_the_rest(tmp_path):
    shutil.copytree(ROOT / "docker", tmp_path / "docker")
    folder = tmp_path / "secrets"

    def make() -> dict[str, str]:
        subprocess.run([tmp_path / "docker" / "make-secrets.sh"], check=True, capture_output=True)
        return {f"secrets/{path.name}": path.read_text() for path in folder.iterdir()}

    made = make()
    assert made == make()
    (folder / "grafana_password").unlink()
    again = make()
    assert {name for name in again if again[name] != made[name]} == {"secrets/grafana_password"}
    assert made.keys() == again.keys() == {secret.file for secret in COMPOSE.secrets.values()}
    assert made["secrets/redis_url"] == f"redis://:{made['secrets/redis_password']}@redis:6379/0"
    assert len(made["secrets/s3_secret_access_key"]) >= 32
    assert folder.stat().st_mode & 0o777 == 0o700


def test_secrets_stay_out_of_the_repository_and_the_images():
    assert "/secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    assert "!secrets" not in (ROOT / ".dockerignore").read_text()


@pytest.mark.parametrize("name", SERVICES)
def test_services_wait_only_for_services_that_can_say_they_are_well(name):
    for other, how in COMPOSE.services[name].depends_on.items():
        service = COMPOSE.services[other]
        assert how.condition != "service_healthy" or service.healthcheck is not None
        assert set(service.profiles) <= set(COMPOSE.services[name].profiles)


@pytest.mark.parametrize("name", SERVICES)
def test_volumes_are_declared(name):
    volumes = COMPOSE.services[name].volumes
    named = {volume.partition(":")[0] for volume in volumes if isinstance(volume, str)}
    assert named <= set(COMPOSE.volumes)


def test_redis_keeps_accepted_jobs():
    command = " ".join(COMPOSE.services["redis"].command or [])
    for option in (
        "--appendonly yes",
        "--appendfsync always",
        "--maxmemory-policy noeviction",
        "--requirepass",
    ):
        assert option in command
    assert any(str(volume).endswith(":/data") for volume in COMPOSE.services["redis"].volumes)
    assert COMPOSE.services["redis"].ports == []


def test_the_api_is_published_at_the_port_it_listens_on():
    image = read_dockerfile(ROOT / "docker" / "api.Dockerfile")
    inside = COMPOSE.services["api"].ports[0].rpartition(":")[2]
    assert inside == image.all("EXPOSE")[0] == image.environment["LONGCAT_PORT"]
    assert inside == str(Settings.model_fields["port"].default)
    assert f"${{LONGCAT_PORT:-{inside}}}" in COMPOSE.services["api"].ports[0]


def test_worker_reserves_one_gpu_for_each_rank():
    assert WORKER.deploy is not None
    (device,) = WORKER.deploy.resources.reservations.devices
    assert device.capabilities == ["gpu"]
    assert device.count == WORKER.environment["LONGCAT_RANKS"]


def test_every_replica_of_the_worker_has_its_own_name_and_its_own_spool():
    assert WORKER.hostname is None
    assert "LONGCAT_WORKER_NAME" not in WORKER.environment
    data_dir = read_dockerfile(ROOT / "docker" / "worker.Dockerfile").environment["LONGCAT_DATA_DIR"]
    shared = [mount.partition(":")[2] for mount in WORKER.volumes if isinstance(mount, str)]
    assert shared == ["/data", WORKER.environment["LONGCAT_COMPILE_CACHE_DIR"]]
    assert not any(Path(data_dir).is_relative_to(folder) for folder in shared)


def test_weights_are_mounted_where_the_worker_looks_for_them():
    image = read_dockerfile(ROOT / "docker" / "worker.Dockerfile")
    mounts = [volume for volume in WORKER.volumes if isinstance(volume, Bind)]
    assert [mount.target for mount in mounts] == [image.environment["LONGCAT_CHECKPOINT"]]
    assert all(mount.read_only for mount in mounts)


def test_worker_has_the_time_to_save_its_job():
    grace = WORKER.stop_grace_period
    assert grace is not None
    assert int(grace.removesuffix("s")) == WORKER.environment["LONGCAT_TERMINATION_GRACE_S"]
    assert int(grace.removesuffix("s")) >= WorkerSettings.model_fields["drain_s"].default + END_S


@pytest.mark.parametrize("name", [name for name in SERVICES if name != "s3-owner"])
def test_services_have_no_more_rights_than_they_need(name):
    service = COMPOSE.services[name]
    assert service.cap_drop == ["ALL"]
    assert "no-new-privileges:true" in service.security_opt
    assert name in OURS or service.user not in {None, "root"}


def test_the_bucket_is_the_one_that_the_file_tells_to_use():
    storage = re.search(r"LONGCAT_STORAGE=s3://(\S+)", (ROOT / "docker-compose.yml").read_text())
    assert storage is not None
    assert f"store/{storage[1]}\n" in (ROOT / "docker" / "make-bucket.sh").read_text()


def test_a_misspelt_key_is_refused(tmp_path):
    path = tmp_path / "docker-compose.yml"
    path.write_text((ROOT / "docker-compose.yml").read_text().replace("healthcheck:", "healthchek:"))
    with pytest.raises(ValueError, match="healthchek"):
        read_compose(path)
