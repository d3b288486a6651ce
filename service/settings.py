"""The settings of the service. No other file of the service reads the environment."""

from __future__ import annotations

import os
import re
from dataclasses import fields
from decimal import Decimal
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from jobs.capability import Capability, read_capability
from jobs.settings import SharedSettings
from jobs.store.quotas import Quotas
from model.media.formats import ClipLimits, ImageLimits
from service.http.protocol import ConnectionLimits
from service.inputs.fetch import FetchLimits
from service.outgoing.connection import OutgoingLimits

_MIB = 1 << 20
_LIMITS = (*(limit.name for limit in fields(Quotas)), "owner_event_streams", "total_event_streams")
_SECRET = re.compile(r"whsec_[A-Za-z0-9+/]{32,86}={0,2}")


class Settings(SharedSettings):
    """The settings of `python -m service`, each from the variable `LONGCAT_<NAME>`."""

    host: str = Field(default="127.0.0.1", description="the address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="the port to listen on")
    public_url: str = Field(
        default="",
        description="the service's URL, prepended to links in responses; without it they are paths",
    )
    allowed_hosts: str = Field(
        default="",
        description="host names under which browsers may reach the service, separated by commas, in "
        "addition to loopback names, IP addresses and the host of PUBLIC_URL; `*` allows any",
    )
    cors_origins: str = Field(
        default="",
        description="origins of other sites whose pages may use the API with an API key, such as "
        "`https://studio.example.com`, separated by commas",
    )
    ops_host: str = Field(default="127.0.0.1", description="the address that OPS_PORT listens on")
    ops_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="a separate port for `/metrics`, `/docs` and the details of `/readyz`; PORT then does "
        "not serve them",
    )
    link_expires_s: float = Field(default=3600.0, gt=0, description="how long a presigned S3 link is valid")
    redis_patience_s: float = Field(
        default=2.0, gt=0, description="how long a request waits for Redis before it is answered 503"
    )
    redis_memory_reserve: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="share of Redis's `maxmemory` that new jobs leave free, so that running ones can end",
    )
    sweep_interval_s: float = Field(default=2.0, gt=0, description="how often maintenance runs")
    event_interval_s: float = Field(
        default=0.5, gt=0, description="how often event streams check for changes"
    )

    api_key: SecretStr | None = Field(
        default=None, description="a valid API key in addition to those created by `python -m service.keys`"
    )
    session_s: float = Field(
        default=12 * 3600.0, gt=0, description="the console signs out after this time without a request"
    )
    allow_no_keys: bool = Field(
        default=False, description="listen to other machines even if there are no keys"
    )
    owner_requests_per_s: float | None = Field(default=100, gt=0, description="requests per second and owner")
    total_requests_per_s: float | None = Field(
        default=None, gt=0, description="requests per second of all owners together"
    )
    owner_queued_jobs: int | None = Field(default=1000, ge=1, description="queued jobs per owner")
    total_queued_jobs: int | None = Field(
        default=10_000, ge=1, description="queued jobs of all owners together"
    )
    owner_stored_jobs: int | None = Field(
        default=100_000, ge=1, description="jobs per owner in any state, ended ones until they expire"
    )
    total_stored_jobs: int | None = Field(
        default=None, ge=1, description="jobs of all owners together in any state"
    )
    owner_running_jobs: int | None = Field(default=None, ge=1, description="running jobs per owner")
    total_running_jobs: int | None = Field(
        default=None, ge=1, description="running jobs of all owners together"
    )
    owner_event_streams: int | None = Field(
        default=100, ge=1, description="jobs that an owner's open event streams watch, in each process"
    )
    total_event_streams: int | None = Field(
        default=1000, ge=1, description="jobs that all open event streams together watch, in each process"
    )
    owner_input_bytes_per_day: int | None = Field(
        default=10 * 1024 * _MIB, ge=1, description="bytes of inputs stored per day and owner"
    )
    total_input_bytes_per_day: int | None = Field(
        default=None, ge=1, description="bytes of inputs stored per day for all owners together"
    )
    owner_gpu_s_per_day: int | None = Field(
        default=None,
        ge=1,
        description="seconds of GPU time per owner for the jobs submitted on a day (UTC): what they took, or "
        "are expected to take",
    )

    gpu_hour_price: Decimal | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="price of an hour of one GPU: jobs and `GET /usage` show their cost; jobs keep the price "
        "that held when they were submitted",
    )
    currency: str | None = Field(
        default=None,
        pattern=r"^[^\s:]{1,8}$",
        validate_default=True,
        description="the currency of `GPU_HOUR_PRICE`, such as `EUR`",
    )

    webhook_secret: SecretStr | None = Field(
        default=None,
        description="the secret from which each owner's webhook secret is derived; generated once if absent",
    )
    webhook_secret_previous: SecretStr | None = Field(
        default=None,
        description="the previous WEBHOOK_SECRET: webhooks are signed with both during a change",
    )
    webhook_private_hosts: bool = Field(default=False, description="allow webhooks to private addresses")
    webhook_timeout_s: float = Field(
        default=15.0, gt=0, description="how long a receiver may take to respond"
    )
    webhook_threads: int = Field(
        default=8, ge=0, description="webhooks sent at a time; 0 if `python -m service.webhooks` sends them"
    )
    webhook_max_per_owner: int = Field(
        default=4, ge=1, description="webhooks of one owner sent at a time, in all processes together"
    )
    webhook_max_per_host: int = Field(
        default=2, ge=1, description="webhooks to one host sent at a time, in all processes together"
    )
    webhook_interval_s: float = Field(
        default=0.5, gt=0, description="how often the service checks for webhooks to send"
    )

    owner_weights: str = Field(
        default="",
        description="weights of owners, such as `studio=2,trial=0.5`: owners with queued jobs share the "
        "groups in proportion to them; default: 1",
    )
    priority_ageing_s: float | None = Field(
        default=3600.0,
        gt=0,
        description="a job starts before those of the next higher priority that were queued this much later; "
        "`none`: only after all of them",
    )
    default_deadline_s: float = Field(
        default=3600.0,
        gt=0,
        description="among the jobs of one owner, one without a deadline takes its place as if it had to "
        "start within this time of its submission",
    )
    model_shares: str = Field(
        default="",
        description="share of the requests without a `model` that each model gets, such as "
        "`LongCat-Video=95,canary=5`; default: any group may run them",
    )
    capability_file: Path | None = Field(
        default=None,
        description="a capability, as `python -m worker.rank.capability` prints it, of groups that can be "
        "started at any time: requests that they can run are accepted while no group is up",
    )
    queue_without_group_s: float = Field(
        default=86400.0,
        ge=0,
        description="jobs are accepted for this time after the last group that can run them has gone",
    )

    step_cache: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="allows `quality: balanced`: a step whose first block changes by less than this share is "
        "computed only in part, for instance 0.05",
    )

    max_connections: int = Field(default=1000, ge=1, description="open connections per process")
    head_timeout_s: float = Field(
        default=10.0, gt=0, description="how long a connection may take to send the head of a request"
    )
    body_timeout_s: float = Field(
        default=20.0,
        gt=0,
        description="how long a body may take, plus the time its size needs at BODY_MIN_BYTES_PER_S",
    )
    body_min_bytes_per_s: float = Field(
        default=4096.0, gt=0, description="minimum rate of a body after BODY_TIMEOUT_S"
    )
    send_timeout_s: float = Field(
        default=120.0,
        gt=0,
        description="how long a client may stop reading a response; 10 s while all connections are in use",
    )
    owner_open_bodies: int = Field(default=100, ge=1, description="bodies received at a time per owner")
    total_open_bodies: int = Field(default=500, ge=1, description="bodies received at a time in total")
    owner_input_orders: int = Field(
        default=8, ge=1, description="requests whose inputs are fetched and checked at a time, per owner"
    )
    total_input_orders: int = Field(
        default=32, ge=1, description="requests whose inputs are fetched and checked at a time, in total"
    )
    total_body_memory_bytes: int = Field(
        default=128 * _MIB,
        gt=0,
        description="memory for the bodies of all requests together; each owner may use half of it",
    )

    upload_dir: Path | None = Field(
        default=None,
        description="the folder for inputs while they are checked; default: the system's temporary folder",
    )
    max_body_bytes: int = Field(default=256 * _MIB, gt=0, description="maximum size of a form")
    max_json_bytes: int = Field(
        default=64 * _MIB, gt=0, description="maximum size of a JSON body, which is held in memory"
    )
    max_json_text_bytes: int = Field(
        default=_MIB,
        gt=0,
        description="maximum size of JSON without its long strings, or of all texts of a form",
    )
    max_image_bytes: int = Field(default=32 * _MIB, gt=0, description="maximum size of an image file")
    max_image_pixels: int = Field(default=50_000_000, gt=0, description="maximum width × height of an image")
    max_video_bytes: int = Field(default=200 * _MIB, gt=0, description="maximum size of a video file")
    max_video_frames: int = Field(
        default=3000, gt=0, description="maximum number of frames of an input video"
    )
    max_video_pixels: int = Field(
        default=1_000_000_000,
        gt=0,
        description="maximum number of pixels of all frames of an input video together",
    )
    image_check_timeout_s: float = Field(
        default=20.0, gt=0, description="how long decoding an image may take"
    )
    video_check_timeout_s: float = Field(
        default=60.0, gt=0, description="how long decoding an input video may take"
    )
    max_decodes: int = Field(
        default_factory=lambda: min(4, len(os.sched_getaffinity(0))),
        ge=1,
        description="images and videos decoded at a time, each in its own process",
    )
    decode_memory_bytes: int = Field(
        default=512 * _MIB, ge=64 * _MIB, description="memory of each decoding process"
    )
    fetch_connect_timeout_s: float = Field(
        default=5.0, gt=0, description="how long connecting to a URL may take"
    )
    fetch_head_timeout_s: float = Field(
        default=15.0, gt=0, description="how long a URL may take to send the head of its response"
    )
    fetch_timeout_s: float = Field(
        default=60.0, gt=0, description="how long fetching a URL may take in total"
    )
    fetch_private_hosts: bool = Field(default=False, description="allow inputs from private addresses")

    @field_validator(*_LIMITS, "priority_ageing_s", mode="before")
    @classmethod
    def _no_limit(cls, bound: object) -> object:
        """Read `none` as no limit. An empty variable means the default."""
        return None if isinstance(bound, str) and bound.lower() == "none" else bound

    @field_validator("currency")
    @classmethod
    def _is_set_with_a_price(cls, currency: str | None, info: ValidationInfo) -> str | None:
        if currency is None and info.data.get("gpu_hour_price") is not None:
            raise ValueError("is required with GPU_HOUR_PRICE")
        return currency

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

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: str) -> str:
        for origin in _parse_names(origins):
            parts = urlsplit(origin)
            if parts.scheme not in {"http", "https"} or origin != f"{parts.scheme}://{parts.netloc.lower()}":
                raise ValueError("must be origins such as https://studio.example.com, without a path")
        return origins

    @field_validator("capability_file")
    @classmethod
    def _is_capability(cls, path: Path | None) -> Path | None:
        _read_capability_file(path)
        return path

    @field_validator("owner_weights")
    @classmethod
    def _are_weights(cls, weights: str) -> str:
        if not all(_parse_numbers(weights).values()):
            raise ValueError("a weight must be above 0")
        return weights

    @field_validator("model_shares")
    @classmethod
    def _are_shares(cls, shares: str) -> str:
        parsed = _parse_numbers(shares)
        if parsed and not any(parsed.values()):
            raise ValueError("a share must be above 0")
        return shares

    @property
    def weight_by_owner(self) -> dict[str, float]:
        """Return the weights of owners that have one."""
        return _parse_numbers(self.owner_weights)

    @property
    def trusted_origins(self) -> tuple[str, ...]:
        """Return the origins whose pages may use the API."""
        return _parse_names(self.cors_origins)

    @property
    def shares_by_model(self) -> dict[str, float]:
        """Return the share of each model, empty if any group may run a request without a model."""
        return _parse_numbers(self.model_shares)

    @property
    def configured_capability(self) -> Capability | None:
        """Return the capability in `CAPABILITY_FILE`, if there is one. Raises ValueError."""
        return _read_capability_file(self.capability_file)

    @property
    def quotas(self) -> Quotas:
        """Return the limits that the job store enforces."""
        return Quotas(**{limit.name: getattr(self, limit.name) for limit in fields(Quotas)})

    @property
    def connection_limits(self) -> ConnectionLimits:
        """Return the limits of connections."""
        return ConnectionLimits(self.max_connections, self.head_timeout_s, self.send_timeout_s)

    @property
    def image_limits(self) -> ImageLimits:
        """Return the limits for decoding an image."""
        return ImageLimits(max_pixels=self.max_image_pixels, timeout_s=self.image_check_timeout_s)

    @property
    def clip_limits(self) -> ClipLimits:
        """Return the limits for decoding a video."""
        return ClipLimits(self.max_video_frames, self.max_video_pixels, self.video_check_timeout_s)

    @property
    def fetch_limits(self) -> FetchLimits:
        """Return the limits for fetching inputs."""
        return FetchLimits(
            connect_timeout_s=self.fetch_connect_timeout_s,
            head_timeout_s=self.fetch_head_timeout_s,
            total_timeout_s=self.fetch_timeout_s,
            allow_private=self.fetch_private_hosts,
        )

    @property
    def webhook_limits(self) -> OutgoingLimits:
        """Return the limits for sending webhooks."""
        return OutgoingLimits(
            connect_timeout_s=min(self.fetch_connect_timeout_s, self.webhook_timeout_s),
            total_timeout_s=self.webhook_timeout_s,
            allow_private=self.webhook_private_hosts,
        )


def _read_capability_file(path: Path | None) -> Capability | None:
    try:
        return read_capability(path.read_bytes()) if path else None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"must be a capability in JSON: {error}") from error


def _parse_names(text: str) -> tuple[str, ...]:
    """Return the names in `NAME,…`, without blanks around them."""
    return tuple(filter(None, map(str.strip, text.split(","))))


def _parse_numbers(text: str) -> dict[str, float]:
    """Return the numbers in `NAME=NUMBER,…`, by name. Raise ValueError."""
    numbers: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, sign, number = part.strip().partition("=")
        if not sign or not name or not number.replace(".", "", 1).isdigit():
            raise ValueError("must be NAME=NUMBER, separated by commas")
        numbers[name] = float(number)
    return numbers
