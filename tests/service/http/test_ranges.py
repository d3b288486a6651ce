"""Parsing of `Range` headers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import RangeNotSatisfiable
from service.http.ranges import parse_range


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("bytes=0-0", range(1)),
        ("bytes=0-99", range(100)),
        ("bytes=10-19", range(10, 20)),
        ("bytes=10-", range(10, 100)),
        ("bytes=90-1000", range(90, 100)),
        ("bytes=-1", range(99, 100)),
        ("bytes=-100", range(100)),
        ("bytes=-1000", range(100)),
        ("Bytes=5-6", range(5, 7)),
    ],
)
def test_range_is_cut_to_the_file(header, wanted):
    assert parse_range(header, 100) == wanted


@pytest.mark.parametrize(
    "header",
    [
        *(None, "", "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=1", "bytes=9-1", "lines=0-1"),
        *(
            "bytes=0-1,3-4",
            "bytes=0-1,",
            "bytes= 0 - 1",
            "bytes=+1-2",
            "bytes=١-٢",
            "bytes=" + "9" * 100 + "-",
        ),
    ],
)
def test_malformed_and_multiple_ranges_are_ignored(header):
    assert parse_range(header, 100) is None


@pytest.mark.parametrize(
    ("header", "size_bytes"), [("bytes=100-", 100), ("bytes=100-200", 100), ("bytes=-0", 100)]
)
def test_range_after_the_end_is_refused(header, size_bytes):
    with pytest.raises(RangeNotSatisfiable):
        parse_range(header, size_bytes)


@pytest.mark.parametrize("header", ["bytes=0-", "bytes=0-0", "bytes=-1"])
def test_an_empty_file_has_no_ranges(header):
    with pytest.raises(RangeNotSatisfiable):
        parse_range(header, 0)


@given(st.text(alphabet="bytes=0123456789-, ", max_size=20), st.integers(0, 50))
def test_parsed_range_always_lies_within_the_file(header, size_bytes):
    try:
        wanted = parse_range(header, size_bytes)
    except RangeNotSatisfiable:
        return
    assert wanted is None or (wanted and 0 <= wanted.start < wanted.stop <= size_bytes)
