"""List the GPUs that kernels are compiled for."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024


@dataclass(frozen=True)
class Gpu:
    """The properties of a GPU that a compiler asks for, from NVIDIA's tables of compute capabilities.

    Attributes:
        architecture: compute capability without the point: 90 is 9.0.
        example: a GPU of this kind.
        processors: number of streaming multiprocessors.
        threads: largest number of threads on one of them.
        shared_bytes: largest shared memory of one block of threads.
        fp8: whether it multiplies in fp8.
    """

    architecture: int
    example: str
    processors: int
    threads: int
    shared_bytes: int
    fp8: bool = True

    @property
    def capability(self) -> tuple[int, int]:
        """Return the compute capability as (major, minor)."""
        return divmod(self.architecture, 10)


GPUS = {
    gpu.architecture: gpu
    for gpu in (
        Gpu(80, "A100", 108, 2048, 163 * KIB, fp8=False),
        Gpu(89, "RTX 4090", 128, 1536, 99 * KIB),
        Gpu(90, "H100", 132, 2048, 227 * KIB),
        Gpu(100, "B200", 148, 2048, 227 * KIB),
        Gpu(120, "RTX 5090", 170, 1536, 99 * KIB),
    )
}
