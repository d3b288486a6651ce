"""The installation of packages: one line of progress, a log, and pip's output after a failure."""

from __future__ import annotations

import io
import zipfile

import pytest

from stack.install import describe, install

pytestmark = pytest.mark.integration


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def wheel(tmp_path):
    """A package that pip can install without an index."""
    path = tmp_path / "nothing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("nothing.py", "")
        archive.writestr(
            "nothing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: nothing\nVersion: 1.0\n"
        )
        archive.writestr("nothing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("nothing-1.0.dist-info/RECORD", "")
    return path


def test_installation_writes_only_to_the_log(wheel, tmp_path):
    screen = io.StringIO()
    code = install(["--no-index", "--target", str(tmp_path / "to"), str(wheel)], tmp_path / "log", screen)
    assert (code, screen.getvalue()) == (0, "")
    assert (tmp_path / "to" / "nothing.py").exists()
    assert "Successfully installed nothing-1.0" in (tmp_path / "log").read_text()


def test_terminal_shows_one_line_of_progress_and_clears_it(wheel, tmp_path):
    screen = Terminal()
    install(["--no-index", "--target", str(tmp_path / "to"), str(wheel)], tmp_path / "log", screen)
    assert "unpacking 1 packages" in screen.getvalue()
    assert "\n" not in screen.getvalue()
    assert screen.getvalue().endswith("\r\x1b[K")


def test_failed_installation_prints_the_output_of_pip(tmp_path):
    screen = io.StringIO()
    assert install(["--no-index", "no-such-package"], tmp_path / "log", screen) != 0
    assert "No matching distribution found for no-such-package" in screen.getvalue()
    assert str(tmp_path / "log") in screen.getvalue()


@pytest.mark.parametrize(
    ("line", "progress"),
    [
        ("Collecting fastapi>=0.120 (from longcat-video-service==0.1.0)", "looking up fastapi"),
        ("  Downloading torch-2.13.0-cp311-none-linux.whl (899.8 MB)", "downloading torch-2.13.0 (899.8 MB)"),
        (
            "  Downloading https://index/a/b_c-1.0.tar.gz.metadata (9 kB)",
            "downloading b_c-1.0.tar.gz.metadata (9 kB)",
        ),
        ("Installing collected packages: a, b, c", "unpacking 3 packages"),
        ("Requirement already satisfied: a in ./b", None),
        ("[notice] A new release of pip is available", None),
    ],
)
def test_pip_output_is_described_for_people(line, progress):
    assert describe(line) == progress
