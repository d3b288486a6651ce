"""Encode prompts: clean them, tokenise them and run the UMT5 encoder, with a cache.

The encoder takes 11 GB, so only the leader loads it, and may keep it in host memory. Cached hidden states
are in host memory, 4 MB for each prompt.
"""

from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, UMT5Config, UMT5EncoderModel

from model.io.checkpoint import Weights, load_module
from model.io.json_file import load_json
from model.parallel.mesh import CPU
from model.spec.errors import CheckpointError, reported_as
from model.spec.memory import TEXT_TOKENS, TextEncoderPlacement
from model.spec.prompt import clean

MAX_TOKENS = TEXT_TOKENS
CACHED_PROMPTS = 64


class Text(NamedTuple):
    """Hidden states of prompts, padded to 512 tokens, and a mask: 1 for tokens, 0 for padding."""

    hidden: Float[Tensor, "b l e"]
    mask: Int[Tensor, "b l"]


class TextEncoder:
    """The tokenizer and the UMT5 encoder of a checkpoint."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        encoder: UMT5EncoderModel,
        device: torch.device,
        placement: TextEncoderPlacement = "device",
        kept: str | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._encoder = encoder
        self._device = device
        self._placement = placement
        if placement == "offload":
            _stream(encoder, device)
        self._kept = None if kept is None else clean(kept)
        self._cache: OrderedDict[str, Text] = OrderedDict()

    @classmethod
    def load(
        cls,
        checkpoint: Path,
        device: torch.device,
        dtype: torch.dtype,
        placement: TextEncoderPlacement = "device",
        kept: str | None = None,
    ) -> "TextEncoder":
        """Load `tokenizer/` and `text_encoder/`. The cache never evicts the prompt `kept`.

        Hidden states are returned on `device`, whatever the placement. Raises CheckpointError.
        """
        path = checkpoint / "text_encoder" / "config.json"
        document = load_json(path)

        def build() -> UMT5EncoderModel:
            with reported_as(path, "is not that of a UMT5 encoder"):
                config = UMT5Config.from_dict(document)
                config.dtype = dtype
                return nn.Module.to(UMT5EncoderModel(config), dtype)

        encoder = load_module(
            build,
            Weights(checkpoint / "text_encoder", "model"),
            device if placement == "device" else CPU,
            _pin_layers if placement == "offload" and device.type == "cuda" else None,
        )
        tokenizer = _load_tokenizer(checkpoint / "tokenizer", encoder.config.vocab_size)
        return cls(tokenizer, encoder, device, placement, kept)

    def encode(self, prompts: list[str]) -> Text:
        """Return the hidden states of each prompt, computed or from the cache."""
        texts = [self._encode(clean(prompt)) for prompt in prompts]
        hidden, mask = (torch.cat(parts).to(self._device) for parts in zip(*texts, strict=True))
        return Text(hidden, mask)

    def _encode(self, prompt: str) -> Text:
        text = self._cache.pop(prompt, None) or self._compute(prompt)
        self._cache[prompt] = text
        if len(self._cache) > CACHED_PROMPTS:
            del self._cache[next(old for old in self._cache if old != self._kept)]
        return text

    def _compute(self, prompt: str) -> Text:
        tokens = self._tokenizer(
            [prompt], padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
        )
        ids = tokens["input_ids"].to(self._encoder.encoder.embed_tokens.weight.device)
        mask = tokens["attention_mask"].to(CPU if self._placement == "cpu" else self._device)
        hidden = self._encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return Text(hidden.to(CPU), mask.to(CPU))


def _stream(encoder: UMT5EncoderModel, device: torch.device) -> None:
    """Let an encoder in host memory run on a device, which has one of its layers at a time.

    The table of embeddings stays in host memory: looking up rows gives the same bits everywhere.
    """
    stack = encoder.encoder
    stack.embed_tokens.register_forward_hook(lambda _module, _inputs, rows: rows.to(device))
    for layer in (*stack.block, stack.final_layer_norm):
        _StreamedLayer(layer, device)


class _StreamedLayer:
    """Copy the weights of a layer to the device before it runs, and drop the copies afterwards."""

    def __init__(self, layer: nn.Module, device: torch.device) -> None:
        self._in_host = [(parameter, parameter.data) for parameter in layer.parameters()]
        self._device = device
        layer.register_forward_pre_hook(self._copy)
        layer.register_forward_hook(self._drop, always_call=True)

    def _copy(self, *_: object) -> None:
        for parameter, weight in self._in_host:
            parameter.data = weight.to(self._device, non_blocking=True, copy=True)

    def _drop(self, *_: object) -> None:
        for parameter, weight in self._in_host:
            parameter.data = weight


def _pin_layers(name: str, weight: Tensor) -> Tensor:
    """Copy the weights of layers into page-locked memory, from which a GPU copies several times faster."""
    return weight.pin_memory() if name.startswith("encoder.block.") else weight


def _load_tokenizer(folder: Path, vocab_size: int) -> PreTrainedTokenizerBase:
    """Load a tokenizer for an encoder that has embeddings of `vocab_size` tokens. Raises CheckpointError."""
    if not folder.is_dir():
        raise CheckpointError(folder, "is missing, or is not a folder")
    with reported_as(folder, "is not a tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if len(tokenizer) > vocab_size:
        raise CheckpointError(folder, f"has {len(tokenizer)} tokens, but the text encoder {vocab_size}")
    return tokenizer
