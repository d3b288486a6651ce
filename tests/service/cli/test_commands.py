"""The commands against a running service: output, files and exit codes."""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

import longcat_video_client
from jobs.errors import OutOfMemory
from jobs.registration import GroupRegistration
from service.cli import __main__ as command
from service.cli import errors
from service.cli.arguments import EXIT_CODES, options_of_video, parser
from service.keys.api_keys import ApiKeys
from service.version import installed_version
from tests.servers import free_port
from tests.service.cli.conftest import Ran
from tests.service.conftest import CAPABILITY
from tests.service.hosts import host, redirecting, sending
from tests.service.media import clip, encoded, picture
from tests.service.working import working

ROOT = Path(__file__).parents[3]
PAGE = b'{"jobs": [], "next": null}'


@pytest.fixture
def cat(tmp_path):
    path = tmp_path / "cat.png"
    path.write_bytes(encoded(picture()))
    return path


class TestGenerate:
    def test_saves_the_video_and_prints_its_path(self, at_service, worker, cat, tmp_path):
        out = tmp_path / "out.mp4"
        with working(worker, worker.succeed):
            ran = at_service("generate", "the cat stands up", "--image", cat, "-o", out)
        assert (ran.code, ran.out) == (0, f"{out}\n")
        assert out.read_bytes() == b"a video"
        assert {path.name for path in tmp_path.iterdir()} == {"cat.png", "out.mp4", "upload"}

    def test_shows_progress_on_standard_error(self, at_service, worker, tmp_path):
        def seen(claim):
            while worker.job_store.client.get(claim.job.id).status != "running":
                pass
            worker.succeed(claim)

        with working(worker, seen):
            ran = at_service("generate", "a red ball", "-o", tmp_path / "out.mp4")
        lines = ran.err.splitlines()
        assert lines[0].startswith("job ")
        assert lines[-1] == "succeeded"

    def test_sends_every_option(self, at_service, worker, cat):
        words = ["generate", "[one]", "2", "--image", cat, "--seed", 7, "--steps", 3, "--height", 64]
        words += ["--width", 96, "--num-frames", 9, "--guidance-scale", 2.5, "--negative-prompt", "7"]
        words += ["--refine", "--priority", "high", "--metadata", "a=b=c", "--metadata", "team=x"]
        ran = at_service(*words, "--no-wait")
        assert ran.code == 0, ran.err
        job = worker.claim().job
        assert job.id == ran.out.strip()
        order, plan = job.order, job.order.plan
        assert (plan.task, order.prompts, order.negative_prompt) == ("long_video", ("[one]", "2"), "7")
        assert (order.seed, plan.num_inference_steps, plan.num_frames) == (7, 3, 9)
        assert (plan.height, plan.width, plan.guidance_scale) == (64, 96, 2.5)
        assert plan.refinement
        assert (job.priority, job.metadata) == ("high", {"a": "b=c", "team": "x"})

    def test_deadline_is_sent_and_one_that_cannot_be_met_is_refused(self, at_service, redis):
        job = at_service("generate", "a", "--deadline-s", 600, "--no-wait").out.strip()
        shown = json.loads(at_service("status", job).out)
        assert (shown["request"]["deadline_s"], shown["deadline_met"]) == (600, None)
        work_units = redis.hget(f"longcat:job:{job}", "work_units").decode()
        redis.lpush("longcat:recent_runs", f"text_to_video {work_units} 60000")
        GroupRegistration(redis, "a", ttl_s=600).heartbeat("ready", 1, capability=CAPABILITY)
        ran = at_service("generate", "a", "--deadline-s", 5, "--refuse-if-late", "--no-wait")
        assert (ran.code, ran.out) == (3, "")
        assert "deadline_s: the video is expected 120 s after submission, later than 5 s" in ran.err

    def test_sends_a_clip(self, at_service, worker, tmp_path):
        path = tmp_path / "clip.mp4"
        path.write_bytes(clip(17))
        assert at_service("generate", "on", "--video", path, "--no-wait").code == 0
        assert worker.claim().job.order.plan.task == "video_continuation"

    @pytest.mark.parametrize(
        ("words", "task"),
        [
            (["--image", "job:{}"], "image_to_video"),
            (["--image", "job:{}:0"], "image_to_video"),
            (["--image", "job:{}:-17"], "image_to_video"),
            (["--video", "job:{}"], "video_continuation"),
        ],
    )
    def test_sends_the_video_of_a_job(self, at_service, worker, words, task):
        finished = at_service("generate", "a", "--no-wait").out.strip()
        worker.succeed(worker.claim(), video=clip(17))
        ran = at_service("generate", "on", *(word.format(finished) for word in words), "--no-wait")
        assert ran.code == 0, ran.err
        assert worker.claim().job.order.plan.task == task

    def test_repeated_with_a_key_creates_one_job(self, at_service):
        ran = [at_service("generate", "a", "--no-wait", "--idempotency-key", "k") for _ in range(2)]
        assert ran[0].out == ran[1].out

    def test_repeated_without_a_key_creates_two_jobs(self, at_service):
        ran = [at_service("generate", "a", "--no-wait") for _ in range(2)]
        assert ran[0].out != ran[1].out

    def test_prompt_is_read_from_standard_input(self, at_service, worker, monkeypatch):
        monkeypatch.setattr("sys.stdin", io.StringIO("a red ball\n"))
        assert at_service("generate", "-", "--no-wait").code == 0
        assert worker.claim().job.order.prompts == ("a red ball",)

    def test_image_is_read_from_standard_input(self, at_service, worker, monkeypatch):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(encoded(picture()))))
        assert at_service("generate", "a cat", "--image", "-", "--no-wait").code == 0
        assert worker.claim().job.order.plan.task == "image_to_video"

    def test_standard_input_is_read_only_once(self, at_service):
        ran = at_service("generate", "-", "--image", "-", "--no-wait")
        assert ran.code == 6
        assert "only once" in ran.err

    def test_standard_input_that_is_no_text_is_an_error(self, at_service, monkeypatch):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
        assert at_service("generate", "-", "--no-wait").code == 6

    def test_prints_the_job_and_the_path_in_json(self, at_service, worker, tmp_path):
        out = tmp_path / "out.mp4"
        with working(worker, worker.succeed):
            shown = json.loads(at_service("generate", "a", "--json", "-o", out).out)
        assert (shown["status"], shown["path"]) == ("succeeded", str(out))
        assert at_service("generate", "a", "--json", "-o", "-").code == 6

    def test_prints_jobs_that_it_does_not_wait_for_in_json(self, at_service):
        shown = json.loads(at_service("generate", "a", "--num-videos", 2, "--no-wait", "--json").out)
        assert [job["status"] for job in shown] == ["queued", "queued"]


class TestPresets:
    def test_preset_is_saved_used_and_deleted(self, at_service, worker):
        words = ["--prompt", "a", "b", "--steps", 3, "--num-videos", 2, "--priority", "low"]
        assert at_service("presets", "save", "draft", *words).out == "draft\n"
        assert at_service("presets", "save", "other").code == 0
        options = '{"num_inference_steps": 3, "prompts": ["a", "b"], "num_videos": 2, "priority": "low"}'
        lines = at_service("presets").out.splitlines()
        assert [line.partition("  ")[0] for line in lines] == ["draft", "other"]
        assert json.loads(lines[0].partition("  ")[2]) == json.loads(options)
        assert at_service("presets", "list").out.splitlines() == lines
        assert json.loads(at_service("presets", "--json").out) == {"draft": json.loads(options), "other": {}}
        ran = at_service("generate", "c", "--preset", "draft", "--num-videos", 1, "--seed", 7, "--no-wait")
        assert ran.code == 0, ran.err
        job = worker.claim().job
        assert (job.id, job.order.prompts, job.order.seed) == (ran.out.strip(), ("c",), 7)
        assert (job.order.plan.num_inference_steps, job.priority) == (3, "low")
        assert at_service("presets", "delete", "draft").code == 0
        assert at_service("presets").out == "other  {}\n"

    def test_segments_replace_the_prompt_of_a_preset(self, at_service, worker):
        at_service("presets", "save", "draft", "--prompt", "a")
        assert at_service("generate", "b", "c", "--preset", "draft", "--no-wait").code == 0
        assert worker.claim().job.order.prompts == ("b", "c")

    def test_unknown_preset_and_wrong_options_are_refused(self, at_service):
        for words in (["delete", "no"], ["save", "no", "--num-videos", 17], ["save", "a/b"]):
            assert at_service("presets", *words).code == 3, words
        ran = at_service("generate", "a", "--preset", "no", "--no-wait")
        assert (ran.code, ran.err) == (3, "there is no preset 'no' (preset_not_found)\n")

    def test_several_videos_of_a_preset_cannot_go_to_standard_output(self, at_service):
        at_service("presets", "save", "draft", "--num-videos", 2)
        assert at_service("generate", "a", "--preset", "draft", "-o", "-").code == 6


class TestSeveralVideos:
    def test_saves_each_with_its_seed_in_its_name(self, at_service, worker, tmp_path):
        out = tmp_path / "out.mp4"
        with working(worker, worker.succeed):
            ran = at_service("generate", "a", "--num-videos", 2, "--seed", 7, "-o", out)
        paths = [tmp_path / "out-7.mp4", tmp_path / "out-8.mp4"]
        assert (ran.code, ran.out) == (0, "".join(f"{path}\n" for path in paths))
        assert [path.read_bytes() for path in paths] == [b"a video"] * 2

    def test_saves_each_under_its_job_without_output(self, at_service, worker, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with working(worker, worker.succeed):
            ran = at_service("generate", "a", "--num-videos", 2)
        assert len(set(ran.out.split())) == len(list(tmp_path.glob("*.mp4"))) == 2

    def test_saves_the_others_if_some_fail(self, at_service, worker, tmp_path):
        def end(claim):
            if claim.job.order.seed == 8:
                worker.succeed(claim)
            else:
                worker.job_store.holder.fail(claim, OutOfMemory(f"{claim.job.order.seed} fails"), {})

        with working(worker, end):
            ran = at_service("generate", "a", "--num-videos", 3, "--seed", 7, "-o", tmp_path / "out.mp4")
        assert (ran.code, ran.out) == (1, f"{tmp_path / 'out-8.mp4'}\n")
        assert "7 fails" in ran.err
        assert "9 fails" in ran.err

    def test_ids_are_printed_and_cancelled_together(self, at_service):
        jobs = at_service("generate", "a", "--num-videos", 3, "--no-wait").out.split()
        alone = at_service("generate", "a", "--no-wait").out.strip()
        batch = json.loads(at_service("status", jobs[1]).out)["batch"]
        assert batch["job_ids"] == jobs
        listed = at_service("list", "--batch", batch["id"]).out.splitlines()
        assert [line.split()[0] for line in listed] == list(reversed(jobs))
        assert at_service("cancel", jobs[0]).out == "cancelled\n"
        assert at_service("cancel", jobs[1], "--batch").out == "cancelled\n" * 3
        assert at_service("cancel", alone, "--batch").out == "cancelled\n"

    def test_standard_output_takes_one_video(self, at_service):
        ran = at_service("generate", "a", "--num-videos", 2, "-o", "-")
        assert (ran.code, "several videos" in ran.err) == (6, True)
        assert at_service("list").out == ""


class TestOtherCommands:
    @pytest.fixture
    def job(self, at_service):
        return at_service("generate", "a red ball", "--no-wait").out.strip()

    def test_status_prints_the_job(self, at_service, job):
        shown = json.loads(at_service("status", job).out)
        assert (shown["id"], shown["status"]) == (job, "queued")

    def test_cancel_cancels_the_job(self, at_service, job):
        assert at_service("cancel", job).out == "cancelled\n"
        assert json.loads(at_service("status", job).out)["status"] == "cancelled"

    def test_list_prints_a_line_per_job(self, at_service, job, worker):
        other = at_service("generate", "one", "two", "--no-wait").out.strip()
        lines = at_service("list").out.splitlines()
        assert [line.split()[0] for line in lines] == [other, job]
        assert "queued, number 1" in lines[1]
        assert lines[1].endswith("a red ball")
        assert at_service("list", "--status", "running").out == ""
        assert at_service("list", "--status", "running", "--status", "queued").out.splitlines() == lines
        assert len(at_service("list", "--limit", 1).out.splitlines()) == 1
        assert [shown["id"] for shown in json.loads(at_service("list", "--json").out)] == [other, job]

    def test_list_selects_a_task_and_a_time(self, at_service, job):
        long = at_service("generate", "one", "two", "--no-wait").out.strip()
        lines = at_service("list", "--task", "long_video").out.splitlines()
        assert [line.split()[0] for line in lines] == [long]
        assert at_service("list", "--text", "TWO").out.splitlines() == lines
        assert at_service("list", "--created-before", "2020-01-01T00:00Z").out == ""
        assert len(at_service("list", "--created-after", "2020-01-01T00:00").out.splitlines()) == 2

    def test_list_shows_an_admin_whose_jobs_they_are(self, at_service, job, redis, monkeypatch):
        keys = ApiKeys(redis)
        alice, ops = keys.create("alice"), keys.create("ops", admin=True)
        monkeypatch.setenv("LONGCAT_API_KEY", alice)
        own = at_service("generate", "a blue star", "--no-wait").out.strip()
        assert "alice" not in at_service("list").out
        monkeypatch.setenv("LONGCAT_API_KEY", ops)
        assert [line.split()[0] for line in at_service("list").out.splitlines()] == [own, job]
        assert "alice  a blue star" in at_service("list").out
        assert at_service("list", "--owner", "alice").out.split()[0] == own

    @pytest.mark.parametrize("control", ["\x1b[2J", "\x9b2J", "\x07", "\n", "\r"])
    def test_list_sends_no_control_characters_to_the_terminal(self, at_service, control):
        job = at_service("generate", f"a red{control}ball", "--no-wait").out.strip()
        assert at_service("list").out.endswith(f"a red {control[1:]}ball\n")
        shown = at_service("status", job).out
        assert control[0] not in shown.replace("\n", "")
        assert json.loads(shown)["request"]["prompt"] == f"a red{control}ball"

    def test_retry_makes_another_job_with_changes(self, at_service, job):
        other = at_service("retry", job, "--prompt", "a blue star", "--seed", 8, "--no-wait").out.strip()
        request = json.loads(at_service("status", other).out)["request"]
        assert (request["prompt"], request["seed"]) == ("a blue star", 8)
        again = at_service("retry", other, "--no-wait").out.strip()
        assert json.loads(at_service("status", again).out)["request"]["prompt"] == "a blue star"

    def test_usage_prints_a_line_per_day(self, at_service, redis):
        assert at_service("usage").out == ""
        redis.hset("longcat:usage:20000", "anonymous", 2500)
        redis.hset(f"longcat:usage:{int(time.time() // 86400)}", "anonymous", 2500)
        assert at_service("usage").out.endswith("2.5 s  anonymous\n")
        redis.hset(f"longcat:usage:{int(time.time() // 86400)}:cost:anonymous", "EUR", "1.234567891")
        assert at_service("usage").out.endswith("2.5 s  1.23 EUR  anonymous\n")
        assert json.loads(at_service("usage", "--json").out)[0]["gpu_s"] == 2.5

    def test_download_saves_a_finished_job(self, at_service, job, worker, tmp_path, monkeypatch):
        worker.succeed(worker.claim())
        monkeypatch.chdir(tmp_path)
        assert at_service("download", job).out == f"{job}.mp4\n"
        assert (tmp_path / f"{job}.mp4").read_bytes() == b"a video"

    def test_download_again_replaces_the_file(self, at_service, job, worker, tmp_path):
        worker.succeed(worker.claim())
        out = tmp_path / "out.mp4"
        out.write_bytes(b"something longer than the video")
        assert at_service("download", job, "-o", out).code == 0
        assert out.read_bytes() == b"a video"

    def test_delete_removes_jobs(self, at_service, job):
        other = at_service("generate", "another", "--no-wait").out.strip()
        assert at_service("delete", job, other) == Ran(0, "", "")
        assert at_service("list").out == ""
        assert at_service("delete", job).code == 3

    def test_capability_prints_what_can_be_requested(self, at_service):
        assert json.loads(at_service("capability").out)["tasks"] == list(CAPABILITY.tasks)

    def test_version_is_that_of_the_installation(self, run):
        assert run("--version") == Ran(0, f"longcat {installed_version()}\n", "")

    def test_timeline_merges_several_jobs(self, at_service, job, worker, tmp_path):
        jobs = [job, at_service("generate", "another", "--no-wait").out.strip()]
        for _ in jobs:
            worker.succeed(worker.claim())
        out = tmp_path / "trace.json"
        assert at_service("timeline", *jobs, "-o", out).out == f"{out}\n"
        events = json.loads(out.read_text())["traceEvents"]
        assert [event["args"]["job"] for event in events] == jobs

    def test_timeline_of_an_unfinished_job_is_refused(self, at_service, job, tmp_path):
        ran = at_service("timeline", job, "-o", tmp_path / "trace.json")
        assert (ran.code, ran.out) == (3, "")
        assert "job_not_ready" in ran.err
        assert not (tmp_path / "trace.json").exists()


class TestSeveralJobs:
    """A command goes on after the error of a job, reports it, and exits with the code of the first."""

    @pytest.fixture
    def submitted(self, at_service):
        """Return the ids of two queued jobs."""
        return [at_service("generate", "a", "--no-wait").out.strip() for _ in range(2)]

    @pytest.fixture
    def with_missing(self, submitted):
        """Return the ids of two jobs, with that of one which does not exist between them."""
        return [submitted[0], "nobody", submitted[1]]

    def test_delete_removes_the_others(self, at_service, with_missing):
        ran = at_service("delete", *with_missing)
        assert (ran.code, ran.out, ran.err.count("\n")) == (3, "", 1)
        assert ran.err.startswith("nobody: ")
        assert at_service("list").out == ""

    def test_delete_prints_each_in_json(self, at_service, with_missing):
        first, missing, last = documents(at_service("delete", "--json", *with_missing).out)
        assert [first, last] == [
            {"id": with_missing[0], "deleted": True},
            {"id": with_missing[2], "deleted": True},
        ]
        assert (missing["id"], missing["error"]["code"]) == ("nobody", "job_not_found")

    def test_cancel_names_the_job_of_each_status(self, at_service, with_missing):
        ran = at_service("cancel", *with_missing)
        assert (ran.code, ran.out.splitlines()) == (3, [f"{job}  cancelled" for job in with_missing[::2]])

    def test_cancel_prints_each_in_json(self, at_service, with_missing):
        found = documents(at_service("cancel", "--json", *with_missing).out)
        assert [job["id"] for job in found] == with_missing
        assert [job.get("status") for job in found] == ["cancelled", None, "cancelled"]

    def test_status_prints_each_in_json(self, at_service, with_missing):
        ran = at_service("status", *with_missing)
        assert ran.code == 3
        assert [job["id"] for job in documents(ran.out)] == with_missing

    def test_retry_submits_all_before_it_waits(self, at_service, worker, with_missing, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with working(worker, worker.succeed):
            ran = at_service("retry", *with_missing)
        assert (ran.code, len(ran.out.split())) == (3, 2)
        assert {path.name for path in tmp_path.glob("*.mp4")} == set(ran.out.split())

    def test_retry_prints_one_array_without_waiting(self, at_service, with_missing):
        ran = at_service("retry", "--no-wait", "--json", *with_missing)
        first, second, missing = json.loads(ran.out)
        assert {first["status"], second["status"]} == {"queued"}
        assert missing["id"] == "nobody"

    def test_retry_of_missing_jobs_prints_nothing(self, at_service):
        ran = at_service("retry", "--no-wait", "no", "nobody")
        assert (ran.code, ran.out) == (3, "")

    def test_first_error_decides_the_exit_code(self, at_service, worker, submitted, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        at_service("cancel", submitted[0])
        with working(worker, worker.succeed):
            ran = at_service("download", submitted[0], "nobody", submitted[1])
        assert (ran.code, ran.out) == (5, f"{submitted[1]}.mp4\n")
        assert at_service("download", "nobody", submitted[0]).code == 3

    def test_timeline_has_the_others(self, at_service, worker, submitted, tmp_path):
        with working(worker, worker.succeed):
            at_service("download", submitted[0], "-o", tmp_path / "a.mp4")
        trace = tmp_path / "trace.json"
        ran = at_service("timeline", "nobody", submitted[0], "-o", trace)
        assert (ran.code, ran.out) == (3, f"{trace}\n")
        assert json.loads(trace.read_text())["traceEvents"]

    def test_unreachable_service_is_tried_once(self, run):
        asked = []

        def answer(request):
            asked.append(request.path)
            sending(b"", status=503)(request)

        with host(answer) as url:
            ran = run("--url", url.removesuffix("/file"), "--patience", 0, "cancel", "job-1", "job-2")
        assert (ran.code, asked) == (4, ["/jobs/job-1/cancel"])
        assert [line.partition(":")[0] for line in ran.err.splitlines()] == ["job-1", "job-2"]

    @pytest.mark.parametrize("words", [["download", "-o", "a.mp4"], ["retry", "--idempotency-key", "k"]])
    def test_options_of_one_job_are_refused(self, run, words):
        ran = run(*words, "a", "b")
        assert (ran.code, "several jobs" in ran.err) == (2, True)


def documents(text):
    """Return the JSON documents that follow each other in a text."""
    found, decoder = [], json.JSONDecoder()
    while text := text.lstrip():
        document, end = decoder.raw_decode(text)
        found.append(document)
        text = text[end:]
    return found


class TestCompletion:
    @pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
    @pytest.mark.parametrize(
        ("words", "found"),
        [
            (["longcat", "gen"], "generate"),
            (["longcat", "cap"], "capability"),
            (["longcat", "--ver"], "--version"),
            (["longcat", "list", "--sta"], "--status"),
        ],
    )
    def test_bash_completes_commands_and_options(self, run, tmp_path, words, found):
        script = tmp_path / "completion"
        script.write_text(run("completion", "bash").out)
        code = f"source {script}; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}"
        code += "; $(complete -p longcat | sed 's/.*-F \\([^ ]*\\).*/\\1/'); echo ${COMPREPLY[@]}"
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.split() == [found]


class TestExitCodes:
    def test_1_the_job_failed(self, at_service, worker, tmp_path):
        def fail(claim):
            worker.job_store.holder.fail(claim, OutOfMemory("does not fit"), {})

        with working(worker, fail):
            ran = at_service("generate", "a", "-o", tmp_path / "out.mp4")
        assert (ran.code, ran.out) == (1, "")
        assert "does not fit (out_of_memory)" in ran.err
        assert not (tmp_path / "out.mp4").exists()

    @pytest.mark.parametrize(
        "words",
        [
            [],
            ["dance"],
            ["generate"],
            ["generate", "a", "--seed", "new"],
            ["generate", "a", "--metadata", "no sign"],
            ["generate", "a", "--image", "job:"],
            ["generate", "a", "--image", "job:a:last"],
            ["--url", "example.com", "list"],
        ],
    )
    def test_2_invalid_command_line(self, run, words):
        assert run(*words).code == 2

    @pytest.mark.parametrize(
        "words",
        [
            ["generate", "a", "--num-frames", 16, "--no-wait"],
            ["generate", " ", "--no-wait"],
            ["generate", "a", "--video", "job:nobody", "--no-wait"],
            ["status", "nobody"],
            ["cancel", "nobody"],
            ["list", "--limit", 0],
        ],
    )
    def test_3_the_service_refused(self, at_service, words):
        ran = at_service(*words)
        assert (ran.code, ran.out) == (3, "")
        assert ran.err.strip().endswith(")")  # the code of the error

    @pytest.mark.parametrize("content", [b"<html>", b""])
    def test_3_not_a_longcat_service(self, run, content):
        with host(sending(content)) as url:
            ran = run("--url", url.removesuffix("/file"), "list")
        assert ran.code == 3
        assert "is not a LongCat-Video service" in ran.err

    def test_4_service_is_unreachable(self, run):
        ran = run("--url", f"http://127.0.0.1:{free_port()}", "--patience", 0, "list")
        assert ran.code == 4

    def test_4_no_worker_has_registered(self, run, listening, redis):
        ran = run("--url", f"http://127.0.0.1:{listening}", "--patience", 0, "generate", "a")
        assert ran.code == 4
        assert "no_worker" in ran.err

    def test_5_job_was_cancelled(self, at_service, worker):
        with working(
            worker, lambda claim: worker.job_store.client.cancel(claim.job.id) and finish(worker, claim)
        ):
            ran = at_service("generate", "a")
        assert ran.code == 5

    def test_6_input_cannot_be_read(self, at_service, tmp_path):
        ran = at_service("generate", "a", "--image", tmp_path / "no.png", "--no-wait")
        assert (ran.code, "cannot read" in ran.err) == (6, True)

    @pytest.mark.parametrize("output", ["no/out.mp4", "."])
    def test_6_unwritable_output_is_noticed_before_submission(self, at_service, tmp_path, output):
        ran = at_service("generate", "a", "-o", tmp_path / output)
        assert (ran.code, ran.err.startswith(f"cannot write {tmp_path / output}: ")) == (6, True)
        assert at_service("list").out == ""

    def test_6_working_folder_that_is_gone_is_noticed_before_submission(
        self, at_service, tmp_path, monkeypatch
    ):
        folder = tmp_path / "gone"
        folder.mkdir()
        monkeypatch.chdir(folder)
        folder.rmdir()
        ran = at_service("generate", "a")
        assert (ran.code, ran.err) == (6, "cannot write JOB.mp4: No such file or directory\n")
        assert at_service("generate", "a", "--no-wait").code == 0

    def test_130_interrupted(self, run, monkeypatch):
        def interrupted(*_):
            raise KeyboardInterrupt

        monkeypatch.setitem(command._COMMANDS, "list", interrupted)
        assert run("list").code == 130

    def test_help_explains_all_exit_codes(self, run):
        codes = {*errors.EXIT_CODES.values(), 0, 2, 130, 141}
        explained = [line.split()[0] for line in EXIT_CODES.splitlines()[1:]]
        assert explained == [str(code) for code in sorted(codes)]
        assert EXIT_CODES.strip() in run("--help").out


def finish(worker, claim):
    worker.job_store.holder.confirm_cancel(claim)


class TestUrlAndKey:
    @pytest.fixture
    def asked(self):
        return []

    @pytest.fixture
    def url(self, asked):
        def answer(request):
            asked.append(request.headers.get("Authorization"))
            sending(PAGE)(request)

        with host(answer) as url:
            yield url.removesuffix("/file")

    def test_are_read_from_the_environment(self, run, url, asked, monkeypatch):
        monkeypatch.setenv("LONGCAT_URL", url)
        monkeypatch.setenv("LONGCAT_API_KEY", "secret")
        assert run("list").code == 0
        assert asked == ["Bearer secret"]

    def test_options_take_precedence(self, run, url, asked, monkeypatch):
        monkeypatch.setenv("LONGCAT_URL", "http://nowhere.invalid")
        monkeypatch.setenv("LONGCAT_API_KEY", "secret")
        assert run("--url", url, "--api-key", "other", "list").code == 0
        assert asked == ["Bearer other"]

    def test_no_key_is_sent_if_none_is_set(self, run, url, asked):
        assert run("--url", url, "list").code == 0
        assert asked == [None]

    def test_key_is_not_sent_to_another_host_after_a_redirect(self, run, url, asked):
        with host(redirecting(f"{url}/jobs")) as first:
            assert run("--url", first.removesuffix("/file"), "--api-key", "secret", "list").code == 0
        assert asked == [None]


def retry_later(refusal, seconds):
    """Return a handler that answers 503 and asks for a pause."""

    def answer(request):
        content = json.dumps(refusal).encode()
        request.send_response(503)
        request.send_header("Retry-After", str(seconds))
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    return answer


class TestOutage:
    def test_temporary_errors_are_retried(self, run):
        answers = [sending(b"{}", 503), sending(b"{}", 429), sending(PAGE)]

        def answer(request):
            answers.pop(0)(request)

        with host(answer) as url:
            assert run("--url", url.removesuffix("/file"), "list").code == 0
        assert answers == []

    def test_long_wait_is_told_once(self, run, monkeypatch):
        pauses: list[float] = []
        monkeypatch.setattr("longcat_video_client.client.time", SimpleNamespace(sleep=pauses.append))
        refusal = {"error": {"code": "busy", "message": "too busy"}}
        answers = [retry_later(refusal, seconds) for seconds in (0, 7, 7)] + [sending(PAGE)]

        def answer(request):
            answers.pop(0)(request)

        with host(answer) as url:
            base = url.removesuffix("file")
            assert run("--url", base, "list") == Ran(0, "", f"waiting for {base}: too busy\n")
        assert pauses[1:] == [7.0, 7.0]

    def test_short_wait_is_not_told(self, run):
        answers = [retry_later({}, 0), sending(PAGE)]

        def answer(request):
            answers.pop(0)(request)

        with host(answer) as url:
            assert run("--url", url.removesuffix("file"), "list") == Ran(0, "", "")

    def test_silent_service_is_named(self, run, monkeypatch):
        clock = itertools.count()
        monkeypatch.setattr("service.cli.outage.time", SimpleNamespace(monotonic=lambda: next(clock)))
        url = f"http://127.0.0.1:{free_port()}/"
        ran = run("--url", url, "--patience", 1, "list")
        assert (ran.code, ran.err.splitlines()[0]) == (4, f"waiting for {url}: no answer")

    def test_video_with_a_wrong_checksum_is_not_kept(self, at_service, worker, tmp_path):
        out = tmp_path / "out.mp4"
        job = at_service("generate", "a", "--no-wait").out.strip()
        worker.succeed(worker.claim())
        (video,) = (key for key in worker.storage.keys(f"jobs/{job}/") if key.endswith("mp4"))
        (worker.folder / "other").write_bytes(b"other!")
        worker.storage.put(video, worker.folder / "other", "video/mp4")
        ran = at_service("download", job, "-o", out)
        assert (ran.code, "did not arrive whole" in ran.err) == (4, True)
        assert not list(tmp_path.glob("out.mp4*"))


class TestPipe:
    @pytest.fixture
    def finished(self, at_service, worker):
        job = at_service("generate", "a", "--no-wait").out.strip()
        worker.succeed(worker.claim())
        return job

    @pytest.fixture
    def closed_pipe(self):
        """Return the end for writing of a pipe whose reader is gone."""
        reader, writer = os.pipe()
        os.close(reader)
        yield writer
        os.close(writer)

    @pytest.fixture
    def run_process(self, live):
        """Return a function that runs a command in a process of its own."""

        def run_process(*words, stdout=subprocess.PIPE):
            command = [sys.executable, "-m", "service.cli", "--url", f"http://127.0.0.1:{live}", *words]
            return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, check=False)

        return run_process

    def test_video_is_written_to_standard_output(self, run_process, finished):
        ran = run_process("download", finished, "-o", "-")
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"a video", b"succeeded\n")

    def test_timeline_is_written_to_standard_output(self, run_process, finished):
        events = json.loads(run_process("timeline", finished, "-o", "-").stdout)["traceEvents"]
        assert [event["args"]["job"] for event in events] == [finished]

    @pytest.mark.parametrize("words", [["list"], ["status"], ["download", "-o", "-"]])
    def test_closed_pipe_ends_the_command_quietly(self, run_process, finished, closed_pipe, words):
        command, *options = words
        given = [] if command == "list" else [finished]
        ran = run_process(command, *given, *options, stdout=closed_pipe)
        assert (ran.returncode, ran.stderr.replace(b"succeeded\n", b"")) == (141, b"")

    def test_full_disk_is_reported(self, run_process, finished):
        with Path("/dev/full").open("wb") as full:
            ran = run_process("download", finished, "-o", "-", stdout=full)
        assert ran.returncode == 6
        assert ran.stderr.splitlines()[-1] == b"cannot write to standard output: No space left on device"


def test_every_option_is_a_field_of_a_request():
    from service.jobs.bodies import GenerateRequest

    words = ["generate", "a", "--seed", "1", "--metadata", "a=b", "--image", "cat.png", "-o", "out.mp4"]
    options = vars(parser().parse_args(words)).keys()
    unsaid = {"condition_cache", "enhance_hf", "prompts", "webhook_events"}
    unsaid |= {"fps", "refinement"}  # follow from the other options
    assert set(GenerateRequest.model_fields) - unsaid <= options
    assert options_of_video(parser().parse_args(words)) == {"seed": 1, "metadata": {"a": "b"}}


def test_every_error_of_the_client_has_an_exit_code():
    kinds = [kind for kind in vars(longcat_video_client).values() if isinstance(kind, type)]
    raised = [kind for kind in kinds if issubclass(kind, longcat_video_client.LongCatVideoError)]
    assert len(raised) > 10
    for kind in raised:
        assert errors.exit_code_of(kind.__new__(kind)) in {1, 3, 4, 5}


def test_console_script_works_in_any_folder_whatever_lies_there(live, tmp_path):
    for name in ("service", "longcat_video_client", "json", "model"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong module')")
    (tmp_path / ".env").write_text("LONGCAT_URL=nonsense")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    script = f"""
import sys
from importlib.metadata import EntryPoint
sys.path[:0] = {[str(ROOT), str(ROOT / "client" / "src")]}
sys.exit(EntryPoint("longcat", {project["scripts"]["longcat"]!r}, "console_scripts").load()())
"""
    words = [
        sys.executable,
        "-P",
        "-c",
        script,
        "--url",
        f"http://127.0.0.1:{live}",
        "generate",
        "a",
        "--no-wait",
    ]
    ran = subprocess.run(words, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert (ran.returncode, len(ran.stdout.strip())) == (0, 32), ran.stderr


def test_runs_as_a_module(live):
    words = [sys.executable, "-m", "service.cli", "--url", f"http://127.0.0.1:{live}", "list"]
    assert subprocess.run(words, check=True, capture_output=True).stdout == b""
