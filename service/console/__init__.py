"""The page at `/` on which a person can order a video and watch it being made.

Plain files, served as they are; the page talks to the same API as everybody else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from fastapi import APIRouter
from fastapi.responses import FileResponse

router = APIRouter(include_in_schema=False)

_FOLDER = Path(__file__).parent
_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' http: https:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


@router.get("/")
def page() -> FileResponse:
    """The page itself."""
    return FileResponse(_FOLDER / "index.html", headers=_HEADERS)


@router.get("/console/{name}")
def part(name: Literal["style.css", "console.js", "curl.js", "session.js", "words.js"]) -> FileResponse:
    """How it looks, and what it does."""
    return FileResponse(_FOLDER / name, headers=_HEADERS)
