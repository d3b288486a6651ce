"""Requests that are refused: the error names the field, and nothing is queued or stored."""

from __future__ import annotations

import pytest

from tests.service.media import clip, encoded, in_base64, picture, png_that_says, sound, turned_clip
from tests.tickets import num_tickets

IMAGE = {"base64": in_base64(encoded(picture()))}
CLIP = {"base64": in_base64(clip(17))}
SHORT_CLIP = {"base64": in_base64(clip(3))}

BAD_FIELDS = [
    # texts
    ("prompt", {"prompt": None}),
    ("prompt", {"prompt": ""}),
    ("prompt", {"prompt": " \n\t"}),
    ("prompt", {"prompt": "\u200b\u200d\ufeff"}),  # zero width
    ("prompt", {"prompt": "\u3164 \u2800\u115f"}),  # fillers and the empty Braille pattern
    ("prompt", {"prompt": "\u0301\ufe0f"}),  # marks without a letter
    ("prompts.1", {"prompt": None, "prompts": ["a", "\u2060"]}),
    ("prompt", {"prompt": "x" * 201}),
    ("prompt", {"prompt": 7}),
    ("prompt", {"prompt": ["a"]}),
    ("prompts", {"prompts": ["a", "b"]}),  # beside a prompt
    ("prompts", {"prompt": None, "prompts": []}),
    ("prompts", {"prompt": None, "prompts": ["a", "x" * 201]}),
    ("prompts.1", {"prompt": None, "prompts": ["a", ""]}),
    ("prompts", {"prompt": None, "prompts": ["a"] * 5}),
    ("prompts", {"prompt": None, "prompts": ["a", "b"], "num_segments": 3}),
    ("prompts", {"prompt": None, "prompts": "a"}),
    ("negative_prompt", {"negative_prompt": "x" * 201}),
    ("negative_prompt", {"negative_prompt": "x", "distilled": True}),
    ("negative_prompt", {"negative_prompt": "", "guidance_scale": 1.0}),
    # sizes
    ("resolution", {"resolution": "1080p"}),
    ("resolution", {"resolution": ""}),
    ("resolution", {"resolution": "small", "height": 64, "width": 96}),
    ("width", {"height": 64}),
    ("height", {"width": 64}),
    ("height", {"height": 65, "width": 96}),
    ("width", {"height": 64, "width": 97}),
    ("height", {"height": 16, "width": 96}),
    ("height", {"height": 256, "width": 256}),
    ("height", {"height": 0, "width": 96}),
    ("height", {"height": -64, "width": 96}),
    ("height", {"height": 10**30, "width": 96}),
    ("height", {"height": "64", "width": 96}),
    ("height", {"height": 64.0, "width": 96}),
    ("width", {"height": 64, "width": True}),
    # frames and segments
    ("num_frames", {"num_frames": 16}),
    ("num_frames", {"num_frames": 0}),
    ("num_frames", {"num_frames": -3}),
    ("num_frames", {"num_frames": 37}),
    ("num_frames", {"num_frames": "17"}),
    ("num_segments", {"num_segments": 0}),
    ("num_segments", {"num_segments": 5}),
    ("num_segments", {"num_segments": 2, "task": "text_to_video"}),
    ("num_condition_frames", {"num_condition_frames": 5}),
    ("num_condition_frames", {"num_segments": 2, "num_condition_frames": 4}),
    ("num_condition_frames", {"num_segments": 2, "num_condition_frames": 17}),
    ("num_condition_frames", {"video": SHORT_CLIP}),
    # steps, guidance, refinement
    ("num_inference_steps", {"num_inference_steps": 0}),
    ("num_inference_steps", {"num_inference_steps": 61}),
    ("num_inference_steps", {"num_inference_steps": 51, "distilled": True}),
    ("num_inference_steps", {"num_inference_steps": 4.5}),
    ("guidance_scale", {"guidance_scale": 0.99}),
    ("guidance_scale", {"guidance_scale": 20.01}),
    ("guidance_scale", {"guidance_scale": 4.0, "distilled": True}),
    ("guidance_scale", {"guidance_scale": "4"}),
    ("guidance_scale", {"guidance_scale": 10**400}),
    ("t_thresh", {"t_thresh": 0.0, "refine": True}),
    ("t_thresh", {"t_thresh": 1.1, "refine": True}),
    ("t_thresh", {"t_thresh": 0.5}),
    ("spatial_refine_only", {"spatial_refine_only": True}),
    ("distilled", {"distilled": "true"}),
    ("refine", {"refine": 1}),
    # tasks and their inputs
    ("task", {"task": "dance"}),
    ("image", {"task": "image_to_video"}),
    ("video", {"task": "video_continuation"}),
    ("video", {"task": "refine"}),
    ("image", {"task": "text_to_video", "image": IMAGE}),
    ("video", {"task": "text_to_video", "video": CLIP}),
    ("image", {"task": "long_video", "image": IMAGE, "video": CLIP}),
    ("condition_video", {"condition_video": CLIP}),
    ("height", {"task": "refine", "video": CLIP, "height": 128, "width": 192}),
    ("distilled", {"task": "refine", "video": CLIP, "distilled": True}),
    # seed, priority, metadata, webhook
    ("seed", {"seed": -1}),
    ("seed", {"seed": 1 << 63}),
    ("seed", {"seed": 1.5}),
    ("seed", {"seed": "1"}),
    ("seed", {"seed": True}),
    ("priority", {"priority": "urgent"}),
    ("metadata", {"metadata": {str(index): "" for index in range(17)}}),
    ("metadata.a", {"metadata": {"a": "x" * 513}}),
    ("metadata.a", {"metadata": {"a": 1}}),
    ("metadata", {"metadata": ["a"]}),
    ("webhook_url", {"webhook_url": "ftp://example.com"}),
    ("webhook_url", {"webhook_url": "https://"}),
    ("webhook_url", {"webhook_url": "https://example.com/" + "x" * 2048}),
    # unknown fields
    ("fps", {"fps": 30}),
    ("owner", {"owner": "me"}),
    ("image.path", {"image": {"path": "/etc/passwd"}}),
    # images and clips
    ("image", {"image": "https://example.com/cat.png"}),
    ("image", {"image": {}}),
    ("image", {"image": {"url": "https://example.com/a.png", "base64": "AAAA"}}),
    ("image", {"image": {"base64": "not base64!"}}),
    ("image", {"image": {"base64": in_base64(b"not an image")}}),
    ("image", {"image": {"base64": ""}}),
    ("image", {"image": {"base64": in_base64(encoded(picture())[:120])}}),
    ("image", {"image": {"base64": in_base64(encoded(picture(8, 8)))}}),
    ("image", {"image": {"base64": in_base64(png_that_says(30_000, 30_000))}}),
    ("image", {"image": {"base64": in_base64(png_that_says(8_000, 8_000))}}),
    ("image", {"image": {"base64": in_base64(b"<svg xmlns='http://www.w3.org/2000/svg'/>")}}),
    ("image", {"image": CLIP}),
    ("image", {"image": {"url": "data:image/png,hello"}}),
    ("image", {"image": {"url": "file:///etc/passwd"}}),
    ("video", {"video": IMAGE}),
    ("video", {"video": {"base64": in_base64(b"\0" * 1000)}}),
    ("video", {"video": {"base64": in_base64(clip()[:-500])}}),
    ("video", {"video": {"base64": in_base64(sound())}}),
    ("video", {"video": {"base64": in_base64(turned_clip(30))}}),
    ("video", {"video": {"base64": in_base64(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n")}}),
    ("video", {"task": "refine", "video": {"base64": in_base64(clip(34))}}),
]


@pytest.fixture
def nothing_happens(client, redis, settings):
    """What must hold after a refusal."""
    yield
    assert client.get("/jobs").json() == {"jobs": [], "next": None, "previous": None}
    assert num_tickets(redis) == 0
    assert list(settings.data_dir.rglob("*")) == []


@pytest.mark.usefixtures("nothing_happens")
class TestARefusedRequest:
    @pytest.mark.parametrize("source", ["a.png", [IMAGE]])
    def test_says_that_an_input_must_be_an_object(self, client, source):
        answer = client.post("/generate", json={"prompt": "a red ball", "image": source})
        assert (answer.status_code, answer.json()["error"]["message"]) == (422, "image: must be an object")

    @pytest.mark.parametrize(("field", "change"), BAD_FIELDS, ids=lambda value: str(value)[:60])
    def test_names_the_field(self, client, field, change):
        body = {
            name: value for name, value in {"prompt": "a red ball", **change}.items() if value is not None
        }
        answer = client.post("/generate", json=body)
        assert answer.status_code == 422
        error = answer.json()["error"]
        assert error["field"] == field
        assert error["message"].startswith(f"{field}: ")
        assert error["code"] in {"invalid_request", "invalid_input"}

    @pytest.mark.parametrize(
        ("field", "change", "rule"),
        [
            ("prompt", {"prompt": 7}, "must be a string"),
            ("num_frames", {"num_frames": 1.5}, "must be an integer"),
            ("num_frames", {"num_frames": 0}, "must be at least 1"),
            ("guidance_scale", {"guidance_scale": "4"}, "must be a number"),
            ("distilled", {"distilled": 1}, "must be true or false"),
            ("seed", {"seed": 2**63}, "must be at most 9223372036854775807"),
            ("deadline_s", {"deadline_s": 0}, "must be at least 0.001"),
            ("priority", {"priority": "urgent"}, "must be 'high', 'normal' or 'low'"),
            ("prompts", {"prompt": None, "prompts": "a"}, "must be a list"),
            ("prompts", {"prompt": None, "prompts": []}, "must have at least 1 item"),
            ("metadata", {"metadata": []}, "must be an object"),
            (
                "metadata",
                {"metadata": {str(i): "" for i in range(17)}},
                "must have at most 16 items",
            ),
            ("metadata.a", {"metadata": {"a": "x" * 513}}, "must have at most 512 characters"),
            ("metadata", {"metadata": {"": "a"}}, "each of its names must have at least 1 character"),
            ("webhook_url", {"webhook_url": "http://a/" + "x" * 2048}, "must have at most 2048 characters"),
            ("num_steps", {"num_steps": 5}, "is not a field of this request"),
            ("webhook_events", {"webhook_events": ["failed"]}, "needs webhook_url"),
            ("refuse_if_late", {"refuse_if_late": True}, "needs deadline_s"),
            (
                "num_videos",
                {"num_videos": 2, "deadline_s": 60, "refuse_if_late": True},
                "must be 1 with refuse_if_late",
            ),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_states_the_rule_in_the_words_of_json(self, client, field, change, rule):
        body = {
            name: value for name, value in {"prompt": "a red ball", **change}.items() if value is not None
        }
        error = client.post("/generate", json=body).json()["error"]
        assert error == {"code": "invalid_request", "message": f"{field}: {rule}", "field": field}

    @pytest.mark.parametrize(
        ("key", "rule"),
        [
            ("", "must consist of printable ASCII characters without spaces"),
            ("x" * 256, "must have at most 255 characters"),
            ("a b", "must consist of printable ASCII characters without spaces"),
        ],
    )
    def test_names_the_header_and_its_rule(self, client, key, rule):
        answer = client.post("/generate", json={"prompt": "a"}, headers={"Idempotency-Key": key})
        assert answer.json()["error"]["field"] == "Idempotency-Key"
        assert answer.json()["error"]["message"] == f"Idempotency-Key: {rule}"

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
    def test_takes_no_number_that_is_none(self, client, number):
        body = f'{{"prompt": "a", "guidance_scale": {number}}}'
        answer = client.post("/generate", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in {400, 422}

    @pytest.mark.parametrize(
        "body",
        [
            "",
            "{",
            '{"prompt": "a",}',
            "[]",
            '"a prompt"',
            "null",
            "1",
            '{"prompt": "\\ud800"}',
            "\x00",
            "[" * 10_000,
        ],
    )
    def test_that_is_no_json_object_is_malformed(self, client, body):
        answer = client.post("/generate", content=body, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "malformed_body")

    @pytest.mark.parametrize(
        ("media_type", "body"),
        [
            ("multipart/form-data", b"--edge--\r\n"),
            ("multipart/form-data; boundary=edge", b"nothing of the kind"),
            (
                "multipart/form-data; boundary=edge",
                b"--edge\r\nContent-Disposition: form-data\r\n\r\na\r\n--edge--\r\n",
            ),
            ("multipart/form-data; boundary=edge", b"--edge\r\n: : :\r\n\r\n\r\n--edge--\r\n"),
            ("multipart/form-data; boundary=" + "e" * 300, b"--edge--\r\n"),
        ],
    )
    def test_that_is_no_form_is_malformed(self, client, media_type, body):
        answer = client.post("/generate", content=body, headers={"Content-Type": media_type})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "malformed_body")

    @pytest.mark.parametrize(
        "media_type",
        [None, "text/plain", "application/x-www-form-urlencoded", "application/xml", "json", ";;;"],
    )
    def test_of_another_kind_is_unsupported(self, client, media_type):
        headers = {"Content-Type": media_type} if media_type else {}
        answer = client.post("/generate", content=b'{"prompt": "a"}', headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")

    @pytest.mark.parametrize(
        ("field", "parts"),
        [
            ("seed", [("seed", (None, "1")), ("seed", (None, "2"))]),
            ("image", [("image", ("a.png", encoded(picture()))), ("image", ("b.png", encoded(picture())))]),
            (
                "image",
                [
                    ("image", ("a.png", encoded(picture()))),
                    ("image", (None, '{"url": "https://example.com"}')),
                ],
            ),
            ("prompt", [("prompt", ("prompt.txt", b"a red ball"))]),
            ("surprise", [("surprise", ("a.png", b"x"))]),
            ("metadata", [("metadata", (None, "not json"))]),
            ("refine", [("refine", (None, "maybe"))]),
            ("image", [("image", ("cat.png", b"not an image"))]),
            ("video", [("video", ("cat.mp4", encoded(picture())))]),
        ],
    )
    def test_as_a_form_names_the_field(self, client, field, parts):
        answer = client.post("/generate", files=[("prompt", (None, "a"))] * (field != "prompt") + parts)
        assert answer.status_code == 422
        assert answer.json()["error"]["field"] == field


def test_names_of_fields_in_messages_are_cut_short(client):
    answer = client.post("/generate", json={"prompt": "a", "x" * 100_000: 1})
    assert answer.status_code == 422
    assert len(answer.content) < 1000
