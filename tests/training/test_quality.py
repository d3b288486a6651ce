"""How what was made is compared with what was asked for, and shown."""

import pytest
import torch

from training.captions import Meaning, Told, read
from training.quality import PROPERTIES, judged, markdown, table
from training.sheet import Video, sheet

RED_BALL = Told((Meaning("ball", "red", "left", "slow", None),), "black", striped=False)


def video(mode="standard", right=True, psnr=30.0):
    properties = dict.fromkeys(PROPERTIES, True) | {"colour": right}
    return Video(mode, "a red ball <moving> left", properties, torch.rand(3, 8, 8, 3), {"PSNR": psnr})


def test_what_was_told_and_seen_is_right():
    assert all(judged(read("a red ball moving left"), RED_BALL).values())


def test_what_was_told_otherwise_is_wrong_and_nothing_else():
    right = judged(read("a red star moving left"), RED_BALL)
    assert right == {"colour": True, "shape": False, "motion": True, "count": True}


def test_a_thing_too_many_makes_everything_wrong():
    two = Told(RED_BALL.things * 2, "black", striped=False)
    assert not any(judged(read("a red ball moving left"), two).values())


def test_nothing_seen_is_wrong():
    assert not any(judged(read("a red ball moving left"), Told((), None, None)).values())


def test_the_table_has_the_share_of_what_is_right_and_the_mean_of_what_is_measured():
    rows = table([video(), video(right=False, psnr=20.0), video("distilled")])
    assert rows["standard"]["colour"] == pytest.approx(50)
    assert rows["standard"]["shape"] == pytest.approx(100)
    assert rows["standard"]["PSNR"] == pytest.approx(25)
    assert rows["distilled"]["colour"] == pytest.approx(100)


def test_the_table_reads_as_markdown():
    lines = markdown(table([video()])).splitlines()
    assert lines[0].startswith("| | colour | shape | motion | count |")
    assert lines[2].startswith("| standard | 100.0 |")
    assert len({line.count("|") for line in lines}) == 1


def test_a_value_that_a_mode_does_not_have_stays_empty():
    rows = {"a": {"colour": 1.0}, "b": {"colour": 2.0, "PSNR": 3.0}}
    assert markdown(rows).splitlines()[2] == "| a | 1.0 |  |"


def test_the_page_shows_every_film_with_its_caption_and_what_is_wrong():
    page = sheet([video(), video("distilled", right=False)])
    assert page.count("data:image/webp;base64,") == 2
    assert "a red ball &lt;moving&gt; left" in page
    assert "<moving>" not in page
    assert page.count("<b>colour</b>") == 1
