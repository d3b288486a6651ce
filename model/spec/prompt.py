"""Clean prompts. The words of the result are those that the model sees."""

from __future__ import annotations

import html

import ftfy


def clean(prompt: str) -> str:
    """Repair wrong encodings, unescape HTML (twice, as LongCat-Video does) and collapse white space."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split())
