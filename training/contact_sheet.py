"""The contact sheet: one HTML page with every evaluated video, its prompt, and what is wrong in it.

`training.quality` writes it. The videos are embedded, so that the file can be opened anywhere.
"""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from training.evaluation import VideoTensor, frame_rate

PAGE = """<!doctype html><meta charset="utf-8"><title>Pocket checkpoint</title>
<style>
body {{ font: 14px system-ui, sans-serif; margin: 2rem; background: #fafafa; color: #222 }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 1rem }}
figure {{ margin: 0 }} b {{ color: #b00 }}
img {{ width: 100%; border-radius: 4px; image-rendering: pixelated }}
</style>
{sections}
"""


@dataclass(frozen=True)
class EvaluatedVideo:
    """Hold the result of a trial in one mode.

    Attributes:
        mode, task: Names from `training.quality.MODES` and `training.evaluation.TASKS`.
        trial: The index of the trial.
        prompt: The prompt, or several joined by arrows.
        correct: Whether each property of the (last) video is as its prompt says.
        scores: The scores by name.
        frames: The video, or several side by side.
    """

    mode: str
    task: str
    trial: int
    prompt: str
    correct: Mapping[str, bool]
    scores: Mapping[str, float]
    frames: VideoTensor


def contact_sheet(videos: Sequence[EvaluatedVideo]) -> str:
    """Return the HTML page, with a section for each mode and task."""
    sections = dict.fromkeys((video.mode, video.task) for video in videos)
    return PAGE.format(sections="\n".join(_section(*section, videos) for section in sections))


def _section(mode: str, task: str, videos: Sequence[EvaluatedVideo]) -> str:
    figures = "\n".join(_figure(video) for video in videos if (video.mode, video.task) == (mode, task))
    return f"<h2>{html.escape(mode)}: {html.escape(task)}</h2>\n<main>\n{figures}\n</main>"


def _figure(video: EvaluatedVideo) -> str:
    wrong = ", ".join(name for name, is_correct in video.correct.items() if not is_correct)
    source = f"data:image/webp;base64,{base64.b64encode(_animated_webp(video.frames)).decode()}"
    prompt = html.escape(video.prompt)
    image, legend = (
        f'<img src="{source}" alt="{prompt}">',
        f"<figcaption>{prompt} <b>{wrong}</b></figcaption>",
    )
    return f"<figure>{image}{legend}</figure>"


def _animated_webp(frames: VideoTensor) -> bytes:
    """Return the frames as a looping WebP."""
    first, *rest = (Image.fromarray((frame * 255).byte().numpy()) for frame in frames)
    file, ms = io.BytesIO(), 1000 // frame_rate(frames)
    first.save(file, "WEBP", save_all=True, append_images=rest, duration=ms, loop=0, quality=90)
    return file.getvalue()
