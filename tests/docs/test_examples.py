"""Requests in the documentation are valid requests."""

from __future__ import annotations

import json
import re
import shlex
from itertools import pairwise

import pytest

from service.jobs.bodies import GenerateRequest
from tests.docs.pages import DOCS, ROOT, code_blocks

PAGES = [ROOT / "README.md", DOCS / "api.md"]
TASKS = {"text_to_video", "image_to_video", "video_continuation", "long_video", "refine"}
FILES = {"image", "video", "condition_video"}


def curls(path: str) -> list[list[str]]:
    """Return the arguments of all documented curl commands whose URL ends with a path."""
    scripts = [block.replace("\\\n", " ") for page in PAGES for block in code_blocks(page, "bash")]
    commands = [
        shlex.split(match)
        for script in scripts
        for match in re.findall(r"(?m)^curl (?:'[^']*'|[^'\n])*", script)
    ]
    return [command for command in commands if any(part.endswith(path) for part in command)]


def values_of(command: list[str], option: str) -> list[str]:
    return [value for name, value in pairwise(command) if name == option]


def test_json_bodies_are_valid():
    bodies = [json.loads(body) for command in curls("/generate") for body in values_of(command, "-d")]
    assert len(bodies) >= 7
    for body in bodies:
        GenerateRequest.model_validate(body)


def test_forms_have_known_fields():
    forms = [fields for command in curls("/generate") if (fields := values_of(command, "-F"))]
    assert len(forms) >= 3
    for fields in forms:
        names = {field.partition("=")[0] for field in fields}
        assert names <= GenerateRequest.model_fields.keys()
        assert {name for name in names if f"{name}=@" in " ".join(fields)} == names & FILES


def test_every_task_has_an_example():
    shown = json.dumps(curls("/generate"))
    assert [task for task in sorted(TASKS) if task not in shown] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documented_python_compiles(page):
    for source in code_blocks(page, "python"):
        compile(source, page.name, "exec")
