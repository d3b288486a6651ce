"""The examples on the page of the Python client do what they say."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, ROOT, code_blocks
from tests.service import conftest as of_service
from tests.service.media import clip, encoded, picture
from tests.service.working import working

# The service and its worker, as the tests of the service have them.
app = of_service.app
listening = of_service.listening
live = of_service.live
settings = of_service.settings
worker = of_service.worker

URL = "http://localhost:8000"
VIDEO = clip(17)
BLOCKS = [
    (page.name, number, source)
    for page in (DOCS / "client.md", ROOT / "client" / "README.md")
    for number, source in enumerate(code_blocks(page, "python"))
]


@pytest.fixture
def run(live, worker, tmp_path, monkeypatch, capsys):
    """Return a function that runs an example in a folder with an image and returns its output."""
    monkeypatch.chdir(tmp_path)
    Path("ball.png").write_bytes(encoded(picture()))

    def run(source):
        with working(worker, partial(worker.succeed, video=VIDEO)):
            exec(compile(source.replace(URL, f"http://127.0.0.1:{live}"), "example", "exec"), {})
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize(
    "source", [source for *_, source in BLOCKS], ids=[f"{page}-{n}" for page, n, _ in BLOCKS]
)
def test_example_runs(run, source):
    run(source)


@pytest.mark.parametrize(
    ("words", "output", "files"),
    [
        ('output="ball.mp4"', f"17 frames, {len(VIDEO)} bytes\n", {"ball.mp4"}),
        ('image="ball.png"', "", {"moving.mp4"}),
        ("num_videos=4", "", {f"triangle-{seed}.mp4" for seed in range(7, 11)}),
        ("video=first", "", {"longer.mp4", "other.mp4"}),
        ("on_update=show", "queued\n", set()),
        ("idempotency_key=", "done succeeded\n", {"star.mp4"}),
        ("asyncio.gather", "", {"0.mp4", "1.mp4"}),
        ("except InvalidRequest", "fix num_frames - ", set()),
    ],
)
def test_example_has_its_effect(run, words, output, files):
    (source,) = [source for page, _, source in BLOCKS if words in source and page == "client.md"]
    assert output in run(source)
    assert {path.name for path in Path().glob("*.mp4")} == files


def test_webhook_example_accepts_signed_webhooks_only():
    from longcat_video_client import Job
    from longcat_video_client.testing import signed_webhook

    (source,) = [source for *_, source in BLOCKS if "verify_webhook(body" in source]
    names: dict = {}
    exec(compile(source, "example", "exec"), names)
    headers, body = signed_webhook("whsec_c2VjcmV0", Job(id="a", status="succeeded"))
    assert names["handle"](body, headers, ["whsec_c2VjcmV0"]) == 204
    assert names["handle"](body + b" ", headers, ["whsec_c2VjcmV0"]) == 401


def test_every_method_and_error_is_on_the_page():
    from longcat_video_client import Client, LongCatVideoError, errors
    from longcat_video_client.client import Jobs

    text = (DOCS / "client.md").read_text()
    names = [f"jobs.{name}(" for name in vars(Jobs) if not name.startswith("_")]
    names += [f"{name}(" for name in vars(Client) if not name.startswith("_") and name != "close"]
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    names += [f"`{kind.__name__}`" for kind in kinds if issubclass(kind, LongCatVideoError)]
    assert len(names) > 25
    assert [name for name in names if name not in text] == []
