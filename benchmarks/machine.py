"""What a number was measured on: machine, load, versions, commit. Every benchmark states it."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Self

import torch

PACKAGES = ("fastapi", "uvicorn", "pydantic", "redis", "rq")


@dataclass(frozen=True)
class Machine:
    """Where and when; `load` is the average of a minute before, for which others on the machine count."""

    cpu: str
    cores: int
    load: float
    python: str
    versions: dict[str, str] = field(default_factory=dict)
    commit: str = ""
    at: str = ""

    @classmethod
    def here(cls) -> Self:
        """Return the properties of this machine."""
        return cls(
            cpu=_cpu(),
            cores=len(os.sched_getaffinity(0)),
            load=round(os.getloadavg()[0], 1),
            python=platform.python_version(),
            versions={package: version(package) for package in PACKAGES},
            commit=commit(),
            at=datetime.now(UTC).isoformat(timespec="minutes"),
        )

    def __str__(self) -> str:
        packages = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return (
            f"{self.at}, commit {self.commit}; {self.cpu}, {self.cores} cores, load {self.load} before "
            f"the run; Python {self.python}, {packages}."
        )


def commit(checkout: Path | None = None) -> str:
    """Return the commit of a checkout, the current folder by default, with a + if files differ from it.

    Return an empty text where it cannot be told.
    """
    command = ["git", "describe", "--always", "--dirty=+"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=False, cwd=checkout)
    except FileNotFoundError:  # there is no git
        return ""
    return said.stdout.strip()


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def torch_machine(device: torch.device) -> dict[str, str]:
    """Return the device, the versions and the commit of a measurement of the model."""
    on_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_cuda else platform.processor() or "CPU",
        "torch": torch.__version__,
        "cuDNN": str(torch.backends.cudnn.version()) if on_cuda else "-",
        "python": platform.python_version(),
        "commit": commit() or "unknown",
    }
