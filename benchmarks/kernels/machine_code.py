"""Compile Triton kernels to the machine code of a GPU, and tell what it needs."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from torch._inductor import config as inductor
from torch._inductor.codecache import PyCodeCache
from torch._inductor.runtime import triton_helpers

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")


@dataclass(frozen=True)
class Needs:
    """What a kernel needs on its GPU.

    Attributes:
        registers: of one thread, of 255.
        spilled_bytes: what one thread keeps in local memory because it has too few registers.
        shared_bytes: the shared memory of one block of threads.
    """

    registers: int
    spilled_bytes: int
    shared_bytes: int


def compile_generated(name: str, code: str) -> list[Needs]:
    """Compile a kernel that Inductor wrote, in each configuration that it would choose from."""
    triton_helpers.set_driver_to_gpu = lambda: None  # there is none: `pretend` has set one
    with inductor.patch({"use_static_triton_launcher": False}):
        kernel = getattr(PyCodeCache.load(code), name)
        kernel.precompile(warm_cache_only=True)
        return [needs(result.kernel) for result in kernel.compile_results]


def needs(kernel: Any) -> Needs:  # noqa: ANN401 Triton has no types
    """Return what a kernel that Triton has compiled needs."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(kernel.asm["cubin"])
        finished = subprocess.run(
            [CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True
        )
    usage = USAGE.search(finished.stdout)
    assert usage, finished.stdout
    registers, stack, local = map(int, usage.groups())
    return Needs(registers, stack + local, kernel.metadata.shared)
