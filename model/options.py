"""Define the options of the model's command line. They are checked when they are resolved to a plan."""

import argparse
from pathlib import Path
from typing import get_args

from model.spec.plan import Task

POCKET = Path(__file__).parents[1] / "pocket"
STEP_CACHE = 0.05  # a small threshold: larger ones save more time and lose more quality


def parser() -> argparse.ArgumentParser:
    """Return the parser of `python -m model`."""
    made = argparse.ArgumentParser(prog="python -m model", description="Make a video with LongCat-Video.")
    _add_inputs(made)
    _add_sizes(made)
    _add_sampling(made)
    _add_refinement(made)
    _add_machine(made)
    return made


def _add_inputs(made: argparse.ArgumentParser) -> None:
    add = made.add_argument_group("input").add_argument
    add("--checkpoint", type=Path, default=POCKET, metavar="DIR", help="default: the pocket checkpoint")
    add("--task", choices=get_args(Task), help="default: inferred from the inputs")
    add(
        "--prompt",
        action="append",
        required=True,
        help="repeat for each segment of a long video, or for each video",
    )
    add("--negative-prompt", help="default: the checkpoint's own, where guidance is on")
    add(
        "--image",
        type=Path,
        help="PNG, JPEG or .npz with `frames`; for refine, what the first frame is held to",
    )
    add("--video", type=Path, help="MP4 or .npz with `frames`: the clip to continue or to refine")
    add("--condition-video", type=Path, help="refine: the clip whose end the first frames are held to")


def _add_sizes(made: argparse.ArgumentParser) -> None:
    add = made.add_argument_group("size").add_argument
    add("--resolution", help="choose the size nearest to the input's shape from a table: 480p or 720p")
    add("--height", type=int)
    add("--width", type=int)
    add("--num-frames", type=int, help="of a segment, 4k + 1")
    add("--num-segments", type=int)
    add("--num-condition-frames", type=int, help="frames that a segment takes over from what it continues")


def _add_sampling(made: argparse.ArgumentParser) -> None:
    add = made.add_argument_group("sampling").add_argument
    add("--steps", type=int)
    add("--guidance-scale", type=float)
    add("--distilled", action="store_true", help="few steps, no guidance, with cfg_step_lora")
    add("--no-condition-cache", dest="condition_cache", action="store_false")
    add("--no-enhance-hf", dest="enhance_hf", action="store_false")
    add(
        "--quality",
        choices=("exact", "balanced"),
        default="exact",
        help="balanced: skip most work of similar steps",
    )
    add(
        "--step-cache",
        type=float,
        default=STEP_CACHE,
        metavar="T",
        help="balanced: largest change of the first block's update at which a step is skipped",
    )
    add("--seed", type=int, default=0)


def _add_refinement(made: argparse.ArgumentParser) -> None:
    add = made.add_argument_group("refinement").add_argument
    add("--refine", action="store_true", help="refine the generated video")
    add("--t-thresh", type=float, help="noise level at which refinement begins")
    add("--spatial-refine-only", action="store_true", help="do not double the frame rate")
    add("--exact-handover", action="store_true", help="8-bit frames between stages, as in the published code")


def _add_machine(made: argparse.ArgumentParser) -> None:
    add = made.add_argument_group("machine and output").add_argument
    add("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on cuda, float32 on cpu")
    add("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    add("--fp8", action="store_true", help="multiply large matrices in fp8: faster, less exact")
    add("--compile", choices=("auto", "on", "off"), default="auto", help="auto: on cuda")
    add("--context-parallel", type=int, metavar="P", help="ranks to a video, under torchrun (default: all)")
    add(
        "--no-guidance-split",
        dest="guidance_split",
        action="store_false",
        help="make both predictions of guidance on all ranks, instead of one on each half",
    )
    add("--save-latents", type=Path, metavar="OUT.safetensors")
    add("--output", type=Path, metavar="OUT.mp4")
