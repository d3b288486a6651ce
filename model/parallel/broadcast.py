"""Run something on the leader alone, and broadcast its result or its error to all ranks of the group."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from model.parallel.mesh import ContextParallel
from model.spec.errors import LeaderError, ModelError

Result = TypeVar("Result")


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of a tensor that the leader has."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def run_on_leader(parallel: ContextParallel, function: Callable[[], Result]) -> Result | None:
    """Call `function` on the leader while the others wait. Return its result there, None elsewhere.

    Raises:
        ModelError: on every rank, if `function` raises one.
        LeaderError: on the other ranks, if `function` raises any other error, which the leader raises as it
            is.
    """
    if parallel.size == 1:
        return function()
    if not parallel.is_leader:
        error = _broadcast_object(parallel, None)
        if error is not None:
            raise cast(ModelError, error)
        return None
    try:
        result = function()
    except Exception as error:
        known = isinstance(error, ModelError)
        _broadcast_object(parallel, error if known else LeaderError(f"{type(error).__name__}: {error}"))
        raise
    _broadcast_object(parallel, None)
    return result


def from_leader(parallel: ContextParallel, build: Callable[[], Result]) -> Result:
    """Call `build` on the leader and return its result on every rank, with all tensors on the rank's device.

    The result is a plain value, or a flat dataclass of plain values and tensors. Errors are raised as by
    `run_on_leader`.
    """
    built = run_on_leader(parallel, build)
    if parallel.size > 1:
        received = _broadcast_object(parallel, _without_tensors(built))
        built = built if parallel.is_leader else cast(Result, received)
    return cast(Result, _broadcast_tensors(parallel, built))


def tensor_from_leader(parallel: ContextParallel, x: Tensor | TensorSpec) -> Tensor:
    """Return the leader's tensor on the device of every rank. The other ranks give its shape and dtype."""
    if isinstance(x, TensorSpec):
        x = torch.empty(x.shape, dtype=x.dtype, device=parallel.device)
    x = x.to(parallel.device).contiguous()
    if parallel.size > 1:
        dist.broadcast(x, group=parallel.group, group_src=0)
    return x


def _broadcast_object(parallel: ContextParallel, value: object) -> object:
    """Return the leader's value on every rank. It may not hold tensors of the device."""
    values = [value]
    dist.broadcast_object_list(values, group=parallel.group, group_src=0, device=parallel.device)
    return values[0]


def _without_tensors(value: object) -> object:
    """Return a copy of a dataclass with a TensorSpec in place of each tensor."""
    if not dataclasses.is_dataclass(value):
        return value
    values = {entry.name: getattr(value, entry.name) for entry in dataclasses.fields(value)}
    specs = {name: TensorSpec(tuple(x.shape), x.dtype) for name, x in values.items() if isinstance(x, Tensor)}
    return dataclasses.replace(cast(Any, value), **specs)


def _broadcast_tensors(parallel: ContextParallel, value: object) -> object:
    """Return a copy of a dataclass with the leader's tensors on this rank's device."""
    if not dataclasses.is_dataclass(value):
        return value
    values = {entry.name: getattr(value, entry.name) for entry in dataclasses.fields(value)}
    tensors = {
        name: tensor_from_leader(parallel, x)
        for name, x in values.items()
        if isinstance(x, Tensor | TensorSpec)
    }
    return dataclasses.replace(cast(Any, value), **tensors)
