"""Load, compile and run one forward in a new process: `python -m benchmarks.first_step DEVICE`.

`benchmarks.gpu_cases` runs it with an empty compile cache and with a filled one. It prints the seconds of the
forward, and the parts that were not compiled, as JSON.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import torch

from benchmarks import stages
from benchmarks.timing import seconds


def main(device_type: str) -> None:
    """Run a forward of one block, at full size on a GPU."""
    device, scale = torch.device(device_type), stages.scale_of(device_type)
    not_compiled: set[str] = set()
    one_block = replace(scale, dit=replace(scale.dit, depth=1))
    dit = stages.transformers(one_block, device, on_fallback=not_compiled.add).compiled
    taken_s = seconds(stages.forward(dit, one_block, scale.base, 1), device)
    print(json.dumps({"forward_s": taken_s, "not_compiled": sorted(not_compiled)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
