"""Test where the worker's image looks for a torch without CUDA."""

from pathlib import Path

import pytest

from tests.images.__main__ import pip_find_links


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Let pip read one configuration file, which does not exist yet. Return its path."""
    file = tmp_path / "pip.conf"
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    return file


def test_configuration_file_names_the_folder(no_settings: Path) -> None:
    no_settings.write_text("[global]\nfind-links = /wheels\n    /more-wheels\n")
    assert pip_find_links() == "/wheels"


def test_environment_comes_before_the_file(no_settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_settings.write_text("[global]\nfind-links = /wheels\n")
    monkeypatch.setenv("PIP_FIND_LINKS", "https://example.org/torch/")
    assert pip_find_links() == "https://example.org/torch/"


def test_there_is_none_without_settings() -> None:
    assert pip_find_links() is None
