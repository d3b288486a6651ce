"""One stack with a real group of two ranks for the whole module, and images to begin videos with."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.collector import Collector, collecting
from tests.running_stack import RunningStack, run_stack


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """Where the stack's processes send what they trace."""
    with pytest.MonkeyPatch.context() as environment, collecting() as collector:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        yield collector


@pytest.fixture(scope="module")
def stack(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, collector: Collector
) -> Iterator[RunningStack]:
    """A stack of two ranks that share each video."""
    folder = tmp_path_factory.mktemp("stack")
    with run_stack(folder, tiny_checkpoint, ranks=2, fetch_private_hosts="true") as stack:
        yield stack


@pytest.fixture(scope="session")
def picture() -> bytes:
    """A PNG of smooth colours, wide."""
    ramp = np.linspace(0, 255, 192, dtype=np.uint8)
    wide = np.broadcast_to(ramp, (128, 192))
    tall = np.broadcast_to(ramp[:128, None], (128, 192))
    file = io.BytesIO()
    Image.fromarray(np.stack([wide, tall, np.full_like(wide, 128)], axis=-1)).save(file, "PNG")
    return file.getvalue()
