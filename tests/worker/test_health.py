"""Probes tell a worker that loads or works from one that is stuck."""

from __future__ import annotations

import json
import os
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from stack.redis_server import RedisServer
from tests.servers import free_port, redis_program
from tests.waiting import wait_until
from tests.worker.running_worker import IMPATIENT, PATIENCE_S, RunningWorker, running_worker
from worker.health import (
    HealthReporter,
    HealthReports,
    JointReports,
    ReportedState,
    is_alive,
    is_ready,
    serve_health,
)

Answer = tuple[int, list[str]]


def probe(port: int, path: str) -> Answer:
    """Return the status of a probe and the states of the groups; status 0 if nobody listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
            return answer.status, json.load(answer)["groups"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)["groups"]
    except urllib.error.URLError:
        return 0, []


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class TestJointReports:
    @pytest.mark.parametrize(
        ("states", "expected"),
        [
            (["ready", "busy"], "busy"),
            (["full", "ready"], "ready"),
            (["broken", "broken"], "broken"),
            (["draining", "draining"], "draining"),
        ],
    )
    def test_state_of_all_loops_is_that_of_one_that_takes_jobs(self, states, expected):
        reported: list[ReportedState] = []
        reports = JointReports(2, reported.append)
        for loop, state in enumerate(states):
            reports.report(loop, state)
        assert reported == [expected]

    def test_loop_that_has_drained_does_not_end_the_reports_of_the_others(self):
        reported: list[ReportedState] = []
        reports = JointReports(3, reported.append)
        reports.report(0, "draining")
        reports.report(1, "ready")
        assert reported == []
        reports.report(2, "ready")
        for loop in (1, 2, 1, 2):
            reports.report(loop, "busy")
        assert reported == ["ready", "busy", "busy"]

    def test_nothing_is_reported_while_a_loop_does_not_turn(self):
        reported: list[ReportedState] = []
        reports = JointReports(2, reported.append)
        for _ in range(3):
            reports.report(0, "ready")
        assert reported == []
        reports.report(1, "ready")
        reports.report(1, "ready")
        assert reported == ["ready"]


class TestReports:
    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def ends(self, clock: Clock) -> Iterator[tuple[HealthReporter, HealthReports]]:
        reading, writing = os.pipe()
        reports = HealthReports(reading, stuck_s=10.0, clock=clock)
        yield HealthReporter(writing, clock), reports
        reports.close()
        os.close(writing)

    def test_supervisor_that_has_not_reported_yet_is_starting(self, ends, clock):
        _, reports = ends
        clock.now += 1000
        reports.read()
        assert reports.health() == "starting"

    def test_last_report_counts_until_it_is_too_old(self, ends, clock):
        reporter, reports = ends
        reporter.report("starting")
        reporter.report("ready")
        reports.read()
        assert reports.health() == "ready"
        clock.now += 10.1
        reports.read()
        assert reports.health() == "stuck"
        reporter.report("ready")
        reports.read()
        assert reports.health() == "ready"

    def test_unchanged_state_is_reported_once_a_second(self, clock):
        reading, writing = os.pipe()
        reporter = HealthReporter(writing, clock)
        for _ in range(30):
            reporter.report("busy")
            clock.now += 0.1
        assert os.read(reading, 1000) == b"busy\n" * 3
        os.close(reading)
        os.close(writing)

    def test_reporting_never_blocks_or_fails_if_nobody_reads(self, clock):
        reading, writing = os.pipe()
        reporter = HealthReporter(writing, clock)
        for _ in range(70_000 // len("busy\n")):
            reporter.report("busy")
            clock.now += 1.0
        os.close(reading)
        clock.now += 1.0
        reporter.report("busy")
        os.close(writing)


@pytest.mark.parametrize(
    ("groups", "alive", "ready"),
    [
        (["starting"], True, False),
        (["down"], True, False),
        (["full"], True, False),
        (["draining"], True, False),
        (["ready"], True, True),
        (["busy", "starting"], True, True),
        (["broken"], False, False),
        (["stuck", "broken"], False, False),
        (["broken", "starting"], True, False),
        (["stuck", "busy"], True, True),
    ],
)
def test_worker_is_alive_unless_no_group_is_well_and_ready_if_one_takes_jobs(groups, alive, ready):
    assert (is_alive(groups), is_ready(groups)) == (alive, ready)


def test_other_paths_are_not_found_and_a_silent_client_does_not_block_a_probe():
    port = free_port()
    with (
        serve_health("127.0.0.1", port, lambda: ["ready"]),
        socket.create_connection(("127.0.0.1", port)),
    ):
        assert probe(port, "/readyz") == (200, ["ready"])
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60).close()


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningWorker]:
    folder = tmp_path_factory.mktemp("worker")
    with (
        RedisServer(folder / "redis", redis_program()) as redis,
        running_worker(folder, redis.url, health_port=free_port(), stuck_s=30, **IMPATIENT) as worker,
    ):
        yield worker


@pytest.fixture
def port(worker: RunningWorker) -> int:
    return int(worker.settings["LONGCAT_HEALTH_PORT"])


@pytest.mark.integration
def test_worker_that_loads_is_alive_and_not_ready_until_it_has_loaded(redis_server, tmp_path):
    port = free_port()
    with running_worker(tmp_path, redis_server, health_port=port):
        wait_until(lambda: probe(port, "/livez")[0], PATIENCE_S)
        assert probe(port, "/livez")[0] == 200
        assert probe(port, "/readyz") == (503, ["starting"])
        wait_until(lambda: probe(port, "/readyz") == (200, ["ready"]), PATIENCE_S)


@pytest.mark.integration
def test_worker_is_alive_while_it_replaces_a_rank_that_hangs(worker, port):
    worker.wait_until_ready()
    ranks = worker.ranks
    job_id = worker.submit("step_s=0.2")
    worker.wait_for_step(job_id)
    os.kill(ranks[1].pid, signal.SIGSTOP)
    answers: list[Answer] = []

    def is_replaced() -> bool:
        answers.append(probe(port, "/livez"))
        return worker.job(job_id).status == "succeeded"

    wait_until(is_replaced, PATIENCE_S)
    assert not {rank.pid for rank in ranks} & {rank.pid for rank in worker.ranks}
    assert {status for status, _ in answers} == {200}
    assert ["starting"] in [groups for _, groups in answers]


@pytest.mark.integration
def test_worker_is_not_alive_while_its_supervisor_hangs(worker, port):
    worker.wait_until_ready()
    supervisor = worker.supervisor
    os.kill(supervisor.pid, signal.SIGSTOP)
    try:
        wait_until(lambda: probe(port, "/livez") == (503, ["stuck"]), PATIENCE_S)
        assert probe(port, "/readyz") == (503, ["stuck"])
    finally:
        os.kill(supervisor.pid, signal.SIGCONT)
    wait_until(lambda: probe(port, "/livez")[0] == 200, PATIENCE_S)


@pytest.mark.integration
def test_worker_whose_group_cannot_start_is_not_alive(redis_server, tmp_path):
    port = free_port()
    settings = {"health_port": port, "max_failed_starts": 1, "longest_pause_s": 600}
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "dies_in_setup").write_text("9")
    with running_worker(tmp_path, redis_server, **settings):
        wait_until(lambda: probe(port, "/livez") == (503, ["broken"]), PATIENCE_S)
