"""Test that the bill of materials of an image names all that is installed in it."""

from __future__ import annotations

import json
import subprocess
import sys

from cyclonedx.output.json import JsonV1Dot6

from tests.images.sbom import INSTALLED, bill_of_materials

LISTED = {
    "distribution": "debian",
    "release": "bookworm",
    "python": [["Typing_Extensions", "4.16.0", "PSF-2.0"], ["rq", "3.0.0", None]],
    "system": [["libssl3", "3.0.17-1~deb12u2", "amd64"]],
}


def test_bill_names_the_packages_of_python_and_of_the_distribution():
    bill = json.loads(JsonV1Dot6(bill_of_materials("longcat-video-api", "1.2.3", LISTED)).output_as_string())
    assert bill["metadata"]["component"]["name"] == "longcat-video-api"
    assert {component["purl"] for component in bill["components"]} == {
        "pkg:pypi/typing-extensions@4.16.0",
        "pkg:pypi/rq@3.0.0",
        "pkg:deb/debian/libssl3@3.0.17-1~deb12u2?arch=amd64&distro=debian-bookworm",
    }
    licenses = {component["name"]: component.get("licenses") for component in bill["components"]}
    assert licenses["typing-extensions"] == [{"expression": "PSF-2.0"}]
    assert licenses["rq"] is None


def test_list_of_packages_is_what_is_installed(tmp_path):
    """Run on any distribution: a stand-in for `dpkg-query` is on the PATH."""
    program = tmp_path / "dpkg-query"
    program.write_text("#!/bin/sh\nprintf 'libssl3\\t3.0\\tamd64\\n'\n")
    program.chmod(0o755)
    command = [sys.executable, str(INSTALLED)]
    listed = json.loads(
        subprocess.run(command, env={"PATH": str(tmp_path)}, capture_output=True, check=True).stdout
    )
    assert listed["system"] == [["libssl3", "3.0", "amd64"]]
    assert "rq" in {name for name, _, _ in listed["python"]}
