"""`python -m stack demo`: two films from nothing, one by a prompt and one by an image, ordered over HTTP.

It brings a stack up and speaks to it by `stack.client`; what people see is `stack.screen`'s affair.
"""

from __future__ import annotations

import io
import socket
from functools import partial
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

from jobs.private_files import close_to_others, make_private_folder, private_opener
from stack.client import Client, Wish
from stack.screen import Screen
from stack.settings import StackSettings
from stack.up import stack_up

PROMPT = "A big red triangle growing on a gray background with stripes"
IMAGE_PROMPT = "A small yellow triangle moving slowly to the right on a plain black background"
SEED = 7


def run(settings: StackSettings, out: Path) -> int:
    """Bring a stack up, order both films, put them into `out`, end everything; 0 if both are there.

    Raises StackError if the stack or a job fails.
    """
    settings = settings.model_copy(update={"data_dir": settings.data_dir / "demo", "port": free_port()})
    make_private_folder(settings.data_dir)
    close_to_others(settings.data_dir)
    screen = Screen.on_stdout()
    log = settings.data_dir.resolve() / "demo.log"
    screen.say(f"starting Redis, the API and a worker; what they say goes to {log}")
    with (
        open(log, "w", buffering=1, opener=private_opener) as lines,
        stack_up(settings, lambda name, line: print(name, "|", line, file=lines)) as stack,
        Client.of(stack.url) as client,
    ):
        screen.say(f"ready at {stack.url}")
        make_films(client, screen, out)
    return 0


def make_films(client: Client, screen: Screen, out: Path) -> None:
    """Order a film by a prompt and one by an image at once, and bring both home. Raises StackError."""
    out.mkdir(parents=True, exist_ok=True)
    wishes = (Wish("prompt", PROMPT, SEED), Wish("image", IMAGE_PROMPT, SEED, sample_image()))
    job_ids = [client.order(wish) for wish in wishes]
    for wish, job_id in zip(wishes, job_ids, strict=True):
        job = client.follow(job_id, partial(screen.progress, wish.name))
        path = out / f"{wish.name}.mp4"
        client.save_video(job, path)
        screen.film(path, job)


def sample_image() -> bytes:
    """A PNG of the small yellow triangle on black with which the second film begins."""
    image = Image.new("RGB", (384, 256), (15, 15, 15))
    ImageDraw.Draw(image).polygon([(96, 68), (150, 161), (42, 161)], fill=(242, 230, 26))
    file = io.BytesIO()
    image.filter(ImageFilter.GaussianBlur(4)).save(file, "PNG")
    return file.getvalue()


def free_port() -> int:
    """A port of the loopback interface on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
