"""The settings of the service; the only file of it that reads the environment."""

from __future__ import annotations

import os
import re
from dataclasses import fields
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator

from jobs.settings import PREFIX, SharedSettings
from jobs.store.quotas import Quotas
from model.media.formats import ClipLimits, ImageLimits
from service.http.protocol import ConnectionLimits
from service.inputs.fetch import FetchLimits

_MIB = 1 << 20
_LIMITS = (*(limit.name for limit in fields(Quotas)), "owner_event_streams", "total_event_streams")
_SECRET = re.compile(r"whsec_[A-Za-z0-9+/]{32,86}={0,2}")


class Settings(SharedSettings):
    """What `python -m service` obeys, each from `LONGCAT_<NAME>`."""

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on")
    public_url: str = Field(
        default="",
        description="URL under which clients reach the service, put before all links; default: links are "
        "paths",
    )
    allowed_hosts: str = Field(
        default="",
        description="host names under which browsers may use the service, separated by commas, besides "
        "loopback names, IP addresses and the host of PUBLIC_URL; `*`: any",
    )
    ops_host: str = Field(default="127.0.0.1", description="address that OPS_PORT listens on")
    ops_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="separate port for `/metrics`, `/docs` and the details of `/readyz`, which PORT then "
        "does not serve",
    )
    link_expires_s: float = Field(
        default=3600.0, gt=0, description="how long a presigned link to S3 is valid"
    )
    redis_patience_s: float = Field(
        default=2.0, gt=0, description="longest time that a request waits for Redis"
    )
    sweep_interval_s: float = Field(default=2.0, gt=0, description="time between two rounds of maintenance")
    event_interval_s: float = Field(default=0.5, gt=0, description="how often event streams look for changes")

    api_key: SecretStr | None = Field(
        default=None, description="an API key that is valid besides those of `python -m service.keys`"
    )
    session_s: float = Field(
        default=12 * 3600.0, gt=0, description="a session of the console ends after so long without a request"
    )
    allow_no_keys: bool = Field(
        default=False, description="listen beyond loopback although there is no API key"
    )
    owner_requests_per_s: float | None = Field(
        default=100, gt=0, description="requests per second of each owner of API keys"
    )
    total_requests_per_s: float | None = Field(
        default=None, gt=0, description="requests per second of all owners together"
    )
    owner_queued_jobs: int | None = Field(default=1000, ge=1, description="queued jobs of each owner")
    total_queued_jobs: int | None = Field(
        default=10_000, ge=1, description="queued jobs of all owners together"
    )
    owner_running_jobs: int | None = Field(default=None, ge=1, description="running jobs of each owner")
    total_running_jobs: int | None = Field(
        default=None, ge=1, description="running jobs of all owners together"
    )
    owner_event_streams: int | None = Field(
        default=100, ge=1, description="open event streams of each owner, in each API process"
    )
    total_event_streams: int | None = Field(
        default=1000, ge=1, description="open event streams of all owners together, in each API process"
    )
    owner_input_bytes_per_day: int | None = Field(
        default=10 * 1024 * _MIB, ge=1, description="input files stored per day for each owner, in bytes"
    )
    total_input_bytes_per_day: int | None = Field(
        default=None, ge=1, description="input files stored per day for all owners together, in bytes"
    )

    webhook_secret: SecretStr | None = Field(
        default=None,
        description="secret from which the signing secrets of all owners are derived; default: generated "
        "once and kept in Redis",
    )
    webhook_secret_previous: SecretStr | None = Field(
        default=None,
        description="the former WEBHOOK_SECRET, with which webhooks are signed as well while receivers "
        "change over",
    )
    webhook_private_hosts: bool = Field(default=False, description="allow webhooks to private addresses")
    webhook_timeout_s: float = Field(
        default=15.0, gt=0, description="how long a receiver may take to respond"
    )
    webhook_threads: int = Field(
        default=8,
        ge=0,
        description="webhooks sent at a time by each API process; 0 if only `python -m service.webhooks` "
        "sends them",
    )
    webhook_max_per_owner: int = Field(
        default=4, ge=1, description="webhooks of one owner sent at a time by all processes together"
    )
    webhook_max_per_host: int = Field(
        default=2, ge=1, description="webhooks to one host sent at a time by all processes together"
    )
    webhook_interval_s: float = Field(
        default=0.5, gt=0, description="how often senders look for due webhooks"
    )

    step_cache: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="allow quality `balanced`: the largest relative change of the first block's update at "
        "which a step reuses the work of the other blocks, for example 0.05",
    )

    max_connections: int = Field(default=1000, ge=1, description="open connections to each API process")
    head_timeout_s: float = Field(default=10.0, gt=0, description="time for the complete head of a request")
    body_timeout_s: float = Field(
        default=20.0,
        gt=0,
        description="time for the body of a request, extended while it arrives faster than "
        "BODY_MIN_BYTES_PER_S",
    )
    body_min_bytes_per_s: float = Field(
        default=4096.0, gt=0, description="slowest rate at which a body may arrive after BODY_TIMEOUT_S"
    )
    send_timeout_s: float = Field(
        default=120.0,
        gt=0,
        description="a client that reads nothing of a response for so long is disconnected",
    )
    owner_open_bodies: int = Field(
        default=100, ge=1, description="request bodies received at a time for each owner"
    )
    total_open_bodies: int = Field(
        default=500, ge=1, description="request bodies received at a time for all owners together"
    )
    owner_input_orders: int = Field(
        default=8, ge=1, description="requests with input files processed at a time for each owner"
    )
    total_input_orders: int = Field(
        default=32, ge=1, description="requests with input files processed at a time for all owners together"
    )
    total_body_memory_bytes: int = Field(
        default=128 * _MIB,
        gt=0,
        description="memory for all request bodies together; each owner may use half of it",
    )

    upload_dir: Path | None = Field(
        default=None,
        description="folder for input files while they are checked; default: the system's temporary folder",
    )
    max_body_bytes: int = Field(default=256 * _MIB, gt=0, description="largest form")
    max_json_bytes: int = Field(
        default=64 * _MIB, gt=0, description="largest JSON body, which is kept in memory"
    )
    max_json_text_bytes: int = Field(
        default=_MIB,
        gt=0,
        description="largest JSON body without its base64 strings, and most text in a form",
    )
    max_image_bytes: int = Field(default=32 * _MIB, gt=0, description="largest image file")
    max_image_pixels: int = Field(default=50_000_000, gt=0, description="largest width × height of an image")
    max_video_bytes: int = Field(default=200 * _MIB, gt=0, description="largest video file")
    max_video_frames: int = Field(default=3000, gt=0, description="most frames of a video file")
    max_video_pixels: int = Field(
        default=1_000_000_000, gt=0, description="most pixels of all frames of a video file together"
    )
    image_check_timeout_s: float = Field(default=20.0, gt=0, description="time to decode an image")
    video_check_timeout_s: float = Field(default=60.0, gt=0, description="time to decode a video file")
    max_decodes: int = Field(
        default_factory=lambda: min(4, len(os.sched_getaffinity(0))),
        ge=1,
        description="input files decoded at a time, each in a sandboxed process of its own",
    )
    decode_memory_bytes: int = Field(
        default=512 * _MIB, ge=64 * _MIB, description="memory of each of these processes"
    )
    fetch_connect_timeout_s: float = Field(
        default=5.0, gt=0, description="time to connect to the host of an input URL"
    )
    fetch_head_timeout_s: float = Field(
        default=15.0, gt=0, description="time until the head of its response is complete"
    )
    fetch_timeout_s: float = Field(default=60.0, gt=0, description="time to fetch an input URL in all")
    fetch_private_hosts: bool = Field(default=False, description="allow input URLs to private addresses")

    @field_validator(*_LIMITS, mode="before")
    @classmethod
    def _no_limit(cls, bound: object) -> object:
        """Read `none` as no limit: an empty variable means the default."""
        return None if isinstance(bound, str) and bound.lower() == "none" else bound

    @field_validator("webhook_secret", "webhook_secret_previous")
    @classmethod
    def _is_a_secret(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret and not _SECRET.fullmatch(secret.get_secret_value()):
            raise ValueError("must be whsec_ and 24 to 64 bytes in base64")
        return secret

    @field_validator("public_url")
    @classmethod
    def _is_a_web_address(cls, url: str) -> str:
        parts = urlsplit(url)
        if url and (parts.scheme not in {"http", "https"} or not parts.hostname):
            raise ValueError("must begin with http:// or https:// and a host")
        return url

    @property
    def quotas(self) -> Quotas:
        """What owners may have at a time."""
        return Quotas(**{limit.name: getattr(self, limit.name) for limit in fields(Quotas)})

    @property
    def connection_limits(self) -> ConnectionLimits:
        """Return how many connections may be open, and how long they may wait."""
        return ConnectionLimits(self.max_connections, self.head_timeout_s, self.send_timeout_s)

    @property
    def image_limits(self) -> ImageLimits:
        """Return the limits for decoding an image."""
        return ImageLimits(max_pixels=self.max_image_pixels, timeout_s=self.image_check_timeout_s)

    @property
    def clip_limits(self) -> ClipLimits:
        """How much of a clip is decoded before it is refused."""
        return ClipLimits(self.max_video_frames, self.max_video_pixels, self.video_check_timeout_s)

    @property
    def fetch_limits(self) -> FetchLimits:
        """How inputs are fetched."""
        return FetchLimits(
            connect_timeout_s=self.fetch_connect_timeout_s,
            head_timeout_s=self.fetch_head_timeout_s,
            total_timeout_s=self.fetch_timeout_s,
            allow_private=self.fetch_private_hosts,
        )

    @property
    def webhook_limits(self) -> FetchLimits:
        """How webhooks are sent."""
        return FetchLimits(
            connect_timeout_s=min(self.fetch_connect_timeout_s, self.webhook_timeout_s),
            total_timeout_s=self.webhook_timeout_s,
            max_redirects=0,
            allow_private=self.webhook_private_hosts,
        )


def problems_of(error: ValidationError) -> list[str]:
    """What is wrong with the environment, a line for each setting."""
    problems = error.errors(include_url=False)
    return [f"{PREFIX}{'_'.join(map(str, problem['loc'])).upper()}: {problem['msg']}" for problem in problems]
