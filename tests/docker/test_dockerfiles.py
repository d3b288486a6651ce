"""Test that the Dockerfiles name what exists, and that each image has what its process imports."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from service.settings import Settings
from tests.docker.dockerfile import PINNED_IMAGE, Dockerfile, read_dockerfile
from worker.settings import WorkerSettings

ROOT = Path(__file__).parents[2]
API = read_dockerfile(ROOT / "docker" / "api.Dockerfile")
WORKER = read_dockerfile(ROOT / "docker" / "worker.Dockerfile")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

both = pytest.mark.parametrize("image", [API, WORKER], ids=["api", "worker"])


def installed(image: Dockerfile) -> set[str]:
    wanted = list(PROJECT["dependencies"])
    for extra in image.extras:
        wanted += PROJECT["optional-dependencies"][extra]
    return {Requirement(text).name for text in wanted}


@both
def test_everything_copied_exists(image):
    missing = [source for source in image.copied if not (ROOT / source).exists()]
    assert missing == []


@both
def test_dockerignore_excludes_nothing_that_is_copied(image):
    let_through = set((ROOT / ".dockerignore").read_text().splitlines())
    assert {f"!{source}" for source in image.copied} <= let_through


@both
def test_module_that_it_runs_exists_and_is_copied(image):
    assert image.command[:2] == ["python", "-m"]
    module = image.command[2]
    assert importlib.util.find_spec(f"{module}.__main__") is not None
    assert module in image.copied


@both
def test_first_process_handles_signals_before_python_does(image):
    """The kernel ignores a signal to the first process of a namespace that it does not handle yet."""
    assert image.entrypoint == ["tini", "--"]
    assert " tini " in image.all("RUN")[0]


@pytest.mark.parametrize(("image", "settings"), [(API, Settings), (WORKER, WorkerSettings)])
def test_every_variable_is_a_setting_of_its_process(image, settings):
    own = {name for name in image.environment if name.startswith("LONGCAT_")}
    assert own <= {f"LONGCAT_{field.upper()}" for field in settings.model_fields}


@pytest.mark.parametrize(("image", "settings"), [(API, Settings), (WORKER, WorkerSettings)])
def test_every_variable_has_a_valid_value(image, settings, monkeypatch):
    for name, value in image.environment.items():
        if name.startswith("LONGCAT_"):
            monkeypatch.setenv(name, value)
    folder = settings().data_dir
    (created,) = [line for line in image.all("RUN") if "install --directory" in line]
    assert str(folder) in created.split()


def test_both_images_have_the_same_storage_by_default(monkeypatch):
    locations = []
    for image, settings in ((API, Settings), (WORKER, WorkerSettings)):
        for name in ("LONGCAT_DATA_DIR", "LONGCAT_STORAGE"):
            monkeypatch.setenv(name, image.environment.get(name, ""))
        locations.append(settings().storage_location)
    assert locations == ["/data/storage", "/data/storage"]


@both
def test_user_is_a_number_other_than_root(image):
    """Kubernetes refuses `runAsNonRoot` for a user that is a name."""
    assert image.all("USER") == ["10001:10001"]
    assert "useradd --uid 10001 --gid 10001 " in " ".join(image.all("RUN"))


@both
def test_labels_state_the_version_and_the_license_of_the_package(image):
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in image.labels.items()}
    assert labels.keys() == {"title", "description", "version", "revision", "base.name", "licenses"}
    assert (labels["version"], labels["licenses"]) == (PROJECT["version"], PROJECT["license"])


@both
def test_image_has_a_health_check(image):
    assert len(image.all("HEALTHCHECK")) == 1


def test_api_is_probed_for_liveness_at_the_port_it_listens_on():
    check = API.all("HEALTHCHECK")[0]
    assert f"http://127.0.0.1:{API.environment['LONGCAT_PORT']}/livez" in check


def test_worker_is_probed_for_liveness_at_its_health_port_by_a_program_in_the_image():
    check = WORKER.all("HEALTHCHECK")[0]
    assert f"http://127.0.0.1:{WORKER.environment['LONGCAT_HEALTH_PORT']}/livez" in check
    assert " curl " in WORKER.all("RUN")[0]


def test_worker_has_torch_and_api_has_not():
    assert "torch" not in installed(API)
    assert "torch" in installed(WORKER)


@both
def test_versions_are_those_of_the_constraints(image):
    for line in image.all("RUN"):
        if "pip install" in line:
            assert "--constraint constraints.txt" in line or "--no-deps" in line


@both
def test_default_base_has_a_tag_and_a_digest(image):
    assert image.all("FROM") == ["${BASE}"]
    assert PINNED_IMAGE.fullmatch(image.arguments["BASE"])


def test_worker_gets_torch_from_pypi_by_default():
    assert "PIP_FIND_LINKS" not in WORKER.arguments
