"""`python -m worker.check` says what keeps a worker from running, and what fits into its GPUs."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from model.spec.errors import CheckpointError
from model.spec.memory import GIB
from model.transformer.config import DitConfig
from tests.model.spec.test_memory import LIMITS, RELEASED
from worker.check import machine, memory
from worker.check.finding import Finding
from worker.check.gpus import Gpu, Torch, find_gpus
from worker.check.loading import loading_error
from worker.check.machine import check_machine
from worker.settings import WorkerSettings, visible_devices

ROOT = Path(__file__).parents[2]


def run(**settings: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **{f"LONGCAT_{name}": str(value) for name, value in settings.items()}}
    command = [sys.executable, "-m", "worker.check"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def gpus(*sizes_gib: int) -> list[Gpu]:
    return [Gpu("NVIDIA H200", size * GIB, "580.1") for size in sizes_gib]


def problems(settings: WorkerSettings, found: list[Gpu]) -> list[str]:
    return [finding.text for finding in check_machine(settings, found) if finding.kind == "problem"]


def texts(settings: WorkerSettings, found: list[Gpu], kind: str) -> str:
    return "\n".join(finding.text for finding in check_machine(settings, found) if finding.kind == kind)


@pytest.fixture
def settings(redis_server, tmp_path) -> WorkerSettings:
    return WorkerSettings(redis_url=redis_server, data_dir=tmp_path)


@pytest.fixture
def released(monkeypatch):
    """Let the checkpoint have the shape, sizes and limits of the released weights."""
    monkeypatch.setattr(memory, "read_sizes", lambda _: RELEASED)
    monkeypatch.setattr(memory, "read_prepared_bytes", lambda *_: 72 << 30)
    monkeypatch.setattr(memory, "load_limits", lambda _: LIMITS)
    monkeypatch.setattr(memory, "load_dit_config", lambda _: DitConfig())
    monkeypatch.setattr(machine, "check_torch", lambda _, *, on_cpu: Finding("ok", "PyTorch"))
    monkeypatch.setattr(machine, "ask_torch", lambda: Finding("ok", "PyTorch"))


def test_small_gpus_that_hold_the_weights_only_together_are_told_to_shard_them(settings, released):
    four = settings.model_copy(update={"ranks": 4})
    (problem,) = problems(four, gpus(24, 24, 24, 24))
    assert "or 8.0 GiB with SHARD_WEIGHTS=on or 1.4 GiB with STREAM_WEIGHTS=on" in problem
    sharded = four.model_copy(update={"shard_weights": True})
    assert problems(sharded, gpus(24, 24, 24, 24)) == []
    assert "text to video" in texts(sharded, gpus(24, 24, 24, 24), "ok")


@pytest.mark.integration
def test_machine_on_which_a_worker_runs_has_no_problem(redis_server, tmp_path):
    done = run(REDIS_URL=redis_server, DATA_DIR=tmp_path, DEVICE="cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Redis answers" in done.stdout
    assert "text to video" in done.stdout
    assert "problem" not in done.stdout


@pytest.mark.integration
def test_every_problem_is_named(tmp_path):
    done = run(
        REDIS_URL="redis://127.0.0.1:1",
        DATA_DIR=tmp_path,
        DEVICE="cpu",
        CHECKPOINT=tmp_path,
        MIN_FREE_BYTES=1 << 60,
    )
    assert done.returncode == 1
    for problem in ("Redis", "config.json", "MIN_FREE_BYTES"):
        assert [line for line in done.stdout.splitlines() if line.startswith("problem") and problem in line]


def test_settings_that_cannot_work_are_named():
    done = run(RANKS=3, CONTEXT_PARALLEL=2)
    assert done.returncode == 2
    assert "multiple of CONTEXT_PARALLEL" in done.stderr


@pytest.mark.integration
def test_more_ranks_than_gpus_are_a_problem(settings):
    two = settings.model_copy(update={"ranks": 2, "device": "cuda"})
    assert "RANKS is 2, but the driver shows 1 GPUs" in problems(two, gpus(141))


@pytest.mark.integration
def test_pytorch_that_cannot_use_the_gpus_is_a_problem(settings):
    (problem,) = problems(settings.model_copy(update={"device": "cuda"}), gpus(141))
    assert "cannot use the GPUs" in problem  # the tests have no GPU


@pytest.mark.parametrize(
    ("ranks", "ring_degree", "problem"),
    [
        (16, 1, []),
        (24, 1, ["24 ranks cannot share 32 attention heads evenly: RING_DEGREE=3 helps"]),
        (64, 1, ["64 ranks cannot share 32 attention heads evenly: RING_DEGREE=2 helps"]),
        (24, 2, ["12 ranks cannot share 32 attention heads evenly: RING_DEGREE=3 helps"]),
        (24, 3, []),
        (64, 2, []),
    ],
)
def test_ring_that_a_group_needs_is_named(settings, ranks, ring_degree, problem):
    group = settings.model_copy(update={"ranks": ranks, "ring_degree": ring_degree})
    assert [finding.text for finding in memory._check_heads(group, 32)] == problem


@pytest.mark.usefixtures("released")
def test_weights_that_do_not_fit_are_a_problem(settings):
    (problem,) = problems(settings, gpus(24))
    text = "weights: 26.7 GiB on the first GPU of each group, but only 22.0 GiB can be used there"
    quantised = "16.6 GiB with QUANTIZE=fp8 or 16.6 GiB with QUANTIZE=int8"
    assert problem == f"{text}; they take {quantised} or 1.4 GiB with STREAM_WEIGHTS=on"


@pytest.mark.usefixtures("released")
def test_text_encoder_goes_where_the_most_videos_fit(settings):
    on_gpus = settings.model_copy(update={"device": "cuda"})
    assert "text encoder: stays on the device (TEXT_ENCODER=device)" in texts(on_gpus, gpus(80), "ok")
    assert "(TEXT_ENCODER=offload)" in texts(on_gpus, gpus(48), "ok")
    asked_for = on_gpus.model_copy(update={"text_encoder": "device"})
    assert "does not fit" not in texts(on_gpus, gpus(48), "note")
    assert "does not fit" in texts(asked_for, gpus(48), "note")


@pytest.mark.usefixtures("released")
def test_moment_in_which_a_video_needs_most_memory_is_named(settings):
    on_gpus = settings.model_copy(update={"device": "cuda"})
    assert "most of it while it is decoded" in texts(on_gpus, gpus(80), "ok")


@pytest.mark.usefixtures("released")
def test_videos_that_do_not_fit_are_told_apart(settings):
    checkpoint = settings.model_copy(update={"device": "cuda"})
    assert problems(checkpoint, gpus(48)) == []
    assert "text to video" in texts(checkpoint, gpus(48), "ok")
    assert "does not fit" not in texts(checkpoint, gpus(141), "note")


@pytest.mark.usefixtures("released")
def test_number_of_gpus_that_a_video_needs_in_a_world_is_named(settings):
    world = settings.model_copy(update={"device": "cuda", "ranks": 4, "context_parallel": "auto"})
    found = gpus(40, 40, 40, 40)
    assert "does not fit" not in texts(world, found, "note")
    assert " on 2 GPUs, most of it" in texts(world, found, "ok")
    alone = world.model_copy(update={"ranks": 1, "context_parallel": None})
    assert "GPUs, most of it" not in texts(alone, found, "ok")


def of_node(settings: WorkerSettings, rank: int, rendezvous: str) -> WorkerSettings:
    return settings.model_copy(
        update={"nodes": 2, "node_rank": rank, "rendezvous": rendezvous, "redis_url": "redis://127.0.0.1:1"}
    )


@pytest.mark.usefixtures("released")
def test_only_node_0_needs_redis(settings):
    assert problems(of_node(settings, 1, "127.0.0.1:29500"), []) == []
    assert any("Redis" in problem for problem in problems(of_node(settings, 0, "127.0.0.1:29500"), []))


@pytest.mark.usefixtures("released")
def test_rendezvous_must_be_an_address_of_node_0(settings):
    elsewhere = "RENDEZVOUS 192.0.2.1:29500: Cannot assign requested address"
    assert elsewhere in problems(of_node(settings, 0, "192.0.2.1:29500"), [])
    assert problems(of_node(settings, 1, "192.0.2.1:29500"), []) == []
    assert "node 1 of 2, which meet at 192.0.2.1:29500" in texts(
        of_node(settings, 1, "192.0.2.1:29500"), [], "ok"
    )


@pytest.mark.usefixtures("released")
def test_rendezvous_whose_name_is_unknown_is_a_problem(settings):
    (problem,) = problems(of_node(settings, 1, "node.invalid:29500"), [])
    assert problem.startswith("RENDEZVOUS node.invalid:29500: ")


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Let `nvidia-smi` show two GPUs, and one whose memory it does not know."""
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\n"
        "echo 'NVIDIA H200, 143771, 580.95, GPU-aa11'\n"
        "echo 'NVIDIA L4, 23034, 580.95, GPU-bb22'\n"
        "echo 'NVIDIA GB10, [N/A], 580.95, GPU-cc33'\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


H200 = Gpu("NVIDIA H200", 143771 * 1024**2, "580.95", "GPU-aa11")
L4 = Gpu("NVIDIA L4", 23034 * 1024**2, "580.95", "GPU-bb22")
GB10 = Gpu("NVIDIA GB10", None, "580.95", "GPU-cc33")


@pytest.mark.usefixtures("driver")
def test_gpus_are_those_of_the_driver():
    assert find_gpus() == [H200, L4, GB10]


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("1,0", [L4, H200]),
        ("GPU-bb22", [L4]),
        ("GPU-a, 1", [H200, L4]),
        ("1,-1,0", [L4]),
        ("7", []),
        ("", []),
        ("MIG-0123", [Gpu("MIG-0123", None, "580.95", "MIG-0123")]),
    ],
)
def test_gpus_are_those_that_cuda_visible_devices_names(names, found, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
    assert find_gpus(visible_devices()) == found


@pytest.mark.usefixtures("released")
def test_gpu_of_unknown_memory_is_no_problem(settings):
    on_gpus = settings.model_copy(update={"device": "cuda"})
    assert problems(on_gpus, [GB10]) == []
    assert "GPU 0: NVIDIA GB10, unknown memory" in texts(on_gpus, [GB10], "ok")
    assert "GPU_MEMORY_GIB tells the memory of each GPU" in texts(on_gpus, [GB10], "note")
    limited = on_gpus.model_copy(update={"gpu_memory_gib": 100})
    assert "GPU_MEMORY_GIB" not in texts(limited, [GB10], "note")
    assert "text to video" in texts(limited, [GB10], "ok")


@pytest.mark.usefixtures("released")
def test_memory_is_that_which_pytorch_sees_in_whole_gib(settings, monkeypatch):
    seen = Torch("2.13.0", "13.0", [int(47.9 * GIB)])
    monkeypatch.setattr(machine, "ask_torch", lambda: seen)
    on_gpus = settings.model_copy(update={"device": "cuda", "text_encoder": "device"})
    assert "GPU 0: NVIDIA H200, 47 GiB" in texts(on_gpus, gpus(48), "ok")
    assert "does not fit into 45.0 GiB" in texts(on_gpus, gpus(48), "note")


@pytest.mark.usefixtures("released")
def test_smallest_gpu_decides_what_fits(settings):
    two = settings.model_copy(update={"device": "cuda", "ranks": 2, "text_encoder": "device"})
    assert "does not fit" not in texts(two, gpus(80, 80), "note")
    assert "does not fit into 46.0 GiB" in texts(two, gpus(80, 48), "note")


@pytest.mark.usefixtures("released")
@pytest.mark.parametrize(
    ("changes", "size_gib", "ways"),
    [
        (
            {"text_encoder": "device"},
            48,
            (
                *("TEXT_ENCODER=offload", "QUANTIZE=fp8", "QUANTIZE=int8", "STREAM_WEIGHTS=on"),
                "2 ranks for each video",
            ),
        ),
        ({"quantize": "fp8"}, 31, ("STREAM_WEIGHTS=on", "2 ranks for each video")),
        ({"gpu_memory_gib": 8, "stream_weights": True}, 24, ("4 ranks for each video",)),
        ({"gpu_memory_gib": 3, "stream_weights": True}, 24, ()),
    ],
)
def test_settings_with_which_a_video_would_fit_are_named(settings, changes, size_gib, ways):
    on_gpu = settings.model_copy(update={"device": "cuda", **changes})
    notes = texts(on_gpu, gpus(size_gib), "note").splitlines()
    (largest,) = [note for note in notes if note.startswith("text to video, 720p:")]
    advice = f"each of these makes it fit: {', '.join(ways)}" if ways else "no single setting makes it fit"
    assert largest.partition("GiB; ")[2] == advice


def test_there_are_no_gpus_without_a_driver(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_gpus() == []


@pytest.mark.usefixtures("released")
def test_weights_in_host_memory_are_added_up(settings, monkeypatch):
    four = settings.model_copy(update={"ranks": 4, "stream_weights": True, "text_encoder": "offload"})
    monkeypatch.setattr(memory, "host_memory_bytes", lambda: 256 << 30)
    found = texts(four, gpus(24, 24, 24, 24), "ok")
    assert "streamed blocks, and LoRAs: kept merged in 72.0 GiB of host memory, once for all ranks" in found
    assert "host memory: 82.6 GiB of weights, of 256.0 GiB" in found
    monkeypatch.setattr(memory, "host_memory_bytes", lambda: 64 << 30)
    assert problems(four, gpus(24, 24, 24, 24)) == ["host memory: 82.6 GiB of weights, of 64.0 GiB"]
    monkeypatch.setattr(memory, "host_memory_bytes", lambda: 96 << 30)  # with a copy for each rank, 116 GiB
    assert problems(four, gpus(24, 24, 24, 24)) == []
    on_device = four.model_copy(update={"stream_weights": False, "text_encoder": "device"})
    assert "host memory: " not in texts(on_device, gpus(141, 141, 141, 141), "ok")


@pytest.mark.usefixtures("released")
def test_each_rank_has_a_copy_of_streamed_blocks_if_that_takes_less_than_sharing_them(settings, monkeypatch):
    two = settings.model_copy(update={"ranks": 2, "stream_weights": True, "text_encoder": "device"})
    monkeypatch.setattr(memory, "host_memory_bytes", lambda: 64 << 30)
    assert "host memory: 52.7 GiB of weights, of 64.0 GiB" in texts(two, gpus(32, 32), "ok")
    note = texts(two, gpus(32, 32), "note")
    assert "each rank has a copy of the streamed blocks. LoRAs: each change reads files" in note
    assert "may take 58.4 GiB (in place of copies, and LORA_MEMORY_GIB) and need 72.0 GiB" in note


@pytest.mark.usefixtures("released")
def test_merged_weights_are_counted_once_for_all_ranks_if_they_may_be_kept(settings, monkeypatch):
    eight = settings.model_copy(update={"ranks": 8, "context_parallel": 1, "text_encoder": "device"})
    monkeypatch.setattr(memory, "host_memory_bytes", lambda: 256 << 30)
    found = texts(eight, gpus(*[141] * 8), "ok")
    assert "LoRAs: kept merged in 72.0 GiB of host memory, once for all ranks" in found
    assert "host memory: 72.0 GiB of weights, of 256.0 GiB" in found
    limited = eight.model_copy(update={"lora_memory_gib": 40})
    note = texts(limited, gpus(*[141] * 8), "note")
    assert "merged weights may take 40.0 GiB (LORA_MEMORY_GIB) and need 72.0 GiB of host memory" in note


@pytest.mark.usefixtures("released")
def test_unusable_lora_is_reported_among_the_other_findings(settings, monkeypatch):
    def refuse(*_):
        raise CheckpointError(Path("lora/foreign.safetensors"), "is no LoRA")

    monkeypatch.setattr(memory, "read_prepared_bytes", refuse)
    assert "is no LoRA" in texts(settings, gpus(141), "problem")


def test_checkpoint_that_the_loader_refuses_is_a_problem(settings, monkeypatch):
    monkeypatch.setattr(machine, "ask_torch", lambda: Torch("2.13.0", None, []))
    monkeypatch.setattr(machine, "loading_error", lambda _: "scheduler_config.json: is missing")
    on_cpu = settings.model_copy(update={"device": "cpu"})
    assert problems(on_cpu, []) == ["checkpoint: scheduler_config.json: is missing"]


def replace_in(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("file", "old", "new", "error"),
    [
        ("scheduler/scheduler_config.json", '"shift": 12.0', '"shift": "much"', "has no number called shift"),
        ("scheduler/scheduler_config.json", "}", "", "cannot be read"),
        ("text_encoder/config.json", '"num_layers": 2', '"num_layers": 3', "has no tensor"),
        ("text_encoder/config.json", '"d_ff": 64', '"d_ff": 65', "has shape"),
        ("text_encoder/config.json", '"d_ff": 64', '"d_ff": "wide"', "is not that of a UMT5 encoder"),
        ("tokenizer/tokenizer.json", '"added_tokens"', '"other"', "is not a tokenizer"),
        ("text_encoder/config.json", '"vocab_size": 98', '"vocab_size": 97', "has shape"),
        ("vae/config.json", '"num_res_blocks": 1', '"num_res_blocks": 2', "has an extra tensor"),
        ("dit/config.json", '"depth": 2', '"depth": 3', "has no tensor"),
    ],
)
def test_all_of_a_checkpoint_but_the_weights_is_checked(tiny_checkpoint, tmp_path, file, old, new, error):
    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    assert loading_error(checkpoint) is None
    replace_in(checkpoint / file, old, new)
    assert re.search(f"{file.split('/')[0]}.*: .*{error}", loading_error(checkpoint) or "")
