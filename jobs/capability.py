"""Define what a worker group can make.

Each group publishes its capability with its registration (`jobs.registration`); `jobs.fleet` reads them. The
meaning of the limits is defined in `model.spec.limits`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from model.spec.limits import Limits
from model.spec.memory import MemoryBudget
from model.spec.params import Task
from model.spec.plan import Plan

SizeLimit = Literal["frames", "pixels", "refined_pixels"]


class Capability(BaseModel):
    """The tasks, limits and weights of a group. Groups with equal capabilities are a pool.

    Attributes:
        model: the name that the operator gave to the checkpoint.
        weights: the fingerprint of each part of the checkpoint (`model.io.fingerprint`).
        limits: the JSON of `model.spec.limits.Limits`.
        known_words: all words that the text encoder knows, in lower case; none if it knows any.
        context_parallel: the number of ranks that share one job.
        dtype: the data type of the large matrices, if they are quantised, or else of all products.
        gpu: the type of the GPUs.
        order_versions: the schema versions of the orders that the group reads.
        memory: that of the GPUs; None on CPUs, where it is not predicted.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: int = 2
    model: str
    tasks: tuple[Task, ...]
    limits: dict[str, Any]
    known_words: tuple[str, ...] = ()
    loras: tuple[str, ...] = ()
    context_parallel: int = 1
    device: str
    dtype: str
    weights: dict[str, str] = Field(default_factory=dict)
    gpu: str | None = None
    gpu_memory_gib: int | None = None
    order_versions: tuple[int, ...] = (1, 2)
    memory: MemoryBudget | None = None

    @property
    def pool(self) -> str:
        """Return the name of the pool: that of the model, and a digest of the capability."""
        return f"{self.model}-{hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:8]}"

    @property
    def model_limits(self) -> Limits:
        """Return the limits of the checkpoint, which `read_capability` has checked."""
        return Limits.from_json(self.limits)

    @property
    def size_limits(self) -> Mapping[SizeLimit, int]:
        """Return the largest lengths and areas in the limits; those that are absent are not limited."""
        limits: dict[SizeLimit, int] = {}
        if "max_num_frames" in self.limits:
            limits["frames"] = self.limits["max_num_frames"]
        if "max_pixels" in self.limits:
            limits["pixels"] = self.limits["max_pixels"]
        if refine_buckets := self.limits.get("refine_buckets"):
            limits["refined_pixels"] = max(height * width for height, width in refine_buckets.values())
        return limits

    def weights_for(self, plan: Plan) -> dict[str, str]:
        """Return the fingerprints of the parts that a video depends on: not those of unused LoRAs."""
        unused = set(self.loras) - set(plan.loras)
        return {part: digest for part, digest in self.weights.items() if part not in unused}


def read_capability(document: bytes | str) -> Capability:
    """Read a published capability, without the tasks that this release does not know.

    Raises ValueError, TypeError or AttributeError if it or its limits cannot be read.
    """
    values = json.loads(document)
    known = [task for task in values.get("tasks", ()) if task in get_args(Task)]
    capability = Capability.model_validate({**values, "tasks": known})
    Limits.from_json(capability.limits)
    return capability
