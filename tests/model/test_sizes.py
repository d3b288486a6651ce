"""The sizes of a checkpoint are those of the modules that it is loaded into."""

from __future__ import annotations

import json
import shutil
from typing import cast

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from model.pipeline.pipeline import Pipeline
from model.sizes import check_weights_fit, read_prepared_bytes, read_sizes
from model.spec.errors import CheckpointError, DeviceError
from model.spec.memory import Setup, transformer_bytes, weight_bytes
from model.transformer.config import QUANTISED
from tests.model.spec.test_memory import QUANTIZE


def num_parameters(module: object) -> int:
    return sum(parameter.numel() for parameter in cast(nn.Module, module).parameters())


def test_sizes_are_those_of_the_loaded_modules(tiny_checkpoint):
    sizes, pipeline = read_sizes(tiny_checkpoint), Pipeline.load(tiny_checkpoint, torch.float32)
    assert sizes.transformer == num_parameters(pipeline.dit)
    assert sizes.blocks == num_parameters(pipeline.dit.blocks)
    assert sizes.vae == num_parameters(pipeline.vae._vae)
    inner = [pipeline.dit.get_submodule(f"blocks.{i}") for i in range(1, len(pipeline.dit.blocks) - 1)]
    matrices = [cast(Tensor, block.get_submodule(name).weight) for block in inner for name in QUANTISED]
    assert sizes.quantised == sum(matrix.numel() for matrix in matrices)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_of_the_transformer_are_those_of_the_loaded_module(tiny_checkpoint, dtype):
    """Some of its weights stay in fp32."""
    dit = Pipeline.load(tiny_checkpoint, dtype).dit
    expected = sum(parameter.nbytes for parameter in dit.parameters())
    assert transformer_bytes(read_sizes(tiny_checkpoint), Setup(element_bytes=dtype.itemsize)) == expected


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("quantize", QUANTIZE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_of_shared_weights_are_those_that_are_kept(
    tiny_checkpoint, weight_memory, dtype, quantize, stream
):
    Pipeline.load(tiny_checkpoint, dtype, quantize=quantize, stream_weights=stream, memory=weight_memory)
    setup = Setup(element_bytes=dtype.itemsize, quantize=quantize, stream_weights=stream)
    kept = weight_memory.path.stat().st_size
    assert read_prepared_bytes(tiny_checkpoint, setup) == pytest.approx(kept, rel=0.02)


@pytest.mark.parametrize("part", ["dit", "text_encoder", "vae"])
def test_missing_part_is_named(tiny_checkpoint, tmp_path, part):
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    for file in (copy / part).glob("*.safetensors"):
        file.unlink()
    with pytest.raises(CheckpointError, match=part):
        read_sizes(copy)


def test_damaged_file_is_named(tiny_checkpoint, tmp_path):
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    (file,) = (copy / "vae").glob("*.safetensors")
    file.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=file.name):
        read_sizes(copy)


def test_shard_that_the_index_names_and_that_is_missing_is_named(tiny_checkpoint, tmp_path):
    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    (shard, *_) = sorted((checkpoint / "dit").glob("*.safetensors"))
    shard.unlink()
    with pytest.raises(CheckpointError, match=shard.name):
        read_sizes(checkpoint)


def test_broken_index_is_named(tiny_checkpoint, tmp_path):
    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    (index,) = (checkpoint / "dit").glob("*.index.json")
    index.write_text(json.dumps({"weight_map": {"a": 3}}))
    with pytest.raises(CheckpointError, match=r"index\.json: weight_map\.a is 3"):
        read_sizes(checkpoint)


def test_wrong_size_in_the_configuration_of_the_vae_is_named(tiny_checkpoint, tmp_path):
    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    path = checkpoint / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_dim": "wide"}))
    with pytest.raises(CheckpointError, match=r"vae/config\.json: base_dim is 'wide'"):
        read_sizes(checkpoint)


def test_lora_of_another_model_is_no_lora_of_the_checkpoint(tiny_checkpoint, tmp_path):
    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    (checkpoint / "lora").mkdir(exist_ok=True)
    foreign = {"diffusion_model.blocks.0.attn.lora_A.weight": torch.zeros(2, 2)}
    save_file(foreign, checkpoint / "lora" / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="is not a module of the transformer"):
        read_prepared_bytes(checkpoint, Setup())


def test_weights_that_do_not_fit_are_not_loaded(tiny_checkpoint):
    setup = Setup(element_bytes=4)
    needed = weight_bytes(read_sizes(tiny_checkpoint), setup)
    check_weights_fit(tiny_checkpoint, setup, needed, is_leader=True)
    with pytest.raises(DeviceError, match="the weights take"):
        check_weights_fit(tiny_checkpoint, setup, needed - 1, is_leader=True)
    check_weights_fit(tiny_checkpoint, setup, needed - 1, is_leader=False)  # without the text encoder
