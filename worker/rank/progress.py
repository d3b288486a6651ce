"""How far a job is, and how long it still takes: counted in work done, weighed by what it was seen to cost.

The leader asks after each event. What a kind of work costs is known from the job itself or from earlier ones
like it; until then a guess stands for it. The fraction never goes back. It knows nothing of devices.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from jobs.record import Phase, Progress
from jobs.work import REFINED_SHARE
from model.spec.plan import Plan
from worker.messages import Timings

Stage = Literal["denoise", "refine"]
Kind = Literal["denoise", "refine", "decode"]
Experience = dict[tuple[object, ...], float]  # a kind of work and what the job is like: seconds for a unit

# Guesses, in steps of the first stage: decoding a whole segment costs about as much as half a step.
DECODED_SEGMENT = 0.5
GENERATED = 0.98  # what remains then: the end of the film, and storing it


@dataclass(frozen=True)
class Work:
    """Work of one kind: how much there is and is done, and what a unit costs.

    `guess` is that in steps of the first stage, `known_s` in seconds if an earlier job showed it.
    """

    total: int
    guess: float
    known_s: float | None = None
    done: int = 0
    seen: int = 0
    seen_s: float = 0.0

    @property
    def unit_s(self) -> float | None:
        """Seconds for a unit, as seen in this job or before; None if it never was."""
        return self.seen_s / self.seen if self.seen else self.known_s

    def after(self, done: int, lasted_s: float) -> Work:
        """`done` in all by now, the last part in `lasted_s`."""
        return replace(
            self, done=done, seen=self.seen + max(0, done - self.done), seen_s=self.seen_s + lasted_s
        )


class Meter:
    """The progress of one job, event by event; `timings_s` so far are those of earlier attempts."""

    def __init__(
        self,
        plan: Plan,
        timings_s: Timings,
        experience: Experience,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plan = plan
        self._experience = experience
        self._clock = clock
        self._last = clock()
        self._fraction = 0.0
        self._shown = Progress(phase="load", num_segments=plan.num_segments)
        self._work = {
            kind: replace(work, known_s=experience.get(_alike(plan, kind)))
            for kind, work in _guess(plan).items()
        }
        self.timings_s: Timings = dict(timings_s)

    @property
    def progress(self) -> Progress:
        """As it stands."""
        return self._shown

    def resume(self, segment: int, stage: Stage, step: int) -> None:
        """So much was done by an earlier attempt."""
        refines = stage == "refine"
        self._set_out("denoise", segment, self._per_segment("denoise") if refines else step)
        self._set_out("refine", segment, step if refines else 0)
        self._set_out("decode", segment, 0)
        self._shown = self._shown.model_copy(update={"segment": segment})

    def enter(self, phase: Phase, segment: int) -> Progress:
        """What has been since the last event belongs to the phase before; this one begins."""
        self._pass(self._shown.phase)
        return self._show(phase, segment)

    def step(self, stage: Stage, segment: int, step: int, num_steps: int) -> Progress:
        """So many steps of this stage are done."""
        work = replace(self._work[stage], total=num_steps * self._plan.num_segments)
        self._learn(stage, work.after(segment * num_steps + step, self._pass(stage)))
        return self._show(stage, segment, step, num_steps)

    def frames(self, segment: int, count: int) -> Progress:
        """So many more frames are decoded."""
        work = self._work["decode"]
        self._learn("decode", work.after(work.done + count, self._pass("decode")))
        return self._show("decode", segment)

    def _per_segment(self, kind: Kind) -> int:
        return self._work[kind].total // self._plan.num_segments

    def _set_out(self, kind: Kind, segment: int, done: int) -> None:
        self._work[kind] = replace(self._work[kind], done=segment * self._per_segment(kind) + done)

    def _pass(self, phase: Phase) -> float:
        now = self._clock()
        lasted_s, self._last = now - self._last, now
        self.timings_s[phase] = self.timings_s.get(phase, 0.0) + lasted_s
        return lasted_s

    def _learn(self, kind: Kind, work: Work) -> None:
        self._work[kind] = work
        if work.unit_s is not None:
            self._experience[_alike(self._plan, kind)] = work.unit_s

    def _show(self, phase: Phase, segment: int, step: int = 0, num_steps: int = 0) -> Progress:
        left_s, total_s, measured = self._seconds()
        self._fraction = min(GENERATED, max(self._fraction, GENERATED * (1.0 - left_s / total_s)))
        self._shown = Progress(
            phase=phase,
            step=step,
            num_steps=num_steps,
            segment=segment,
            num_segments=self._plan.num_segments,
            fraction=round(self._fraction, 4),
            eta_s=round(left_s, 3) if measured else None,
        )
        return self._shown

    def _seconds(self) -> tuple[float, float, bool]:
        """What is left and what there is in all; only relative to each other where nothing was measured."""
        all_work = self._work.values()
        known = [work.unit_s / work.guess for work in all_work if work.unit_s is not None]
        guessed_s = sum(known) / len(known) if known else 1.0
        costs = [(work, work.guess * guessed_s if work.unit_s is None else work.unit_s) for work in all_work]
        left_s = sum((work.total - work.done) * unit_s for work, unit_s in costs)
        return left_s, sum(work.total * unit_s for work, unit_s in costs), bool(known)


def _alike(plan: Plan, kind: Kind) -> tuple[object, ...]:
    """What work of this kind has in common with that of other jobs."""
    base = (plan.height, plan.width, plan.num_frames, plan.guidance_scale > 1)
    return (kind, *base, plan.step_cache, plan.output_size, plan.frame_factor, plan.num_condition_frames)


def _guess(plan: Plan) -> dict[Kind, Work]:
    refinement, segments = plan.refinement, plan.num_segments
    growth, refine_steps = 1.0, 0
    if refinement:
        growth = refinement.height * refinement.width * plan.frame_factor / (plan.height * plan.width)
        refine_steps = max(1, round(refinement.num_inference_steps * REFINED_SHARE))
    denoise_steps = 0 if plan.task == "refine" else plan.num_inference_steps
    return {
        "denoise": Work(denoise_steps * segments, guess=1.0),
        "refine": Work(refine_steps * segments, guess=growth),
        "decode": Work(plan.output_frames, guess=DECODED_SEGMENT * growth / plan.num_frames),
    }
