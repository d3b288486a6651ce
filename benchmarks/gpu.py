"""Part (b), seconds on a GPU: `python -m benchmarks.gpu [--toy] [--rounds N] [--only NAME] [--out FOLDER]`.

The machine's own ceilings first, then every stage at full size with random weights: a forward of the plain
code with FlashAttention-2, with cuDNN's attention, compiled, and in fp8, in turn; refinement within bricks;
text, VAE and x264; a distilled clip from prompt to film beside the sum of its stages. `gpu.json` and
`gpu.svg` go into the folder. Where diffusers or PyAV is missing, forwards alone are measured. `--toy` runs
all of it small, on any machine, to try the benchmark itself.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from unittest.mock import patch

import torch
from torch.nn.attention import SDPBackend

from benchmarks import stages
from benchmarks.formulas import block_sparse_flops, forward_flops
from benchmarks.machine import commit
from benchmarks.plot import bars
from benchmarks.stages import FULL, TOY, Scale, Transformers
from benchmarks.timing import TERA, Work, ceilings, medians, seconds
from model.parallel.mesh import ContextParallel
from model.transformer import attention
from model.transformer.token_layout import build_layout

Figures = dict[str, float]

WITHOUT_CUDNN = [kernel for kernel in attention.KERNELS if kernel != SDPBackend.CUDNN_ATTENTION]


@dataclass(frozen=True)
class Bench:
    """Where and how large, and what the machine reaches."""

    scale: Scale
    device: torch.device
    rounds: int
    ceiling: Figures
    folder: Path

    def of_forward(self, flop: float, taken_s: Mapping[str, float]) -> Figures:
        """Seconds, TFLOP/s and % of the ceiling of each variant."""
        figures: Figures = {}
        for name, s in taken_s.items():
            rate = flop / s / TERA
            figures[f"{name}: s"] = s
            figures[f"{name}: TFLOP/s"] = rate
            figures[f"{name}: % of the ceiling"] = 100 * rate / self.ceiling["bf16 TFLOP/s"]
        return figures


def base_forward(bench: Bench, dits: Transformers, num_texts: int) -> Figures:
    """Measure a 480p forward, with one optimisation after the other added."""
    scale = bench.scale
    plain = stages.forward(dits.plain, scale, scale.base, num_texts)
    works = {
        "plain, FlashAttention-2": without_cudnn(plain),
        "plain, cuDNN attention": plain,
        "compiled, cuDNN attention": stages.forward(dits.compiled, scale, scale.base, num_texts),
    }
    if dits.in_fp8:
        works["compiled, linears in fp8"] = stages.forward(dits.in_fp8, scale, scale.base, num_texts)
    flop = forward_flops(scale.dit, scale.base, num_texts, scale.text_tokens).total
    return bench.of_forward(flop, medians(works, bench.device, bench.rounds))


def refine_forward(bench: Bench, dits: Transformers) -> Figures:
    """Measure a forward of refinement within bricks, and state its arithmetic floor."""
    scale = bench.scale
    works = {
        name: stages.forward(dit, scale, scale.refined, 1, sparse=True)
        for name, dit in (("plain", dits.plain), ("compiled", dits.compiled))
    }
    bricks = build_layout(scale.dit, scale.refined, True, ContextParallel(bench.device)).bricks
    assert bricks
    dense = forward_flops(scale.dit, scale.refined, 1, scale.text_tokens)
    flop = block_sparse_flops(scale.dit, scale.refined, bricks) + dense.linears + dense.cross_attention
    figures = bench.of_forward(flop, medians(works, bench.device, bench.rounds))
    return {**figures, "floor: s": flop / TERA / bench.ceiling["bf16 TFLOP/s"]}


def other_stages(bench: Bench, dits: Transformers) -> Figures:
    """Text, VAE and x264 alone, and x264 beside forwards."""
    scale, device = bench.scale, bench.device
    film = stages.film(scale, bench.folder / "x264.mp4")
    forward = stages.forward(dits.compiled, scale, scale.base, 1)
    works = {"text: s": stages.text_encoding(scale, device), "VAE decode: s": stages.decoding(scale, device)}
    figures = medians(works, device, bench.rounds)
    figures["x264: s"] = seconds(film, torch.device("cpu"))
    figures["forward alone: s"] = medians({"alone": forward}, device, bench.rounds)["alone"]
    with beside(film):
        figures["forward beside x264: s"] = seconds(forward, device)
    return figures


def distilled_clip(bench: Bench, dits: Transformers) -> Figures:
    """From prompt to film, in line, and the sum of what its stages take alone."""
    scale, device, cpu = bench.scale, bench.device, torch.device("cpu")
    works = {
        "text": stages.text_encoding(scale, device),
        "steps": stages.clip(dits.compiled, scale),
        "decode": stages.decoding(scale, device),
        "film": stages.film(scale, bench.folder / "clip.mp4"),
    }
    for work in works.values():
        work()
    taken = {f"{name}: s": seconds(work, cpu if name == "film" else device) for name, work in works.items()}

    def whole() -> None:
        for work in works.values():
            work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return {**taken, "sum: s": sum(taken.values()), "end to end: s": seconds(whole, cpu)}


def without_cudnn(work: Work) -> Work:
    """Return the same case with the next best attention."""

    def run() -> object:
        with patch.object(attention, "KERNELS", WITHOUT_CUDNN):
            return work()

    return run


@contextmanager
def beside(work: Work) -> Iterator[None]:
    """Have it done in a thread meanwhile."""
    thread = Thread(target=work)
    thread.start()
    yield
    thread.join()


CASES: dict[str, Callable[[Bench, Transformers], Figures]] = {
    "480p b=1": lambda bench, dits: base_forward(bench, dits, 1),
    "480p b=2": lambda bench, dits: base_forward(bench, dits, 2),
    "refine": refine_forward,
    "stages": other_stages,
    "distilled clip": distilled_clip,
}


def cases_here() -> list[str]:
    """Those that the installed packages suffice for."""
    whole = find_spec("diffusers") and find_spec("av")
    return list(CASES) if whole else [name for name in CASES if name not in {"stages", "distilled clip"}]


def machine(device: torch.device) -> dict[str, str]:
    """Where it was measured, with what, at which commit."""
    on_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_cuda else platform.processor() or "CPU",
        "torch": torch.__version__,
        "cuDNN": str(torch.backends.cudnn.version()) if on_cuda else "-",
        "python": platform.python_version(),
        "commit": commit() or "unknown",
    }


def measure(bench: Bench, names: list[str]) -> dict[str, Figures]:
    """Run the requested cases, and print each result at once."""
    dits = stages.transformers(bench.scale, bench.device)
    found: dict[str, Figures] = {}
    for name in names:
        found[name] = CASES[name](bench, dits)
        print(name, json.dumps(found[name], indent=2), flush=True)
    return found


def draw(found: Mapping[str, Figures]) -> str:
    """Share of the ceiling of every forward."""
    unit = "% of the ceiling"
    shares = {
        f"{case}, {name.removesuffix(f': {unit}')}": value
        for case, figures in found.items()
        for name, value in figures.items()
        if name.endswith(unit)
    }
    return bars("Forwards, % of the machine's own bf16 matrix product", shares, 100.0, "%")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--toy", action="store_true", help="everything small, on the CPU")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=CASES, action="append", help="may be given again")
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    options = parser.parse_args(arguments)
    device = torch.device("cpu" if options.toy else "cuda")
    options.out.mkdir(parents=True, exist_ok=True)
    reached = ceilings(device, 256, 1 << 20) if options.toy else ceilings(device)
    scale = TOY if options.toy else FULL
    bench = Bench(scale, device, options.rounds, reached, options.out)
    found = measure(bench, options.only or cases_here())
    document = {"machine": machine(device), "toy": options.toy, "ceilings": reached, **found}
    (options.out / "gpu.json").write_text(json.dumps(document, indent=2) + "\n")
    (options.out / "gpu.svg").write_text(draw(found))


if __name__ == "__main__":
    main()
