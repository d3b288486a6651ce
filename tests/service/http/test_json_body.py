"""JSON from clients is limited in size, depth and number of values before it is parsed."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import BodyTooLarge
from service.http.json_body import MAX_DEPTH, MAX_VALUES, ArrivingJson, _structure, parse_json

TEXT_BYTES = 1 << 20
LEAVES = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text()
LISTS = st.lists(LEAVES, max_size=5) | st.dictionaries(st.text(), LEAVES, max_size=5)
VALUES = st.dictionaries(st.text(), LISTS | LEAVES, max_size=5)


def nested(levels):
    return b"[" * levels + b"]" * levels


@settings(max_examples=50)
@given(VALUES, st.booleans())
def test_valid_json_is_parsed_unchanged(value, ensure_ascii):
    content = json.dumps(value, ensure_ascii=ensure_ascii).encode()
    assert parse_json(content, TEXT_BYTES) == value


@settings(max_examples=50)
@given(st.lists(st.sampled_from(['"', "\\", "\\\\", '\\"', "[", "]", "{", ":", ",", "a"]), max_size=40))
def test_brackets_and_quotes_inside_strings_do_not_count(pieces):
    text = "".join(pieces)
    content = json.dumps({"prompt": text, "metadata": {text: text}}).encode()
    assert parse_json(content, TEXT_BYTES) == {"prompt": text, "metadata": {text: text}}


@pytest.mark.parametrize(
    "content",
    [
        b'{"a": 1, "a": 2}',
        b'{"b": {"a": 1, "a": 2}}',
        b'[{"a": 1}, {"a": 1, "a": 1}]',
        b'{"a": 1, "\\u0061": 2}',
        b'{"a:": ":", "a:": ":"}',
    ],
)
def test_duplicate_name_is_refused(content):
    with pytest.raises(ValueError, match="twice"):
        parse_json(content, TEXT_BYTES)


def test_same_name_in_different_objects_is_allowed():
    assert parse_json(b'[{"a": {"a": ":"}}, {"a": 1}]', TEXT_BYTES) == [{"a": {"a": ":"}}, {"a": 1}]


def test_depth_is_limited():
    parse_json(nested(MAX_DEPTH), TEXT_BYTES)
    with pytest.raises(ValueError, match="levels"):
        parse_json(nested(MAX_DEPTH + 1), TEXT_BYTES)


@pytest.mark.parametrize("separator", [b"[],", b"{},", b"1,", b'"",', b"[[]],"])
def test_number_of_values_is_limited(separator):
    content = b"[" + separator * MAX_VALUES + b"0]"
    with pytest.raises(BodyTooLarge):
        parse_json(content, TEXT_BYTES)


@pytest.mark.parametrize(
    "content",
    [
        b"[" + b"[]," * (20 << 20) + b"0]",
        nested(8 << 20),
        b'["' + b'","' * (5 << 20) + b'"]',
        b"[" + b" " * (16 << 20) + b"]",
        b"[" + b"9" * (16 << 20) + b"]",
        b'{"a": \\"' + b"[]," * (5 << 20) + b"0]",
        b'["' + b"\\\\" * (4 << 20) + b'",' + b"[]," * (4 << 20) + b"0]",
    ],
    ids=["short lists", "nested lists", "strings", "spaces", "digits", "stray backslash", "backslashes"],
)
def test_large_structures_are_refused_before_parsing(content):
    tracemalloc.start()
    try:
        with pytest.raises((BodyTooLarge, ValueError)):
            parse_json(content, TEXT_BYTES)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4 * len(content)  # copies of the bytes at most


def test_long_strings_do_not_count_as_text():
    image = "A" * (8 << 20)
    assert parse_json(json.dumps({"image": {"base64": image}}).encode(), TEXT_BYTES) == {
        "image": {"base64": image}
    }


def test_short_strings_count_as_text():
    with pytest.raises(BodyTooLarge):
        parse_json(json.dumps(["x" * 1000] * 2000).encode(), TEXT_BYTES)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1}", b"]" * 30_000, b'{"a"}', b"\xff", b'"\\ud800"', b"NaN"]
)
def test_invalid_json_is_refused(content):
    with pytest.raises(ValueError):  # noqa: PT011
        parse_json(content, TEXT_BYTES)


@settings(max_examples=200)
@given(st.text(alphabet='"\\[]a,', max_size=60), st.integers(1, 5))
def test_arriving_json_counts_as_much_as_json_that_has_arrived(text, chunk_bytes):
    content = json.dumps([text, {text: [1, 2]}]).encode()
    outside = len(_structure(content, TEXT_BYTES))
    arriving = ArrivingJson(outside)
    for start in range(0, len(content), chunk_bytes):
        arriving.add(content[start : start + chunk_bytes])
    assert arriving.content == content
    with pytest.raises(BodyTooLarge):
        arriving.add(b" ")


@pytest.mark.parametrize("repeated", [b"[", b"[],", b'"",', b" "])
def test_json_is_refused_before_its_end_arrives(repeated):
    arriving = ArrivingJson(TEXT_BYTES)

    def add_for_ever():
        while True:
            arriving.add(repeated * 10_000)

    with pytest.raises(BodyTooLarge):
        add_for_ever()
    assert len(arriving.content) <= TEXT_BYTES + 30_000
