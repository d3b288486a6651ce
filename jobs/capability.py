"""Publish what the workers can make, so that the service knows which requests to accept.

The document outlives the workers, so that jobs are accepted while all of them are away. The meaning of its
limits is defined in `model.spec.limits`.
"""

from __future__ import annotations

import json
import logging
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict
from redis import Redis

from jobs.connect import redis_reached
from jobs.errors import NoCapability
from model.spec.limits import Limits
from model.spec.params import Task

logger = logging.getLogger(__name__)

CAPABILITY_KEY = "longcat:capability"


class Capability(BaseModel):
    """The tasks, limits and weights that the workers offer.

    Attributes:
        limits: the JSON of `model.spec.limits.Limits`.
        context_parallel: the number of ranks that share one job.
        dtype: the data type of the matrix products.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: int = 1
    model: str
    tasks: tuple[Task, ...]
    limits: dict[str, Any]
    loras: tuple[str, ...] = ()
    context_parallel: int = 1
    device: str
    dtype: str

    def publish(self, redis: Redis) -> None:
        """Replace the published capability. Raises Unavailable."""
        with redis_reached():
            redis.set(CAPABILITY_KEY, self.model_dump_json())


def latest(redis: Redis) -> Capability:
    """Return the capability that was published last.

    Raises NoCapability before any worker published one, or if this release cannot read it; Unavailable.
    """
    with redis_reached():
        document = redis.get(CAPABILITY_KEY)
    if document is None:
        raise NoCapability("no worker has said yet what can be made; try again when one is up")
    try:
        return read_capability(document)
    except (ValueError, TypeError, AttributeError) as error:
        logger.exception("cannot read the published capability")
        raise NoCapability("the workers run a release that this service does not understand") from error


def read_capability(document: bytes | str) -> Capability:
    """Read a published capability, without the tasks that this release does not know.

    Raises ValueError, TypeError or AttributeError if it or its limits cannot be read.
    """
    values = json.loads(document)
    known = [task for task in values.get("tasks", ()) if task in get_args(Task)]
    capability = Capability.model_validate({**values, "tasks": known})
    Limits.from_json(capability.limits)
    return capability
