"""What may be ordered, and which worker groups are alive: small records that workers publish in Redis.

What may be ordered stays when all workers are away, so that jobs are still accepted; a group's status goes
with its heartbeat. It does not know what the limits mean: that is `model.spec.limits`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field
from redis import Redis

from jobs.connect import redis_reached
from jobs.errors import GroupTaken, NoCapability
from model.spec.params import Task

GroupState = Literal["starting", "ready", "busy", "full", "broken"]

CAPABILITY_KEY = "longcat:capability"
GROUPS_KEY = "longcat:groups"
GROUP_KEY = "longcat:group:{}"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Capability(_Frozen):
    """What a worker can make: `limits` is the document of `model.spec.limits.Limits.to_json()`."""

    model: str
    tasks: tuple[Task, ...]
    limits: dict[str, Any]
    loras: tuple[str, ...] = ()
    context_parallel: int = 1
    device: str
    dtype: str

    def publish(self, redis: Redis) -> None:
        """Say that this may be ordered from now on."""
        with redis_reached():
            redis.set(CAPABILITY_KEY, self.model_dump_json())


def latest(redis: Redis) -> Capability:
    """What a worker published last. Raises NoCapability before any ever has."""
    with redis_reached():
        document = redis.get(CAPABILITY_KEY)
    if document is None:
        raise NoCapability("no worker has said yet what can be made; try again when one is up")
    return Capability.model_validate_json(document)


class GroupStatus(_Frozen):
    """A group of ranks as its supervisor last described it; `job` is what it works on."""

    group: str
    state: GroupState
    ranks: int
    job: str | None = None
    heartbeat_at: datetime | None = Field(default=None, description="set by `GroupRegistration.publish`")


class GroupRegistration:
    """One worker's hold on a group's name: publishing the status keeps it, silence for `ttl_s` gives it up.

    Two workers never hold the same name: they would take each other's signs of life for their own.
    """

    def __init__(self, redis: Redis, group: str, ttl_s: float = 15.0) -> None:
        self._redis = redis
        self._group = group
        self._ttl_ms = round(ttl_s * 1000)
        self._token = uuid4().hex
        self._hold = redis.register_script(_HOLD)
        self._release = redis.register_script(_RELEASE)

    def publish(self, state: GroupState, ranks: int, job: str | None = None) -> None:
        """Show what the group does, and that it is alive. Raises GroupTaken."""
        status = GroupStatus(
            group=self._group, state=state, ranks=ranks, job=job, heartbeat_at=datetime.now(UTC)
        )
        with redis_reached():
            held = self._hold(
                self._keys(), [self._token, status.model_dump_json(), self._ttl_ms, self._group]
            )
        if not held:
            raise GroupTaken(f"another worker is alive as group {self._group}: give this one another name")

    def leave(self) -> None:
        """Give the name up at once."""
        with redis_reached():
            self._release(self._keys(), [self._token, self._group])

    def _keys(self) -> list[str]:
        status = GROUP_KEY.format(self._group)
        return [f"{status}:holder", status, GROUPS_KEY]


def groups(redis: Redis) -> list[GroupStatus]:
    """Every group that is alive, by name."""
    with redis_reached():
        names = sorted(_text(name) for name in redis.smembers(GROUPS_KEY))
        statuses = redis.mget([GROUP_KEY.format(name) for name in names]) if names else []
        gone = [name for name, status in zip(names, statuses, strict=True) if status is None]
        if gone:  # one that comes back adds itself again
            redis.srem(GROUPS_KEY, *gone)
    return [GroupStatus.model_validate_json(status) for status in statuses if status is not None]


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name


# KEYS: holder, status, groups. ARGV: token, status, time to live in ms, group.
_HOLD = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
redis.call('SADD', KEYS[3], ARGV[4])
return 1
"""

# KEYS: holder, status, groups. ARGV: token, group.
_RELEASE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return end
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('SREM', KEYS[3], ARGV[2])
"""
