"""The page of the architecture names files that exist, and walks a request in few of them."""

from __future__ import annotations

import re

from tests.docs.pages import DOCS, PAGES, ROOT, section

PAGE = DOCS / "architecture.md"
LONGEST_WALK = 12
_FILE = re.compile(r"`((?:[a-z_]+/)+[A-Za-z_.-]+\.(?:py|md|json|lua|sh|yml))`")


def test_files_that_the_documentation_names_exist():
    names = {(page.name, name) for page in PAGES for name in _FILE.findall(page.read_text())}
    assert len(names) > 30
    assert [f"{page}: {name}" for page, name in sorted(names) if not (ROOT / name).exists()] == []


def test_a_request_is_followed_in_few_files():
    steps = re.findall(r"^(\d+)\. `([^`]+\.py)`:", section(PAGE, "walk: post"), re.MULTILINE)
    assert [int(number) for number, _ in steps] == list(range(1, len(steps) + 1))
    files = [file for _, file in steps]
    assert files[0] == "service/jobs/routes.py"
    assert files[-1] == "model/vae/vae.py"
    assert len(set(files)) == len(files) <= LONGEST_WALK


def test_pictures_have_a_description():
    pictures = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", PAGE.read_text())
    assert len(pictures) >= 5
    assert all(text for text, _ in pictures)


def test_each_file_of_the_walk_names_the_next():
    files = re.findall(r"^\d+\. `([^`]+\.py)`:", section(PAGE, "walk: post"), re.MULTILINE)
    modules = [file.removesuffix(".py").replace("/", ".") for file in files]
    lost = [
        file
        for file, after in zip(files, modules[1:], strict=False)
        if after not in (ROOT / file).read_text()
    ]
    assert lost == []
