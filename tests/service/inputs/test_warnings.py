"""What is lost of an input, or stretched, stands in the job's `warnings`."""

from __future__ import annotations

import pytest

from tests.service.media import animation, clip, clip_with_sound, encoded, gray_profile, in_base64, picture


def source(content):
    return {"base64": in_base64(content)}


@pytest.mark.parametrize(
    ("body", "warnings"),
    [
        ({}, []),
        ({"image": source(encoded(picture()))}, []),
        ({"image": source(encoded(picture(64, 100)))}, []),
        ({"image": source(animation())}, ["image: only the first frame of the animation is used"]),
        (
            {"image": source(encoded(picture(), icc_profile=gray_profile(1.0)))},
            ["image: its color profile cannot be used, so its colors may be wrong"],
        ),
        ({"image": source(encoded(picture(64, 300)))}, ["image: is stretched from 300×64 to 96×64"]),
        ({"video": source(clip_with_sound())}, ["video: its sound is not used"]),
        (
            {"video": source(clip(34, 32, 96, rate=30))},
            [
                "video: one of 2 frames is used, because the model makes 15 a second",
                "video: is stretched from 96×32 to 96×64",
            ],
        ),
        ({"video": source(clip(17, color_trc=18))}, ["video: its HDR is converted to SDR"]),
        ({"task": "refine", "video": source(clip(9, 64, 96))}, []),
        (
            {"task": "refine", "video": source(clip(9, 64, 256))},
            ["video: is stretched from 256×64 to 192×128"],
        ),
    ],
    ids=[
        "text",
        "image",
        "almost the shape",
        "animation",
        "profile",
        "wide image",
        "sound",
        "fast and wide clip",
        "HDR",
        "refinement",
        "refinement of a wide clip",
    ],
)
def test_job_says_what_is_special_about_its_inputs(client, order, body, warnings):
    job = order(**body)
    assert job["warnings"] == warnings
    assert client.get(f"/jobs/{job['id']}").json()["warnings"] == warnings


def test_warning_of_a_worker_is_added(order, worker):
    job = order(image=source(animation()))
    lease = worker.claim()
    worker.job_store.holder.add_warning(lease, "the job began again")
    found = worker.job_store.client.get(job["id"]).warnings
    assert found == ("image: only the first frame of the animation is used", "the job began again")
