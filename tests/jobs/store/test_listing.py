"""List jobs by pages: filters, cursors that survive deletions, and a bounded number of reads."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime

import pytest

from jobs.errors import JobNotFound
from jobs.store import listing
from jobs.store.listing import Cursor, JobFilter
from model.spec.params import Task
from tests.jobs.examples import ExampleStore
from tests.orders import make_order

TASKS: tuple[Task, ...] = ("text_to_video", "refine")


@pytest.fixture
def store(redis):
    return ExampleStore(redis)


def submitted(store, count, **fields):
    """Submit jobs a millisecond apart, and return their ids, the newest first."""
    ids = []
    for _ in range(count):
        ids.append(store.submit(**fields).id)
        store.clock.advance(0.001)
    return ids[::-1]


def ids(page):
    return [job.id for job in page.jobs]


def time_of(store, job_id):
    return store.client.get(job_id).created_at


def all_pages(client, wanted, limit):
    """Return the ids on all pages by way of `older`."""
    found, after = [], None
    while True:
        page = client.page(wanted, limit, after)
        assert len(page.jobs) <= limit
        found += ids(page)
        if page.older is None:
            return found
        after = Cursor.parse(str(page.older))


def of_task(task, prompts=("a cat",)):
    order = make_order()
    return order.model_copy(update={"plan": order.plan.model_copy(update={"task": task}), "prompts": prompts})


class TestCursors:
    @pytest.mark.parametrize("limit", [1, 2, 3, 7, 50])
    def test_pages_lead_forth_and_back(self, store, limit):
        made = submitted(store, 7)
        pages: list[list[str]] = []
        after = None
        while not pages or after:
            page = store.client.page(JobFilter(), limit, after)
            pages.append(ids(page))
            assert (page.newer is None) == (after is None)
            after = page.older
        assert [job_id for part in pages for job_id in part] == made
        newer, back = page.newer, [pages[-1]]
        while newer:
            page = store.client.page(JobFilter(), limit, before=newer)
            back.append(ids(page))
            newer = page.newer
        assert back[::-1] == pages

    def test_page_behind_a_deleted_job_continues_at_its_place(self, store):
        made = submitted(store, 6)
        first = store.client.page(JobFilter(), 2)
        for job_id in made[1:3]:
            store.client.delete(job_id)
        second = store.client.page(JobFilter(), 2, first.older)
        assert ids(second) == made[3:5]
        for job_id in made[3:4]:
            store.client.delete(job_id)
        assert ids(store.client.page(JobFilter(), 2, before=second.newer)) == [made[0]]

    def test_job_that_changes_its_status_shifts_no_page(self, store):
        made = submitted(store, 5)
        first = store.client.page(JobFilter(("queued",)), 2)
        store.client.cancel(made[1])
        assert ids(store.client.page(JobFilter(("queued",)), 2, first.older)) == made[2:4]

    def test_new_jobs_are_on_the_page_before_the_first(self, store):
        made = submitted(store, 2)
        second = store.client.page(JobFilter(), 1, Cursor(made[0]))
        assert ids(second) == made[1:]
        first = store.client.page(JobFilter(), 5, before=second.newer)
        assert (ids(first), first.newer) == (made[:1], None)
        new = submitted(store, 1)
        again = store.client.page(JobFilter(), 5, before=first.older)
        assert ids(again) == new

    def test_no_page_is_before_the_first_after_the_newest_job_is_gone(self, store):
        made = submitted(store, 3)
        first = store.client.page(JobFilter(), 1)
        store.client.delete(made[0])
        second = store.client.page(JobFilter(), 1, first.older)
        assert (ids(second), second.newer) == (made[1:2], None)

    def test_cursor_of_a_job_without_a_time_has_that_of_the_job_before(self, store, redis, monkeypatch):
        monkeypatch.setattr("jobs.store.listing.MAX_LOOKED_AT", 2)
        monkeypatch.setattr("jobs.store.listing._CHUNK", 1)
        oldest = store.submit(order=of_task("refine")).id
        store.clock.advance(1)
        newest, untimed = submitted(store, 2)
        time_ms = round(time_of(store, newest).timestamp() * 1000)
        redis.hdel(f"longcat:job:{untimed}", "created_ms")
        first = store.client.page(JobFilter(task="refine"), 1)
        assert (ids(first), first.older) == ([], Cursor(untimed, time_ms))
        store.client.delete(untimed)
        assert ids(store.client.page(JobFilter(task="refine"), 1, first.older)) == [oldest]

    def test_id_of_a_job_that_is_gone_is_not_found(self, store):
        with pytest.raises(JobNotFound):
            store.client.page(JobFilter(), 2, Cursor.parse("nobody"))


class TestFilters:
    @pytest.mark.parametrize("limit", [1, 3, 20])
    def test_task(self, store, limit):
        made: dict[Task, list[str]] = {task: [] for task in TASKS}
        for index in range(9):
            task = TASKS[index % 3 == 0]
            made[task].insert(0, store.submit(order=of_task(task)).id)
        for task in TASKS:
            assert all_pages(store.client, JobFilter(task=task), limit) == made[task]

    @pytest.mark.parametrize("limit", [1, 20])
    def test_text_of_any_prompt_in_upper_or_lower_case(self, store, redis, limit):
        prompts = [
            ("A red ball", "it rolls"),
            ("a RED cube",),
            ("a blue ball",),
            ("ein roter Ball in der STRASSE",),
        ]
        rolls, cube, blue, strasse = (
            store.submit(order=of_task("long_video", texts)).id for texts in prompts
        )
        broken, no_hash = (store.submit(order=of_task("long_video")).id for _ in range(2))
        redis.hset(f"longcat:job:{broken}", "order", "[]")
        redis.set(f"longcat:job:{no_hash}", "red ball")
        for text, expected in (("red", [cube, rolls]), ("ROLLS", [rolls]), ("ball", [strasse, blue, rolls])):
            assert all_pages(store.client, JobFilter(text=text), limit) == expected
        assert all_pages(store.client, JobFilter(text="straße"), limit) == [strasse]
        for spelling in ("caf\u00e9", "cafe\u0301"):  # one character or two
            cafe = store.submit(order=of_task("text_to_video", (f"a {spelling}",))).id
            for text in ("CAF\u00c9", "cafe\u0301"):
                assert all_pages(store.client, JobFilter(text=text), limit)[0] == cafe
        assert all_pages(store.client, JobFilter(text="red", task="refine"), limit) == []

    def test_marks_of_a_prompt_are_ordered_a_few_at_a_time(self, store, monkeypatch):
        lengths = []

        def normalize(form, part):
            lengths.append(len(part))
            return unicodedata.normalize(form, part)

        monkeypatch.setattr(listing, "normalize", normalize)
        job = store.submit(order=of_task("text_to_video", ("a" + "\u0301\u0316" * 1000 + " ball",)))
        assert all_pages(store.client, JobFilter(text="BALL"), 1) == [job.id]
        assert max(lengths) <= 200

    def test_words_of_a_prompt_are_composed_many_at_a_time(self, store, monkeypatch):
        parts = []

        def normalize(form, part):
            parts.append(part)
            return unicodedata.normalize(form, part)

        monkeypatch.setattr(listing, "normalize", normalize)
        prompt = "a cafe\u0301 " * 400
        job = store.submit(order=of_task("text_to_video", (prompt,)))
        assert all_pages(store.client, JobFilter(text="CAFÉ A"), 1) == [job.id]
        assert len(parts) < 40

    def test_time_of_submission(self, store):
        made = submitted(store, 9)
        times = [time_of(store, job_id) for job_id in made]
        for newest in range(9):
            for oldest in range(newest, 9):
                wanted = JobFilter(created_after=times[oldest], created_before=times[newest])
                assert all_pages(store.client, wanted, 2) == made[newest + 1 : oldest + 1]
        assert all_pages(store.client, JobFilter(created_before=datetime(2000, 1, 1, tzinfo=UTC)), 2) == []
        assert all_pages(store.client, JobFilter(created_after=datetime(2000, 1, 1, tzinfo=UTC)), 2) == made

    def test_bounds_in_time_are_searched_once_for_each_page(self, store, redis):
        made = submitted(store, 64)
        since, until = time_of(store, made[40]), time_of(store, made[20])
        wanted = JobFilter(created_after=since, created_before=until)
        first = store.client.page(wanted, 5)
        assert first.total == 20
        redis.config_resetstat()
        second = store.client.page(wanted, 5, first.older)
        assert ids(second) == made[26:31]
        assert redis.info("commandstats")["cmdstat_hget"]["calls"] <= 2 * 7 + 1

    def test_time_among_records_that_are_gone_or_broken(self, store, redis):
        made = submitted(store, 12)
        since = time_of(store, made[5])
        for index in (0, 3, 4, 6, 7, 8):
            redis.delete(f"longcat:job:{made[index]}")
        redis.hdel(f"longcat:job:{made[2]}", "created_ms")
        found = all_pages(store.client, JobFilter(created_after=since), 3)
        assert found == [made[1], made[5]]

    @pytest.mark.parametrize("limit", [1, 2, 20])
    def test_several_statuses(self, store, limit):
        made = submitted(store, 7)
        claimed = [store.claim().job.id for _ in range(2)]  # the oldest
        cancelled = made[1::3]
        for job_id in cancelled:
            store.client.cancel(job_id)
        wanted = JobFilter(("running", "cancelled", "running"))
        expected = [job_id for job_id in made if job_id in {*cancelled, *claimed}]
        assert all_pages(store.client, wanted, limit) == expected
        page = store.client.page(wanted, limit, before=Cursor(expected[-1]))
        assert (ids(page), page.total) == (expected[:-1][-limit:], len(expected))

    def test_all_filters_of_one_owner(self, store):
        for owner in ("alice", "bob"):
            for task in TASKS:
                submitted(store, 2, owner=owner, order=of_task(task))
        alices = store.client.for_owner("alice")
        wanted = JobFilter(("queued",), task="refine")
        found = all_pages(alices, wanted, 1)
        assert len(found) == 2
        assert {store.client.get(job_id).owner for job_id in found} == {"alice"}
        since = JobFilter(("queued",), "refine", created_after=time_of(store, found[0]))
        assert all_pages(alices, since, 1) == found[:1]
        store.client.cancel(found[0])
        assert all_pages(alices, wanted, 1) == found[1:]


class TestBounds:
    def test_page_looks_at_a_limited_number_of_jobs_for_a_task(self, store, monkeypatch):
        monkeypatch.setattr("jobs.store.listing.MAX_LOOKED_AT", 4)
        monkeypatch.setattr("jobs.store.listing._CHUNK", 2)
        oldest = store.submit(order=of_task("refine")).id
        others = submitted(store, 9)
        for limit in (5, 1):
            first = store.client.page(JobFilter(task="refine"), limit)
            assert (ids(first), first.older.job_id) == ([], others[3])
        assert all_pages(store.client, JobFilter(task="refine"), 5) == [oldest]
        newest = store.submit(order=of_task("refine")).id
        full = store.client.page(JobFilter(task="refine"), 1)
        assert (ids(full), full.older.job_id) == ([newest], others[2])

    @pytest.mark.parametrize(
        "wanted", [JobFilter(), JobFilter(created_before=datetime(2100, 1, 1, tzinfo=UTC))]
    )
    def test_number_of_commands_hardly_grows_with_the_number_of_jobs(self, store, redis, wanted):
        counts = []
        for num_jobs in (100, 1500):
            submitted(store, num_jobs)
            redis.config_resetstat()
            store.client.page(wanted, 10)
            counts.append(sum(command["calls"] for command in redis.info("commandstats").values()) - 1)
        few, many = counts
        assert many <= few + 2 * 4  # four more steps of a binary search, two commands each
