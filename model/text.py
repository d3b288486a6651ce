"""Encode prompts: clean them, tokenise them and run the UMT5 encoder, with a cache.

The encoder takes 11 GB, so only the leader loads it, and may keep it in host memory. Cached hidden states
stay on the device, 4 MB for each prompt.
"""

import html
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import ftfy
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AutoTokenizer, PreTrainedTokenizerBase, UMT5Config, UMT5EncoderModel

from model.io.checkpoint import Weights, load_module
from model.io.json_file import load_json
from model.parallel.mesh import CPU
from model.spec.errors import CheckpointError
from model.spec.memory import TextEncoderPlacement

MAX_TOKENS = 512
CACHED_PROMPTS = 64
MOST_UPCOMING = CACHED_PROMPTS // 2  # more would evict each other before they are needed


class Text(NamedTuple):
    """Hidden states of prompts, padded to 512 tokens, and a mask: 1 for tokens, 0 for padding."""

    hidden: Float[Tensor, "b l e"]
    mask: Int[Tensor, "b l"]


def clean(prompt: str) -> str:
    """Repair wrong encodings, unescape HTML (twice, as LongCat-Video does) and collapse white space."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split())


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
        config = UMT5Config.from_dict(load_json(checkpoint / "text_encoder" / "config.json"))
        config.dtype = dtype
        weights = Weights(checkpoint / "text_encoder", "model")
        encoder = load_module(
            lambda: nn.Module.to(UMT5EncoderModel(config), dtype),
            weights,
            device if placement == "device" else CPU,
            _pin if placement == "offload" and device.type == "cuda" else None,
        )
        return cls(_load_tokenizer(checkpoint / "tokenizer"), encoder, device, placement, kept)

    def encode(self, prompts: list[str], upcoming: Sequence[str] = ()) -> Text:
        """Return the hidden states of each prompt, computed or from the cache.

        Where weights must be moved for that, those of the prompts `upcoming` are computed, too, and cached.
        """
        cleaned = [clean(prompt) for prompt in prompts]
        if missing := self._missing(cleaned):
            if self._placement == "offload":
                missing = self._missing(cleaned + [clean(prompt) for prompt in upcoming[:MOST_UPCOMING]])
            self._cache.update(zip(missing, self._compute(missing), strict=True))
        for prompt in cleaned:
            self._cache.move_to_end(prompt)
        texts = [self._cache[prompt] for prompt in cleaned]
        while len(self._cache) > CACHED_PROMPTS:
            del self._cache[next(old for old in self._cache if old != self._kept)]
        return Text(torch.cat([text.hidden for text in texts]), torch.cat([text.mask for text in texts]))

    def _missing(self, prompts: list[str]) -> list[str]:
        """Return the prompts that are not in the cache, each once."""
        return [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._cache]

    def _compute(self, prompts: list[str]) -> list[Text]:
        """Encode prompts one by one. Weights that are offloaded are moved once for all of them."""
        if self._placement != "offload":
            return [self._run(prompt, {}) for prompt in prompts]
        texts = self._run_offloaded(prompts)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # the freed memory would stay divided into blocks of a weight's size
        return texts

    def _run_offloaded(self, prompts: list[str]) -> list[Text]:
        """Encode prompts with copies of the weights on the device, which are dropped on return."""
        moved = {
            name: weight.to(self._device, non_blocking=True, copy=True)
            for name, weight in self._encoder.named_parameters()
        }
        return [self._run(prompt, moved) for prompt in prompts]

    def _run(self, prompt: str, weights: dict[str, Tensor]) -> Text:
        """Encode a prompt, with `weights` instead of those of the module where they are given."""
        tokens = self._tokenizer(
            [prompt], padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
        )
        device = CPU if self._placement == "cpu" else self._device
        inputs = {name: tokens[name].to(device) for name in ("input_ids", "attention_mask")}
        hidden = functional_call(self._encoder, weights, kwargs=inputs).last_hidden_state
        return Text(hidden.to(self._device), inputs["attention_mask"].to(self._device))


def _pin(_name: str, weight: Tensor) -> Tensor:
    """Copy a weight into page-locked memory, from which a GPU copies several times faster."""
    return weight.pin_memory()


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    if not folder.is_dir():
        raise CheckpointError(folder, "is missing, or is no folder")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(folder, f"is no tokenizer: {error}") from error
    return tokenizer
