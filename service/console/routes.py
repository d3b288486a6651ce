"""Serve the console's page and its static files. The page uses the same API as any other client."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from fastapi import APIRouter
from fastapi.responses import FileResponse

router = APIRouter(include_in_schema=False)

Asset = Literal[
    "api.js",
    "batch.js",
    "card.js",
    "clipboard.js",
    "compare.js",
    "console.js",
    "curl.js",
    "library.js",
    "list.js",
    "news.js",
    "queued.js",
    "request.js",
    "session.js",
    "style.css",
    "submission.js",
    "usage.js",
    "words.js",
]

_FOLDER = Path(__file__).parent
_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' http: https:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


@router.get("/")
def page() -> FileResponse:
    """Return the page."""
    return FileResponse(_FOLDER / "index.html", headers=_HEADERS)


@router.get("/console/{name}")
def asset(name: Asset) -> FileResponse:
    """Return a stylesheet or script of the page."""
    return FileResponse(_FOLDER / name, headers=_HEADERS)
