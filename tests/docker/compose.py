"""Parse a compose file that uses only the keys of this repository's, so that a misspelt key is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _duration(text: str) -> str:
    assert re.fullmatch(r"(\d+(us|ms|s|m|h))+", text), f"not a duration: {text}"
    return text


Duration = Annotated[str, AfterValidator(_duration)]
Scalar = str | int | None


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Build(_Strict):
    context: str
    dockerfile: str


class Condition(_Strict):
    condition: Literal["service_started", "service_healthy", "service_completed_successfully"]


class HealthCheck(_Strict):
    test: list[str]
    interval: Duration
    timeout: Duration
    retries: int
    start_period: Duration | None = None


class Bind(_Strict):
    type: Literal["bind"]
    source: str
    target: str
    read_only: bool = False


class Device(_Strict):
    driver: str
    count: str
    capabilities: list[str]


class Reservations(_Strict):
    devices: list[Device]


class Resources(_Strict):
    reservations: Reservations


class Deploy(_Strict):
    resources: Resources


class Service(_Strict):
    build: Build | None = None
    image: str
    command: list[str] | None = None
    entrypoint: list[str] | None = None
    profiles: list[str] = Field(default_factory=list)
    restart: Literal["no", "always", "on-failure", "unless-stopped"] = "no"
    user: str | None = None
    read_only: bool = False
    hostname: str | None = None
    depends_on: dict[str, Condition] = Field(default_factory=dict)
    environment: dict[str, Scalar] = Field(default_factory=dict)
    secrets: list[str] = Field(default_factory=list)
    ports: list[str] = Field(default_factory=list)
    volumes: list[str | Bind] = Field(default_factory=list)
    healthcheck: HealthCheck | None = None
    deploy: Deploy | None = None
    shm_size: str | None = None
    ulimits: dict[str, int] = Field(default_factory=dict)
    stop_grace_period: Duration | None = None
    cap_drop: list[str] = Field(default_factory=list)
    security_opt: list[str] = Field(default_factory=list)


class SecretFile(_Strict):
    file: str


class Compose(BaseModel):
    """The file; keys beginning with `x-` are for anchors."""

    services: dict[str, Service]
    volumes: dict[str, None]
    secrets: dict[str, SecretFile]


def read_compose(path: Path) -> Compose:
    """Parse a compose file. Raises ValidationError for a key or value that is not declared here."""
    document = yaml.safe_load(path.read_text())
    assert all(key in Compose.model_fields or key.startswith("x-") for key in document)
    return Compose.model_validate(document)
