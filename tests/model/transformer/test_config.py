"""Configuration files: what is read, ignored and refused."""

from __future__ import annotations

import json

import pytest

from model.io.json_file import load_json
from model.pipeline.schedule import load_shift
from model.spec.errors import CheckpointError
from model.transformer.config import BrickConfig, DitConfig, load_dit_config

RELEASED = {
    "_class_name": "LongCatVideoTransformer3DModel",
    "adaln_tembed_dim": 512,
    "bsa_params": {"sparsity": 0.9375, "chunk_3d_shape_q": [4, 4, 4], "chunk_3d_shape_k": [4, 4, 4]},
    "caption_channels": 4096,
    "cp_split_hw": None,
    "depth": 48,
    "enable_bsa": False,
    "enable_flashattn2": True,
    "enable_flashattn3": False,
    "enable_xformers": False,
    "frequency_embedding_size": 256,
    "hidden_size": 4096,
    "in_channels": 16,
    "mlp_ratio": 4,
    "num_heads": 32,
    "out_channels": 16,
    "patch_size": [1, 2, 2],
    "text_tokens_zero_pad": True,
}


@pytest.fixture
def config_of(tmp_path):
    def read(**changes):
        path = tmp_path / "config.json"
        path.write_text(json.dumps({**RELEASED, **changes}))
        return load_dit_config(path)

    return read


def test_the_released_configuration_is_the_default(config_of):
    assert config_of() == DitConfig()
    assert DitConfig().ffn_size == 11008
    assert DitConfig().head_dim == 128


@pytest.mark.parametrize(("hidden_size", "ffn_size"), [(64, 256), (96, 256), (128, 512), (4096, 11008)])
def test_the_feed_forward_is_rounded_up_to_whole_256s(hidden_size, ffn_size):
    assert DitConfig(hidden_size=hidden_size).ffn_size == ffn_size


def test_keys_that_choose_kernels_are_ignored(config_of):
    assert config_of(enable_flashattn3=True, enable_sageattn=True, cp_split_hw=[2, 4]) == DitConfig()


def test_unknown_keys_that_ask_for_nothing_are_ignored(config_of):
    assert config_of(qk_clip=None, moe=False) == DitConfig()


def test_unknown_keys_that_could_change_the_result_are_refused(config_of):
    with pytest.raises(CheckpointError, match="qk_clip"):
        config_of(qk_clip=30.0)


def test_bricks_are_read(config_of):
    bricks = {
        "sparsity": None,
        "cdf_threshold": 0.5,
        "chunk_3d_shape_q": [2, 4, 4],
        "chunk_3d_shape_k": [4, 4, 2],
    }
    assert config_of(bsa_params=bricks).bsa_params == BrickConfig(None, 0.5, (2, 4, 4), (4, 4, 2))


def test_no_bricks_are_the_released_ones(config_of):
    assert config_of(bsa_params=None).bsa_params == BrickConfig()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"num_heads": 7}, "does not divide"),
        ({"patch_size": [2, 2, 2]}, "patch_size"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"depth": 2.5}, "depth"),
        ({"patch_size": [1, 2]}, "patch_size"),
        ({"bsa_params": {"sparsity": "most"}}, "sparsity"),
    ],
)
def test_invalid_value_is_refused_by_name(config_of, changes, problem):
    with pytest.raises(CheckpointError, match=problem):
        config_of(**changes)


@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00"])
def test_a_broken_file_is_named(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_json(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json: is missing"):
        load_json(tmp_path / "config.json")


def test_shift_is_read_and_required(tmp_path):
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps({"shift": 7}))
    assert load_shift(path) == 7.0
    path.write_text(json.dumps({"num_train_timesteps": 1000}))
    with pytest.raises(CheckpointError, match="shift"):
        load_shift(path)
