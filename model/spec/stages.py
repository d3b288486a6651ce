"""Derive the sizes of the stages that a plan consists of: the base video, and its refinement."""

from __future__ import annotations

from dataclasses import dataclass, replace

from model.spec.geometry import SIDE_MULTIPLE, latent_frames
from model.spec.plan import Plan, refine_layout_of


@dataclass(frozen=True)
class StageShape:
    """The size of one stage of a segment: the base video or its refinement.

    Attributes:
        num_frames: latent frames.
        height, width: sides in pixels.
        num_condition: how many of the latent frames condition the rest.
        num_texts: texts of a forward: 2 with guidance.
        condition_cache: whether keys and values of the condition frames are kept instead of computed again.
        step_cache: whether steps may reuse what blocks added in an earlier step.
        block_sparse: whether queries attend to some of the keys, which takes as much memory.
    """

    num_frames: int
    height: int
    width: int
    num_condition: int = 0
    num_texts: int = 1
    condition_cache: bool = False
    step_cache: bool = False
    block_sparse: bool = False

    @property
    def tokens_of_frame(self) -> int:
        """Return the tokens of a latent frame."""
        return self.height * self.width // SIDE_MULTIPLE**2

    @property
    def cached_tokens(self) -> int:
        """Return the tokens whose keys and values are kept."""
        return self.num_condition * self.tokens_of_frame if self.condition_cache else 0


def base_shape(plan: Plan) -> StageShape:
    """Return the shape of the base video, with the condition frames of a segment that continues."""
    num_condition = plan.num_condition_frames
    return StageShape(
        num_frames=latent_frames(plan.num_frames),
        height=plan.height,
        width=plan.width,
        num_condition=latent_frames(num_condition) if num_condition else 0,
        num_texts=2 if plan.guidance_scale > 1 else 1,
        condition_cache=plan.condition_cache,
        step_cache=plan.step_cache is not None,
    )


def refinement_shape(plan: Plan, segment: int) -> StageShape:
    """Return the shape of the refinement of a segment."""
    assert plan.refinement
    layout = refine_layout_of(plan, segment)
    return StageShape(
        num_frames=layout.latent_frames,
        height=plan.refinement.height,
        width=plan.refinement.width,
        num_condition=layout.condition_latents,
        block_sparse=True,
    )


def shapes_of_stages(plan: Plan) -> list[list[StageShape]]:
    """Return the shapes that each stage of a plan has in its segments."""
    stages = [[] if plan.task == "refine" else _base_shapes(plan), refinement_shapes(plan)]
    return [shapes for shapes in stages if shapes]


def _base_shapes(plan: Plan) -> list[StageShape]:
    """Return the shapes of the base video. The first of several segments may have no frames to cache."""
    shape = base_shape(plan)
    return [shape, replace(shape, condition_cache=False)] if plan.num_segments > 1 else [shape]


def refinement_shapes(plan: Plan) -> list[StageShape]:
    """Return the shapes of the refinement, none without one. That of the first segment may differ."""
    segments = range(min(2, plan.num_segments)) if plan.refinement else ()
    return [refinement_shape(plan, segment) for segment in segments]
