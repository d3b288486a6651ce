"""Settings come from the environment and from files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, SecretStr, ValidationError

from jobs.settings import InvalidSettings, SharedSettings, warn_of_unknown_settings


class ExampleSettings(SharedSettings):
    """Settings with a secret, and with a setting of several types."""

    token: Annotated[SecretStr, Field(min_length=20)] | None = None
    width: int | Literal["auto"] | None = None


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SharedSettings.model_fields:
        monkeypatch.delenv(f"LONGCAT_{name.upper()}", raising=False)
        monkeypatch.delenv(f"LONGCAT_{name.upper()}_FILE", raising=False)


def test_without_anything_set_everything_has_a_value():
    settings = SharedSettings()
    assert settings.redis_url == "redis://127.0.0.1:6379/0"
    assert settings.storage_location == ".longcat/storage"
    assert (settings.lease_s, settings.max_attempts) == (30.0, 3)


def test_how_late_a_file_may_come_follows_from_how_long_a_client_tries():
    settings = SharedSettings(s3_connect_timeout_s=1, s3_read_timeout_s=4)
    assert settings.late_upload_s == 3 * 3 * 5
    assert SharedSettings().late_upload_s == 315


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LONGCAT_REDIS_URL", "redis://elsewhere")
    monkeypatch.setenv("LONGCAT_STORAGE", "s3://bucket/prefix")
    monkeypatch.setenv("LONGCAT_MAX_RUN_S", "90")
    settings = SharedSettings()
    assert settings.redis_url == "redis://elsewhere"
    assert settings.storage_location == "s3://bucket/prefix"
    assert settings.max_run_s == 90.0


def test_the_storage_is_in_the_data_folder_unless_it_is_set(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LONGCAT_DATA_DIR", "/data")
    assert SharedSettings().storage_location == "/data/storage"


def test_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LONGCAT_S3_ENDPOINT_URL", "")
    monkeypatch.setenv("LONGCAT_MAX_RUN_S", "")
    settings = SharedSettings()
    assert (settings.s3_endpoint_url, settings.max_run_s) == (None, None)


def test_value_can_be_read_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "secret").write_text("s3cret\n")
    monkeypatch.setenv("LONGCAT_S3_SECRET_ACCESS_KEY_FILE", str(tmp_path / "secret"))
    secret = SharedSettings().s3_secret_access_key
    assert secret is not None
    assert secret.get_secret_value() == "s3cret"


def test_the_variable_itself_comes_before_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "url").write_text("redis://in-file")
    monkeypatch.setenv("LONGCAT_REDIS_URL_FILE", str(tmp_path / "url"))
    assert SharedSettings().redis_url == "redis://in-file"
    monkeypatch.setenv("LONGCAT_REDIS_URL", "redis://in-variable")
    assert SharedSettings().redis_url == "redis://in-variable"


def test_secret_is_not_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LONGCAT_S3_SECRET_ACCESS_KEY", "s3cret")
    assert "s3cret" not in repr(SharedSettings())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("LEASE_S", "0"), ("MAX_ATTEMPTS", "0"), ("RETENTION_S", "-1"), ("MAX_QUEUE_S", "soon")),
        ("STORAGE", "gs://bucket/prefix"),
    ],
)
def test_invalid_value_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str):
    monkeypatch.setenv(f"LONGCAT_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        SharedSettings()


@pytest.mark.parametrize(
    ("variable", "value", "line"),
    [
        ("LEASE_S", "soon", "LONGCAT_LEASE_S is 'soon': must be a number"),
        ("LEASE_S", "0", "LONGCAT_LEASE_S is '0': must be greater than 0"),
        ("LEASE_S", "9" * 99 + "x" * 99, f"LONGCAT_LEASE_S is '{'9' * 99}x': must be a number"),
        ("LOG_FORMAT", "xml", "LONGCAT_LOG_FORMAT is 'xml': must be 'text' or 'json'"),
        ("WIDTH", "half", "LONGCAT_WIDTH is 'half': must be an integer or must be 'auto'"),
        ("STORAGE", "ftp://x", "LONGCAT_STORAGE is 'ftp://x': must be a folder or s3://bucket/prefix"),
        (
            "TOKEN_FILE",
            "/nowhere",
            "LONGCAT_TOKEN_FILE: cannot be read: [Errno 2] No such file or directory: '/nowhere'",
        ),
    ],
)
def test_wrong_setting_is_reported_with_its_value_and_its_rule(monkeypatch, variable, value, line):
    monkeypatch.setenv(f"LONGCAT_{variable}", value)
    with pytest.raises(InvalidSettings) as invalid:
        ExampleSettings.read()
    assert str(invalid.value) == f"error: {line}"


def test_each_wrong_setting_has_a_line_and_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch):
    for variable, value in {"REDIS_URL": "http://:secret@host", "TOKEN": "secret", "MAX_RUN_S": "-1"}.items():
        monkeypatch.setenv(f"LONGCAT_{variable}", value)
    with pytest.raises(InvalidSettings) as invalid:
        ExampleSettings.read()
    lines = str(invalid.value).splitlines()
    assert [line.split(":")[1] for line in lines] == [
        " LONGCAT_REDIS_URL",
        " LONGCAT_MAX_RUN_S is '-1'",
        " LONGCAT_TOKEN",
    ]
    assert "secret" not in str(invalid.value)


def test_variables_that_are_no_settings_are_named(monkeypatch: pytest.MonkeyPatch, caplog):
    monkeypatch.setenv("LONGCAT_SHARD_WEIGTHS", "on")
    monkeypatch.setenv("LONGCAT_FP8", "on")
    warn_of_unknown_settings()
    [record] = caplog.records
    names = "LONGCAT_FP8, LONGCAT_SHARD_WEIGTHS (LONGCAT_SHARD_WEIGHTS?)"
    assert record.message == f"ignored, because no setting has such a name: {names}"


def test_variables_of_any_program_are_known(monkeypatch: pytest.MonkeyPatch, caplog):
    for name in ("REDIS_URL_FILE", "PORT", "RANKS", "REDIS_SERVER", "URL", "BIND_ADDRESS"):
        monkeypatch.setenv(f"LONGCAT_{name}", "1")
    monkeypatch.setenv("OTHER_FP8", "1")
    warn_of_unknown_settings()
    assert caplog.records == []


def test_settings_in_lower_case_are_read_and_known(monkeypatch: pytest.MonkeyPatch, caplog):
    monkeypatch.setenv("LONGCAT_lease_s", "7")
    warn_of_unknown_settings()
    assert SharedSettings.read().lease_s == 7
    assert caplog.records == []
