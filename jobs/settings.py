"""Define the settings that the service and the worker share.

Each process subclasses them in the one file that reads its environment. Every setting is
`LONGCAT_<NAME>`; for secrets, `LONGCAT_<NAME>_FILE` names a file that contains the value.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from jobs.broken_rules import rule_of
from jobs.connect import check_url
from jobs.logs import LogFormat

logger = logging.getLogger(__name__)

PREFIX = "LONGCAT_"
POCKET = Path(__file__).parents[1] / "pocket"  # the checkpoint that comes with us
SETTINGS_HELP = f"Settings are variables of the environment, {PREFIX}<NAME>: see docs/settings.md."
"""The end of the help of commands that have no options."""
S3_TRIES = 3  # of each request
_MAX_SHOWN = 100  # characters of a value that is wrong
_COLLECTORS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class InvalidSettings(Exception):
    """Settings break rules. The message has a line for each of them."""


def warn_of_unknown_settings() -> None:
    """Log a warning that names the variables `LONGCAT_<NAME>` that no program reads, such as misspelt ones.

    The API and the worker may share an environment, so each knows the names of all programs. pydantic reads
    `LONGCAT_<NAME>` in upper and lower case; `LONGCAT_<NAME>_FILE` is read in upper case only.
    """
    names = resources.files("jobs").joinpath("setting_names.txt").read_text().split()
    settings, files = {f"{PREFIX}{name}" for name in names}, {f"{PREFIX}{name}_FILE" for name in names}
    unknown = sorted(
        name
        for name in os.environ
        if name.startswith(PREFIX) and name.upper() not in settings and name not in files
    )
    if unknown:
        shown = ", ".join(_with_likely_name(name, settings | files) for name in unknown)
        logger.warning("ignored, because no setting has such a name: %s", shown)


def _with_likely_name(unknown: str, known: Iterable[str]) -> str:
    """Return a name, followed by the one that it may have been meant to be."""
    likely = difflib.get_close_matches(unknown, known, n=1, cutoff=0.85)
    return f"{unknown} ({likely[0]}?)" if likely else unknown


class SharedSettings(BaseSettings):
    """Settings of Redis, storage, logs and the limits of jobs. Times are in seconds."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True
    )

    redis_url: str = Field(
        default="redis://127.0.0.1:6379/0",
        description="URL of the Redis server, with user and password if it needs them: `redis://`, "
        "`rediss://` (TLS), `unix:///path`, or `redis+sentinel://host:port,host:port/service` "
        "(or `rediss+sentinel`)",
    )
    redis_ca_file: Path | None = Field(
        default=None,
        description="certificates of the authorities that sign Redis's certificate; default: the system's",
    )
    redis_cert_file: Path | None = Field(
        default=None, description="client certificate, for a Redis that asks for one"
    )
    redis_key_file: Path | None = Field(default=None, description="private key of that certificate")
    redis_sentinel_username: str | None = Field(
        default=None, description="user name at the Sentinels, if they have users"
    )
    redis_sentinel_password: SecretStr | None = Field(
        default=None, description="password of the Sentinels, if they need one"
    )
    redis_wait_replicas: int = Field(
        default=0,
        ge=0,
        description="replicas that must have a job before its submission is acknowledged, so that a failover "
        "does not lose it; 0: none",
    )
    data_dir: Path = Field(
        default=Path(".longcat"), description="folder for everything that is not stored in S3"
    )
    storage: str = Field(
        default="",
        description="where inputs and videos are stored: a folder or s3://bucket/prefix; default: "
        "DATA_DIR/storage",
    )

    log_format: LogFormat = Field(
        default="text", description="text, or json for one JSON object in each line"
    )

    s3_endpoint_url: str | None = Field(default=None, description="URL of an S3 server other than AWS")
    s3_public_endpoint_url: str | None = Field(
        default=None, description="URL of the same server as clients reach it, used in presigned links"
    )
    s3_region: str = Field(default="us-east-1", description="region of the bucket")
    s3_access_key_id: SecretStr | None = Field(
        default=None, description="access key; default: boto3's own credential chain"
    )
    s3_secret_access_key: SecretStr | None = Field(default=None, description="secret of that access key")
    s3_connect_timeout_s: float = Field(default=5.0, gt=0, description="timeout for connecting to S3")
    s3_read_timeout_s: float = Field(default=30.0, gt=0, description="timeout for each response of S3")

    retention_s: float = Field(
        default=7 * 86400.0, gt=0, description="how long an ended job, its files and its events are kept"
    )
    lease_s: float = Field(
        default=30.0, gt=0, description="a worker that does not renew its lease for this long loses the job"
    )
    max_attempts: int = Field(default=3, ge=1, description="crashes after which a job fails")
    max_queue_s: float | None = Field(
        default=None,
        gt=0,
        description="longest time that a job may wait for its first start; default: no limit",
    )
    max_run_s: float | None = Field(
        default=None,
        gt=0,
        description="longest time that a job may run, all attempts together; default: no limit",
    )

    @classmethod
    def read(cls, **given: Any) -> Self:  # noqa: ANN401
        """Return the settings in the environment, except those that are given. Raises InvalidSettings."""
        try:
            return cls(**given)
        except ValidationError as error:
            raise InvalidSettings(cls._describe_problems(error)) from error

    @classmethod
    def _describe_problems(cls, error: ValidationError) -> str:
        """Return a line for each setting that is wrong. Rules of several settings name them."""
        lines: dict[str, str] = {}
        for problem in error.errors(include_url=False):
            name, rule = next(map(str, problem["loc"]), ""), rule_of(problem)
            if name in lines:  # a setting of several types has a rule for each
                lines[name] += f" or {rule}"
            else:
                lines[name] = f"error: {cls._describe_value(name, problem['input'])}{rule}"
        return "\n".join(lines.values())

    @classmethod
    def _describe_value(cls, name: str, value: object) -> str:
        """Return the variable and its value; no value of a secret, or of a URL, which may have a password."""
        if not name:
            return ""
        is_secret = SecretStr.__name__ in str(cls.model_fields[name].annotation) or name.endswith("_url")
        shown = f" is {value[:_MAX_SHOWN]!r}" if isinstance(value, str) and not is_secret else ""
        return f"{PREFIX}{name.upper()}{shown}: "

    @field_validator("redis_url")
    @classmethod
    def _is_a_redis_url(cls, url: str) -> str:
        if url:  # `make serve` starts a Redis of its own if this is empty
            check_url(url)
        return url

    @field_validator("storage")
    @classmethod
    def _is_a_folder_or_in_s3(cls, location: str) -> str:
        if "://" in location and not location.startswith("s3://"):
            raise ValueError("must be a folder or s3://bucket/prefix")
        return location

    @property
    def redis_address(self) -> str:
        """Return REDIS_URL with the settings of TLS and Sentinel as parameters, as `jobs.connect` reads them.

        It contains passwords.
        """
        password = self.redis_sentinel_password
        parameters = {
            "ssl_ca_certs": self.redis_ca_file,
            "ssl_certfile": self.redis_cert_file,
            "ssl_keyfile": self.redis_key_file,
            "sentinel_username": self.redis_sentinel_username,
            "sentinel_password": password and password.get_secret_value(),
        }
        given = urlencode({name: str(value) for name, value in parameters.items() if value is not None})
        if not given:
            return self.redis_url
        return f"{self.redis_url}{'&' if '?' in self.redis_url else '?'}{given}"

    @property
    def storage_location(self) -> str:
        """Return the folder or `s3://bucket/prefix` in which videos are stored."""
        return self.storage or str(self.data_dir / "storage")

    @property
    def storage_folder(self) -> Path | None:
        """Return the folder in which videos are stored, None if they are stored in S3."""
        return None if self.storage_location.startswith("s3://") else Path(self.storage_location)

    @property
    def late_upload_s(self) -> float:
        """Return how long after its start an upload may still arrive in the storage.

        The client tries for a third of this time. After it gave up or died, the store may still complete what
        it received.
        """
        return 3 * S3_TRIES * (self.s3_connect_timeout_s + self.s3_read_timeout_s)

    @property
    def traces(self) -> bool:
        """Return whether OpenTelemetry's own variables name a collector. Its SDK reads them."""
        is_off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
        return not is_off and any(os.environ.get(name) for name in _COLLECTORS)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Prefer arguments to the environment, and that to files that it names."""
        del dotenv_settings, file_secret_settings
        return init_settings, env_settings, _ValuesInFiles(settings_cls)


class _ValuesInFiles(PydanticBaseSettingsSource):
    """Read `LONGCAT_<NAME>_FILE`, the way in which Docker and Kubernetes provide secrets."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        del field
        return _content_of_file(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        values = {name: self.get_field_value(field, name)[0] for name, field in self._fields()}
        return {name: value for name, value in values.items() if value is not None}

    def _fields(self) -> list[tuple[str, FieldInfo]]:
        return list(self.settings_cls.model_fields.items())


def _content_of_file(name: str) -> str | None:
    variable = f"{PREFIX}{name.upper()}_FILE"
    path = os.environ.get(variable)
    try:
        return Path(path).read_text().strip() if path else None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSettings(f"error: {variable}: cannot be read: {error}") from error
