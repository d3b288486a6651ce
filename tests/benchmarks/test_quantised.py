"""What the page says of quantised weights is what the judge found."""

from __future__ import annotations

import pytest
import torch

from benchmarks.quantised import Judged, judge, report
from jobs.settings import POCKET
from model.pipeline.pipeline import Pipeline
from model.spec.memory import Quantize
from training.contact_sheet import EvaluatedVideo
from training.evaluation import PROPERTIES
from training.quality import measure

TASK = "text to video"
QUANTIZE: tuple[Quantize, Quantize] = ("none", "int8")


def video(grey: float, *, colour: bool = True, shape: bool = True) -> EvaluatedVideo:
    correct = {**dict.fromkeys(PROPERTIES, True), "colour": colour, "shape": shape}
    return EvaluatedVideo(
        "standard", "text to video", 0, "a cat", correct, {}, torch.full((2, 4, 4, 3), grey)
    )


VIDEOS = {
    "exact": [video(0.5), video(0.5, colour=False)],
    "fp8": [video(0.6, colour=False), video(0.5)],
    "int8": [video(0.5, shape=False), video(0.5, colour=False)],
}


def test_judgements_are_counted_and_compared_with_those_of_the_exact_videos():
    exact, fp8, int8 = judge(VIDEOS)
    assert [(row.trials, row.properties) for row in (exact, fp8, int8)] == [(2, 8)] * 3
    assert [(row.right, row.differing) for row in (exact, fp8, int8)] == [(7, 0), (7, 2), (6, 1)]
    assert (exact.psnr_db, int8.psnr_db) == (None, None)
    assert fp8.psnr_db == pytest.approx(23.01, abs=0.01)  # half of the frames are off by 0.1


def test_report_has_a_line_for_each_precision_and_the_sum():
    rows = [*judge(VIDEOS), Judged("refined", "continuation", "exact", 2, 8, 8, 0, None)]
    page = report({"checkpoint": "pocket"}, rows)
    assert "- checkpoint: pocket" in page
    assert "| standard | text to video | 2 | fp8 | 7 of 8 | 100.0 % | 2 | 23.0 dB |" in page
    assert "| standard | text to video | 2 | int8 | 6 of 8 | 85.7 % | 1 | the same |" in page
    assert "- exact: 15 of 16 properties are right, 100.00 % of exact; 0 are judged otherwise" in page


@pytest.mark.integration
def test_judge_sees_no_difference_between_a_video_of_int8_and_the_exact_one():
    exact, int8 = (
        list(measure(Pipeline.load(POCKET, torch.float32, quantize=quantize), "distilled", TASK, range(1)))
        for quantize in QUANTIZE
    )
    _, judged = judge({"exact": exact, "int8": int8})
    assert (judged.right, judged.differing) == (judged.properties, 0)
    assert judged.psnr_db is not None  # the weights are not those of the exact video
    assert judged.psnr_db > 40
