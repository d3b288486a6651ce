"""Where files of a job lie."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from jobs.storage import keys


def test_every_file_of_a_job_lies_under_its_prefix():
    job_id = keys.new_job_id()
    found = [
        keys.input_key(job_id, "image.png"),
        keys.video_key(job_id, 1),
        keys.thumbnail_key(job_id, 1),
        keys.state_key(job_id, "step-10.safetensors"),
    ]
    assert len(set(found)) == 4
    assert {keys.job_of(key) for key in found} == {job_id}
    assert all(key.startswith(keys.job_prefix(job_id)) for key in found)


def test_attempts_share_no_key():
    assert keys.video_key("abc", 1) == "jobs/abc/1/video.mp4"
    assert keys.video_key("abc", 2).startswith(keys.result_prefix("abc", 2))
    assert not keys.video_key("abc", 11).startswith(keys.result_prefix("abc", 1))


def test_job_ids_are_never_alike():
    assert len({keys.new_job_id() for _ in range(1000)}) == 1000


@pytest.mark.parametrize("key", ["notes/readme", "jobs/", "jobs/abc", ""])
def test_other_keys_belong_to_no_job(key: str):
    assert keys.job_of(key) is None


@pytest.mark.parametrize("job_id", ["..", ".", "", "a/../../b", "/etc", ".hidden", "a b", "a\x00b", "a\n"])
def test_invalid_id_makes_no_key(job_id: str):
    for make in (
        keys.job_prefix,
        lambda name: keys.video_key(name, 1),
        lambda name: keys.input_key("abc", name),
    ):
        with pytest.raises(ValueError, match="not a storage"):
            make(job_id)


@given(st.text(alphabet="ab./\\-_ \n\x00", max_size=12))
def test_key_never_leads_out_of_the_storage(text: str):
    try:
        parts = keys.checked(text).split("/")
    except ValueError:
        return
    assert all(part and not part.startswith(".") for part in parts)
