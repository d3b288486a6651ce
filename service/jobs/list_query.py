"""Define the query of `GET /jobs`: filters, and the page to return."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, BeforeValidator, Field

from jobs.errors import InvalidRequest, JobNotFound
from jobs.record import Status
from jobs.store.listing import Cursor, JobFilter
from model.spec.params import Task
from service.backend import RequestBackend
from service.jobs.showing import show_all
from service.jobs.views import JobPage

_TIME = re.compile(r"(\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?)([Zz]|[-+ ]\d\d:\d\d)")


def _check_time(text: object) -> object:
    """Refuse what is not RFC 3339, such as numbers. A `+` that was not escaped arrives as a space."""
    found = _TIME.fullmatch(text) if isinstance(text, str) else None
    if not found:
        raise ValueError("must be a time with a time zone, such as 2026-11-28T15:00:00Z")
    return found[1] + found[2].replace(" ", "+")


Time = Annotated[AwareDatetime, BeforeValidator(_check_time)]


class ListQuery(BaseModel):
    """Conditions on jobs, and a place in the list. Times are RFC 3339."""

    status: list[Status] = Field([], description="Only jobs with this status, or with one of several.")
    task: Task | None = Field(None, description="Only jobs of this task.")
    text: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="Only jobs with this text in a prompt; case is ignored.",
    )
    created_after: Time | None = Field(
        None, description="Only jobs submitted at this time or later. RFC 3339."
    )
    created_before: Time | None = Field(None, description="Only jobs submitted before this time. RFC 3339.")
    batch: str | None = Field(None, min_length=1, max_length=100, description="Only jobs of this batch.")
    owner: str | None = Field(
        None,
        max_length=100,
        description="Only jobs of this owner. An API key sees those of its own owner only, unless it is that "
        "of an admin.",
    )
    limit: int = Field(20, ge=1, le=100)
    after: str | None = Field(None, max_length=150, description="`next` of another page.")
    before: str | None = Field(None, max_length=150, description="`previous` of another page.")

    def page_and_total(self, backend: RequestBackend) -> tuple[JobPage, int | None]:
        """Return the page, and the number of jobs on all pages if it is known without reading them.

        Raises InvalidRequest, JobNotFound, Unavailable.
        """
        if self.after is not None and self.before is not None:
            raise InvalidRequest("before: cannot be combined with after", "before")
        client = backend.jobs if self.owner is None else backend.jobs_of(self.owner)
        wanted = JobFilter(
            statuses=tuple(self.status),
            task=self.task,
            created_after=self.created_after,
            created_before=self.created_before,
            batch=self.batch,
            text=self.text,
        )
        try:
            found = client.page(wanted, self.limit, _cursor(self.after), _cursor(self.before))
        except JobNotFound as error:
            raise JobNotFound(error.message, "before" if self.after is None else "after") from error
        page = JobPage(
            jobs=show_all(found.jobs, backend),
            next=None if found.older is None else str(found.older),
            previous=None if found.newer is None else str(found.newer),
        )
        return page, found.total


def _cursor(text: str | None) -> Cursor | None:
    return None if text is None else Cursor.parse(text)
