"""Provide the base images: from a registry, or stand-ins made from Debian's packages."""

from __future__ import annotations

import logging
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import httpx

from tests.docker.compose import read_compose
from tests.images.engine import ROOT, Engine

logger = logging.getLogger(__name__)

Source = Literal["registry", "debian"]
SOURCES: tuple[Source, ...] = get_args(Source)
REGISTRY = "https://registry-1.docker.io/v2/"
STAND_INS = Path(__file__).parent / "stand_ins"
SUITE = "bookworm"
PACKAGES = ("ca-certificates", "python3", "python3-pip", "python3-venv")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
REDIS = "localhost/redis:pinned-or-stand-in"  # with a tag, or a kubelet would always pull it


@dataclass(frozen=True)
class Bases:
    """The base image of each image; None for the one that its Dockerfile names."""

    api: str | None = None
    worker: str | None = None


def registry_answers() -> bool:
    """Check that Docker Hub can be reached. It answers with 401 until a token is sent."""
    try:
        return httpx.get(REGISTRY, timeout=10.0).status_code == 401
    except httpx.HTTPError:
        return False


def prepare_bases(engine: Engine, source: Source, folder: Path) -> Bases:
    """Make sure that the base images and one named `REDIS` exist, and return the bases.

    A stand-in has Debian's Python and Redis, whatever version the tag of the real image names. It trusts the
    authorities that this machine trusts, so that pip works behind a proxy that reads TLS.
    """
    if source == "registry":
        pinned = read_compose(ROOT / "docker-compose.yml").services["redis"].image
        image_id = engine.podman("pull", "--quiet", f"docker.io/library/{pinned}").strip()
        engine.podman("tag", image_id, REDIS)
        return Bases()
    debian, python = "localhost/stand-in-debian", "localhost/stand-in-python"
    if not engine.has_image(debian):
        logger.info("unpacking Debian %s", SUITE)
        context = folder / "debian"
        context.mkdir()
        shutil.copy(CERTIFICATES, context)
        subprocess.run(
            [
                "mmdebstrap",
                "--quiet",
                "--variant=minbase",
                f"--include={','.join(PACKAGES)}",
                SUITE,
                context / "debian.tar",
            ],
            check=True,
        )
        engine.build(STAND_INS / "debian.Dockerfile", debian, context)
        shutil.rmtree(context)
    engine.build(STAND_INS / "python.Dockerfile", python, STAND_INS, {"BASE": debian})
    engine.build(STAND_INS / "redis.Dockerfile", REDIS, STAND_INS, {"BASE": debian})
    return Bases(api=python, worker=debian)
