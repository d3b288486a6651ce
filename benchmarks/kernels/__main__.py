"""Compile for every GPU and compare with the table: `python -m benchmarks.kernels [--write] [GPU …]`.

Needs g++, and the release of Triton that belongs to the installed PyTorch: `make kernels` provides it. Takes
about ten minutes of two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

from benchmarks.kernels.gpus import GPUS, Gpu

FOLDER = Path(__file__).parent
TABLE = FOLDER / "table.json"
PAGE = FOLDER / "table.md"
INTRODUCTION = """\
# Kernels, compiled for GPUs that are not there

PyTorch {torch}, Triton {triton}. `make kernels` compiles all of it again and compares. Nothing here was run.

*Products* are matrix products, which a library computes. *Kernels* are what Inductor writes between them, for
the three parts of one block. A *pass* reads or writes one bf16 tensor of all tokens and the whole width once.
*Registers* and *spilled* bytes are those of one thread, *shared* memory is that of one block of threads: the
largest of all kernels, each in the configuration that spills least."""
COLUMNS = ("products", "kernels", "passes", "registers", "spilled_bytes", "shared_bytes")

Rows = dict[str, dict[str, float]]


def main(arguments: Sequence[str]) -> int:
    """Return 0 if the kernels are those of the table and fit their GPUs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("architectures", nargs="*", type=int, metavar="GPU", help="such as 90; default: all")
    parser.add_argument("--write", action="store_true", help="write the table instead of comparing with it")
    options = parser.parse_args(arguments)
    gpus = [GPUS[architecture] for architecture in options.architectures or GPUS]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        found = dict(pool.map(lambda gpu: (str(gpu.architecture), compile_for(gpu, Path(folder))), gpus))
    faults = [fault for gpu in gpus for fault in unfit(gpu, found[str(gpu.architecture)])]
    if options.write:
        write(found)
    else:
        table = json.loads(TABLE.read_text())
        faults += differences(table["gpus"], found)
        if faults and table["versions"] != versions():
            faults.append(f"the table was made with {table['versions']}, this is {versions()}")
    print(*faults or ["all kernels fit, and are those of the table"], sep="\n")
    return 1 if faults else 0


def compile_for(gpu: Gpu, folder: Path) -> Rows:
    """Compile everything for one GPU in another process, and return its rows by name."""
    command = [sys.executable, "-m", "benchmarks.kernels.one_gpu", str(gpu.architecture)]
    cache = folder / str(gpu.architecture)
    environment = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
    }
    rows: Rows = {}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            row = json.loads(line)
            rows[row.pop("name")] = row
            print(f"sm_{gpu.architecture}", line, end="", flush=True)
    if process.returncode:
        raise SystemExit(f"nothing more could be compiled for sm_{gpu.architecture}: see above")
    return rows


def unfit(gpu: Gpu, rows: Rows) -> list[str]:
    """Say which kernels cannot be started on this GPU."""
    limit = gpu.shared_bytes
    return [
        f"sm_{gpu.architecture}, {name}: needs {row['shared_bytes']} bytes of shared memory of {limit}"
        for name, row in rows.items()
        if row["shared_bytes"] > limit
    ]


def differences(table: dict[str, Rows], found: dict[str, Rows]) -> list[str]:
    """Say which rows of the GPUs that were compiled for differ from the table."""
    return [
        f"sm_{gpu}, {name}: {rows.get(name)}, in the table {table.get(gpu, {}).get(name)}"
        for gpu, rows in found.items()
        for name in sorted({*rows, *table.get(gpu, {})})
        if rows.get(name) != table.get(gpu, {}).get(name)
    ]


def write(found: dict[str, Rows]) -> None:
    """Write the table for programs and for readers."""
    document = {"versions": versions(), "gpus": found}
    TABLE.write_text(json.dumps(document, indent=1) + "\n")
    PAGE.write_text(page(found))


def page(found: dict[str, Rows]) -> str:
    """Return the table in Markdown."""
    lines = [INTRODUCTION.format(**versions())]
    for architecture, rows in found.items():
        gpu = GPUS[int(architecture)]
        lines += [
            "",
            f"## sm_{architecture} ({gpu.example}; {gpu.shared_bytes // 1024} KiB of shared memory)",
            "",
            "| | products | kernels | passes | registers | spilled | shared |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, row in rows.items():
            cells = [f"{row[column]:,}" if column in row else "" for column in COLUMNS]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def versions() -> dict[str, str]:
    """Return the releases that decide what is written."""
    return {"torch": version("torch").split("+")[0], "triton": version("triton")}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
