"""Bars of measured figures as an SVG. `benchmarks.gpu` draws with it."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

BAR, GAP, LABEL, LENGTH = 22, 10, 330, 420  # pixels


def bars(title: str, values: Mapping[str, float], most: float, unit: str) -> str:
    """One bar for each value, of `most` at full length."""
    height = (len(values) + 1) * (BAR + GAP) + GAP
    size = f'width="{LABEL + LENGTH + 130}" height="{height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="14">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{GAP}" y="{BAR}" font-weight="bold">{escape(title)}</text>',
    ]
    for row, (name, value) in enumerate(values.items(), start=1):
        top, length = GAP + row * (BAR + GAP), max(value / most, 0.0) * LENGTH
        lines += [
            f'<text x="{GAP}" y="{top + 16}">{escape(name)}</text>',
            f'<rect x="{LABEL}" y="{top}" width="{length:.1f}" height="{BAR}" fill="#3b6ea5"/>',
            f'<text x="{LABEL + length + 8:.1f}" y="{top + 16}">{value:.1f} {escape(unit)}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])
