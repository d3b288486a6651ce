"""Tell whether the ranks of a group exchange tensors slowly: over PCIe or a network instead of NVLink."""

import time

import torch
import torch.distributed as dist

SLOW_BYTES_PER_S = 125e9
"""Links are slow if a rank sends less.

It sends up to 63e9 bytes a second over PCIe 5. Of two machines, it sends half to its own, so a network of
400 Gbit/s gives it 100e9 together. NVLink has 300e9 and more since the A100.
"""

EXCHANGED_BYTES = 256 << 20
ROUNDS = 3


def has_slow_links(device: torch.device, group: dist.ProcessGroup | None) -> bool:
    """Return whether attention on GPUs should go on while the ranks of a group exchange tensors.

    All ranks of the group call this together, and get the same answer. On a CPU the answer is no.
    """
    if device.type != "cuda" or dist.get_world_size(group) == 1:
        return False
    is_slow = sent_bytes_per_s(device, group) < SLOW_BYTES_PER_S
    torch.cuda.empty_cache()  # what other programs leave free is counted after this
    return is_slow


def sent_bytes_per_s(device: torch.device, group: dist.ProcessGroup | None) -> float:
    """Return how many bytes each rank of a group sends in a second, by measuring exchanges among all of them.

    All ranks of the group call this together, and get the number of the slowest one.
    """
    size = dist.get_world_size(group)
    given = torch.zeros(size, EXCHANGED_BYTES // size, dtype=torch.uint8, device=device)
    received = torch.empty_like(given)
    times_s = []
    for _ in range(1 + ROUNDS):
        began_s = time.perf_counter()
        dist.all_to_all_single(received, given, group=group)
        received[-1, -1].item()  # waits for the device
        times_s.append(time.perf_counter() - began_s)
    _, *warm_s = times_s  # the first exchange sets up the connections
    slowest = torch.tensor(given[1:].nbytes / min(warm_s), dtype=torch.float64, device=device)
    dist.all_reduce(slowest, dist.ReduceOp.MIN, group=group)
    return slowest.item()
