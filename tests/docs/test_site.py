"""The site builds without warnings, and needs no other host."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from docs import root_pages
from tests.docs.pages import PAGES, ROOT

LOADED = {"img": "src", "script": "src", "source": "src", "iframe": "src", "link": "href"}
NOT_LOADED = {"canonical", "next", "prev", "edit", "alternate"}
"""Relations of a `<link>` for which browsers load nothing."""


class Assets(HTMLParser):
    """Collect the URLs that a browser loads to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the URL of a tag that loads one."""
        values = dict(attrs)
        url = values.get(LOADED.get(tag, ""))
        if url and not (tag == "link" and values.get("rel") in NOT_LOADED):
            self.urls.append(url)


def assets_of(html: str) -> list[str]:
    found = Assets()
    found.feed(html)
    return found.urls


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    # not --quiet: it hides warnings from --strict, too
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


def test_files_of_the_root_are_pages(site):
    titles = {name: (ROOT / name).read_text().splitlines()[0].removeprefix("# ") for name in root_pages.PAGES}
    shown = {name: site / page.replace(".md", ".html") for name, page in root_pages.PAGES.items()}
    assert titles["README.md"] == "LongCat-Video service"
    assert [name for name, page in shown.items() if f">{titles[name]}<" not in page.read_text()] == []


def test_pages_load_nothing_from_other_hosts(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 10
    loaded = {url for page in pages for url in assets_of(page.read_text())}
    assert any(url.endswith(".js") for url in loaded)
    assert [url for url in sorted(loaded) if re.match("(https?:)?//", url)] == []


def test_styles_load_nothing_from_other_hosts(site):
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    assert re.findall(r"(?:url\(|@import\s*)['\"]?((?:https?:)?//[^'\")]*)", styles) == []


def test_no_page_has_a_diagram_whose_script_comes_from_another_host(site):
    assert [page.name for page in site.rglob("*.html") if 'class="mermaid"' in page.read_text()] == []


def test_an_image_from_another_host_would_be_found():
    assert assets_of('<img src="https://example.com/a.png"><link rel="canonical" href="https://x">') == [
        "https://example.com/a.png"
    ]


def test_links_between_files_of_the_repository_resolve():
    links = [
        (page.relative_to(ROOT), page.parent / target)
        for page in PAGES
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text())
    ]
    assert len(links) > 50
    assert [f"{page}: {target}" for page, target in links if not target.exists()] == []
