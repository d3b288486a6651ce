"""The course of a campaign: undisturbed videos first, then orders and faults at random, then peace.

Everything random comes from the seed; what it meets depends on how fast the machine is.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

from jobs.record import ENDED
from tests.chaos.client import Client, Job
from tests.chaos.faults import CRASHES, EXCUSES, faults
from tests.chaos.orders import Body, draw_videos, poison
from tests.chaos.scene import Blow, Fault, Scene
from tests.chaos.site import MAX_ATTEMPTS, Site, now

LOOK_S = 0.25
LONGEST_RECOVERY_S = 240.0
SETTLING_S = 600.0
AT_A_TIME = 5  # jobs that are not ended
JOBS_FOR_A_FAULT = 3
LOW_ONE_OF = 3  # orders are of low priority, and may have to make way


@dataclass(frozen=True)
class Plan:
    """How many jobs at most, drawn from which seed, for how long at most."""

    jobs: int
    seed: int
    minutes: float


@dataclass
class Ordered:
    """An accepted order. `video` is which of the different videos it is; None is poison."""

    number: int
    video: int | None
    job_id: str
    cancel: bool | None = (
        None  # True: accepted; None: never asked for; False: asked for, in vain or not known
    )
    ended: Job | None = None

    def excuses(self, strikes: list[Strike]) -> set[str]:
        """The errors with which it may have failed, truly."""
        if self.video is None:
            return {"worker_crashed"}
        mine = [strike for strike in strikes if strike.overlaps(self.ended)]
        found = {
            EXCUSES[strike.kind]
            for strike in mine
            if strike.kind in EXCUSES and (strike.job == self.job_id or strike.kind == "disk full")
        }
        crashes = sum(CRASHES.get(strike.kind, 0) for strike in mine)
        return found | ({"worker_crashed"} if crashes >= MAX_ATTEMPTS else set())


@dataclass(frozen=True)
class Strike:
    """A fault as it is remembered: `recovery_s` is None if the work did not go on in time."""

    kind: str
    job: str | None
    at: float
    over_at: float
    recovery_s: float | None

    def overlaps(self, job: Job | None) -> bool:
        """Whether this job was there while it struck."""
        if not job:
            return True
        return self.at <= _seconds(job["finished_at"]) and self.over_at >= _seconds(job["created_at"])


@dataclass
class Course:
    """What happened."""

    videos: list[Body]
    digests: list[str] = field(default_factory=list)
    orders: list[Ordered] = field(default_factory=list)
    strikes: list[Strike] = field(default_factory=list)
    began: float = field(default_factory=now)
    lasted_s: float = 0.0


class Campaign:
    """Runs one, on a site that has been started. `tell` is called with a line on what happens."""

    def __init__(self, site: Site, client: Client, plan: Plan, tell: Callable[[str], None]) -> None:
        self._site, self._client, self._plan, self._tell = site, client, plan, tell
        self._rng = random.Random(plan.seed)
        self.course = Course(draw_videos(self._rng, max(4, min(12, plan.jobs // 4))))
        self._wanted_faults = max(len(faults(site)), plan.jobs // JOBS_FOR_A_FAULT)
        self._poisons = 0
        self._orders_come = False

    def run(self) -> Course:
        self._wait(self._is_up, 300)
        self._undisturbed()
        self.course.began = now()
        self._orders_come = True
        self._disturbed()
        self._orders_come = False
        self._tell("peace: waiting for what is left")
        self._wait(lambda: not self._open(), SETTLING_S)
        self.course.lasted_s = now() - self.course.began
        return self.course

    def _is_up(self) -> bool:
        return all(self._client.answers(url, "/readyz") for url in self._site.apis)

    def _undisturbed(self) -> None:
        """Make each video once."""
        ids = [self._insist(video, f"undisturbed-{i}") for i, video in enumerate(self.course.videos)]
        for job_id in ids:
            self._wait(partial(self._has_succeeded, job_id), 600)
            self.course.digests.append(self._client.video_digest(job_id))
        self._tell(f"{len(ids)} different videos made undisturbed")

    def _has_succeeded(self, job_id: str) -> bool:
        job = self._client.job(job_id) or {}
        assert job.get("status") not in {"failed", "cancelled"}, job
        return job.get("status") == "succeeded"

    def _disturbed(self) -> None:
        until = time.monotonic() + 60 * self._plan.minutes
        scene = Scene(
            self._site, self._client, self._rng, self._order_poison, self._order_urgent, self._cancel_one
        )
        for kind, fault in self._deck():
            self._pause(self._rng.uniform(0.2, 2.5))
            blow = self._try(fault, scene, until)
            if blow:
                self._see_through(kind, blow)
            everything_done = len(self._videos_ordered) >= self._plan.jobs and not self._open()
            if everything_done or time.monotonic() > until:
                return

    def _deck(self) -> Iterator[tuple[str, Fault]]:
        """All kinds in a random order, again and again."""
        kinds = list(faults(self._site).items())
        while True:
            yield from self._rng.sample(kinds, len(kinds))

    def _try(self, fault: Fault, scene: Scene, until: float) -> Blow | None:
        """Strike as soon as there is somebody to strike, within reason."""
        until = min(until, time.monotonic() + 30)
        while time.monotonic() < until and (self._may_order() or self._open()):
            at = now()
            if blow := fault(scene):
                blow.at = at
                return blow
            self._tick()
        return None

    def _see_through(self, kind: str, blow: Blow) -> None:
        self._pause(blow.lasts_s)
        blow.mend()
        mended = now()
        recovered: list[float] = []

        def goes_on() -> bool:
            if (at := blow.recovered()) is not None:
                recovered.append(at)
            return bool(recovered)

        since = mended if blow.from_mend else blow.at
        recovery_s = max(0.0, recovered[0] - since) if self._wait(goes_on, LONGEST_RECOVERY_S) else None
        self.course.strikes.append(Strike(kind, blow.job, blow.at, now(), recovery_s))
        said = "never" if recovery_s is None else f"after {recovery_s:.1f} s"
        self._tell(f"{len(self.course.strikes):3} {kind}: went on {said}")

    # Orders

    @property
    def _videos_ordered(self) -> list[Ordered]:
        return [order for order in self.course.orders if order.video is not None]

    def _open(self) -> list[Ordered]:
        return [order for order in self.course.orders if order.ended is None]

    def _may_order(self) -> bool:
        """Whether there is a job left to order: they are spread over the faults that are wanted."""
        ordered, struck = len(self._videos_ordered), len(self.course.strikes) + 1
        due = 2 + struck * self._plan.jobs // self._wanted_faults
        return ordered < self._plan.jobs and (ordered < due or not self._open())

    def _order(self, priority: str = "normal") -> str | None:
        number = len(self._videos_ordered)
        video = number % len(self.course.videos)
        body = {**self.course.videos[video], "priority": priority, "metadata": {"order": str(number)}}
        job_id = self._client.order(body, f"order-{number}")
        if job_id:
            self.course.orders.append(Ordered(number, video, job_id))
        return job_id

    def _order_urgent(self) -> str | None:
        return self._order("high") if len(self._videos_ordered) < self._plan.jobs else None

    def _insist(self, body: Body, key: str) -> str:
        while not (job_id := self._client.order(body, key)):
            time.sleep(LOOK_S)
        return job_id

    def _order_poison(self) -> str | None:
        number = self._poisons
        job_id = self._client.order(
            {**poison(), "metadata": {"order": f"poison-{number}"}}, f"poison-{number}"
        )
        if job_id:
            self._poisons += 1
            self.course.orders.append(Ordered(number, None, job_id))
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
        self._site.mend()
        if self._orders_come and self._may_order() and len(self._open()) < AT_A_TIME:
            self._order("low" if len(self._videos_ordered) % LOW_ONE_OF == 0 else "normal")
        for order in self._open():
            job = self._client.job(order.job_id)
            if job is not None and (not job or job["status"] in ENDED):
                order.ended = job
        time.sleep(LOOK_S)

    def _pause(self, seconds: float) -> None:
        self._wait(lambda: False, seconds)

    def _wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Whether it came true in time; meanwhile orders are made and followed."""
        until = time.monotonic() + timeout_s
        while not (true := condition()) and time.monotonic() < until:
            self._tick()
        return true


def _seconds(time_of_day: str) -> float:
    return datetime.fromisoformat(time_of_day).timestamp()
