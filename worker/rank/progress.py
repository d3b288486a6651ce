"""Measure the progress of a job, and estimate how long it will still take.

Work is counted in units: steps and decoded frames. Each kind of work is weighted by the time of a unit, which
was measured in this job or in an earlier one like it. Until then a guess stands for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from jobs.record import Phase, Progress
from jobs.work import REFINED_SHARE
from model.pipeline.state import Stage
from model.spec.plan import Plan
from model.spec.steps import num_steps as steps_of
from model.spec.steps import total_steps
from worker.messages import Timings

Kind = Literal["denoise", "refine", "decode"]

UnitTimes = dict[tuple[object, ...], float]
"""Measured seconds for a unit of work, by kind of work and shape of the video: see `_shape_key`."""

# Guesses, in steps of the first stage. Refinement steps cost more, in proportion to the pixels, but few of
# them are below its noise level. Decoding a segment costs about as much as half a step.
DECODE_SEGMENT_STEPS = 0.5

GENERATED = 0.98  # the fraction at which only the end of the video and its upload remain


@dataclass(frozen=True)
class Work:
    """Count the units of one kind of work, and the time that they take.

    Attributes:
        total: number of units in the whole job.
        guess: cost of a unit, in steps of the first stage.
        earlier_s: seconds for a unit in an earlier job.
        done: number of units done, by earlier attempts as well.
        measured: number of units that took `measured_s` seconds in this attempt.
    """

    total: int
    guess: float
    earlier_s: float | None = None
    done: int = 0
    measured: int = 0
    measured_s: float = 0.0

    @property
    def unit_s(self) -> float | None:
        """Return the seconds for a unit, measured in this job or else in an earlier one."""
        return self.measured_s / self.measured if self.measured else self.earlier_s

    def advance(self, done: int, duration_s: float) -> Work:
        """Return this work when `done` units are done in all, the last of them within `duration_s`."""
        measured = self.measured + max(0, done - self.done)
        return replace(self, done=done, measured=measured, measured_s=self.measured_s + duration_s)


class ProgressMeter:
    """Measure the progress of one job. The fraction never decreases.

    Args:
        timings_s: the times of earlier attempts.
        unit_times: measured times of earlier jobs, to which this job adds its own.

    Attributes:
        progress: the progress after the latest event.
        timings_s: seconds in each phase so far, including earlier attempts.
    """

    def __init__(
        self,
        plan: Plan,
        timings_s: Timings,
        unit_times: UnitTimes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plan = plan
        self._unit_times = unit_times
        self._clock = clock
        self._last_event_at = clock()
        self._fraction = 0.0
        self._work = {
            kind: replace(work, earlier_s=unit_times.get(_shape_key(plan, kind)))
            for kind, work in _plan_work(plan).items()
        }
        self.progress = Progress(phase="load", num_segments=plan.num_segments)
        self.timings_s: Timings = dict(timings_s)

    def resume(self, segment: int, stage: Stage, step: int, fraction: float = 0.0) -> None:
        """Count what earlier attempts did: `step` steps of this stage, and all stages before it.

        `fraction` is `fraction_at` this state, as the attempt that saved it knew it.
        """
        self._work, self._fraction = self._work_until(segment, stage, step), fraction
        self.progress = self.progress.model_copy(update={"segment": segment, "fraction": fraction})

    def fraction_at(self, segment: int, stage: Stage, step: int) -> float:
        """Return the fraction that is done when a job resumes here, at most that of the progress."""
        left_s, total_s, _ = _seconds(self._work_until(segment, stage, step))
        return round(min(self._fraction, GENERATED * (1.0 - left_s / total_s)), 4)

    def enter(self, phase: Phase, segment: int) -> Progress:
        """Begin a phase. The time since the last event belongs to the phase before it."""
        self._add_time(self.progress.phase)
        return self._update(phase, segment)

    def step(self, stage: Stage, segment: int, step: int, num_steps: int) -> Progress:
        """Count the steps of a stage that are done: `step` of `num_steps` in this segment."""
        later = num_steps
        if (stage, segment) == ("denoise", 0):  # the next segments continue this one
            later = steps_of(self._plan, is_continuation=True)
        done = self._work[stage].done + 1
        total = done + num_steps - step + later * (self._plan.num_segments - segment - 1)
        work = replace(self._work[stage], total=total)
        self._measure(stage, work.advance(done, self._add_time(stage)))
        return self._update(stage, segment, step, num_steps)

    def add_frames(self, segment: int, count: int) -> Progress:
        """Count decoded frames."""
        work = self._work["decode"]
        self._measure("decode", work.advance(work.done + count, self._add_time("decode")))
        return self._update("decode", segment)

    def _work_until(self, segment: int, stage: Stage, step: int) -> dict[Kind, Work]:
        """Return the work with `step` steps of this stage done, all stages before it, and nothing else."""
        is_refining = stage == "refine"
        denoised = total_steps(self._plan, segment + is_refining)
        done: dict[Kind, int] = {
            "denoise": denoised if is_refining else denoised + step,
            "refine": segment * self._units_per_segment("refine") + (step if is_refining else 0),
            "decode": segment * self._units_per_segment("decode"),
        }
        return {kind: replace(work, done=done[kind]) for kind, work in self._work.items()}

    def _units_per_segment(self, kind: Kind) -> int:
        return self._work[kind].total // self._plan.num_segments

    def _add_time(self, phase: Phase) -> float:
        """Add the time since the last event to this phase, and return it."""
        now = self._clock()
        duration_s, self._last_event_at = now - self._last_event_at, now
        self.timings_s[phase] = self.timings_s.get(phase, 0.0) + duration_s
        return duration_s

    def _measure(self, kind: Kind, work: Work) -> None:
        self._work[kind] = work
        if work.unit_s is not None:
            self._unit_times[_shape_key(self._plan, kind)] = work.unit_s

    def _update(self, phase: Phase, segment: int, step: int = 0, num_steps: int = 0) -> Progress:
        left_s, total_s, is_measured = _seconds(self._work)
        # Totals and unit times change while they are measured, so the share of work done may decrease.
        self._fraction = min(GENERATED, max(self._fraction, GENERATED * (1.0 - left_s / total_s)))
        self.progress = Progress(
            phase=phase,
            step=step,
            num_steps=num_steps,
            segment=segment,
            num_segments=self._plan.num_segments,
            fraction=round(self._fraction, 4),
            eta_s=round(left_s, 3) if is_measured else None,
        )
        return self.progress


def _seconds(work: Mapping[Kind, Work]) -> tuple[float, float, bool]:
    """Return the seconds that are left, those of the whole job, and whether any of it is measured.

    If nothing is measured, only the ratio of the two has a meaning.
    """
    kinds = work.values()
    ratios = [kind.unit_s / kind.guess for kind in kinds if kind.unit_s is not None]
    guess_s = sum(ratios) / len(ratios) if ratios else 1.0
    unit_times = [(kind, kind.guess * guess_s if kind.unit_s is None else kind.unit_s) for kind in kinds]
    left_s = sum((kind.total - kind.done) * unit_s for kind, unit_s in unit_times)
    return left_s, sum(kind.total * unit_s for kind, unit_s in unit_times), bool(ratios)


def _shape_key(plan: Plan, kind: Kind) -> tuple[object, ...]:
    """Return a key that is equal for jobs whose units of this kind take the same time."""
    base = (plan.height, plan.width, plan.num_frames, plan.guidance_scale > 1)
    return (kind, *base, plan.step_cache, plan.output_size, plan.frame_factor, plan.num_condition_frames)


def _plan_work(plan: Plan) -> dict[Kind, Work]:
    """Return the work of a whole job, before any of it is done."""
    refinement, segments = plan.refinement, plan.num_segments
    growth, refine_steps = 1.0, 0
    if refinement:
        growth = refinement.height * refinement.width * plan.frame_factor / (plan.height * plan.width)
        refine_steps = max(1, round(refinement.num_inference_steps * REFINED_SHARE))
    return {
        "denoise": Work(total_steps(plan, segments), guess=1.0),
        "refine": Work(refine_steps * segments, guess=growth),
        "decode": Work(plan.output_frames, guess=DECODE_SEGMENT_STEPS * growth / plan.num_frames),
    }
