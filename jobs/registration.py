"""Register worker groups in Redis: a group that sends no heartbeat for a while is gone."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal, get_args
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from redis import Redis

from jobs.capability import Capability
from jobs.connect import redis_reached
from jobs.errors import GroupTaken, UnreadableRecord
from jobs.store.metrics import report_unreadable
from jobs.store.scripts import Scripts, text, to_ms

GroupState = Literal["starting", "ready", "busy", "full", "broken"]

GROUPS_KEY = "longcat:groups"
GROUP_KEY = "longcat:group:{}"
FLEET_CHANGED_KEY = "longcat:fleet_changed"
POOLS_KEY = "longcat:pools"
POOL_KEY = "longcat:pool:{}"
POOL_TTL_S = 30 * 86400.0
"""How long a pool is remembered after its last group has gone."""


class GroupStatus(BaseModel):
    """The status that a group's supervisor reported last.

    Attributes:
        ranks: the number of its processes.
        job: the id of the job that has its GPUs.
        pool: the pool to which it belongs, None until it has loaded its model for the first time.
        failure: why its processes ended, until it is ready again.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: int = 3
    group: str
    state: GroupState
    ranks: int = 1
    job: str | None = None
    pool: str | None = None
    failure: str | None = None
    heartbeat_at: datetime | None = Field(default=None, description="set by `GroupRegistration.heartbeat`")

    @field_validator("state", mode="before")
    @classmethod
    def _read_unknown_state(cls, state: object) -> object:
        """Read a state of a later release as one in which the group takes no job."""
        return state if state in get_args(GroupState) else "starting"


class GroupRegistration:
    """The registration of one worker under a group's name. It ends after `ttl_s` without a heartbeat.

    Two workers never have the same name: each would take the other's heartbeats for its own.
    """

    def __init__(self, redis: Redis, group: str, ttl_s: float = 15.0) -> None:
        self._run = Scripts(redis).run
        self._group = group
        self._ttl_ms = to_ms(ttl_s)
        self._token = uuid4().hex

    def heartbeat(
        self,
        state: GroupState,
        ranks: int,
        job: str | None = None,
        capability: Capability | None = None,
        failure: str | None = None,
    ) -> None:
        """Register, or renew the registration, and publish the status and the capability.

        Raises GroupTaken if another worker is registered under this name, Unavailable.
        """
        pool = capability and capability.pool
        status = GroupStatus(
            group=self._group,
            state=state,
            ranks=ranks,
            job=job,
            pool=pool,
            failure=failure,
            heartbeat_at=datetime.now(UTC),
        )
        registered = self._run(
            "register_group",
            group=self._group,
            token=self._token,
            status=status.model_dump_json(),
            ttl_ms=self._ttl_ms,
            pool=pool,
            capability=capability and capability.model_dump_json(),
            pool_ttl_ms=to_ms(POOL_TTL_S),
        )
        if not registered:
            raise GroupTaken(f"another worker is alive as group {self._group}: give this one another name")

    def release(self) -> None:
        """End the registration at once, so that another worker can take the name. Raises Unavailable."""
        self._run("release_group", group=self._group, token=self._token)


def live_groups(redis: Redis) -> list[GroupStatus]:
    """Return all registered groups, by name. A status that cannot be read is passed over."""
    with redis_reached():
        names = sorted(text(name) for name in redis.smembers(GROUPS_KEY))
        documents = redis.mget([GROUP_KEY.format(name) for name in names]) if names else []
        gone = [name for name, document in zip(names, documents, strict=True) if document is None]
        if gone:  # one that returns adds itself again
            redis.srem(GROUPS_KEY, *gone)
    statuses: list[GroupStatus] = []
    for document in documents:
        if document is not None:
            try:
                statuses.append(GroupStatus.model_validate_json(document))
            except ValidationError as error:
                report_unreadable(redis, "group status", UnreadableRecord(str(error)))
    return statuses
