from __future__ import annotations

from worker.host_memory import host_memory_bytes


def test_memory_of_this_machine_is_found():
    assert 1 << 28 < host_memory_bytes() < 1 << 50
