"""Make PyTorch's compiler believe that this process has a GPU, so that it writes code for it.

Nothing can run on that GPU: tensors have no data (`FakeTensorMode`). The changes stay until the process ends.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from torch._dynamo.device_interface import CudaInterface
from torch._inductor.fx_passes import fuse_attention, misc_patterns, pad_mm
from triton.backends.compiler import GPUTarget

from benchmarks.kernels.gpus import Gpu

GIB = 1 << 30


def pretend(gpu: Gpu) -> None:
    """Answer all questions of Inductor and Triton as if this GPU were the only one."""
    properties = _properties(gpu)
    _load_device_guard()
    for name, answer in {
        "is_available": True,
        "is_initialized": False,
        "is_bf16_supported": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_properties": properties,
        "get_device_capability": gpu.capability,
        "get_device_name": gpu.example,
        "init": None,
        "_lazy_init": None,
        "synchronize": None,
        "set_device": None,
        "_exchange_device": 0,
        "_maybe_exchange_device": 0,
        "memory_allocated": 0,
        "current_stream": _Stream(),
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": None,
    }.items():
        setattr(torch.cuda, name, _answering(answer))
    for name, answer in {
        "is_available": True,
        "is_triton_capable": True,
        "raise_if_triton_unavailable": None,
        "current_device": 0,
        "get_compute_capability": gpu.architecture,
        "get_device_properties": properties,
        "get_raw_stream": 0,
    }.items():
        setattr(CudaInterface, name, staticmethod(_answering(answer)))
    CudaInterface.Worker.get_device_properties = staticmethod(_answering(properties))  # type: ignore[method-assign]
    CudaInterface.Worker.current_device = staticmethod(_answering(0))  # type: ignore[method-assign]
    torch._C._cuda_getCurrentRawStream = _answering(0)  # noqa: SLF001
    triton.runtime.driver.set_active(_Driver(gpu))
    # These look for patterns that no part of a block contains, by tracing examples on the device.
    for module, name in ((fuse_attention, "_sfdp_init"), (pad_mm, "_pad_mm_init")):
        setattr(module, name, _answering(None))
    misc_patterns._misc_patterns_init = _answering(None)  # noqa: SLF001


def _load_device_guard() -> None:
    """Compile and load `device_guard.cpp`."""
    torch_folder = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "device_guard.so")
        source = Path(__file__).with_name("device_guard.cpp")
        places = [f"-I{torch_folder / 'include'}", f"-L{torch_folder / 'lib'}"]
        command = ["g++", "-std=c++20", "-shared", "-fPIC", *places, str(source), "-lc10", "-o", str(library)]
        subprocess.run(command, check=True)
        torch.ops.load_library(library)


def _answering(answer: object) -> Any:  # noqa: ANN401 it replaces functions of all types
    return lambda *_, **__: answer


def _properties(gpu: Gpu) -> SimpleNamespace:
    major, minor = gpu.capability
    return SimpleNamespace(
        name=gpu.example,
        major=major,
        minor=minor,
        total_memory=80 * GIB,
        multi_processor_count=gpu.processors,
        warp_size=32,
        max_threads_per_multi_processor=gpu.threads,
        max_threads_per_block=1024,
        regs_per_multiprocessor=65536,
        shared_memory_per_block=48 * 1024,
        shared_memory_per_block_optin=gpu.shared_bytes,
        shared_memory_per_multiprocessor=gpu.shared_bytes + 1024,
        L2_cache_size=50 << 20,
        gcnArchName="",
    )


class _Stream:
    """A stream on which nothing runs."""

    cuda_stream = 0
    stream_id = 0


class _Driver:
    """What Triton asks of the driver of a GPU before it compiles."""

    launcher_cls = None

    def __init__(self, gpu: Gpu) -> None:
        self._target = GPUTarget("cuda", gpu.architecture, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)

    def get_device_interface(self) -> Any:  # noqa: ANN401 the module torch.cuda
        return torch.cuda

    def is_active(self) -> bool:
        return True
