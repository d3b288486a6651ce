"""Write a small random checkpoint in the released layout: `python -m model.tiny DIR [--seed N]`.

Its videos are moving colours, but they run through all the code that the release runs through, in seconds on
a CPU.
"""

import argparse
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from model.io.lora_files import PREFIX, SEPARATOR
from model.transformer.config import BrickConfig, DitConfig
from model.transformer.dit import Dit

TEXT_WIDTH = 32
LORA_RANK = 4
LORA_SCALE = 0.5
ATTENTION_AND_FFN = ("qkv", "proj", "q_linear", "kv_linear", "w1", "w2", "w3")
LORAS = {"cfg_step_lora": ATTENTION_AND_FFN, "refinement_lora": (*ATTENTION_AND_FFN, "1", "linear")}
FUSED = {"qkv": 3, "kv_linear": 2}
SHIFT = 12.0
DIT = DitConfig(
    hidden_size=96,
    depth=2,
    num_heads=12,
    caption_channels=TEXT_WIDTH,
    adaln_tembed_dim=32,
    frequency_embedding_size=32,
    bsa_params=BrickConfig(sparsity=0.75),
)
LIMITS: Mapping[str, object] = {
    "buckets": {
        "480p": {"0.67": [64, 96], "1.00": [80, 80], "1.50": [96, 64]},
        "720p": {"0.67": [96, 144], "1.00": [112, 112], "1.50": [144, 96]},
    },
    "refine_buckets": {"0.67": [128, 192], "1.00": [128, 128], "1.50": [192, 128]},
    "default_size": [64, 96],
    "min_side": 32,
    "max_pixels": 96 * 144,
    "default_num_frames": 17,
    "max_num_frames": 33,
    "num_condition_frames": 5,
    "fps": 15,
    "num_inference_steps": 4,
    "distilled_num_inference_steps": 2,
    "max_num_inference_steps": 50,
}


def write_tiny(folder: Path, seed: int = 0, config: DitConfig = DIT) -> None:
    """Write the checkpoint. The same seed and sizes give the same files."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        words = write_tokenizer(folder / "tokenizer")
        _write_text_encoder(folder / "text_encoder", words)
        _write_vae(folder / "vae")
        dit = Dit(config, torch.float32)
        _write_dit(folder / "dit", dit)
        (folder / "lora").mkdir(parents=True, exist_ok=True)
        for name, wanted in LORAS.items():
            save_file(lora_tensors(dit, wanted), folder / "lora" / f"{name}.safetensors")
    write_json(folder / "scheduler" / "scheduler_config.json", {"shift": SHIFT, "num_train_timesteps": 1000})
    write_json(folder / "limits.json", LIMITS)


def write_tokenizer(folder: Path) -> int:
    """Write a Unigram tokenizer over single characters, and return the size of its vocabulary."""
    characters = "▁" + "".join(map(chr, range(33, 127)))
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -4.0) for letter in characters)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer, model_max_length=512, **special).save_pretrained(folder)
    return len(pieces)


def _write_text_encoder(folder: Path, words: int) -> None:
    config = UMT5Config(
        vocab_size=words,
        d_model=TEXT_WIDTH,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        pad_token_id=0,
        eos_token_id=1,
    )
    encoder = UMT5EncoderModel(config)
    _randomise(encoder)
    encoder.save_pretrained(folder)


def _write_vae(folder: Path) -> None:
    wan: Any = AutoencoderKLWan
    vae = wan.from_config({"base_dim": 4, "num_res_blocks": 1})
    _randomise(vae)
    vae.decoder.conv_out.weight.data *= 0.4  # otherwise most pixels are clipped to black or white
    vae.save_pretrained(folder)


def _write_dit(folder: Path, dit: Dit) -> None:
    """Write two shards and an index."""
    _randomise(dit)
    tensors = dit.state_dict()
    names = sorted(tensors)
    shards = {f"diffusion_pytorch_model-{i + 1:05}-of-00002.safetensors": names[i::2] for i in range(2)}
    write_json(folder / "config.json", config_document(dit.config))
    for shard, tensor_names in shards.items():
        save_file({name: tensors[name].contiguous() for name in tensor_names}, folder / shard)
    index = {
        "metadata": {"total_size": sum(x.nbytes for x in tensors.values())},
        "weight_map": {name: shard for shard, tensor_names in shards.items() for name in tensor_names},
    }
    write_json(folder / "diffusion_pytorch_model.safetensors.index.json", index)


def config_document(config: DitConfig) -> dict[str, object]:
    """Return the `dit/config.json` of a transformer."""
    return {**vars(config), "bsa_params": vars(config.bsa_params), "enable_bsa": False}


def lora_tensors(dit: Dit, wanted: Collection[str], rank: int = LORA_RANK) -> dict[str, Tensor]:
    """Return a LoRA of this rank that changes the modules whose names end with one of these."""
    tensors: dict[str, Tensor] = {}
    for name, module in dit.named_modules():
        kind = name.rpartition(".")[2]
        if isinstance(module, nn.Linear) and kind in wanted and not name.startswith("y_embedder"):
            tensors |= _lora_of(name, module, FUSED.get(kind, _vectors(name)), rank)
    return tensors


def _vectors(name: str) -> int:
    """Return the vectors of a module: six in the modulation of a block, two in the last, else one."""
    if "adaLN" not in name:
        return 1
    return 6 if name.startswith("blocks") else 2


def _lora_of(name: str, module: nn.Linear, blocks: int, rank: int) -> dict[str, Tensor]:
    key = PREFIX + name.replace(".", SEPARATOR)
    out, inner = module.out_features, module.in_features
    ups = (
        [f"{key}.lora_up.blocks.{i}.weight" for i in range(blocks)]
        if blocks > 1
        else [f"{key}.lora_up.weight"]
    )
    return {
        f"{key}.alpha_scale": torch.tensor(LORA_SCALE),
        f"{key}.lora_down.weight": torch.randn(blocks * rank, inner) / inner**0.5,
        **{up: torch.randn(out // blocks, rank) / rank**0.5 * 0.2 for up in ups},
    }


@torch.no_grad()
def _randomise(module: nn.Module) -> None:
    """Draw matrices from N(0, 1/fan-in), scales around 1, and small biases: every part has an effect."""
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1 and "gamma" not in name:
            parameter.normal_(std=(parameter.numel() / parameter.shape[0]) ** -0.5)
        elif name.endswith("bias"):
            parameter.normal_(std=0.1)
        else:
            parameter.normal_(mean=1.0, std=0.1)


def write_json(path: Path, document: object) -> None:
    """Write a JSON file, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m model.tiny", description="write a small random checkpoint"
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_tiny(arguments.folder, arguments.seed)


if __name__ == "__main__":
    main()
