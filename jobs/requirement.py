"""State what a group needs to be able to run a job.

A requirement is stored with the job as a short text such as
`frames=93,loras=cfg_step_lora,order=2,pixels=921600,task=text_to_video`. Jobs with equal requirements share
lists in the queue, so there should be few different ones. Sizes are therefore rounded up to the limits of the
groups that are known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

from jobs.capability import Capability, SizeLimit
from jobs.order import Order


@dataclass(frozen=True)
class Requirement:
    """Describe what a group needs to run a job.

    Attributes:
        order_version: the schema version of the order.
        model: the name of the model; None for any.
        loras: the LoRAs that are merged into the weights at some time.
        sizes: the lengths and areas that the group must allow.
        too_small: the digests of the memory budgets of known groups into which the job does not fit.
    """

    task: str
    order_version: int
    model: str | None = None
    loras: tuple[str, ...] = ()
    sizes: Mapping[SizeLimit, int] = field(default_factory=dict)
    too_small: tuple[str, ...] = ()

    @classmethod
    def of(cls, order: Order, capabilities: Iterable[Capability] = ()) -> Self:
        """Return the requirement of an order. `capabilities` are those of the known groups.

        Without any, sizes and memory are not required.
        """
        plan = order.plan
        capabilities = tuple(capabilities)
        sizes: dict[SizeLimit, int] = {}
        if plan.task != "refine":
            sizes = {"frames": plan.num_frames, "pixels": plan.height * plan.width}
        if second := plan.refinement:
            sizes["refined_pixels"] = second.height * second.width
        limits = [capability.size_limits for capability in capabilities]
        budgets = [capability.memory for capability in capabilities if capability.memory]
        rounded = {name: _smallest_limit(name, size, limits) for name, size in sizes.items()}
        return cls(
            task=plan.task,
            order_version=order.schema_version,
            model=order.model,
            loras=plan.loras,
            sizes={name: size for name, size in rounded.items() if size is not None},
            too_small=tuple(sorted({budget.digest for budget in budgets if not budget.fits(plan)})),
        )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a stored requirement. Raises ValueError, also for a part that this release does not know."""
        parts = dict(part.split("=", 1) for part in text.split(","))
        try:
            task, order_version = parts.pop("task"), int(parts.pop("order"))
        except KeyError as error:
            raise ValueError(f"there is no {error}") from error
        model, loras = parts.pop("model", None), parts.pop("loras", None)
        too_small = parts.pop("too_small", None)
        sizes: dict[SizeLimit, int] = {}
        for name, size in parts.items():
            if name not in {"frames", "pixels", "refined_pixels"}:
                raise ValueError(f"unknown part {name}")
            sizes[name] = int(size)  # type: ignore[index]
        return cls(task, order_version, model, _split(loras), sizes, _split(too_small))

    def __str__(self) -> str:
        """Return the text that is stored. Equal requirements have equal texts."""
        parts: dict[str, object] = dict(self.sizes.items())
        parts |= {"task": self.task, "order": self.order_version}
        if self.model is not None:
            parts["model"] = self.model
        if self.loras:
            parts["loras"] = "+".join(sorted(self.loras))
        if self.too_small:
            parts["too_small"] = "+".join(self.too_small)
        return ",".join(f"{name}={parts[name]}" for name in sorted(parts))

    def is_met_by(self, capability: Capability) -> bool:
        """Return whether groups with this capability can run the job."""
        limits = capability.size_limits
        return (
            self.task in capability.tasks
            and self.order_version in capability.order_versions
            and self.model in {None, capability.model}
            and set(self.loras) <= set(capability.loras)
            and all(size <= limits.get(name, size) for name, size in self.sizes.items())
            and not (capability.memory and capability.memory.digest in self.too_small)
        )


def can_run(capability: Capability, requirement: str | None) -> bool:
    """Return whether groups with this capability can run jobs with a stored requirement.

    They cannot if this release does not understand it. A job whose record has lost its requirement may be
    tried by all groups.
    """
    if not requirement:
        return True
    try:
        return Requirement.parse(requirement).is_met_by(capability)
    except ValueError:
        return False


def _split(names: str | None) -> tuple[str, ...]:
    return tuple(names.split("+")) if names else ()


def _smallest_limit(name: SizeLimit, size: int, limits: Iterable[Mapping[SizeLimit, int]]) -> int | None:
    """Return the smallest of the limits that allows this size, None if there are no limits."""
    known = [each[name] for each in limits if name in each]
    return min((limit for limit in known if limit >= size), default=size if known else None)
