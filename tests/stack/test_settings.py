"""What the stack reads from the environment, and what it hands on."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from jobs.settings import POCKET
from stack.settings import StackSettings, environment_for_children


def test_without_any_it_brings_its_own_redis_and_checkpoint():
    settings = StackSettings()
    assert (settings.redis_url, settings.checkpoint) == ("", POCKET)
    assert (settings.host, settings.port, settings.data_dir) == ("127.0.0.1", 8000, Path(".longcat"))


def test_it_reads_the_environment(monkeypatch):
    monkeypatch.setenv("LONGCAT_PORT", "1234")
    monkeypatch.setenv("LONGCAT_CHECKPOINT", "/weights")
    assert (StackSettings().port, StackSettings().checkpoint) == (1234, Path("/weights"))


@pytest.mark.parametrize("port", ["0", "65536", "http"])
def test_a_port_must_be_one(monkeypatch, port):
    monkeypatch.setenv("LONGCAT_PORT", port)
    with pytest.raises(ValidationError):
        StackSettings()


def test_children_get_what_is_settled_and_everything_else_as_it_is(monkeypatch):
    monkeypatch.setenv("LONGCAT_RANKS", "4")
    monkeypatch.setenv("LONGCAT_PORT", "1")
    environment = environment_for_children(port=8001, data_dir=Path("/data"))
    assert environment["LONGCAT_PORT"] == "8001"
    assert environment["LONGCAT_DATA_DIR"] == "/data"
    assert environment["LONGCAT_RANKS"] == "4"
    assert "PATH" in environment
