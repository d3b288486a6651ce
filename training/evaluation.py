"""Evaluation of a checkpoint: which videos are requested in a trial, and how the result is scored.

`training.quality` runs the trials and makes the table. A trial follows from its index alone, and none of its
captions occurs in training. The name of a score ends with its unit: for percentages and dB more is better,
for pixels, levels (of 255) and seconds less is better.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from model.io.pixels import resized, to_uint8
from model.spec.geometry import Size
from training.captions import COLOUR_WORDS, SceneDescription, parse_caption, property_matches, random_caption
from training.recognition import Region, find_regions, object_mask, recognise
from training.scenes import FPS, HEIGHT, WIDTH, PlacedScene, draw, place, random_scene

SEED = 1_000_003  # no seed of the training data
PROPERTIES = ("colour", "shape", "motion", "count")
NUM_FRAMES, CONDITION_FRAMES = 17, 5
LONG_VIDEO_SEGMENTS = 10  # 125 frames, 8 seconds
DILATION_PX = 5  # odd width of a box around each object pixel that does not count as background

VideoTensor = Float[Tensor, "n height width 3"]
Correctness = Mapping[str, bool]
Scores = Mapping[str, float]


@dataclass(frozen=True)
class Trial:
    """Hold a held-out caption, its scene, and the seed of the video."""

    prompt: str
    placed: PlacedScene
    seed: int

    @classmethod
    def from_index(cls, index: int) -> "Trial":
        """Return the trial with this index."""
        random = np.random.default_rng((SEED, index))
        scene = random_scene(random)
        prompt = random_caption(scene, random)
        return cls(prompt, place(scene, random, NUM_FRAMES), index)


@dataclass(frozen=True)
class VideoRequest:
    """Specify a video: its prompt, and the image or clip that it begins with, if any."""

    prompt: str
    image: UInt8[Tensor, "height width 3"] | None = None
    video: UInt8[Tensor, "n height2 width2 3"] | None = None
    num_segments: int = 1


@dataclass(frozen=True)
class EvaluationTask:
    """Define what is requested in a trial and how the resulting videos are scored.

    `evaluate` returns which properties are correct, and the scores. `time_score`, if set, is the name of
    another score: the seconds per video.
    """

    requests: Callable[[Trial], list[VideoRequest]]
    evaluate: Callable[[Trial, list[VideoTensor]], tuple[Correctness, Scores]]
    time_score: str = ""


def compare(expected: SceneDescription, actual: SceneDescription) -> dict[str, bool]:
    """Return which expected properties a video has.

    If there are two objects, choose the assignment with more correct properties. If the number of objects
    differs, nothing is correct.
    """
    assignments = property_matches(expected.objects, actual.objects, PROPERTIES[:3])
    if not assignments:
        return dict.fromkeys(PROPERTIES, False)
    best = max(assignments, key=lambda assignment: sum(assignment.values()))
    return {**best, "count": True}


def frame_rate(video: VideoTensor) -> int:
    """Return the frames per second: refinement doubles the rate as well as the size."""
    return FPS * (video.shape[1] // HEIGHT)


def change_colour(prompt: str) -> str:
    """Replace the colour of the first object: by blue, or by one that the caption does not mention yet."""
    known = [obj.colour for obj in parse_caption(prompt).objects]
    new = next(colour for colour in ("blue", "red", "green") if colour not in known)
    words = "|".join(COLOUR_WORDS[known[0] or new])
    return re.sub(
        rf"\b({words})\b", lambda old: new.upper() if old[0].isupper() else new, prompt, flags=re.IGNORECASE
    )


def _request_text(trial: Trial) -> list[VideoRequest]:
    return [VideoRequest(trial.prompt)]


def _evaluate_text(trial: Trial, videos: list[VideoTensor]) -> tuple[Correctness, Scores]:
    correct = _correct_properties(trial.prompt, videos[0])
    return correct, {f"{name}, %": 100.0 * correct[name] for name in PROPERTIES}


def _request_long_video(trial: Trial) -> list[VideoRequest]:
    return [VideoRequest(trial.prompt, num_segments=LONG_VIDEO_SEGMENTS)]


def _evaluate_long_video(trial: Trial, videos: list[VideoTensor]) -> tuple[Correctness, Scores]:
    correct = _correct_properties(trial.prompt, videos[0])
    return correct, {"8 s all right, %": 100.0 * all(correct.values())}


def _request_image(trial: Trial) -> list[VideoRequest]:
    """Request a video that begins with the scene's first frame, rendered large enough for refinement."""
    return [VideoRequest(trial.prompt, image=to_uint8(draw(trial.placed, torch.zeros(1), scale=2))[0])]


def _evaluate_image(trial: Trial, videos: list[VideoTensor]) -> tuple[Correctness, Scores]:
    (request,) = _request_image(trial)
    assert request.image is not None
    first = videos[0][0]
    image = resized(request.image[None], Size(*first.shape[:2]))[0].float() / 255
    psnr_db = -10 * math.log10(float((first - image).square().mean()))
    return _correct_properties(trial.prompt, videos[0]), {"first frame, dB": psnr_db}


def _request_continuation(trial: Trial) -> list[VideoRequest]:
    """Request a continuation of the first frames of the scene."""
    return [
        VideoRequest(trial.prompt, video=to_uint8(draw(trial.placed, torch.arange(float(CONDITION_FRAMES)))))
    ]


def _evaluate_continuation(trial: Trial, videos: list[VideoTensor]) -> tuple[Correctness, Scores]:
    (frames,) = videos
    correct = _correct_properties(trial.prompt, frames)
    times = torch.linspace(0, NUM_FRAMES - 1, len(frames))  # refined videos have more frames
    first_new = int((times < CONDITION_FRAMES).sum())
    expected = find_regions(draw(trial.placed, times[first_new : first_new + 1]))[0]
    actual = find_regions(frames[first_new : first_new + 1])[0]
    farthest = float(WIDTH + HEIGHT) / 2
    distances = [min((_torus_distance(a, b) for b in actual), default=farthest) for a in expected]
    return correct, {"join error, px": float(np.mean(distances)), "same motion, %": 100.0 * correct["motion"]}


def _request_changed_colour(trial: Trial) -> list[VideoRequest]:
    return [VideoRequest(trial.prompt), VideoRequest(change_colour(trial.prompt))]


def _evaluate_changed_colour(trial: Trial, videos: list[VideoTensor]) -> tuple[Correctness, Scores]:
    before, after = videos
    objects = [object_mask(video) for video in videos]
    either = objects[0] | objects[1]
    background = F.max_pool2d(either.float()[:, None], DILATION_PX, 1, DILATION_PX // 2)[:, 0] == 0
    background_change = 255 * float((before - after).abs().mean(-1)[background].mean())
    overlap = 100 * float((objects[0] & objects[1]).sum() / either.sum().clamp(min=1))
    correct = _correct_properties(change_colour(trial.prompt), after)
    scores = {
        "recoloured, %": 100.0 * correct["colour"],
        "in place, %": overlap,
        "elsewhere, levels": background_change,
    }
    return correct, scores


def _correct_properties(prompt: str, video: VideoTensor) -> dict[str, bool]:
    return compare(parse_caption(prompt), recognise(video, frame_rate(video)))


def _torus_distance(a: Region, b: Region) -> float:
    """Return the vertical plus the horizontal distance of two regions on the torus, in pixels."""
    pairs = ((a.row, b.row, HEIGHT), (a.column, b.column, WIDTH))
    return sum(abs((x - y + period / 2) % period - period / 2) for x, y, period in pairs)


TASKS = {
    "text to video": EvaluationTask(_request_text, _evaluate_text, time_score="video, s"),
    "image to video": EvaluationTask(_request_image, _evaluate_image),
    "continuation": EvaluationTask(_request_continuation, _evaluate_continuation),
    "one word changed": EvaluationTask(_request_changed_colour, _evaluate_changed_colour),
    "long video": EvaluationTask(_request_long_video, _evaluate_long_video, time_score="8 s video, s"),
}
