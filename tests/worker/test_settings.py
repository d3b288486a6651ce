from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from model.spec.memory import Quantize, TextEncoderOption
from tests.architecture.source import ROOT
from worker.settings import (
    Endpoint,
    QuantizeName,
    RankSetup,
    TextEncoderName,
    WorkerSettings,
    group_environment,
)
from worker.supervisor.supervisor import SupervisorLimits


@pytest.fixture(autouse=True)
def _checkpoint(monkeypatch) -> None:
    monkeypatch.setenv("LONGCAT_CHECKPOINT", "weights")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_default_checkpoint_is_the_bundled_one(monkeypatch):
    monkeypatch.delenv("LONGCAT_CHECKPOINT")
    assert WorkerSettings().checkpoint == ROOT / "pocket"


KUBERNETES_GRACE_S = 30


def test_default_drain_fits_the_default_grace_of_kubernetes():
    settings = WorkerSettings(termination_grace_s=KUBERNETES_GRACE_S)
    limits = SupervisorLimits(settings.max_claimed_jobs, settings.drain_s)
    assert limits.drain_s + limits.requeue_s < KUBERNETES_GRACE_S


def test_drain_that_does_not_fit_the_grace_is_refused():
    assert WorkerSettings(drain_s=52, termination_grace_s=60).drain_s == 52
    with pytest.raises(ValidationError, match=r"DRAIN_S \(53\) must be at least 8 s less"):
        WorkerSettings(drain_s=53, termination_grace_s=60)


def test_all_ranks_are_one_group_by_default(monkeypatch):
    monkeypatch.setenv("LONGCAT_RANKS", "4")
    settings = WorkerSettings()
    assert (settings.num_groups, settings.ranks_per_group) == (1, 4)


def test_context_parallel_divides_ranks_into_groups(monkeypatch):
    monkeypatch.setenv("LONGCAT_RANKS", "4")
    monkeypatch.setenv("LONGCAT_CONTEXT_PARALLEL", "2")
    settings = WorkerSettings()
    assert (settings.num_groups, settings.ranks_per_group) == (2, 2)
    assert settings.group_name(0) != settings.group_name(1)
    assert settings.group_folder(0) != settings.group_folder(1)


@pytest.mark.parametrize("name", ["w", "w-1", "w[0-9]*"])
def test_former_groups_are_those_of_this_worker_beyond_the_present_ones(monkeypatch, tmp_path, name):
    monkeypatch.setenv("LONGCAT_WORKER_NAME", name)
    monkeypatch.setenv("LONGCAT_DATA_DIR", str(tmp_path))
    settings = WorkerSettings()
    assert settings.former_group_folders(2) == []
    for other in ("w", "w-1", "w-1-1", "w-1-2", "w2-3", "w-x", "v-3", "w[0-9]*"):
        for suffix in ("", "-0", "-1", "-2", "-10", "-x"):
            (tmp_path / "worker" / f"{other}{suffix}").mkdir(parents=True, exist_ok=True)
    found = {path.name for path in settings.former_group_folders(2)}
    assert found == {f"{name}-2", f"{name}-10"}


def test_incomplete_groups_are_refused(monkeypatch):
    monkeypatch.setenv("LONGCAT_RANKS", "4")
    monkeypatch.setenv("LONGCAT_CONTEXT_PARALLEL", "3")
    with pytest.raises(ValidationError, match=r"RANKS \(4\) must be a multiple of CONTEXT_PARALLEL \(3\)"):
        WorkerSettings()


def elastic(**changes: Any) -> WorkerSettings:
    return WorkerSettings(**{"ranks": 4, "context_parallel": "auto", **changes})


def test_each_rank_of_a_world_is_a_group_of_one_supervisor_process(monkeypatch):
    monkeypatch.setenv("LONGCAT_CONTEXT_PARALLEL", "auto")
    settings = WorkerSettings(ranks=4, device="cuda")
    assert settings.is_elastic
    assert (settings.num_groups, settings.ranks_per_group, settings.num_supervisors) == (4, 1, 1)
    setup = settings.rank_setup(Path("/run/sock"))
    assert (setup.num_ranks, setup.elastic, settings.widths) == (4, True, (1, 2, 4))
    assert group_environment(settings, 0)["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"


def test_compiled_kernels_are_kept_where_the_operator_says(monkeypatch):
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    settings = WorkerSettings(device="cpu", compile_cache_dir=Path("/cache"))
    environment = group_environment(settings, 0)
    assert environment["TORCHINDUCTOR_CACHE_DIR"] == "/cache/inductor"
    assert environment["TRITON_CACHE_DIR"] == "/cache/triton"
    monkeypatch.setenv("TRITON_CACHE_DIR", "/elsewhere")
    assert group_environment(settings, 0)["TRITON_CACHE_DIR"] == "/elsewhere"


@pytest.mark.parametrize("value", ["{}", '["text"]', "[{]"])
def test_warm_up_is_a_list_of_requests(monkeypatch, value):
    monkeypatch.setenv("LONGCAT_WARM_UP", value)
    with pytest.raises(ValidationError, match="warm_up"):
        WorkerSettings()


def test_each_fixed_group_has_a_supervisor_process():
    settings = WorkerSettings(ranks=4, context_parallel=2)
    assert (settings.num_supervisors, settings.widths, settings.is_elastic) == (2, (2,), False)
    assert not settings.rank_setup(Path("/run/sock")).elastic


def test_ring_divides_the_ranks_of_a_group():
    with pytest.raises(ValidationError, match=r"RING_DEGREE \(3\) must divide the ranks of a group \(4\)"):
        WorkerSettings(ranks=4, ring_degree=3)
    with pytest.raises(ValidationError, match=r"RING_DEGREE \(4\) must divide the ranks of a group \(2\)"):
        WorkerSettings(ranks=4, context_parallel=2, ring_degree=4)
    assert WorkerSettings(ranks=4, ring_degree=2).rank_setup(Path("socket")).ring_degree == 2
    assert of_two_nodes(ranks=3, ring_degree=2).rank_setup(Path("socket")).ring_degree == 2


@pytest.mark.parametrize("ranks", [1, 3, 6])
def test_world_needs_a_power_of_two_of_ranks(ranks):
    with pytest.raises(ValidationError, match=rf"auto needs RANKS \({ranks}\) to be 2, 4, 8 or 16"):
        elastic(ranks=ranks)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"shard_weights": True}, "CONTEXT_PARALLEL=auto cannot be combined with SHARD_WEIGHTS"),
        ({"ring_degree": 2}, "CONTEXT_PARALLEL=auto cannot be combined with RING_DEGREE"),
        ({"nodes": 2, "rendezvous": "10.0.0.1:29500"}, r"CONTEXT_PARALLEL \(auto\) must be absent"),
        ({"context_parallel": "all"}, "context_parallel"),
        ({"context_parallel": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_of_a_world_that_do_not_fit_are_refused(changes, rule):
    with pytest.raises(ValidationError, match=rule):
        elastic(**changes)


def of_two_nodes(**changes: Any) -> WorkerSettings:
    return WorkerSettings(**{"nodes": 2, "rendezvous": "10.0.0.1:29500", **changes})


def test_ranks_of_all_nodes_are_one_group():
    settings = of_two_nodes(ranks=4)
    assert (settings.num_groups, settings.ranks_per_group, settings.local_ranks_per_group) == (1, 8, 4)
    setup = settings.rank_setup(Path("/run/sock"))
    assert (setup.num_ranks, setup.nodes, str(setup.rendezvous)) == (8, 2, "10.0.0.1:29500")
    assert of_two_nodes(ranks=4, context_parallel=8).num_groups == 1


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"node_rank": 2}, r"NODE_RANK \(2\) must be less than NODES \(2\)"),
        ({"rendezvous": None}, "NODES is 2, so RENDEZVOUS must name host:port of node 0"),
        ({"context_parallel": 2}, r"CONTEXT_PARALLEL \(2\) must be absent or NODES × RANKS \(4\)"),
        ({"rendezvous": "10.0.0.1"}, "RENDEZVOUS: 10.0.0.1 is not of the form host:port"),
    ],
)
def test_settings_of_nodes_that_do_not_fit_are_refused(changes, rule):
    with pytest.raises(ValidationError, match=rule):
        of_two_nodes(**{"ranks": 2, **changes})


@pytest.mark.parametrize("text", ["node-0.longcat:29500", "[fd00::1]:29500"])
def test_endpoint_survives_its_text(text):
    assert str(Endpoint.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", ":1", "host", "host:0", "host:65536", "host:x", "user@host:1", "host:1/x"]
)
def test_text_that_is_no_endpoint_is_refused(text):
    with pytest.raises(ValueError, match=r"not of the form host:port|Port out of range|Port could not"):
        Endpoint.parse(text)


def test_group_on_several_nodes_uses_all_gpus_of_this_one():
    settings = of_two_nodes(ranks=2, device="cuda")
    assert group_environment(settings, 0)["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_weights_are_either_sharded_or_streamed():
    with pytest.raises(ValidationError, match="STREAM_WEIGHTS cannot be combined with SHARD_WEIGHTS"):
        WorkerSettings(ranks=2, shard_weights=True, stream_weights=True)
    assert WorkerSettings(stream_weights=True).rank_setup(Path("socket")).stream_weights


def test_weights_of_single_ranks_cannot_be_sharded(monkeypatch):
    monkeypatch.setenv("LONGCAT_SHARD_WEIGHTS", "on")
    with pytest.raises(ValidationError, match="SHARD_WEIGHTS needs groups of at least two ranks"):
        WorkerSettings(ranks=2, context_parallel=1)
    assert WorkerSettings(ranks=2).rank_setup(Path("socket")).shard_weights


@pytest.mark.parametrize(("visible", "shares"), [(None, ["0,1", "2,3"]), ("4,5,6,7", ["4,5", "6,7"])])
def test_each_group_has_its_own_gpus(monkeypatch, visible, shares):
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    settings = WorkerSettings(ranks=4, context_parallel=2, device="cuda")
    assert [group_environment(settings, i)["CUDA_VISIBLE_DEVICES"] for i in range(2)] == shares


def test_more_ranks_than_visible_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(ValidationError, match="RANKS is 2, but CUDA_VISIBLE_DEVICES names fewer GPUs: 0"):
        WorkerSettings(ranks=2, context_parallel=1, device="auto")


def test_hidden_gpus_stay_hidden_from_ranks(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    settings = WorkerSettings(ranks=2, context_parallel=1, device="auto")
    assert [group_environment(settings, i)["CUDA_VISIBLE_DEVICES"] for i in range(2)] == ["", ""]


def test_no_gpus_are_assigned_on_cpu():
    settings = WorkerSettings(device="cpu")
    assert "CUDA_VISIBLE_DEVICES" not in group_environment(settings, 0)


@pytest.mark.parametrize("name", ["GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"])
def test_ranks_always_use_the_loopback_interface(monkeypatch, name):
    monkeypatch.delenv(name, raising=False)
    settings = WorkerSettings(device="cpu")
    assert group_environment(settings, 0)[name] == "lo"
    monkeypatch.setenv(name, "eth1")
    assert group_environment(settings, 0)[name] == "lo"


@pytest.mark.parametrize("name", ["GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"])
def test_ranks_of_several_nodes_use_the_interface_of_the_operator(monkeypatch, name):
    monkeypatch.setenv(name, "eth1")
    assert group_environment(of_two_nodes(), 0)[name] == "eth1"
    monkeypatch.delenv(name)
    assert name not in group_environment(of_two_nodes(), 0)


@pytest.mark.parametrize(
    "name",
    [
        *("LONGCAT_REDIS_URL", "LONGCAT_S3_SECRET_ACCESS_KEY", "LONGCAT_WEBHOOK_SECRET", "LONGCAT_DEVICE"),
        *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "OTEL_EXPORTER_OTLP_HEADERS", "HTTPS_PROXY"),
        *("HF_TOKEN", "NVIDIA_API_KEY", "PYTHONSTARTUP", "PYTHONINSPECT", "TORCHELASTIC_HEALTH_CHECK_PORT"),
    ],
)
def test_ranks_do_not_inherit_other_variables(monkeypatch, name):
    monkeypatch.setenv(name, "redis://planted")
    assert name not in group_environment(WorkerSettings(device="cpu"), 0)


@pytest.mark.parametrize(
    "name",
    [
        *("PATH", "HOME", "TMPDIR", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "CUDA_HOME", "NCCL_DEBUG"),
        *("PYTORCH_CUDA_ALLOC_CONF", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "MKL_NUM_THREADS"),
    ],
)
def test_ranks_inherit_the_variables_of_torch_and_its_libraries(monkeypatch, name):
    monkeypatch.setenv(name, "kept")
    assert group_environment(WorkerSettings(device="cpu"), 0)[name] == "kept"


@pytest.mark.parametrize(
    ("cores", "ranks", "threads"), [(16, 1, 15), (16, 4, 3), (2, 1, 1), (2, 2, 1), (1, 4, 1)]
)
def test_one_core_of_each_rank_is_left_to_x264(monkeypatch, cores, ranks, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    settings = WorkerSettings(device="cpu", ranks=ranks)
    assert group_environment(settings, 0)["OMP_NUM_THREADS"] == str(threads)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert group_environment(settings, 0)["OMP_NUM_THREADS"] == "7"


def test_disk_of_a_storage_folder_is_watched_too(tmp_path):
    assert WorkerSettings(data_dir=tmp_path).disks == [tmp_path, tmp_path / "storage"]
    assert WorkerSettings(data_dir=tmp_path, storage="s3://bucket").disks == [tmp_path]


def test_rank_setup_survives_the_command_line(monkeypatch):
    monkeypatch.setenv("LONGCAT_X264_CRF", "23")
    setup = WorkerSettings().rank_setup(Path("/run/sock"))
    assert RankSetup.model_validate_json(setup.model_dump_json()) == setup
    assert setup.video.crf == 23


def test_paths_of_ranks_are_absolute():
    assert WorkerSettings().rank_setup(Path("/run/sock")).checkpoint.is_absolute()
    assert WorkerSettings().group_folder(0).is_absolute()


def test_text_encoder_is_placed_as_the_model_can(monkeypatch):
    assert get_args(TextEncoderName) == get_args(TextEncoderOption)
    assert WorkerSettings().rank_setup(Path("/run/sock")).text_encoder == "auto"
    monkeypatch.setenv("LONGCAT_TEXT_ENCODER", "offload")
    assert WorkerSettings().rank_setup(Path("/run/sock")).text_encoder == "offload"


def test_ranks_are_told_how_much_memory_merged_weights_may_take(monkeypatch):
    assert WorkerSettings().rank_setup(Path("/run/sock")).lora_memory_gib is None
    monkeypatch.setenv("LONGCAT_LORA_MEMORY_GIB", "1.5")
    assert WorkerSettings().rank_setup(Path("/run/sock")).lora_memory_gib == 1.5


def test_weights_are_quantised_if_asked_for(monkeypatch):
    assert get_args(QuantizeName) == get_args(Quantize)
    assert WorkerSettings().rank_setup(Path("/run/sock")).quantize == "none"
    monkeypatch.setenv("LONGCAT_QUANTIZE", "int8")
    assert WorkerSettings().rank_setup(Path("/run/sock")).quantize == "int8"


@pytest.mark.parametrize("value", ["int7", "on", "1", "off"])
def test_weights_are_not_quantised_in_a_format_that_is_not_named(monkeypatch, value):
    monkeypatch.setenv("LONGCAT_QUANTIZE", value)
    with pytest.raises(ValidationError, match="'none', 'fp8' or 'int8'"):
        WorkerSettings()
