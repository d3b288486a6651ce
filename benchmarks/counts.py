"""Part (a), exact on any machine: `python -m benchmarks.counts [--out FILE.json]`.

FLOPs, matrix products, passes over whole tensors and exchanges of a forward of full size (on the meta device,
so nothing is computed), and what a job of the small checkpoint computes more than once. Memory is counted by
`benchmarks.peak_memory`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.compiled import compiled_block
from benchmarks.formulas import (
    BASE,
    REFINED,
    TEXT_TOKENS,
    Flops,
    block_sparse_flops,
    exchanged_bytes,
    forward_flops,
    num_tokens,
    passed_bytes,
)
from benchmarks.repeats import repeats
from benchmarks.traffic import Attention, Traffic, ranks_on_meta, recorded
from model.parallel.mesh import ContextParallel
from model.tiny import write_tiny
from model.transformer import token_layout
from model.transformer.config import DitConfig
from model.transformer.dit import Dit
from model.transformer.token_layout import Window, build_layout

META = torch.device("meta")
BF16 = torch.bfloat16
RANKS = (1, 2, 4, 8)

Table = dict[str, object]


@dataclass(frozen=True)
class Forward:
    """A forward of a transformer on the meta device."""

    config: DitConfig
    window: Window
    sparse: bool = False
    ranks: int = 1
    ring_degree: int = 1
    slow_links: bool = False

    def __call__(self) -> None:
        """Do it, from the text on."""
        self.after_text()()

    def after_text(self) -> Callable[[], None]:
        """Return a function that runs one step. The work for the text is done before."""
        with META:
            dit = Dit(self.config, BF16).requires_grad_(False)
        parallel = ranks_on_meta(self.ranks, self.ring_degree, slow_links=self.slow_links)
        layout = build_layout(self.config, self.window, parallel, sparse=self.sparse)
        text = torch.empty(1, TEXT_TOKENS, self.config.caption_channels, dtype=BF16, device=META)
        read = dit.text_kv(text, torch.empty(1, TEXT_TOKENS, device=META, dtype=torch.long))
        latents = torch.empty(1, self.config.in_channels, *self.window[:3], device=META)
        timesteps = torch.empty(1, self.window.num_frames, device=META)
        return lambda: dit(latents, timesteps, layout, read)


def flops(config: DitConfig, window: Window) -> Table:
    """Count a forward and the work for its text, by torch and by formula."""
    with FlopCounterMode(display=False) as counter:
        Forward(config, window)()
    expected = forward_flops(config, window, num_text_tokens=TEXT_TOKENS)
    return {
        "tokens": num_tokens(config, window),
        "counted": counter.get_total_flops(),
        "formula": expected.total + expected.text,
        **_parts(expected),
    }


def sparse_flops(config: DitConfig, window: Window) -> Table:
    """Count a forward of refinement: attention within bricks by formula, the rest by torch."""
    layout = build_layout(config, window, ContextParallel(META), sparse=True)
    assert layout.bricks
    attention = block_sparse_flops(config, window, layout.bricks)
    with (
        FlopCounterMode(display=False) as counter,
        patch.object(token_layout, "block_sparse_attention", _nothing),
    ):
        Forward(config, window, sparse=True)()
    expected = forward_flops(config, window, 1, TEXT_TOKENS, frames_in_group=layout.chunk[0])
    expected = Flops(attention, expected.linears, expected.cross_attention, expected.text)
    return {
        "tokens": num_tokens(config, window),
        "counted": counter.get_total_flops() + attention,
        "formula": expected.total + expected.text,
        **_parts(expected),
    }


def _nothing(q: Tensor, *_: object) -> Tensor:
    """In place of block-sparse attention."""
    return torch.empty_like(q)


def _parts(expected: Flops) -> Table:
    return {**asdict(expected), "a step": expected.total}


def block(config: DitConfig, window: Window, device: torch.device) -> Table:
    """Matrix products of a block, and passes between them: the plain code's and the compiled one's.

    A pass reads or writes one tensor of all tokens and the whole width, in bf16, once.
    """
    one = num_tokens(config, window) * config.hidden_size
    plain = _traffic(config, window, one)
    compiled = compiled_block(config, window, device)
    return {
        "products": plain.products,
        "passes, plain": plain.moved_bytes / (one * 2),
        "operations, plain": plain.operations,
        "passes, compiled": compiled.moved_bytes / (one * 2),
        "kernels, compiled": compiled.fused,
        "products, compiled": compiled.products,
        "compiled for": device.type,
    }


def _traffic(config: DitConfig, window: Window, least: int) -> Traffic:
    """Return the count of a block: that of two blocks minus that of one."""
    counts: list[Traffic] = []
    for depth in (2, 1):
        step = Forward(_deep(config, depth), window).after_text()
        with Attention(), Traffic(least) as counted:
            step()
        counts.append(counted)
    both, one = counts
    both.products -= one.products
    both.moved_bytes -= one.moved_bytes
    both.operations -= one.operations
    return both


def exchanges(
    config: DitConfig, window: Window, ranks: int, *, sparse: bool = False, slow_links: bool = False
) -> Table:
    """Return the bytes that a rank sends in one block, checked against the formula, and for the result."""
    with (
        Attention(),
        recorded() as seen,
        patch.object(token_layout, "block_sparse_attention", _nothing),
    ):
        Forward(_deep(config, 1), window, sparse, ranks, slow_links=slow_links)()
    size = (1, num_tokens(config, window), config.hidden_size, BF16.itemsize)
    return {
        "ranks": ranks,
        "attention": _attention(sparse),
        "all-to-alls in a block": seen.calls.get("all_to_all", 0),
        "bytes sent in a block": seen.sent_bytes.get("all_to_all", 0),
        "formula": exchanged_bytes(*size, ranks),
        "bytes sent to gather a forward": seen.sent_bytes.get("all_gather", 0),
    }


def between_machines(
    config: DitConfig, window: Window, sparse: bool, machines: int, ranks_of_each: int, ring_degree: int
) -> Table:
    """Return the bytes that a rank sends in one block to the ranks of its machine and of others.

    A ring is as large as there are machines, or absent.
    """
    ranks = machines * ranks_of_each
    seen = []
    for depth in (2, 1):
        forward = Forward(_deep(config, depth), window, sparse, ranks, ring_degree)
        with (
            Attention(),
            recorded() as exchanges,
            patch.object(token_layout, "block_sparse_attention", _nothing),
        ):
            forward()
        seen.append(exchanges.sent_bytes)
    two, one = (Counter(sent) for sent in seen)
    two.subtract(one)
    exchanged, passed = two["all_to_all"], two["pass_around"] + two["all_gather"]
    to_others = passed if ring_degree > 1 else exchanged * (ranks - ranks_of_each) // (ranks - 1)
    size = (1, num_tokens(config, window), config.hidden_size, BF16.itemsize, ranks, ring_degree)
    return {
        "machines": machines,
        "ranks": ranks,
        "ring": ring_degree,
        "attention": _attention(sparse),
        "bytes sent within a machine": exchanged + passed - to_others,
        "bytes sent to other machines": to_others,
        "formula": exchanged_bytes(*size) + passed_bytes(*size),
    }


def _attention(sparse: bool) -> str:
    return "block-sparse" if sparse else "dense"


def _deep(config: DitConfig, depth: int) -> DitConfig:
    return DitConfig(**{**vars(config), "depth": depth})


def count_between_machines(config: DitConfig) -> list[Table]:
    """Count what groups on several machines of 8 ranks send, with and without a ring."""
    return [
        between_machines(config, window, sparse, machines, 8, ring_degree)
        for window, sparse in ((BASE, False), (REFINED, True))
        for machines in (2, 4)
        for ring_degree in (1, machines)
    ]


def count_over_slow_links(config: DitConfig) -> list[Table]:
    """Count exchanges in slices of heads, of which block-sparse attention has more."""
    return [
        exchanges(config, window, ranks, sparse=sparse, slow_links=True)
        for window, sparse in ((BASE, False), (REFINED, True))
        for ranks in RANKS[1:]
    ]


def count_all() -> dict[str, Table | list[Table]]:
    """Everything, at full size."""
    config = DitConfig()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        write_tiny(Path(folder))
        jobs: list[Table] = [dict(job) for job in repeats(Path(folder))]
    return {
        "forward 480×832×93": flops(config, BASE),
        "forward 704×1280×186, block-sparse": sparse_flops(config, REFINED),
        "block": block(config, BASE, device),
        "exchanges": [exchanges(config, BASE, ranks) for ranks in RANKS],
        "exchanges over slow links": count_over_slow_links(config),
        "exchanges between machines": count_between_machines(config),
        "jobs of three segments, guided": jobs,
    }


def table(counts: dict[str, Table | list[Table]]) -> str:
    """For people."""
    lines = []
    for title, found in counts.items():
        for i, rows in enumerate(found if isinstance(found, list) else [found]):
            lines += ["", f"{title}{f' ({i + 1})' if isinstance(found, list) else ''}"]
            lines += [f"  {name:<34} {_shown(value):>26}" for name, value in rows.items()]
    return "\n".join(lines[1:])


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counts", description=__doc__)
    parser.add_argument("--out", type=Path, help="write the counts there as JSON")
    options = parser.parse_args()
    counts = count_all()
    print(table(counts))
    if options.out:
        options.out.write_text(json.dumps(counts, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
