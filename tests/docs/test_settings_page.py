"""The page of settings is generated from the settings classes and complete."""

from __future__ import annotations

from docs import setting_names
from docs.settings_page import document
from service.settings import Settings
from stack.settings import StackSettings
from tests.architecture.source import ROOT
from tests.docs.pages import DOCS
from worker.settings import WorkerSettings


def test_committed_page_is_current():
    page = (DOCS / "settings.md").read_text()
    assert page == document(), "run: make generate"


def test_names_that_the_processes_know_are_current():
    assert (ROOT / "jobs/setting_names.txt").read_text() == setting_names.of_all(), "run: make generate"


def test_every_setting_has_a_row():
    names = {*Settings.model_fields, *StackSettings.model_fields, *WorkerSettings.model_fields}
    rows = document()
    assert [name for name in sorted(names) if f"\n| `{name.upper()}` |" not in rows] == []


def test_default_that_depends_on_the_machine_is_described():
    rows = document()
    assert "| `MAX_DECODES` | number of CPU cores" in rows
    assert "| `CHECKPOINT` | `pocket` |" in rows
