from __future__ import annotations

import pytest

from model.io.host_memory import host_memory_bytes


def test_memory_of_this_machine_is_found():
    assert 1 << 28 < host_memory_bytes() < 1 << 50


@pytest.mark.parametrize(
    ("own_groups", "limits"),
    [
        ("0::/", {"memory.max": "1000"}),
        ("0::/slurm/job", {"slurm/job/memory.max": "max", "slurm/memory.max": "1000"}),
        ("0::/slurm/job", {"slurm/job/memory.max": "1000", "slurm/memory.max": "5000"}),
        ("9:cpu:/other\n4:memory:/job", {"memory/job/memory.limit_in_bytes": "1000"}),
        ("4:memory:/path/on/the/host", {"memory/memory.limit_in_bytes": "1000"}),
    ],
    ids=["container", "group around", "own group", "version 1", "container with version 1"],
)
def test_limit_of_a_control_group_is_found(tmp_path, own_groups, limits):
    for name, limit in limits.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(f"{limit}\n")
    (tmp_path / "own").write_text(f"{own_groups}\n")
    assert host_memory_bytes(tmp_path / "groups", tmp_path / "own") == 1000


def test_machine_without_control_groups_has_no_limit(tmp_path):
    assert host_memory_bytes(tmp_path, tmp_path / "none") >= host_memory_bytes()
