"""The files of the console."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.console import routes

FOLDER = Path(routes.__file__).parent


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/", "text/html"),
        ("/console/style.css", "text/css"),
        *((f"/console/{path.name}", "text/javascript") for path in sorted(FOLDER.glob("*.js"))),
    ],
)
def test_files_are_served(client, path, media_type):
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith(media_type)
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]


def test_other_files_are_not_served(client):
    for path in ("/console/__init__.py", "/console/", "/console/..%2fsettings.py"):
        assert client.get(path).status_code in {404, 422}


def test_page_loads_nothing_from_other_hosts():
    for path in FOLDER.glob("*.*"):
        assert not re.search(r"(src|href|import|url)\W+https?://", path.read_text()), path


def test_elements_and_actions_that_the_scripts_use_exist():
    page = (FOLDER / "index.html").read_text()
    scripts = "".join(path.read_text() for path in FOLDER.glob("*.js"))
    for name in set(re.findall(r'\$\("([\w-]+)"\)', scripts)):
        assert f'id="{name}"' in page, name
    for name in set(re.findall(r'part\("\.(\w+)"\)', scripts)):
        assert f'class="{name}"' in page, name
    actions = re.search(r"const ACTIONS = \{(.*?)^\};", scripts, re.DOTALL | re.MULTILINE)
    assert actions
    assert set(re.findall(r'data-action="(\w+)"', page)) == set(
        re.findall(r"^  (\w+):", actions[1], re.MULTILINE)
    )
