"""Weights from files: all of them, in the wanted dtype, or an error that names file and tensor."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from model.io.checkpoint import Weights, load_module, tensor_names
from model.spec.errors import CheckpointError

STEM = "weights"
CPU = torch.device("cpu")


class Two(nn.Module):
    """A layer in bf16 and one in fp32."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4, dtype=torch.bfloat16)
        self.second = nn.Linear(4, 2, dtype=torch.float32)


class Tied(nn.Module):
    """Two names for one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(3, 3, bias=False)
        self.other = nn.Linear(3, 3, bias=False)
        self.other.weight = self.one.weight


@pytest.fixture
def tensors():
    return {name: torch.randn(x.shape) for name, x in Two().state_dict().items()}


@pytest.fixture
def folder(tmp_path, tensors):
    save_file(tensors, tmp_path / f"{STEM}.safetensors")
    return tmp_path


def load(folder, build=Two):
    return load_module(build, Weights(folder, STEM), CPU)


def rewrite(folder, tensors):
    save_file(tensors, folder / f"{STEM}.safetensors")


def shard(folder, tensors):
    (folder / f"{STEM}.safetensors").unlink(missing_ok=True)
    names = sorted(tensors)
    files = {f"{STEM}-{i}.safetensors": names[i::2] for i in range(2)}
    for file, theirs in files.items():
        save_file({name: tensors[name] for name in theirs}, folder / file)
    index = {"weight_map": {name: file for file, theirs in files.items() for name in theirs}}
    (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps(index))


def test_a_module_gets_its_weights_in_its_own_dtypes(folder, tensors):
    module = load(folder)
    for name, parameter in module.state_dict().items():
        assert torch.equal(parameter, tensors[name].to(parameter.dtype))
    assert module.first.weight.dtype == torch.bfloat16
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert not module.training


def test_shards_give_the_same(folder, tensors):
    shard(folder, tensors)
    assert all(torch.equal(x, tensors[name].to(x.dtype)) for name, x in load(folder).state_dict().items())


def test_of_tied_weights_one_is_enough(tmp_path):
    weight = torch.randn(3, 3)
    save_file({"one.weight": weight}, tmp_path / f"{STEM}.safetensors")
    module = load(tmp_path, Tied)
    assert torch.equal(module.other.weight, weight)
    assert module.other.weight is module.one.weight


def test_weights_are_not_copied_where_dtype_and_device_fit(folder):
    """They stay views of the mapped file, shared with other processes."""
    first, second = load(folder), load(folder)
    assert torch.equal(first.second.weight, second.second.weight)


def test_nothing_but_names_and_shapes_is_read_to_the_meta_device(folder, tensors):
    module = load_module(Two, Weights(folder, STEM), torch.device("meta"))
    assert {x.device.type for x in module.parameters()} == {"meta"}
    rewrite(folder, {**tensors, "first.bias": torch.randn(5)})
    with pytest.raises(CheckpointError, match=r"first\.bias has shape \[5\], not \[4\]"):
        load_module(Two, Weights(folder, STEM), torch.device("meta"))


def refused(folder, *words):
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_missing_tensor_is_named(folder, tensors):
    del tensors["second.bias"]
    rewrite(folder, tensors)
    refused(folder, f"{STEM}.safetensors", "has no tensor second.bias")


def test_an_extra_tensor_is_named(folder, tensors):
    rewrite(folder, {**tensors, "third.weight": torch.zeros(1)})
    refused(folder, f"{STEM}.safetensors", "has an extra tensor third.weight")


def test_a_wrong_shape_is_named(folder, tensors):
    rewrite(folder, {**tensors, "first.weight": torch.zeros(4, 4)})
    refused(folder, f"{STEM}.safetensors", "first.weight has shape [4, 4], not [4, 3]")


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_a_file_that_is_cut_short_is_named(folder, share):
    path = folder / f"{STEM}.safetensors"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    refused(folder, str(path), "not a whole safetensors file")


def test_a_corrupt_file_is_named(folder):
    path = folder / f"{STEM}.safetensors"
    path.write_bytes(b"\xff" * 64 + path.read_bytes()[64:])
    refused(folder, str(path))


def test_a_missing_file_is_named(folder):
    (folder / f"{STEM}.safetensors").unlink()
    refused(folder, f"{STEM}.safetensors", "is missing")


def test_a_missing_folder_is_named(tmp_path):
    refused(tmp_path / "nowhere", "nowhere", "is missing")


def test_a_missing_shard_is_named(folder, tensors):
    shard(folder, tensors)
    (folder / f"{STEM}-1.safetensors").unlink()
    refused(folder, f"{STEM}-1.safetensors", "is missing")


def test_a_tensor_that_is_not_in_its_shard_is_named(folder, tensors):
    shard(folder, tensors)
    path = folder / f"{STEM}-1.safetensors"
    theirs = load_file(path)
    name = sorted(theirs)[0]
    save_file({other: x.clone() for other, x in theirs.items() if other != name}, path)
    refused(folder, str(path), name)


@pytest.mark.parametrize("shard_name", [None, 3, ["a"], "", "..", "../other.safetensors", "/etc/passwd"])
def test_a_shard_that_is_not_the_name_of_a_file_is_named(folder, tensors, shard_name):
    shard(folder, tensors)
    index = folder / f"{STEM}.safetensors.index.json"
    document = json.loads(index.read_text())
    name = sorted(document["weight_map"])[0]
    document["weight_map"][name] = shard_name
    index.write_text(json.dumps(document))
    refused(folder, "index.json", f"weight_map.{name}", repr(shard_name))


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 3}', "[" * 100_000])
def test_a_broken_index_is_named(folder, tensors, content):
    shard(folder, tensors)
    (folder / f"{STEM}.safetensors.index.json").write_text(content)
    refused(folder, "index.json")


def test_names_are_read_without_the_tensors(folder, tensors):
    assert sorted(tensor_names(folder / f"{STEM}.safetensors")) == sorted(tensors)


PARTS = [
    "dit/config.json",
    "dit/diffusion_pytorch_model-00001-of-00002.safetensors",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
]


@pytest.fixture
def copy(tiny_checkpoint, tmp_path) -> Path:
    return shutil.copytree(tiny_checkpoint, tmp_path / "copy")


@pytest.mark.parametrize("part", PARTS)
def test_each_part_of_a_checkpoint_is_missed_by_name(copy, part):
    from model.pipeline.pipeline import Pipeline

    (copy / part).unlink()
    with pytest.raises(CheckpointError, match=part.replace(".", r"\.")):
        Pipeline.load(copy, torch.float32)


@pytest.mark.parametrize("part", ["dit", "text_encoder", "vae", "tokenizer", "scheduler"])
def test_each_folder_of_a_checkpoint_is_missed_by_name(copy, part):
    from model.pipeline.pipeline import Pipeline

    shutil.rmtree(copy / part)
    with pytest.raises(CheckpointError, match=f"copy/{part}"):
        Pipeline.load(copy, torch.float32)


@pytest.mark.parametrize("part", [part for part in PARTS if part.endswith("json")] + ["limits.json"])
def test_each_broken_json_of_a_checkpoint_is_named(copy, part):
    from model.pipeline.pipeline import Pipeline

    (copy / part).write_text('{"oops": ')
    with pytest.raises(CheckpointError, match=part.replace(".", r"\.")):
        Pipeline.load(copy, torch.float32)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("dit/config.json", "depth", True),
        ("dit/config.json", "num_heads", 0),
        ("dit/config.json", "hidden_size", -96),
        ("dit/config.json", "in_channels", 10**30),
        ("dit/config.json", "mlp_ratio", math.nan),
        ("vae/config.json", "base_dim", "wide"),
        ("vae/config.json", "temperal_downsample", None),
        ("vae/config.json", "latents_mean", [0.0]),
        ("vae/config.json", "latents_std", math.nan),
        ("scheduler/scheduler_config.json", "shift", 0),
        ("scheduler/scheduler_config.json", "shift", True),
        ("tokenizer/tokenizer_config.json", "pad_token", 3),
        ("limits.json", "fps", "fast"),
        ("limits.json", "max_num_frames", -1),
        ("limits.json", "default_size", ["high", "wide"]),
    ],
)
def test_a_wrong_value_in_a_json_file_is_named_in_one_line(copy, part, key, value):
    from model.pipeline.pipeline import Pipeline

    path = copy / part
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(CheckpointError) as caught:
        Pipeline.load(copy, torch.float32)
    message = str(caught.value)
    assert message.startswith(str(path.parent))
    assert key in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("text_encoder/config.json", "num_heads", "many"),
        ("text_encoder/config.json", "dense_act_fn", []),
        ("text_encoder/config.json", "d_ff", 10**30),
        ("vae/config.json", "base_dim", -8),
        ("tokenizer/tokenizer.json", "normalizer", 3),
    ],
)
def test_a_file_whose_content_a_library_refuses_is_named_in_one_line(copy, part, key, value):
    from model.pipeline.pipeline import Pipeline

    path = copy / part
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(CheckpointError, match=str(path.parent)) as caught:
        Pipeline.load(copy, torch.float32)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
    from model.pipeline.pipeline import Pipeline

    with pytest.raises(CheckpointError, match="nowhere"):
        Pipeline.load(tmp_path / "nowhere", torch.float32)


def test_a_broken_tokenizer_is_named(copy):
    from model.pipeline.pipeline import Pipeline

    (copy / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="copy/tokenizer"):
        Pipeline.load(copy, torch.float32)


def test_a_tokenizer_with_more_tokens_than_the_text_encoder_is_named(copy):
    from model.pipeline.pipeline import Pipeline

    path = copy / "tokenizer" / "tokenizer.json"
    document = json.loads(path.read_text())
    token = {**document["added_tokens"][0], "id": 98, "content": "<one too many>"}
    path.write_text(json.dumps({**document, "added_tokens": [*document["added_tokens"], token]}))
    with pytest.raises(CheckpointError, match="tokenizer: has 99 tokens, but the text encoder 98"):
        Pipeline.load(copy, torch.float32)
