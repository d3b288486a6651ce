"""Forms: lists and objects in all notations of clients, booleans, encodings."""

from __future__ import annotations

import encodings
import json

import pytest

from service.jobs.bodies import GenerateRequest
from service.openai.bodies import VideoRequest
from tests.service.media import encoded, in_base64, picture

HOOK = ("webhook_url", "https://example.com/hook")
EVENTS = ["succeeded", "failed"]
LISTS = {
    "repeated": lambda name, items: [(name, item) for item in items],
    "empty brackets": lambda name, items: [(f"{name}[]", item) for item in items],
    "numbered": lambda name, items: [(f"{name}[{index}]", item) for index, item in enumerate(items)],
    "numbered backwards": lambda name, items: [
        (f"{name}[{index}]", item) for index, item in reversed(list(enumerate(items)))
    ],
}


def send(client, path, *fields):
    """Send a form of texts."""
    return client.post(path, files=[(name, (None, value)) for name, value in fields])


def created(client, answer):
    """Return the job that a request created, whichever API it used."""
    assert answer.status_code in {200, 202}, answer.text
    return client.get(f"/jobs/{answer.json()['id']}").json()


@pytest.mark.parametrize("notation", LISTS)
@pytest.mark.parametrize("path", ["/generate", "/v1/videos"])
@pytest.mark.parametrize("events", [EVENTS, EVENTS[:1]])
def test_list_may_have_each_notation(client, path, notation, events):
    fields = LISTS[notation]("webhook_events", events)
    job = created(client, send(client, path, ("prompt", "a red ball"), HOOK, *fields))
    assert job["request"]["webhook_events"] == events


@pytest.mark.parametrize("notation", LISTS)
def test_prompts_keep_their_order(client, notation):
    prompts = ["[one]", "two", "three"]
    job = created(client, send(client, "/generate", *LISTS[notation]("prompts", prompts)))
    assert job["request"]["prompts"] == prompts


def test_list_of_choices_may_be_written_as_json(client):
    fields = [("prompt", "a red ball"), HOOK, ("webhook_events", json.dumps(EVENTS))]
    assert created(client, send(client, "/generate", *fields))["request"]["webhook_events"] == EVENTS


@pytest.mark.parametrize("path", ["/generate", "/v1/videos"])
def test_parts_of_an_object_may_be_fields(client, path):
    fields = [("prompt", "a red ball"), ("metadata[order]", "1001"), ("metadata[shop]", "true")]
    assert created(client, send(client, path, *fields))["metadata"] == {"order": "1001", "shop": "true"}


def test_input_may_be_given_by_parts(client):
    fields = [("prompt", "on"), ("image[base64]", in_base64(encoded(picture())))]
    job = created(client, send(client, "/generate", *fields))
    shown = job["request"]["image"]
    fields = [("prompt", "on"), ("image[job_id]", job["id"]), ("image[width]", "96")]
    assert (
        created(client, send(client, "/generate", *fields))["request"]["image"]["sha256"] == shown["sha256"]
    )


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("webhook_events", [("webhook_events[0]", "failed"), ("webhook_events", "succeeded")]),
        ("webhook_events", [("webhook_events[]", "failed"), ("webhook_events[1]", "succeeded")]),
        ("webhook_events", [("webhook_events[0]", "failed"), ("webhook_events[0]", "succeeded")]),
        ("webhook_events", [("webhook_events[0]", "failed"), ("webhook_events[00]", "succeeded")]),
        ("metadata[a]", [("metadata[a]", "1"), ("metadata[a]", "2")]),
        ("metadata", [("metadata", '{"a": "1"}'), ("metadata[b]", "2")]),
        ("image", [("image", '{"url": "https://example.com"}'), ("image[base64]", "AAAA")]),
        ("metadata[a][b]", [("metadata[a][b]", "1")]),
        ("webhook_events[x]", [("webhook_events[x]", "failed")]),
        ("prompt[]", [("prompt[]", "a")]),
        ("webhook_events[" + "1" * 50 + "]", [("webhook_events[" + "1" * 50 + "]", "failed")]),
    ],
)
def test_ambiguous_or_unknown_fields_are_refused(client, field, fields):
    answer = send(client, "/generate", ("prompt", "a red ball"), HOOK, *fields)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)


def test_file_beside_a_part_of_the_same_field_is_refused(client):
    image = encoded(picture())
    for path, name in (("/generate", "image[base64]"), ("/v1/videos", "input_reference[image_url]")):
        whole = name.partition("[")[0]
        files = [("prompt", (None, "on")), (whole, ("a.png", image)), (name, (None, in_base64(image)))]
        answer = client.post(path, files=files)
        assert answer.status_code in {400, 422}
        assert answer.json()["error"]["message"] == f"{whole}: is given twice"


@pytest.mark.parametrize("text", ["true", "True", "TRUE", "on", "yes", "1"])
def test_true_may_have_each_spelling(client, text):
    job = created(client, send(client, "/generate", ("prompt", "a red ball"), ("distilled", text)))
    assert job["request"]["distilled"] is True


@pytest.mark.parametrize("text", ["false", "False", "off", "no", "0"])
def test_false_may_have_each_spelling(client, text):
    job = created(client, send(client, "/generate", ("prompt", "a red ball"), ("enhance_hf", text)))
    assert job["request"]["enhance_hf"] is False


VIDEO_TEXTS = {"prompt", "prompts", "negative_prompt"}


class TestEmptyFields:
    """Browsers send every field of a form."""

    @pytest.mark.parametrize(
        "field",
        [
            *sorted(GenerateRequest.model_fields.keys() - VIDEO_TEXTS),
            *("webhook_events[]", "image[url]", "video[job]", "image[width]", "image[frame]"),
        ],
    )
    def test_empty_field_counts_as_absent(self, client, order, field):
        expected = order(seed=7)
        seed = [] if field == "seed" else [("seed", "7")]
        job = created(client, send(client, "/generate", ("prompt", "a red ball"), *seed, (field, "")))
        if field == "seed":
            del job["request"]["seed"], expected["request"]["seed"]
        assert job["request"] == expected["request"]

    @pytest.mark.parametrize(
        "field", [*sorted(VideoRequest.model_fields.keys() - VIDEO_TEXTS), "input_reference[image_url]"]
    )
    def test_empty_field_counts_as_absent_in_openais_form(self, client, field):
        created(client, send(client, "/v1/videos", ("prompt", "a red ball"), (field, "")))

    def test_empty_texts_are_texts(self, client):
        fields = [("prompt", "a red ball"), ("negative_prompt", ""), ("metadata[note]", "")]
        job = created(client, send(client, "/generate", *fields))
        assert (job["request"]["negative_prompt"], job["metadata"]) == ("", {"note": ""})

    @pytest.mark.parametrize(
        ("field", "name"),
        [
            ("prompts.0", "prompts"),
            ("prompts.1", "prompts[1]"),
            ("webhook_events.0", "webhook_events[0]"),
            ("motion", "motion"),
            ("image[]", "image[]"),
            ("image.name", "image[name]"),
        ],
    )
    def test_empty_items_and_unknown_fields_are_refused(self, client, field, name):
        fields = [("prompts[0]", "a red ball")] if name == "prompts[1]" else []
        answer = send(client, "/generate", *fields, (name, ""))
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)

    def test_empty_prompt_is_refused(self, client):
        answer = send(client, "/generate", ("prompt", ""))
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, "prompt")

    def test_empty_prompt_of_a_retry_does_not_keep_the_old_one(self, client, order):
        answer = send(client, f"/jobs/{order()['id']}/retry", ("prompt", ""))
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, "prompt")

    @pytest.mark.parametrize("field", ["seed", "task", "distilled", "webhook_url", "webhook_events", "image"])
    def test_empty_text_in_json_is_refused(self, client, field):
        answer = client.post("/generate", json={"prompt": "a red ball", field: ""})
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)


class TestEncoding:
    def post(self, client, content, charset="", header=b""):
        disposition = b'--edge\r\nContent-Disposition: form-data; name="prompt"\r\n'
        body = disposition + header + b"\r\n" + content + b"\r\n--edge--\r\n"
        media_type = f"multipart/form-data; boundary=edge{charset}"
        return client.post("/generate", content=body, headers={"Content-Type": media_type})

    def test_utf_8_is_the_default(self, client):
        answer = self.post(client, "été 🎈".encode())
        assert answer.json()["request"]["prompt"] == "été 🎈"

    def test_declared_charset_is_used(self, client):
        answer = self.post(client, "été".encode("latin-1"), "; charset=iso-8859-1")
        assert answer.json()["request"]["prompt"] == "été"

    @pytest.mark.parametrize("charset", ["iso-8859-1", "UTF-8", '"windows-1252"'])
    def test_charset_of_a_part_is_used(self, client, charset):
        header = f"content-type: text/plain; charset={charset}\r\n".encode()
        answer = self.post(client, "été".encode(charset.strip('"')), header=header)
        assert answer.json()["request"]["prompt"] == "été"

    @pytest.mark.parametrize("path", ["/generate", "/v1/videos"])
    @pytest.mark.parametrize("charset", ["utf-8", "UTF8", ""])
    def test_field_that_names_utf_8_is_ignored(self, client, path, charset):
        answer = send(client, path, ("_charset_", charset), ("prompt", "été"))
        assert created(client, answer)["request"]["prompt"] == "été"

    @pytest.mark.parametrize("charset", ["iso-8859-1", "bogus", "utf-8\0"])
    def test_field_that_names_another_charset_is_refused(self, client, charset):
        answer = send(client, "/generate", ("_charset_", charset), ("prompt", "a red ball"))
        error = answer.json()["error"]
        assert (answer.status_code, error["field"]) == (422, "_charset_")
        assert "must be utf-8" in error["message"]

    @pytest.mark.parametrize("encoding", ["base64", "Quoted-Printable"])
    def test_text_in_another_transfer_encoding_is_refused(self, client, encoding):
        answer = self.post(client, b"YQ==", header=f"Content-Transfer-Encoding: {encoding}\r\n".encode())
        assert answer.status_code == 400
        assert "prompt has a Content-Transfer-Encoding" in answer.json()["error"]["message"]

    @pytest.mark.parametrize("encoding", ["8bit", "Binary"])
    def test_transfer_encoding_that_changes_nothing_is_accepted(self, client, encoding):
        header = f"Content-Transfer-Encoding: {encoding}\r\n".encode()
        answer = self.post(client, "été".encode(), header=header)
        assert answer.json()["request"]["prompt"] == "été"

    @pytest.mark.parametrize("charset", ["bogus", "base64", "utf-8"])
    def test_charset_that_a_text_is_not_in_is_refused(self, client, charset):
        header = f"Content-Type: text/plain; charset={charset}\r\n".encode()
        answer = self.post(client, "été".encode("latin-1"), header=header)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "malformed_body")
        assert f"prompt is not in {charset}" in answer.json()["error"]["message"]
        form = self.post(client, "été".encode("latin-1"), f"; charset={charset}")
        assert form.status_code == 400

    @pytest.mark.parametrize(
        "charset", ["utf-7", "punycode", "idna", "unicode_escape", "raw-unicode-escape", "hex", "mbcs"]
    )
    def test_codec_that_is_no_charset_is_refused(self, client, charset):
        header = f"Content-Type: text/plain; charset={charset}\r\n".encode()
        answer = self.post(client, b"ab", header=header)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "malformed_body")
        form = self.post(client, b"ab", f"; charset={charset}")
        assert (form.status_code, form.json()["error"]["code"]) == (400, "malformed_body")

    def test_names_that_clients_choose_are_not_remembered(self, client):
        remembered = vars(encodings)["_cache"]
        names = [f"madeup{place}" for place in ("field", "part", "form")]
        send(client, "/generate", ("_charset_", names[0]), ("prompt", "a red ball"))
        self.post(client, b"ab", header=f"Content-Type: text/plain; charset={names[1]}\r\n".encode())
        self.post(client, b"ab", f"; charset={names[2]}")
        assert not remembered.keys() & set(names)

    @pytest.mark.parametrize("content", ["été".encode("latin-1"), "été".encode("utf-16"), b"\xed\xa0\x80"])
    def test_other_bytes_are_refused(self, client, content):
        answer = self.post(client, content)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "malformed_body")
        assert "prompt is not in utf-8" in answer.json()["error"]["message"]


@pytest.mark.parametrize("prompt", ["🎈", "红球", "\u200d👩\u200d🚀", "ا", "?"])
def test_prompt_of_one_visible_character_is_accepted(order, prompt):
    assert order(prompt=prompt)["request"]["prompt"] == prompt
