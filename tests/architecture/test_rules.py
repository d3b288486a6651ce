"""Test that our source keeps the rules, and that each rule reports an offender."""

from __future__ import annotations

import re

import pytest

from tests.architecture import rules
from tests.architecture.source import PACKAGES, ROOT, Module, modules


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_source_keeps_rule(rule):
    offenders = [line for module in modules(*PACKAGES, "client") for line in rule(module)]
    assert not offenders, "\n".join(offenders)


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (rules.no_module_state, "jobs/x.py", "def f():\n    global a, b"),
        (rules.nothing_runs_at_import, "jobs/x.py", "print('hello')"),
        (rules.nothing_runs_at_import, "jobs/x.py", "for x in y: pass"),
        (rules.nothing_runs_at_import, "jobs/x.py", "if DEBUG: x = 1"),
        (rules.environment_is_read_in_settings, "jobs/x.py", "import os\ndef f(): return os.environ['A']"),
        (rules.environment_is_read_in_settings, "service/x.py", "from os import getenv"),
        (rules.model_does_not_know_that_it_is_parallel, "model/vae/x.py", "def f(world_size): ..."),
        (rules.model_does_not_know_that_it_is_parallel, "model/x.py", "import torch.distributed as dist"),
        (rules.model_does_not_know_that_it_is_parallel, "model/x.py", "def f(mesh): return mesh.rank"),
        (rules.names_state_a_purpose, "jobs/utils.py", ""),
        (rules.names_state_a_purpose, "service/common/x.py", ""),
        (rules.names_state_a_purpose, "service/video_helpers.py", ""),
        (rules.names_state_a_purpose, "jobs/x.py", "class JobManager: ..."),
        (rules.names_state_a_purpose, "jobs/x.py", "def f():\n    class HTTPHelper: ..."),
        (rules.docstrings_are_imperative, "model/spec/x.py", '"""What is here."""'),
        (rules.docstrings_are_imperative, "model/spec/x.py", 'class A:\n    """Whoever takes one."""'),
        (rules.docstrings_are_imperative, "model/spec/x.py", 'def f():\n    """Whether it is so."""'),
        (
            rules.docstrings_are_imperative,
            "model/spec/x.py",
            'async def f():\n    """The number of frames."""',
        ),
    ],
)
def test_rule_reports_planted_offender(rule, path, text):
    assert list(rule(Module(path, text)))


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (rules.nothing_runs_at_import, "jobs/x.py", '"""Text."""\nX = 1\nif __name__ == "__main__": f()'),
        (rules.environment_is_read_in_settings, "worker/settings.py", "from os import environ"),
        (rules.model_does_not_know_that_it_is_parallel, "model/parallel/x.py", "rank = 0"),
        (rules.model_does_not_know_that_it_is_parallel, "worker/x.py", "rank = 0"),
        (rules.model_does_not_know_that_it_is_parallel, "model/x.py", "distance = rankings = 0"),
        (rules.names_state_a_purpose, "jobs/uncommon.py", "class Commons: ..."),
        (rules.docstrings_are_imperative, "model/spec/x.py", '"""Text."""\nclass A:\n    """The limits."""'),
        (rules.docstrings_are_imperative, "model/spec/x.py", 'def f():\n    """Return the limits."""'),
        (rules.docstrings_are_imperative, "model/spec/x.py", "def f(): ..."),
    ],
)
def test_rule_accepts_what_it_allows(rule, path, text):
    assert not list(rule(Module(path, text)))


def test_listed_exceptions_are_needed():
    listed = {*rules.ENVIRONMENT_READERS, *rules.MATRIX_RANK}
    found = (module for module in modules() if module.path in listed)
    identifiers = {module.path: {name for name, _ in module.identifiers} for module in found}
    idle = [path for path in rules.ENVIRONMENT_READERS if not {"environ", "getenv"} & identifiers[path]]
    idle += [path for path in rules.MATRIX_RANK if "rank" not in identifiers[path]]
    assert idle == []


def test_every_setting_is_documented():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    text = "\n".join(page.read_text() for page in pages)
    assert [name for name in _settings() if not re.search(rf"`(LONGCAT_)?{name}`", text)] == []


def _settings() -> list[str]:
    from service.settings import Settings
    from stack.settings import StackSettings
    from worker.settings import WorkerSettings

    fields = {
        name for settings in (Settings, StackSettings, WorkerSettings) for name in settings.model_fields
    }
    return sorted(name.upper() for name in fields)
