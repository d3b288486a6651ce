"""A disk of a campaign is seen by the programs that enter it, and by the campaign."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.chaos.daemons import can_mount, shared_disk


@pytest.mark.parametrize(
    "mounted",
    [False, pytest.param(True, marks=pytest.mark.skipif(not can_mount(), reason="may not mount disks"))],
)
def test_programs_share_a_disk_with_the_campaign(tmp_path: Path, mounted: bool):
    folder = tmp_path / "disk"
    with shared_disk(folder, mounted=mounted) as disk:
        subprocess.run([*disk.entering, "touch", str(folder / "written")], check=True)
        assert [path.name for path in disk.seen_at.iterdir()] == ["written"]
        assert folder.joinpath("written").exists() == (not mounted)
