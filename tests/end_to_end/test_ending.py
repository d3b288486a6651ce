"""However the stack ends, no process of it stays."""

from __future__ import annotations

import signal

import psutil
import pytest

from tests.running_stack import run_stack
from tests.waiting import wait_until

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("how", "ranks"), [pytest.param(signal.SIGINT, 1, marks=pytest.mark.soak), (signal.SIGKILL, 2)]
)
def test_nothing_stays_behind(how, ranks, tmp_path, tiny_checkpoint):
    with run_stack(tmp_path, tiny_checkpoint, ranks=ranks) as stack:
        stack.order(num_inference_steps=50)
        family = stack.descendants
        running = [process for process in family if "worker.rank.main" in " ".join(process.cmdline())]
        assert len(running) >= ranks
        stack.process.send_signal(how)
        stack.process.wait()
        wait_until(lambda: all(_gone(process) for process in family))
    assert stack.process.returncode == (-how if how == signal.SIGKILL else 0)


def _gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
