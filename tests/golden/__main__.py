"""Record what a release stores and sends: `python -m tests.golden`, once the changelog names its commit."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.golden.record import record
from tests.skew.release import check_out, recorded_release

FOLDER = Path(__file__).parent


def main() -> int:
    """Record the last release. Its folder must not exist yet: golden records never change."""
    version, commit = recorded_release()
    with tempfile.TemporaryDirectory(prefix="longcat-golden-") as work:
        release = check_out(commit, version, Path(work) / "release")
        record(release, FOLDER / version, Path(work))
    print(f"recorded {version} in {FOLDER / version}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
