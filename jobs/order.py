"""Define what a job generates: a plan with its prompts, seed and input files.

The service writes the order when a job is submitted. It is stored as JSON in the job's record, never changes,
and goes to the ranks as it is.
"""

from __future__ import annotations

from typing import Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from model.spec.plan import Plan

SCHEMA_VERSION = 3
"""The newest version of an order that this release reads."""

Priority = Literal["high", "normal", "low"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)
"""The highest first."""


class InputFile(BaseModel):
    """An image or a clip that the service checked and stored under `key`.

    Attributes:
        source_job_id: the job whose video it is, or is from.
        source_frame: the frame of that video that the image is, counted from 0.
    """

    model_config = ConfigDict(frozen=True)

    key: str
    media_type: str
    size_bytes: int
    sha256: str
    width: int
    height: int
    num_frames: int = 1
    source_job_id: str | None = None
    source_frame: int | None = None


class Order(BaseModel):
    """A video to generate: plan, texts, seed and input files.

    Other releases read stored orders: unknown fields are ignored, and a new field must have a default. An
    order of a later version than `SCHEMA_VERSION` cannot be read: its video would not be the requested one.

    Attributes:
        schema_version: the lowest version that a reader needs. An order with an option that came later needs
            the version in which it came; all others stay readable for earlier releases.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: int = 2
    plan: Plan
    model: str | None = Field(None, description="Name of the model; null for any.")
    weights: dict[str, str] | None = Field(
        None, description="Fingerprints of the weights that the service expected; null if there are several."
    )
    prompts: tuple[str, ...] = Field(min_length=1, description="One, or one for each segment.")
    negative_prompt: str | None = Field(None, description="null if the plan has no guidance.")
    seed: int
    image: InputFile | None = None
    video: InputFile | None = None
    condition_video: InputFile | None = None

    @model_validator(mode="after")
    def _check_version(self) -> Self:
        if self.schema_version > SCHEMA_VERSION:
            raise ValueError(f"version {self.schema_version} is later than {SCHEMA_VERSION}")
        return self

    @property
    def inputs(self) -> tuple[InputFile, ...]:
        """Return the files that the job needs."""
        return tuple(self.inputs_by_field.values())

    @property
    def inputs_by_field(self) -> dict[str, InputFile]:
        """Return the files that the job needs by the names of their fields."""
        files = {"image": self.image, "video": self.video, "condition_video": self.condition_video}
        return {field: file for field, file in files.items() if file}
