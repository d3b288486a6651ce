"""Define the request of the pipeline."""

from dataclasses import dataclass

from jaxtyping import UInt8
from torch import Tensor

from model.spec.plan import Plan


@dataclass(frozen=True)
class Request:
    """A plan with its prompts and inputs. Only the leader needs the inputs.

    Attributes:
        plan: the resolved parameters.
        prompts: one prompt, or one for each segment.
        seed: the seed of all random numbers.
        negative_prompt: None uses the checkpoint's default where guidance is on.
        image: the first frame or, for `refine`, an image that the first frame keeps.
        video: the clip to continue or to refine.
        condition_video: for `refine`, a clip whose last frames the first frames keep.
        exact_handover: round frames to 8 bits between stages and segments, as the published code does.
    """

    plan: Plan
    prompts: tuple[str, ...]
    seed: int
    negative_prompt: str | None = None
    image: UInt8[Tensor, "image_height image_width 3"] | None = None
    video: UInt8[Tensor, "frames height width 3"] | None = None
    condition_video: UInt8[Tensor, "condition_frames condition_height condition_width 3"] | None = None
    exact_handover: bool = False

    def prompt(self, segment: int) -> str:
        """Return the prompt of a segment."""
        return self.prompts[segment] if len(self.prompts) > 1 else self.prompts[0]
