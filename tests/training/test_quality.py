"""The table of scores, its comparison with an earlier one, and the contact sheet."""

import json

import pytest
import torch

from training.contact_sheet import EvaluatedVideo, contact_sheet
from training.evaluation import PROPERTIES
from training.quality import NUM_REGRESSION_TRIALS, markdown, regressions, tabulate, write


def video(mode="standard", task="text to video", trial=0, colour=True, **scores):
    correct = dict.fromkeys(PROPERTIES, True) | {"colour": colour}
    frames = torch.zeros(17, 64, 96, 3)
    scores = {"colour, %": 100.0 * colour, "video, s": 2.0, **scores}
    return EvaluatedVideo(mode, task, trial, "a red ball <moving> left", correct, scores, frames)


def test_table_has_mean_of_every_score_for_each_mode():
    table = tabulate([video(), video(colour=False), video("distilled")])
    assert table["standard"] == {"colour, %": 50, "video, s": 2}
    assert table["distilled"]["colour, %"] == 100


def test_mean_is_taken_over_trials_that_have_the_score():
    table = tabulate([video(), video(task="image to video", **{"first frame, dB": 30.0})])
    assert table["standard"]["first frame, dB"] == 30


def test_rows_name_number_of_ranks():
    assert list(tabulate([video()], num_ranks=2)) == ["standard, 2 ranks"]


def test_markdown_table_has_header_and_rows():
    lines = markdown(tabulate([video()])).splitlines()
    assert lines[0] == "| | colour, % | video, s |"
    assert lines[2] == "| standard | 100.0 | 2.0 |"


def test_missing_score_is_empty_cell():
    table = {"a": {"colour, %": 1.0}, "b": {"colour, %": 2.0, "join error, px": 3.0}}
    assert markdown(table).splitlines()[2] == "| a | 1.0 |  |"


def test_results_of_earlier_runs_are_kept(tmp_path):
    write([video(), video("distilled")], tmp_path, num_ranks=1)
    write([video(trial=NUM_REGRESSION_TRIALS, colour=False)], tmp_path, num_ranks=1)
    write([video()], tmp_path, num_ranks=2)
    tables = json.loads((tmp_path / "quality.json").read_text())
    assert list(tables["all"]) == ["standard", "distilled", "standard, 2 ranks"]
    assert tables["all"]["standard"]["colour, %"] == 0
    assert (tmp_path / "quality.md").read_text() == markdown(tables["all"])
    assert {path.name for path in tmp_path.glob("*.html")} == {"sheet.html", "sheet-2-ranks.html"}


def test_first_trials_have_table_of_their_own(tmp_path):
    write(
        [
            video(trial=trial, colour=trial < NUM_REGRESSION_TRIALS)
            for trial in range(2 * NUM_REGRESSION_TRIALS)
        ],
        tmp_path,
        1,
    )
    tables = json.loads((tmp_path / "quality.json").read_text())
    assert tables["all"]["standard"]["colour, %"] == 50
    assert tables[f"first {NUM_REGRESSION_TRIALS}"]["standard"]["colour, %"] == 100


@pytest.mark.parametrize(
    ("name", "before", "tolerated", "worse"),
    [
        ("colour, %", 100, 75, 50),
        ("first frame, dB", 35.0, 34.0, 33.9),
        ("join error, px", 0.5, 1.5, 1.6),
        ("elsewhere, levels", 1.0, 2.0, 2.1),
    ],
)
def test_score_regresses_if_worse_by_more_than_tolerance(name, before, tolerated, worse):
    assert regressions({name: tolerated}, {name: before}, num_trials=4) == []
    assert regressions({name: worse}, {name: before}, num_trials=4) == [
        f"{name} is {worse:g}, was {before:g}"
    ]


def test_better_score_and_longer_time_are_no_regression():
    assert (
        regressions({"join error, px": 0.0, "video, s": 99.0}, {"join error, px": 9.0, "video, s": 1.0}, 4)
        == []
    )


def test_contact_sheet_shows_videos_with_prompts_and_errors():
    page = contact_sheet([video(), video("distilled", colour=False)])
    assert page.count("data:image/webp;base64,") == 2
    assert page.count("<h2>") == 2
    assert "a red ball &lt;moving&gt; left" in page
    assert "<moving>" not in page
    assert page.count("<b>colour</b>") == 1
