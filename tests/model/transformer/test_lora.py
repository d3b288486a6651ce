"""LoRA files: merged exactly, swapped exactly, and refused where they do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.io.checkpoint import Weights, load_module
from model.spec.errors import CheckpointError
from model.transformer.config import load_dit_config
from model.transformer.dit import Dit
from model.transformer.lora import LoraError, LoraFile, LoraMerger, read_lora
from tests.model.plain.checkpoints import ATTENTION_AND_FFN, EVERYTHING, SMALL, write_dit, write_lora
from tests.model.plain.transformer import PlainTransformer, load_transformer

QKV = "lora___lorahyphen___blocks___lorahyphen___0___lorahyphen___attn___lorahyphen___qkv"
CPU = torch.device("cpu")

Edit = Callable[[dict[str, Tensor]], object]


class CountingWeights(Weights):
    """The checkpoint's files, and which weights were read from them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "diffusion_pytorch_model")
        self.reads: list[str] = []

    def read(self, name: str, like: Tensor, device: torch.device) -> Tensor:
        self.reads.append(name)
        return super().read(name, like, device)


class Case:
    """A small transformer on disk and in memory, with three LoRA files."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        self.folder = folder
        write_dit(folder / "dit", SMALL)
        self.paths = {name: folder / f"{name}.safetensors" for name in ("distilled", "refinement", "one")}
        write_lora(self.paths["distilled"], SMALL, ATTENTION_AND_FFN, rank=3, scale=0.7, seed=1)
        write_lora(self.paths["refinement"], SMALL, EVERYTHING, rank=5, scale=0.25, seed=2)
        write_lora(self.paths["one"], SMALL, ("blocks.1.ffn.w2",), rank=1, scale=2.0, seed=3)
        self.base = CountingWeights(folder / "dit")
        self.dit = self.load(dtype)
        self.base.reads.clear()
        self.files = {name: read_lora(path, self.dit) for name, path in self.paths.items()}
        self.merged = LoraMerger(self.dit, self.base, self.files)

    def load(self, dtype: torch.dtype) -> Dit:
        config = load_dit_config(self.folder / "dit" / "config.json")
        return load_module(lambda: Dit(config, dtype), self.base, CPU)

    def weights(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.dit.state_dict().items()}

    def plain(self, name: str) -> PlainTransformer:
        return load_transformer(self.folder).with_lora(self.paths[name])


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def linears(dit: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in dit.named_modules() if isinstance(module, nn.Linear)}


@pytest.mark.parametrize("name", ["distilled", "refinement", "one"])
def test_merged_weights_do_what_the_thin_projections_beside_the_base_do(case: Case, name: str) -> None:
    case.merged.switch(name)
    plain = case.plain(name)
    for path, module in linears(case.dit).items():
        x = torch.randn(4, module.in_features, dtype=torch.float64)
        torch.testing.assert_close(module(x.float()).double(), plain.linear(path, x), atol=1e-5, rtol=1e-5)


def test_a_merged_file_changes_what_it_names_and_nothing_else(case: Case) -> None:
    before = case.weights()
    case.merged.switch("refinement")
    changed = {name for name, tensor in case.weights().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"{module}.weight" for module in case.files["refinement"].modules}
    assert len(changed) == 2 * 9 + 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_way_back_to_the_base_is_bit_identical(tmp_path: Path, dtype: torch.dtype) -> None:
    case = Case(tmp_path, dtype)
    base = case.weights()
    for name in ("distilled", "refinement", None, "one", "distilled", "one", None):
        case.merged.switch(name)
        assert same(case.weights(), base) == (name is None)
    assert same(base, case.load(dtype).state_dict())


def test_switch_removes_the_lora_that_was_active(case: Case) -> None:
    case.merged.switch("refinement")
    at_once = case.weights()
    for name in ("one", "distilled", "refinement"):
        case.merged.switch(name)
    assert same(case.weights(), at_once)


def test_a_low_precision_weight_is_rounded_once_after_the_sum(tmp_path: Path) -> None:
    exact, rounded = Case(tmp_path), Case(tmp_path, torch.bfloat16)
    exact.merged.switch("distilled")
    rounded.merged.switch("distilled")
    for name, tensor in rounded.dit.state_dict().items():
        assert torch.equal(tensor, exact.dit.state_dict()[name].to(tensor.dtype)), name


def test_only_what_either_file_names_is_read_again(case: Case) -> None:
    case.merged.switch("one")
    assert case.base.reads == ["blocks.1.ffn.w2.weight"]
    case.base.reads.clear()
    case.merged.switch("distilled")
    assert sorted(case.base.reads) == sorted(f"{module}.weight" for module in case.files["distilled"].modules)
    case.base.reads.clear()
    case.merged.switch("one")
    assert len(case.base.reads) == 16
    case.base.reads.clear()
    case.merged.switch(None)
    assert case.base.reads == ["blocks.1.ffn.w2.weight"]


def test_the_active_file_is_not_merged_again(case: Case) -> None:
    assert case.merged.active is None
    case.merged.switch(None)
    assert case.base.reads == []
    case.merged.switch("one")
    assert case.merged.active == "one"
    case.base.reads.clear()
    case.merged.switch("one")
    assert case.base.reads == []


def test_failed_switch_can_be_repeated(case: Case) -> None:
    base = case.weights()
    hidden = case.paths["distilled"].rename(case.folder / "elsewhere")
    case.merged.switch("refinement")
    with pytest.raises(CheckpointError, match="distilled"):
        case.merged.switch("distilled")
    with pytest.raises(AssertionError):
        _ = case.merged.active
    hidden.rename(case.paths["distilled"])
    case.merged.switch("distilled")
    merged = case.weights()
    case.merged.switch(None)
    assert same(case.weights(), base)
    case.merged.switch("distilled")
    assert same(case.weights(), merged)


def test_weights_stay_where_they_are(case: Case) -> None:
    places = {name: tensor.data_ptr() for name, tensor in case.dit.state_dict().items()}
    case.merged.switch("refinement")
    case.merged.switch(None)
    assert places == {name: tensor.data_ptr() for name, tensor in case.dit.state_dict().items()}


def edited(case: Case, edit: Edit) -> Path:
    """The distilled file after an edit."""
    tensors = load_file(case.paths["distilled"])
    edit(tensors)
    path = case.folder / "edited.safetensors"
    save_file(tensors, path)
    return path


def misshapen(key: str, *shape: int) -> Edit:
    return lambda tensors: tensors.update({key: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("edit", "key"),
    [
        (misshapen("blocks.0.attn.qkv.lora_down.weight", 9, 32), "blocks.0.attn.qkv.lora_down.weight"),
        (misshapen(f"{QKV}.bias", 96), f"{QKV}.bias"),
        (misshapen(QKV, 96), QKV),
        (misshapen(QKV.replace("qkv", "q") + ".alpha_scale"), QKV.replace("qkv", "q") + ".alpha_scale"),
        (misshapen(QKV.replace("qkv", "q_norm") + ".alpha_scale"), "q_norm.alpha_scale"),
        (lambda tensors: tensors.pop(f"{QKV}.alpha_scale"), f"{QKV}.alpha_scale is missing"),
        (lambda tensors: tensors.pop(f"{QKV}.lora_down.weight"), f"{QKV}.lora_down.weight is missing"),
        (
            lambda tensors: tensors.pop(f"{QKV}.lora_up.blocks.1.weight"),
            f"{QKV}.lora_up.blocks.1.weight is missing",
        ),
        (
            lambda tensors: [tensors.pop(f"{QKV}.lora_up.blocks.{i}.weight") for i in range(3)],
            f"{QKV}.lora_up.weight is missing",
        ),
        (misshapen(f"{QKV}.lora_up.weight", 96, 3), f"{QKV}.lora_up.weight stands beside"),
        (misshapen(f"{QKV}.lora_up.blocks.3.weight", 32, 3), f"{QKV}.lora_up.blocks.0.weight has shape"),
        (
            misshapen(f"{QKV}.lora_down.weight", 10, 32),
            f"{QKV}.lora_down.weight has shape [10, 32], not [9, 32]",
        ),
        (misshapen(f"{QKV}.lora_down.weight", 9, 31), f"{QKV}.lora_down.weight"),
        (misshapen(f"{QKV}.lora_up.blocks.2.weight", 32, 4), f"{QKV}.lora_up.blocks.2.weight has shape"),
        (misshapen(f"{QKV}.lora_up.blocks.0.weight", 32), f"{QKV}.lora_up.blocks.0.weight"),
        (misshapen(f"{QKV}.alpha_scale", 3), f"{QKV}.alpha_scale has shape [3], not []"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_file_and_key(case: Case, edit: Edit, key: str) -> None:
    path = edited(case, edit)
    with pytest.raises(LoraError) as refusal:
        read_lora(path, case.dit)
    assert str(path) in str(refusal.value)
    assert key in str(refusal.value)


def test_blocks_that_do_not_divide_the_rows_are_refused(case: Case) -> None:
    extra = {f"{QKV}.lora_up.blocks.{i}.weight": torch.zeros(19, 3) for i in range(5)}
    path = edited(case, lambda tensors: tensors.update(extra))
    with pytest.raises(LoraError, match="do not divide 96 rows"):
        read_lora(path, case.dit)


def test_a_file_that_is_cut_short_is_refused_by_name(case: Case) -> None:
    path = case.paths["distilled"]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"distilled\.safetensors"):
        read_lora(path, case.dit)


def test_a_file_that_is_not_there_is_refused_by_name(case: Case) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.safetensors"):
        read_lora(case.folder / "nowhere.safetensors", case.dit)


@pytest.mark.parametrize("rank", [1, 7, 32])
def test_the_rank_is_read_from_the_file(case: Case, rank: int) -> None:
    path = case.folder / "other.safetensors"
    write_lora(path, SMALL, ("qkv", "final_layer.adaLN_modulation.1"), rank=rank)
    found: LoraFile = read_lora(path, case.dit)
    assert sorted(found.modules) == [
        "blocks.0.attn.qkv",
        "blocks.1.attn.qkv",
        "final_layer.adaLN_modulation.1",
    ]
    assert [len(low_rank.ups) for low_rank in found.modules.values()] == [3, 3, 2]
    LoraMerger(case.dit, case.base, {"other": found}).switch("other")
