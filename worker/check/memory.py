"""Check the checkpoint, and predict which videos fit into the memory of the GPUs and of this machine.

Only the headers of the weights are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from model.io.host_memory import host_memory_bytes
from model.io.lora_files import lora_files
from model.sizes import read_prepared_bytes, read_sizes
from model.spec.errors import CheckpointError
from model.spec.limits import load_limits
from model.spec.memory import (
    CheckpointSizes,
    MemoryNeed,
    Setup,
    available_bytes,
    choose_text_encoder,
    format_bytes,
    host_needed,
    memory_needed,
    weight_bytes,
)
from model.spec.plan import Plan
from model.spec.typical import typical_plans
from model.transformer.config import load_dit_config
from worker.check.finding import Finding
from worker.rank.capability import choose_dtype, setup_of
from worker.settings import WorkerSettings

MOST_RANKS = 8  # that are recommended for a video
_VERBS = {
    "encode_text": "encodes its prompts",
    "encode": "encodes its inputs",
    "denoise": "is denoised",
    "decode": "is decoded",
}
_PLACEMENTS = {
    "device": "stays on the device",
    "offload": "is in host memory, and runs on the device layer by layer",
    "cpu": "is in host memory, and runs on the CPU",
}


def check_checkpoint(settings: WorkerSettings, gpu_bytes: int | None, *, on_cpu: bool) -> Iterator[Finding]:
    """Check the checkpoint, and on GPUs which videos fit into their memory.

    `gpu_bytes` is the memory of the smallest GPU, None on a CPU and if it is not known.
    """
    folder = settings.checkpoint
    try:
        sizes, limits = read_sizes(folder), load_limits(folder)
    except CheckpointError as error:
        yield Finding("problem", f"checkpoint: {error}")
        return
    yield from _check_heads(settings, load_dit_config(folder / "dit" / "config.json").num_heads)
    total = sizes.transformer + sizes.text_encoder + sizes.vae
    loras = sorted(lora_files(folder))
    size = f"{total / 1e9:.1f} billion" if total >= 1e9 else f"{total / 1e6:.1f} million"
    yield Finding("ok", f"checkpoint {folder}: {size} parameters, LoRAs: {', '.join(loras) or 'none'}")
    dtype = choose_dtype(settings.dtype, "cpu" if on_cpu else "cuda")
    setup = setup_of(settings, settings.ranks_per_group, dtype)
    available = available_bytes(gpu_bytes, settings.gpu_memory_gib)
    plans = dict(typical_plans(limits, loras))
    placement = choose_text_encoder(settings.text_encoder, sizes, setup, plans.values(), available)
    setup = replace(setup, text_encoder=placement)
    yield Finding("ok", f"text encoder: {_PLACEMENTS[placement]} (TEXT_ENCODER={placement})")
    if available is not None:
        yield _check_loading(sizes, setup, available)
    yield from _check_host_memory(sizes, setup, settings)
    for name, plan in plans.items():
        needs = {width: memory_needed(sizes, plan, replace(setup, ranks=width)) for width in settings.widths}
        finding = _check_plan(name, needs, available)
        if available is not None and finding.kind == "note":
            advice = _advice(sizes, plan, replace(setup, ranks=max(needs)), available)
            finding = replace(finding, text=f"{finding.text}; {advice}")
        yield finding


def _check_heads(settings: WorkerSettings, num_heads: int) -> Iterator[Finding]:
    """Check that the ranks of a group can divide the attention heads. A world uses the widths that can."""
    ranks = settings.ranks_per_group
    sharing = ranks // settings.ring_degree
    if num_heads % sharing and not settings.is_elastic:
        degree = next(n for n in range(1, ranks + 1) if ranks % n == 0 and num_heads % (ranks // n) == 0)
        yield Finding(
            "problem",
            f"{sharing} ranks cannot share {num_heads} attention heads evenly: RING_DEGREE={degree} helps",
        )


def _check_loading(sizes: CheckpointSizes, setup: Setup, available: int) -> Finding:
    """Check that the weights fit."""
    needed = weight_bytes(sizes, setup)
    text = f"weights: {format_bytes(needed)} on the first GPU of each group"
    if needed <= available:
        return Finding("ok", text)
    text = f"{text}, but only {format_bytes(available)} can be used there"
    sizes_with = [
        f"{format_bytes(size)} with {name}"
        for name, other in _alternatives(setup).items()
        if (size := weight_bytes(sizes, other)) <= available
    ]
    return Finding("problem", f"{text}; they take {' or '.join(sizes_with)}" if sizes_with else text)


def _alternatives(setup: Setup) -> dict[str, Setup]:
    """Return the settings, by name, that need less memory of each GPU. The first cost the least time."""
    alternatives: dict[str, Setup] = {}
    if setup.text_encoder == "device":
        alternatives["TEXT_ENCODER=offload"] = replace(setup, text_encoder="offload")
    if setup.quantize == "none":
        alternatives["QUANTIZE=fp8"] = replace(setup, quantize="fp8")
        alternatives["QUANTIZE=int8"] = replace(setup, quantize="int8")
    if not (setup.shard_weights or setup.stream_weights):
        if setup.ranks > 1:
            alternatives["SHARD_WEIGHTS=on"] = replace(setup, shard_weights=True)
        alternatives["STREAM_WEIGHTS=on"] = replace(setup, stream_weights=True)
    return alternatives


def _advice(sizes: CheckpointSizes, plan: Plan, setup: Setup, available: int) -> str:
    """Return how a plan would fit: each of the settings that suffices, and the fewest ranks that do."""
    ranks = [number for number in (2, 4, MOST_RANKS) if number > setup.ranks]
    more = {f"{number} ranks for each video": replace(setup, ranks=number) for number in ranks}
    fitting, fitting_more = (
        [name for name, other in setups.items() if memory_needed(sizes, plan, other).total <= available]
        for setups in (_alternatives(setup), more)
    )
    ways = [*fitting, *fitting_more[:1]]
    return f"each of these makes it fit: {', '.join(ways)}" if ways else "no single setting makes it fit"


def _check_plan(name: str, needs: Mapping[int, MemoryNeed], available: int | None) -> Finding:
    """Check that a plan fits with some number of ranks, given what it needs with each, fewest first."""
    fitting = [width for width, need in needs.items() if available is None or need.total <= available]
    width = fitting[0] if fitting else max(needs)
    need, on_ranks = needs[width], f" on {width} GPUs" if len(needs) > 1 and width > 1 else ""
    text = f"{name}: {format_bytes(need.total)}{on_ranks}, most of it while it {_VERBS[need.phase]}"
    if available is None:
        return Finding("note", text)
    if fitting:
        return Finding("ok", text)
    return Finding("note", f"{text}: does not fit into {format_bytes(available)}")


def _check_host_memory(sizes: CheckpointSizes, setup: Setup, settings: WorkerSettings) -> Iterator[Finding]:
    """Check that the weights that stay in host memory fit into it, if any do."""
    num_leaders = settings.num_groups if settings.node_rank == 0 else 0
    need, total = host_needed(sizes, setup, settings.ranks, num_leaders), host_memory_bytes()
    try:
        shared = read_prepared_bytes(settings.checkpoint, setup)
    except CheckpointError as error:
        yield Finding("problem", f"LoRAs: {error}")
        shared = 0
    limit = need.shared_limit(total, settings.lora_memory_gib)
    if shared:
        yield _check_shared(shared, limit, is_streamed=setup.stream_weights)
    if needed := need.text_encoders + shared if 0 < shared <= limit else need.total:
        text = f"host memory: {format_bytes(needed)} of weights, of {format_bytes(total)}"
        yield Finding("ok" if needed < total else "problem", text)


def _check_shared(shared: int, limit: int, *, is_streamed: bool) -> Finding:
    """Check that the weights that all ranks share may take the host memory that they need."""
    needed, may = f"{format_bytes(shared)} of host memory, once for all ranks", format_bytes(limit)
    if shared <= limit:
        weights = "streamed blocks, and LoRAs" if is_streamed else "LoRAs"
        return Finding("ok", f"{weights}: kept merged in {needed}")
    text = "LoRAs: each change reads files, since merged weights may take"
    if not is_streamed:
        return Finding("note", f"{text} {may} (LORA_MEMORY_GIB) and need {needed}")
    text = f"each rank has a copy of the streamed blocks. {text}"
    return Finding("note", f"{text} {may} (in place of copies, and LORA_MEMORY_GIB) and need {needed}")
