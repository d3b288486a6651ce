"""A client of the service as anybody could write it: order, follow, fetch. It knows HTTP and nothing else."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx

from stack.errors import StackError

Job = dict[str, Any]

ENDED = {"succeeded", "failed", "cancelled"}
POLL_S = 0.1


@dataclass(frozen=True)
class Wish:
    """A film to order: its name for people, prompt, seed, and the image it begins with (a PNG file)."""

    name: str
    prompt: str
    seed: int
    image: bytes | None = None


@dataclass(frozen=True)
class Client:
    """Speaks to one service; every method raises StackError when that does not answer as it should."""

    http: httpx.Client

    @classmethod
    @contextmanager
    def of(cls, url: str) -> Iterator[Self]:
        """A client of the service at `url`."""
        with httpx.Client(base_url=url, timeout=60.0) as http:
            yield cls(http)

    def order(self, wish: Wish) -> str:
        """Order a film, as JSON or, with an image, as a form. Returns the job's id."""
        if wish.image is None:
            return str(self._job("POST", "/generate", json={"prompt": wish.prompt, "seed": wish.seed})["id"])
        files = {"image": ("first-frame.png", wish.image, "image/png")}
        fields = {"prompt": wish.prompt, "seed": str(wish.seed)}
        return str(self._job("POST", "/generate", data=fields, files=files)["id"])

    def follow(self, job_id: str, show: Callable[[Job], None]) -> Job:
        """Show a job until it has succeeded, and return it. Raises StackError if it did not succeed."""
        while (job := self._job("GET", f"/jobs/{job_id}"))["status"] not in ENDED:
            show(job)
            time.sleep(POLL_S)
        show(job)
        if job["status"] != "succeeded":
            raise StackError(f"job {job_id} {job['status']}: {(job['error'] or {}).get('message')}")
        return job

    def save_video(self, job: Job, path: Path) -> None:
        """Fetch the film of a job that succeeded; it is what the job says, to the byte."""
        digest = hashlib.sha256()
        with (
            _answered(),
            self.http.stream("GET", job["result"]["video_url"], follow_redirects=True) as answer,
            path.open("wb") as file,
        ):
            _check(answer)
            for piece in answer.iter_bytes():
                digest.update(piece)
                file.write(piece)
        if digest.hexdigest() != job["result"]["sha256"]:
            raise StackError(f"{path} is not the film that job {job['id']} made")

    def _job(self, method: str, path: str, **body: Any) -> Job:  # noqa: ANN401 what httpx takes
        with _answered():
            answer = self.http.request(method, path, **body)
            _check(answer)
            job: Job = answer.json()
            return job


def _check(answer: httpx.Response) -> None:
    if not answer.is_success:
        answer.read()
        raise StackError(f"the service answered {answer.status_code}: {answer.text}")


@contextmanager
def _answered() -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, ValueError) as error:
        raise StackError(f"the service did not answer: {error}") from error
