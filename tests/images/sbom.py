"""Write a software bill of materials (SBOM) of an image in CycloneDX's JSON format."""

from __future__ import annotations

import json
import logging
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from tests.images.build import tag_of
from tests.images.engine import ROOT, Engine

logger = logging.getLogger(__name__)

INSTALLED = Path(__file__).parent / "installed.py"


def write_sbom(engine: Engine, name: str, file: Path) -> int:
    """List the packages of an image, Python's and Debian's, in a file; return their number."""
    logger.info("listing the packages of %s", tag_of(name))
    listed = engine.podman(
        *("run", "--rm", "--network", "none", "--read-only", "--cap-drop", "all", "--no-healthcheck"),
        *("--volume", f"{INSTALLED}:/installed.py:ro", tag_of(name), "python", "/installed.py"),
    )
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    bom = bill_of_materials(f"longcat-video-{name}", version, json.loads(listed))
    file.write_text(JsonV1Dot6(bom).output_as_string(indent=2) + "\n")
    return len(bom.components)


def bill_of_materials(image: str, version: str, installed: Mapping[str, Any]) -> Bom:
    """Return the bill of an image; `installed` is what `tests.images.installed` prints."""
    place = {"distro": f"{installed['distribution']}-{installed['release']}"}
    components = [
        _component(PackageURL("pypi", None, name.lower().replace("_", "-"), number), license_)
        for name, number, license_ in installed["python"]
    ] + [
        _component(PackageURL("deb", installed["distribution"], name, number, {"arch": machine, **place}))
        for name, number, machine in installed["system"]
    ]
    described = Component(name=image, version=version, type=ComponentType.CONTAINER, bom_ref=image)
    bom = Bom(components=components)
    bom.metadata.component = described
    bom.register_dependency(described, components)
    return bom


def _component(url: PackageURL, license_: str | None = None) -> Component:
    return Component(
        name=url.name,
        version=url.version,
        purl=url,
        bom_ref=url.to_string(),
        licenses=[LicenseExpression(license_)] if license_ else [],
    )
