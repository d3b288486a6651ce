"""Show README and other files of the root as pages of the site, with their links as they are there.

A hook of MkDocs (`mkdocs.yml`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "vulnerabilities.md",
}
"""The page of the site for each file."""
_ROOT = Path(__file__).parents[1]


def on_files(files: Files, *, config: MkDocsConfig) -> None:
    """Add the files of the root to the sources of the site."""
    for name, page in PAGES.items():
        text = (_ROOT / name).read_text().replace("](docs/", "](")
        text = re.sub(r"\[([^]]+)\]\(LICENSE\)", r"\1", text)
        files.append(File.generated(config, page, content=_linked(text, "")))


def on_page_markdown(markdown: str, **_: Any) -> str:  # noqa: ANN401 - MkDocs passes more
    """Return a page whose links to files of the root lead to their pages."""
    return _linked(markdown, "../")


def _linked(text: str, root: str) -> str:
    for name, page in PAGES.items():
        text = text.replace(f"]({root}{name}", f"]({page}")
    return text
