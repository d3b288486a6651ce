"""Run a campaign: generate each video without faults, then submit jobs and cause faults at random.

All random choices follow from the seed. Their effect depends on the speed of the machine.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from jobs.record import ENDED
from tests.chaos.client import Client, Frames, Job
from tests.chaos.faults import CRASHES, ERRORS, REDIS_FAULTS, SUPERVISOR_ENDS, faults
from tests.chaos.orders import Body, draw_videos, poison
from tests.chaos.scene import ActiveFault, Fault, Scene
from tests.chaos.site import MAX_ATTEMPTS, Site, now

LOOK_S = 0.25
LONGEST_START_S = 900.0
LONGEST_RECOVERY_S = 900.0
SETTLING_S = 1800.0
AT_A_TIME = 5  # unfinished jobs
JOBS_FOR_A_FAULT = 3
TWO_AT_ONCE = 0.25  # of the faults are caused together with another one
LOW_ONE_OF = 3  # jobs has low priority, and may be preempted


@dataclass(frozen=True)
class Plan:
    """The limits of a campaign, the seed of its random choices, and the kinds of its faults; () is all."""

    jobs: int
    seed: int
    minutes: float
    kinds: tuple[str, ...] = ()


@dataclass
class Ordered:
    """An accepted job.

    Attributes:
        video: the index of its video; None for a job that always crashes its group.
        sent_at: when its request was first sent. As `seen_at`, by the clock of the faults: the service's own
            times differ from it after a fault of the clock of Redis.
        cancel: True if a cancel was accepted, False if it was refused or not answered, None without one.
        ended: the job when it had ended; {} if it was lost.
        seen_at: when it was seen to have ended.
    """

    number: int
    video: int | None
    job_id: str
    sent_at: float
    cancel: bool | None = None
    ended: Job | None = None
    seen_at: float = math.inf

    def possible_errors(self, faults: list[PastFault]) -> set[str]:
        """Return the error codes that the faults of its time explain."""
        if self.video is None:
            return {"worker_crashed"}
        mine = [fault for fault in faults if fault.at <= self.seen_at and fault.over_at >= self.sent_at]
        found = {
            ERRORS[fault.kind]
            for fault in mine
            if fault.kind in ERRORS and (fault.job == self.job_id or fault.kind == "disk full")
        }
        crashes = sum(CRASHES.get(fault.kind, 0) for fault in mine)
        return found | ({"worker_crashed"} if crashes >= MAX_ATTEMPTS else set())


@dataclass(frozen=True)
class PastFault:
    """A fault that was caused. `recovery_s` is None if the job did not resume in time."""

    kind: str
    job: str | None
    at: float
    over_at: float
    recovery_s: float | None


@dataclass
class Course:
    """The jobs and the faults of a campaign. `frames` are those of the videos, made without faults."""

    videos: list[Body]
    frames: list[Frames] = field(default_factory=list)
    orders: list[Ordered] = field(default_factory=list)
    faults: list[PastFault] = field(default_factory=list)
    began: float = field(default_factory=now)
    lasted_s: float = 0.0


class Campaign:
    """Run a campaign on a started site. `log` gets a line for each step."""

    def __init__(self, site: Site, client: Client, plan: Plan, log: Callable[[str], None]) -> None:
        self._site, self._client, self._plan, self._log = site, client, plan, log
        self._rng = random.Random(plan.seed)
        self.course = Course(draw_videos(self._rng, max(4, min(12, plan.jobs // 4))))
        self._wanted_faults = max(len(self._faults), plan.jobs // JOBS_FOR_A_FAULT)
        self._poisons = 0
        self._orders_come = False
        self._unanswered: tuple[Body, float] | None = None  # an order that may have been accepted

    @property
    def _faults(self) -> dict[str, Fault]:
        """Return the faults of the wanted kinds, by kind."""
        possible = faults(self._site)
        return {kind: possible[kind] for kind in self._plan.kinds or possible}

    def run(self) -> Course:
        self._wait(self._is_up, LONGEST_START_S)
        self._generate_without_faults()
        self.course.began = now()
        self._orders_come = True
        self._generate_with_faults()
        self._orders_come = False
        self._wait(lambda: self._unanswered is None or self._order() is not None, SETTLING_S)
        self._log("no more faults: waiting for the remaining jobs")
        self._wait(lambda: not self._open(), SETTLING_S)
        self.course.lasted_s = now() - self.course.began
        return self.course

    def _is_up(self) -> bool:
        return all(self._client.answers(url, "/readyz?workers=1") for url in self._site.apis)

    def _generate_without_faults(self) -> None:
        """Generate each video once."""
        ids = [
            self._order_until_accepted(video, f"undisturbed-{i}")
            for i, video in enumerate(self.course.videos)
        ]
        for job_id in ids:
            self._wait(partial(self._has_succeeded, job_id), SETTLING_S)
            self.course.frames.append(self._client.frames(job_id))
        self._log(f"{len(ids)} different videos generated without faults")

    def _has_succeeded(self, job_id: str) -> bool:
        job = self._client.job(job_id) or {}
        assert job.get("status") not in {"failed", "cancelled"}, job
        return job.get("status") == "succeeded"

    def _generate_with_faults(self) -> None:
        until = time.monotonic() + 60 * self._plan.minutes
        scene = Scene(
            self._site, self._client, self._rng, self._order_poison, self._order_urgent, self._cancel_one
        )
        for kind, fault in self._shuffled_faults():
            self._pause(self._rng.uniform(0.2, 2.5))
            supervisors = self._site.supervisors()
            active = self._try(fault, scene, until)
            if active:
                caused = [(kind, active), *self._cause_another(kind, scene)]
                self._see_through(caused)
                self._count_ended_supervisors(supervisors, {kind for kind, _ in caused})
            everything_done = len(self._videos_ordered) >= self._plan.jobs and not self._open()
            if everything_done or time.monotonic() > until:
                return

    def _shuffled_faults(self) -> Iterator[tuple[str, Fault]]:
        """Yield all kinds of faults in random order, again and again."""
        kinds = list(self._faults.items())
        while True:
            yield from self._rng.sample(kinds, len(kinds))

    def _try(self, fault: Fault, scene: Scene, until: float) -> ActiveFault | None:
        """Cause the fault as soon as there is a target for it. Return None if there is none for 30 s."""
        until = min(until, time.monotonic() + 30)
        while time.monotonic() < until and (self._may_order() or self._open()):
            at = now()
            if active := fault(scene):
                active.at = at
                return active
            self._tick()
        return None

    def _cause_another(self, kind: str, scene: Scene) -> list[tuple[str, ActiveFault]]:
        """Cause a fault of another kind at the same time, now and then.

        Most faults look into Redis for a target, so a fault of Redis comes second.
        """
        if kind in REDIS_FAULTS or self._rng.random() >= TWO_AT_ONCE:
            return []
        other, fault = self._rng.choice(list(self._faults.items()))
        if other == kind:
            return []
        at = now()
        if (active := fault(scene)) is None:
            return []
        active.at = at
        return [(other, active)]

    def _see_through(self, caused: list[tuple[str, ActiveFault]]) -> None:
        """Let each fault last for its time, repair it, and wait until the work recovers from all."""
        for _, active in sorted(caused, key=lambda item: item[1].lasts_s):
            self._pause(active.at + active.lasts_s - now())
            active.repair()
        repaired = now()
        recovered_at: dict[str, float] = {}

        def have_recovered() -> bool:
            for kind, active in caused:
                if kind not in recovered_at and (at := active.recovered()) is not None:
                    recovered_at[kind] = at
            return len(recovered_at) == len(caused)

        self._wait(have_recovered, LONGEST_RECOVERY_S)
        for kind, active in caused:
            since = repaired if active.from_repair else active.at
            at = recovered_at.get(kind)
            self._record(kind, active, None if at is None else max(0.0, at - since))

    def _record(self, kind: str, active: ActiveFault, recovery_s: float | None) -> None:
        self.course.faults.append(PastFault(kind, active.job, active.at, now(), recovery_s))
        said = "never" if recovery_s is None else f"after {recovery_s:.1f} s"
        self._log(f"{len(self.course.faults):3} {kind}: recovered {said}")

    def _count_ended_supervisors(self, before: dict[str, int | None], kinds: set[str]) -> None:
        """Report supervisors that ended although no fault of these kinds ends one."""
        if kinds & SUPERVISOR_ENDS:
            return
        for name, pid in self._site.supervisors().items():
            if None not in {before[name], pid} and before[name] != pid:
                self._site.crashed.append(f"supervisor of {name}, after {' and '.join(sorted(kinds))}")

    # Orders

    @property
    def _videos_ordered(self) -> list[Ordered]:
        return [order for order in self.course.orders if order.video is not None]

    def _open(self) -> list[Ordered]:
        return [order for order in self.course.orders if order.ended is None]

    def _may_order(self) -> bool:
        """Return whether a job may be submitted now. The jobs are spread over the planned faults."""
        ordered, count = len(self._videos_ordered), len(self.course.faults) + 1
        due = 2 + count * self._plan.jobs // self._wanted_faults
        return ordered < self._plan.jobs and (ordered < due or not self._open())

    def _order(self, priority: str = "normal") -> str | None:
        """Order the next video, or repeat an order that was not answered, and return the id of the job."""
        number = len(self._videos_ordered)
        video = number % len(self.course.videos)
        new = {
            **self.course.videos[video],
            "priority": priority,
            "metadata": {"order": str(number)},
            "webhook_url": self._site.receiver.url,
        }
        body, sent_at = self._unanswered or (new, now())
        job_id = self._client.order(body, f"order-{number}")
        self._unanswered = None if job_id else (body, sent_at)
        if job_id:
            self.course.orders.append(Ordered(number, video, job_id, sent_at))
        return job_id

    def _order_urgent(self) -> str | None:
        return self._order("high") if len(self._videos_ordered) < self._plan.jobs else None

    def _order_until_accepted(self, body: Body, key: str) -> str:
        while not (job_id := self._client.order(body, key)):
            time.sleep(LOOK_S)
        return job_id

    def _order_poison(self) -> str | None:
        number, sent_at = self._poisons, now()
        job_id = self._client.order(
            {**poison(), "metadata": {"order": f"poison-{number}"}}, f"poison-{number}"
        )
        if job_id:
            self._poisons += 1
            self.course.orders.append(Ordered(number, None, job_id, sent_at))
        return job_id

    def _cancel_one(self) -> str | None:
        videos = [order for order in self._open() if order.video is not None and not order.cancel]
        if not videos:
            return None
        order = self._rng.choice(videos)
        order.cancel = bool(self._client.cancel(order.job_id))
        return order.job_id if order.cancel else None

    # Time

    def _tick(self) -> None:
        self._site.repair()
        if self._orders_come and self._may_order() and len(self._open()) < AT_A_TIME:
            self._order("low" if len(self._videos_ordered) % LOW_ONE_OF == 0 else "normal")
        for order in self._open():
            job = self._client.job(order.job_id)
            if job is not None and (not job or job["status"] in ENDED):
                order.ended, order.seen_at = job, now()
        time.sleep(LOOK_S)

    def _pause(self, seconds: float) -> None:
        self._wait(lambda: False, seconds)

    def _wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Return whether the condition came true in time. Submit and poll jobs meanwhile."""
        until = time.monotonic() + timeout_s
        while not (true := condition()) and time.monotonic() < until:
            self._tick()
        return true
