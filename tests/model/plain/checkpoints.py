"""Small random transformers and LoRA files, written from the released names and shapes alone."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

SMALL = {
    "hidden_size": 32,
    "depth": 2,
    "num_heads": 2,
    "caption_channels": 24,
    "mlp_ratio": 4,
    "adaln_tembed_dim": 16,
    "frequency_embedding_size": 16,
    "patch_size": [1, 2, 2],
    "in_channels": 16,
    "out_channels": 16,
    "text_tokens_zero_pad": True,
    "enable_bsa": False,
    "bsa_params": {"sparsity": 0.5, "chunk_3d_shape_q": [4, 4, 4], "chunk_3d_shape_k": [4, 4, 4]},
}
ATTENTION_AND_FFN = ("qkv", "attn.proj", "q_linear", "kv_linear", "w1", "w2", "w3")
EVERYTHING = (*ATTENTION_AND_FFN, "adaLN_modulation.1", "final_layer.linear")
FUSED = {"qkv": 3, "kv_linear": 2}


def shapes(config):
    """Name → shape of every tensor."""
    c, t, freq = config["hidden_size"], config["adaln_tembed_dim"], config["frequency_embedding_size"]
    d = c // config["num_heads"]
    hidden = int(2 / 3 * c * config["mlp_ratio"])
    hidden = (hidden + 255) // 256 * 256
    _, ph, pw = config["patch_size"]
    out = ph * pw * config["out_channels"]
    found = {"x_embedder.proj.weight": [c, config["in_channels"], 1, ph, pw], "x_embedder.proj.bias": [c]}
    found |= linear("t_embedder.mlp.0", t, freq) | linear("t_embedder.mlp.2", t, t)
    found |= linear("y_embedder.y_proj.0", c, config["caption_channels"]) | linear(
        "y_embedder.y_proj.2", c, c
    )
    for i in range(config["depth"]):
        block = f"blocks.{i}"
        found |= linear(f"{block}.adaLN_modulation.1", 6 * c, t)
        found |= {f"{block}.pre_crs_attn_norm.weight": [c], f"{block}.pre_crs_attn_norm.bias": [c]}
        found |= linear(f"{block}.attn.qkv", 3 * c, c) | linear(f"{block}.attn.proj", c, c)
        found |= linear(f"{block}.cross_attn.q_linear", c, c) | linear(
            f"{block}.cross_attn.kv_linear", 2 * c, c
        )
        found |= linear(f"{block}.cross_attn.proj", c, c)
        for attention in ("attn", "cross_attn"):
            found |= {f"{block}.{attention}.{qk}_norm.weight": [d] for qk in "qk"}
        found |= {f"{block}.ffn.{w}.weight": [hidden, c] for w in ("w1", "w3")}
        found[f"{block}.ffn.w2.weight"] = [c, hidden]
    found |= linear("final_layer.linear", out, c) | linear("final_layer.adaLN_modulation.1", 2 * c, t)
    return found


def linear(name, out, inner):
    return {f"{name}.weight": [out, inner], f"{name}.bias": [out]}


def write_dit(folder, config, *, seed=0, dtype=torch.float32):
    """`config.json` and one file of weights; norms are about 1, the rest such that nothing vanishes."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: drawn(name, shape, generator).to(dtype) for name, shape in shapes(config).items()}
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return tensors


def drawn(name, shape, generator):
    values = torch.randn(shape, generator=generator)
    if "norm.weight" in name:
        return 1 + 0.3 * values
    if name.endswith("bias"):
        return 0.1 * values
    return values / values[0].numel() ** 0.5


def write_lora(path, config, modules, *, rank=3, scale=0.7, seed=1):
    """A file that names every module whose path ends in one of `modules`."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in shapes(config).items():
        module = name.removesuffix(".weight")
        if name.endswith(".weight") and module.endswith(tuple(modules)):
            tensors |= lora_of(module, shape, rank, scale, generator)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return tensors


def lora_of(module, shape, rank, scale, generator):
    out, inner = shape
    key = "lora___lorahyphen___" + module.replace(".", "___lorahyphen___")
    count = blocks_of(module)
    ups = (
        [f"{key}.lora_up.blocks.{i}.weight" for i in range(count)] if count > 1 else [f"{key}.lora_up.weight"]
    )
    return {
        f"{key}.alpha_scale": torch.tensor(scale),
        f"{key}.lora_down.weight": torch.randn(count * rank, inner, generator=generator) / inner**0.5,
        **{up: torch.randn(out // count, rank, generator=generator) / rank**0.5 for up in ups},
    }


def blocks_of(module):
    if "adaLN" in module:
        return 6 if module.startswith("blocks") else 2
    return FUSED.get(module.rpartition(".")[2], 1)
