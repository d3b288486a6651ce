"""Clean prompts, and find the words of them that a checkpoint does not know."""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Iterable

import ftfy

_WORD = re.compile(r"[^\W\d_]+")


def clean(prompt: str) -> str:
    """Repair wrong encodings, unescape HTML (twice, as LongCat-Video does) and collapse white space."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split())


def unknown_words(prompts: Iterable[str], known_words: Collection[str]) -> list[str]:
    """Return the words of cleaned prompts that a checkpoint with these words does not know, in their order.

    Without any, it knows all.
    """
    if not known_words:
        return []
    words = (word for prompt in prompts for word in _WORD.findall(clean(prompt).lower()))
    return [word for word in dict.fromkeys(words) if word not in known_words]
