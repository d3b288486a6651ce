"""The units for systemd are valid and fit the processes' settings; the script for Slurm drains its worker."""

from __future__ import annotations

import configparser
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from service.__main__ import GRACE_S
from service.settings import Settings as ApiSettings
from tests.waiting import wait_until
from worker.settings import END_S, Endpoint, WorkerSettings

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = DEPLOY / "systemd"
SCRIPT = DEPLOY / "slurm" / "worker.sbatch"


class Unit(configparser.RawConfigParser):
    """A unit file. Values of options that are given more than once are joined by spaces."""

    def __init__(self, name: str) -> None:
        super().__init__(strict=False, interpolation=None)
        self.optionxform = str  # type: ignore[assignment,method-assign]
        joined: dict[tuple[str, str], list[str]] = {}
        section = ""
        for line in (UNITS / f"longcat-{name}.service").read_text().splitlines():
            if line.startswith("["):
                section = line.strip("[]")
            elif line and not line.startswith("#"):
                option, value = line.split("=", 1)
                joined.setdefault((section, option), []).append(value)
        for (section, option), values in joined.items():
            if not self.has_section(section):
                self.add_section(section)
            self.set(section, option, " ".join(values))

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables that the unit and the example of its file set."""
        name = Path(self["Service"]["EnvironmentFile"]).name
        lines = (UNITS / f"{name}.example").read_text().splitlines()
        from_file = [line for line in lines if line and not line.startswith("#")]
        return dict(pair.split("=", 1) for pair in [*self["Service"]["Environment"].split(), *from_file])


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> Unit:
    """Set the environment of a unit's process. Return the unit."""
    unit = Unit(request.param)
    (tmp_path / "redis_url").write_text("rediss://redis.example.com:6379/0\n")
    for name, value in unit.environment.items():
        monkeypatch.setenv(name, value.replace("%d", str(tmp_path)))
    return unit


@pytest.mark.parametrize("environment", ["worker"], indirect=True)
def test_worker_accepts_its_environment(environment: Unit) -> None:
    settings = WorkerSettings()
    assert settings.redis_url == "rediss://redis.example.com:6379/0"
    assert settings.num_groups == 2
    assert settings.termination_grace_s == float(environment["Service"]["TimeoutStopSec"])
    assert str(settings.data_dir) == f"/var/lib/{environment['Service']['StateDirectory']}"


@pytest.mark.parametrize("environment", ["api"], indirect=True)
def test_api_accepts_its_environment(environment: Unit) -> None:
    settings = ApiSettings()
    assert settings.redis_url == "rediss://redis.example.com:6379/0"
    assert float(environment["Service"]["TimeoutStopSec"]) > GRACE_S
    assert str(settings.data_dir) == f"/var/lib/{environment['Service']['StateDirectory']}"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
@pytest.mark.parametrize("name", ["api", "worker"])
def test_systemd_finds_nothing_wrong(name: str, tmp_path: Path) -> None:
    unit = tmp_path / f"longcat-{name}.service"
    content = (UNITS / unit.name).read_text()
    unit.write_text(content.replace("/opt/longcat/bin/python", shutil.which("python3") or ""))
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    verified = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (verified.returncode, verified.stderr) == (0, "")


FAKE_WORKER = """#!/bin/bash
echo "$*" >"$OUT/arguments"; echo "$LONGCAT_DATA_DIR" >"$OUT/folder"; touch "$LONGCAT_DATA_DIR/video.mp4"
trap 'sleep 0.3; touch "$OUT/drained"; exit 7' TERM
touch "$OUT/started"
while :; do sleep 0.05; done
"""


@pytest.mark.parametrize("whole_group", [False, True], ids=["script_alone", "all_processes"])
def test_slurm_script_waits_until_its_worker_has_drained(tmp_path: Path, whole_group: bool) -> None:
    """Slurm signals the script alone before the end of its time, and all processes at `scancel`."""
    python = tmp_path / "python"
    python.write_text(FAKE_WORKER)
    python.chmod(0o700)
    environment = {
        "PATH": "/usr/bin:/bin",
        "OUT": str(tmp_path),
        "TMPDIR": str(tmp_path),
        "SLURM_JOB_ID": "7",
        "SLURM_GPUS_ON_NODE": "4",
        "LONGCAT_PYTHON": str(python),
        "LONGCAT_REDIS_URL_FILE": "/redis_url",
        "LONGCAT_STORAGE": "s3://videos",
        "LONGCAT_CHECKPOINT": "/models",
    }
    process = subprocess.Popen(["bash", str(SCRIPT)], env=environment, start_new_session=True)
    try:
        wait_until((tmp_path / "started").exists)
        if whole_group:
            subprocess.run(["kill", "-TERM", "--", f"-{process.pid}"], check=True)
        else:
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 7
    finally:
        subprocess.run(["kill", "-KILL", "--", f"-{process.pid}"], check=False, stderr=subprocess.DEVNULL)
    assert (tmp_path / "drained").exists()
    assert (tmp_path / "arguments").read_text() == "-m worker\n"
    assert not Path((tmp_path / "folder").read_text().strip()).exists()


# Runs the command on two nodes, and passes SIGTERM on to both.
FAKE_SRUN = """#!/bin/bash
[ "$1" = --ntasks-per-node=1 ] || exit 9
shift
SLURM_NODEID=0 "$@" & first=$!
SLURM_NODEID=1 "$@" & second=$!
trap 'kill -KILL $first $second' TERM
echo "$first $second" >"$OUT/steps"
wait $first || wait $first; status=$?
wait $second; exit "$status"
"""
FAKE_SCANCEL = """#!/bin/bash
[ "$*" = "--signal=TERM 7" ] && kill -TERM $(cat "$OUT/steps")
"""
FAKE_NODE = """#!/bin/bash
trap 'touch "$OUT/drained-$LONGCAT_NODE_RANK"; exit 0' TERM
echo "$* $LONGCAT_NODES $LONGCAT_RENDEZVOUS $LONGCAT_RANKS" >"$OUT/part-$LONGCAT_NODE_RANK"
mv "$OUT/part-$LONGCAT_NODE_RANK" "$OUT/node-$LONGCAT_NODE_RANK"
while :; do sleep 0.05; done
"""


def test_slurm_script_runs_one_worker_on_each_node(tmp_path: Path) -> None:
    for name, content in (("python", FAKE_NODE), ("srun", FAKE_SRUN), ("scancel", FAKE_SCANCEL)):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o700)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "OUT": str(tmp_path),
        "TMPDIR": str(tmp_path),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NUM_NODES": "2",
        "LONGCAT_REDIS_URL_FILE": "/redis_url",
        "LONGCAT_STORAGE": "s3://videos",
        "LONGCAT_CHECKPOINT": "/models",
    }
    process = subprocess.Popen(["bash", str(SCRIPT)], env=environment, start_new_session=True)
    try:
        wait_until(lambda: all((tmp_path / f"node-{rank}").exists() for rank in range(2)))
        wait_until(lambda: (tmp_path / "steps").exists() and (tmp_path / "steps").read_text())
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
    finally:
        subprocess.run(["kill", "-KILL", "--", f"-{process.pid}"], check=False, stderr=subprocess.DEVNULL)
    assert all((tmp_path / f"drained-{rank}").exists() for rank in range(2))
    first, second = ((tmp_path / f"node-{rank}").read_text().split() for rank in range(2))
    assert first == second
    *command, nodes, rendezvous, ranks = first
    assert (command, nodes, ranks) == (["-m", "worker"], "2", "8")
    assert Endpoint.parse(rendezvous).port == 29500


@pytest.mark.parametrize("missing", ["LONGCAT_REDIS_URL_FILE", "LONGCAT_STORAGE", "LONGCAT_CHECKPOINT"])
def test_slurm_script_names_a_setting_that_is_missing(missing: str) -> None:
    names = {"LONGCAT_REDIS_URL_FILE", "LONGCAT_STORAGE", "LONGCAT_CHECKPOINT"} - {missing}
    environment = {"PATH": "/usr/bin:/bin", **dict.fromkeys(names, "x")}
    ended = subprocess.run(
        ["bash", str(SCRIPT)], env=environment, check=False, capture_output=True, text=True
    )
    assert ended.returncode != 0
    assert missing in ended.stderr


def test_worker_has_time_to_drain_within_slurms_limits() -> None:
    lines = SCRIPT.read_text().splitlines()
    before_end_s = next(int(line.rsplit("@", 1)[1]) for line in lines if line.startswith("#SBATCH --signal"))
    drain_s = WorkerSettings.model_fields["drain_s"].default
    assert drain_s + END_S < before_end_s
    assert drain_s + END_S <= 30  # KillWait of Slurm, unless the cluster changes it
