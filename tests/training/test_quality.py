"""What the films of many trials are worth together, and how that is kept and shown."""

import json

import pytest
import torch

from training.quality import FIRST, behind, markdown, tabulate, write
from training.sheet import Video, sheet
from training.trials import PROPERTIES


def video(mode="standard", task="text to video", number=0, colour=True, **scores):
    right = dict.fromkeys(PROPERTIES, True) | {"colour": colour}
    frames = torch.zeros(17, 64, 96, 3)
    scores = {"colour, %": 100.0 * colour, "film, s": 2.0, **scores}
    return Video(mode, task, number, "a red ball <moving> left", right, scores, frames)


def test_the_table_has_the_mean_of_every_score_in_each_mode():
    table = tabulate([video(), video(colour=False), video("distilled")])
    assert table["standard"] == {"colour, %": 50, "film, s": 2}
    assert table["distilled"]["colour, %"] == 100


def test_a_score_counts_only_where_it_is_given():
    table = tabulate([video(), video(task="image to video", **{"first frame, dB": 30.0})])
    assert table["standard"]["first frame, dB"] == 30


def test_rows_of_several_ranks_say_so():
    assert list(tabulate([video()], num_ranks=2)) == ["standard, 2 ranks"]


def test_the_table_reads_as_markdown():
    lines = markdown(tabulate([video()])).splitlines()
    assert lines[0] == "| | colour, % | film, s |"
    assert lines[2] == "| standard | 100.0 | 2.0 |"


def test_a_value_that_a_mode_does_not_have_stays_empty():
    table = {"a": {"colour, %": 1.0}, "b": {"colour, %": 2.0, "join error, px": 3.0}}
    assert markdown(table).splitlines()[2] == "| a | 1.0 |  |"


def test_what_was_measured_before_stays_beside_what_is_measured_now(tmp_path):
    write([video(), video("distilled")], tmp_path, num_ranks=1)
    write([video(number=FIRST, colour=False)], tmp_path, num_ranks=1)
    write([video()], tmp_path, num_ranks=2)
    tables = json.loads((tmp_path / "quality.json").read_text())
    assert list(tables["all"]) == ["standard", "distilled", "standard, 2 ranks"]
    assert tables["all"]["standard"]["colour, %"] == 0
    assert (tmp_path / "quality.md").read_text() == markdown(tables["all"])
    assert {path.name for path in tmp_path.glob("*.html")} == {"sheet.html", "sheet-2-ranks.html"}


def test_of_the_first_trials_there_is_a_table_of_their_own(tmp_path):
    write([video(number=number, colour=number < FIRST) for number in range(2 * FIRST)], tmp_path, 1)
    tables = json.loads((tmp_path / "quality.json").read_text())
    assert tables["all"]["standard"]["colour, %"] == 50
    assert tables[f"first {FIRST}"]["standard"]["colour, %"] == 100


@pytest.mark.parametrize(
    ("name", "before", "still", "worse"),
    [
        ("colour, %", 100, 75, 50),
        ("first frame, dB", 35.0, 34.0, 33.9),
        ("join error, px", 0.5, 1.5, 1.6),
        ("elsewhere, levels", 1.0, 2.0, 2.1),
    ],
)
def test_a_score_falls_behind_by_more_than_one_film_or_unit(name, before, still, worse):
    assert behind({name: still}, {name: before}, films=4) == []
    assert behind({name: worse}, {name: before}, films=4) == [f"{name} is {worse:g}, was {before:g}"]


def test_what_is_better_or_slower_is_not_behind():
    assert behind({"join error, px": 0.0, "film, s": 99.0}, {"join error, px": 9.0, "film, s": 1.0}, 4) == []


def test_the_page_shows_every_film_with_its_caption_and_what_is_wrong():
    page = sheet([video(), video("distilled", colour=False)])
    assert page.count("data:image/webp;base64,") == 2
    assert page.count("<h2>") == 2
    assert "a red ball &lt;moving&gt; left" in page
    assert "<moving>" not in page
    assert page.count("<b>colour</b>") == 1
