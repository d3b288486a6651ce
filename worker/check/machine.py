"""Check all that a worker needs: GPUs, checkpoint, disks, the other nodes, Redis and the storage."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator, Sequence
from dataclasses import replace

from jobs.connect import check_server, connect
from jobs.errors import LongCatError
from jobs.storage.base import open_storage
from model.spec.memory import GIB
from worker.check.finding import Finding
from worker.check.gpus import Gpu, Torch, ask_torch, check_gpus, check_torch, smallest_memory
from worker.check.loading import loading_error
from worker.check.memory import check_checkpoint
from worker.rank.network import resolve
from worker.settings import Endpoint, WorkerSettings

DEADLINE_S = 5.0


def check_machine(settings: WorkerSettings, gpus: Sequence[Gpu]) -> Iterator[Finding]:
    """Yield what was found, the most basic first."""
    on_cpu = settings.device == "cpu" or (settings.device == "auto" and not gpus)
    torch = ask_torch()
    if isinstance(torch, Torch) and len(torch.gpu_memory) == len(gpus):  # a little less than the driver says
        gpus = [replace(gpu, memory_bytes=size) for gpu, size in zip(gpus, torch.gpu_memory, strict=True)]
    yield from check_gpus(settings, gpus, on_cpu=on_cpu)
    yield check_torch(torch, on_cpu=on_cpu)
    gpu_bytes = None if on_cpu else smallest_memory(settings, gpus)
    if isinstance(torch, Torch) and (error := loading_error(settings.checkpoint)):
        yield Finding("problem", f"checkpoint: {error}")
    else:
        yield from check_checkpoint(settings, gpu_bytes, on_cpu=on_cpu)
    yield from _check_disks(settings)
    if settings.nodes > 1:
        yield _check_rendezvous(settings)
    if settings.node_rank == 0:
        yield _check_redis(settings)
        yield _check_storage(settings)


def _check_disks(settings: WorkerSettings) -> Iterator[Finding]:
    for folder in settings.disks:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(existing).free
        text = f"{folder}: {free / GIB:.0f} GiB free"
        if free < settings.min_free_bytes:
            yield Finding("problem", f"{text}, less than MIN_FREE_BYTES: the worker would claim no job")
        else:
            yield Finding("ok", text)


def _check_rendezvous(settings: WorkerSettings) -> Finding:
    """Check that the name of node 0 is known, and on node 0 that it is an address of this machine."""
    assert settings.rendezvous is not None
    endpoint = Endpoint.parse(settings.rendezvous)
    try:
        family, address = resolve(endpoint)
        if settings.node_rank == 0:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.bind((address[0], 0))
    except OSError as error:
        return Finding("problem", f"RENDEZVOUS {endpoint}: {error.strerror}")
    return Finding("ok", f"node {settings.node_rank} of {settings.nodes}, which meet at {endpoint}")


def _check_redis(settings: WorkerSettings) -> Finding:
    try:
        with connect(settings.redis_address, DEADLINE_S) as redis:
            check_server(redis, settings.redis_wait_replicas)
    except LongCatError as error:
        return Finding("problem", f"Redis: {error.message}")
    return Finding("ok", "Redis answers")


def _check_storage(settings: WorkerSettings) -> Finding:
    try:
        open_storage(settings).check()
    except LongCatError as error:
        return Finding("problem", f"storage: {error.message}")
    return Finding("ok", "the storage answers")
