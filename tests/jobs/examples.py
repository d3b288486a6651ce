"""Orders, submissions and results to try things with, and a clock that moves when it is told to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redis import Redis

from jobs.keys import new_job_id, thumbnail_key, video_key
from jobs.order import Order
from jobs.record import Job, Result
from jobs.submission import Submission
from jobs.transitions import Claim, Ledger

LEASE_S = 30.0
ORDER = Order(
    task="text_to_video",
    prompts=("a red ball rolls — «über» 球",),
    negative_prompt="blurry",
    height=480,
    width=832,
    num_frames=93,
    num_segments=1,
    num_condition_frames=0,
    num_inference_steps=50,
    guidance_scale=4.0,
    distilled=False,
    condition_cache=True,
    enhance_hf=True,
    fps=15,
    seed=7,
)


@dataclass
class Clock:
    """Milliseconds that pass when a test says so."""

    now_ms: int = 1_700_000_000_000

    def __call__(self) -> int:
        return self.now_ms

    def advance(self, seconds: float) -> None:
        self.now_ms += round(seconds * 1000)


@dataclass
class Desk:
    """A ledger with a clock of its own, and the few steps that most tests begin with."""

    ledger: Ledger
    clock: Clock

    @classmethod
    def open(cls, redis: Redis, **options: Any) -> Desk:
        clock = Clock()
        return cls(Ledger(redis, clock=clock, **options), clock)

    def submit(self, **fields: Any) -> Job:
        return self.ledger.submit(a_submission(**fields))

    def claim(self, group: str = "a") -> Claim:
        claim = self.ledger.claim(group, LEASE_S)
        assert claim is not None
        return claim

    def start(self, **fields: Any) -> Claim:
        """Submit a job and claim it."""
        job = self.submit(**fields)
        claim = self.claim()
        assert claim.job.id == job.id
        return claim

    def lose_lease(self) -> None:
        """Let all leases run out, seen by sweepers that never slept, and sweep."""
        for _ in range(int(LEASE_S) + 1):
            self.ledger.sweep()
            self.clock.advance(1)
        self.ledger.sweep()


def keys_of(redis: Redis, pattern: str = "*") -> set[str]:
    """The names of all keys that match."""
    return {key.decode() if isinstance(key, bytes) else key for key in redis.keys(pattern)}


def a_submission(**fields: Any) -> Submission:
    return Submission(**{"id": new_job_id(), "order": ORDER, **fields})


def a_result(claim: Claim) -> Result:
    return Result(
        video_key=video_key(claim.job.id, claim.attempt),
        thumbnail_key=thumbnail_key(claim.job.id, claim.attempt),
        width=832,
        height=480,
        num_frames=93,
        fps=15,
        duration_s=6.2,
        size_bytes=1000,
        sha256="0" * 64,
        seed=7,
    )
