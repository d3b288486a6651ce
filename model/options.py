"""Define the command line of the model. Options of the video come from `model.spec.params`."""

import argparse
from pathlib import Path
from typing import get_args

from model.spec.arguments import add_arguments
from model.spec.memory import Quantize, TextEncoderOption

POCKET = Path(__file__).parents[1] / "pocket"
STEP_CACHE = 0.05  # a small threshold: larger ones save more time and lose more quality


def parser() -> argparse.ArgumentParser:
    """Return the parser of `python -m model`."""
    made = argparse.ArgumentParser(prog="python -m model", description="Make a video with LongCat-Video.")
    _add_inputs(made)
    add_arguments(made)
    _add_precision(made)
    _add_machine(made)
    return made


def _add_inputs(made: argparse.ArgumentParser) -> None:
    add = made.add_argument_group("input").add_argument
    add("--checkpoint", type=Path, default=POCKET, metavar="DIR", help="default: the pocket checkpoint")
    add(
        "--prompt",
        action="append",
        required=True,
        help="repeat for each segment of a long video, or for each video",
    )
    add(
        "--image",
        type=Path,
        help="PNG, JPEG or .npz with `frames`; for refine, the image that the first frame must match",
    )
    add("--video", type=Path, help="MP4 or .npz with `frames`: the clip to continue or to refine")
    add("--condition-video", type=Path, help="refine: the clip whose last frames the first frames must match")


def _add_precision(made: argparse.ArgumentParser) -> None:
    group = made.add_argument_group("precision")
    add = group.add_argument
    add(
        "--step-cache",
        type=float,
        default=STEP_CACHE,
        metavar="T",
        help="with --quality balanced: largest change of the first block's update at which a step is skipped",
    )
    add("--exact-handover", action="store_true", help="8-bit frames between stages, as in the published code")
    add("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on cuda, float32 on cpu")
    add(
        "--text-encoder",
        choices=get_args(TextEncoderOption),
        default="auto",
        help="where the text encoder stays: on the device; in host memory, from which it runs on the device "
        "layer by layer (offload); or on the CPU, where it also runs (rounds differently); auto: device if "
        "the videos fit with it, else offload",
    )
    add_format = group.add_mutually_exclusive_group().add_argument
    add_format(
        "--quantize",
        choices=get_args(Quantize),
        default="none",
        help="store large matrices in one byte for each element: fp8 also multiplies in it, which is faster; "
        "int8 is for GPUs that cannot; both are less exact",
    )
    add_format("--fp8", dest="quantize", action="store_const", const="fp8", help="the same as --quantize fp8")


def _add_machine(made: argparse.ArgumentParser) -> None:
    machine = made.add_argument_group("machine and output")
    add = machine.add_argument
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda where there is one")
    add("--compile", choices=("auto", "on", "off"), default="auto", help="auto: on cuda")
    add("--context-parallel", type=int, metavar="P", help="ranks to a video, under torchrun (default: all)")
    add(
        "--ring-degree",
        type=int,
        default=1,
        metavar="R",
        help="ranks that pass keys and values around, instead of dividing the attention heads; divides P",
    )
    add(
        "--no-guidance-split",
        dest="guidance_split",
        action="store_false",
        help="make both predictions of guidance on all ranks, instead of one on each half",
    )
    where = machine.add_mutually_exclusive_group().add_argument
    where(
        "--shard-weights",
        action="store_true",
        help="divide the weights of the transformer's blocks among the ranks, which needs less memory",
    )
    where(
        "--stream-weights",
        action="store_true",
        help="keep the weights of the transformer's blocks in host memory, and copy each block to the device "
        "while the one before computes",
    )
    add("--save-latents", type=Path, metavar="OUT.safetensors")
    add("--output", type=Path, metavar="OUT.mp4")
