"""The settings of the stack, and the environment of the processes that it starts."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from pydantic import SecretStr, ValidationError

from jobs.settings import POCKET, PREFIX
from service.settings import Settings
from stack.settings import (
    StackSettings,
    environment_for_children,
    environment_for_redis,
    environment_for_worker,
)
from worker.settings import WorkerSettings


def test_defaults_run_an_own_redis_and_the_pocket_checkpoint():
    settings = StackSettings()
    assert (settings.redis_url, settings.checkpoint) == ("", POCKET)
    assert (settings.host, settings.port, settings.data_dir) == ("127.0.0.1", 8000, Path(".longcat"))


def test_settings_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("LONGCAT_PORT", "1234")
    monkeypatch.setenv("LONGCAT_CHECKPOINT", "/weights")
    assert (StackSettings().port, StackSettings().checkpoint) == (1234, Path("/weights"))


@pytest.mark.parametrize("port", ["0", "65536", "http"])
def test_invalid_port_is_refused(monkeypatch, port):
    monkeypatch.setenv("LONGCAT_PORT", port)
    with pytest.raises(ValidationError):
        StackSettings()


def test_children_get_changed_settings_and_the_rest_of_the_environment(monkeypatch):
    monkeypatch.setenv("LONGCAT_RANKS", "4")
    monkeypatch.setenv("LONGCAT_PORT", "1")
    environment = environment_for_children(port=8001, data_dir=Path("/data"))
    assert environment["LONGCAT_PORT"] == "8001"
    assert environment["LONGCAT_DATA_DIR"] == "/data"
    assert environment["LONGCAT_RANKS"] == "4"
    assert "PATH" in environment


def test_worker_gets_all_its_settings_and_no_secret_of_the_api():
    def variables(names):
        return {f"{PREFIX}{name.upper()}{end}" for name in names for end in ("", "_FILE")}

    secrets = {
        name for name, field in Settings.model_fields.items() if SecretStr in get_args(field.annotation)
    }
    everything = {*Settings.model_fields, *WorkerSettings.model_fields}
    given = environment_for_worker(dict.fromkeys(variables(everything), "value"))
    assert variables(WorkerSettings.model_fields) <= given.keys()
    own = secrets - WorkerSettings.model_fields.keys()
    assert {"api_key", "webhook_secret"} <= own
    assert given.keys().isdisjoint(variables(own))


def test_redis_gets_neither_settings_nor_secrets(monkeypatch):
    monkeypatch.setenv("LONGCAT_API_KEY", "planted")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted")
    assert "planted" not in environment_for_redis().values()
    assert "PATH" in environment_for_redis()
