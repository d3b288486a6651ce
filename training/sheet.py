"""A page to look at: every film that was judged, with its caption and what was wrong.

`training.quality` writes it. One file, films included, for any browser.
"""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from training.trials import Film, fps_of

PAGE = """<!doctype html><meta charset="utf-8"><title>Pocket world</title>
<style>
body {{ font: 14px system-ui, sans-serif; margin: 2rem; background: #fafafa; color: #222 }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 1rem }}
figure {{ margin: 0 }} b {{ color: #b00 }}
img {{ width: 100%; border-radius: 4px; image-rendering: pixelated }}
</style>
{sections}
"""


@dataclass(frozen=True)
class Video:
    """What was made in a trial, with what was asked for and what the judge saw.

    `frames` are those of one film, or of several side by side; `right` says of which properties the last has
    what it was told.
    """

    mode: str
    task: str
    number: int
    caption: str
    right: Mapping[str, bool]
    scores: Mapping[str, float]
    frames: Film


def sheet(videos: Sequence[Video]) -> str:
    """The whole page."""
    sections = dict.fromkeys((video.mode, video.task) for video in videos)
    return PAGE.format(sections="\n".join(_section(*section, videos) for section in sections))


def _section(mode: str, task: str, videos: Sequence[Video]) -> str:
    figures = "\n".join(_figure(video) for video in videos if (video.mode, video.task) == (mode, task))
    return f"<h2>{html.escape(mode)}: {html.escape(task)}</h2>\n<main>\n{figures}\n</main>"


def _figure(video: Video) -> str:
    wrong = ", ".join(name for name, right in video.right.items() if not right)
    source = f"data:image/webp;base64,{base64.b64encode(_moving(video.frames)).decode()}"
    told = html.escape(video.caption)
    return f'<figure><img src="{source}" alt="{told}"><figcaption>{told} <b>{wrong}</b></figcaption></figure>'


def _moving(frames: Film) -> bytes:
    """A looping WebP."""
    first, *rest = (Image.fromarray((frame * 255).byte().numpy()) for frame in frames)
    file, ms = io.BytesIO(), 1000 // fps_of(frames)
    first.save(file, "WEBP", save_all=True, append_images=rest, duration=ms, loop=0, quality=90)
    return file.getvalue()
