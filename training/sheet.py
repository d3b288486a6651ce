"""A page to look at: every video that was judged, with its caption and what was wrong.

`training.quality` writes it. One file, films included, for any browser.
"""

import base64
import html
import io
from dataclasses import dataclass, field

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from training.world import FPS

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
    """One film that was made, with what was asked for and what the judge saw."""

    mode: str
    caption: str
    right: dict[str, bool]
    frames: Float[Tensor, "n height width 3"]
    measures: dict[str, float] = field(default_factory=dict)


def sheet(videos: list[Video]) -> str:
    """The whole page."""
    modes = dict.fromkeys(video.mode for video in videos)
    return PAGE.format(sections="\n".join(_section(mode, videos) for mode in modes))


def _section(mode: str, videos: list[Video]) -> str:
    figures = "\n".join(_figure(video) for video in videos if video.mode == mode)
    return f"<h2>{html.escape(mode)}</h2>\n<main>\n{figures}\n</main>"


def _figure(video: Video) -> str:
    wrong = ", ".join(name for name, right in video.right.items() if not right)
    source = f"data:image/webp;base64,{base64.b64encode(_film(video.frames)).decode()}"
    told = html.escape(video.caption)
    return f'<figure><img src="{source}" alt="{told}"><figcaption>{told} <b>{wrong}</b></figcaption></figure>'


def _film(frames: Float[Tensor, "n height width 3"]) -> bytes:
    """A looping WebP."""
    first, *rest = (Image.fromarray((frame * 255).byte().numpy()) for frame in frames)
    file = io.BytesIO()
    first.save(file, "WEBP", save_all=True, append_images=rest, duration=1000 // FPS, loop=0, quality=90)
    return file.getvalue()
