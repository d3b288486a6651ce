"""Encode prompts: clean them, tokenise them and run the UMT5 encoder, with a cache.

The encoder takes 11 GB, so only the leader loads it. Cached hidden states stay on the device, 4 MB for each
prompt.
"""

import html
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import ftfy
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, UMT5Config, UMT5EncoderModel

from model.io.checkpoint import Weights, load_module
from model.io.json_file import load_json
from model.spec.errors import CheckpointError

MAX_TOKENS = 512
CACHED_PROMPTS = 64


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
        self, tokenizer: PreTrainedTokenizerBase, encoder: UMT5EncoderModel, pinned: str | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._encoder = encoder
        self._pinned = None if pinned is None else clean(pinned)
        self._cache: OrderedDict[str, Text] = OrderedDict()

    @classmethod
    def load(
        cls, checkpoint: Path, device: torch.device, dtype: torch.dtype, pinned: str | None = None
    ) -> "TextEncoder":
        """Load `tokenizer/` and `text_encoder/`. The cache never evicts the prompt `pinned`.

        Raises CheckpointError.
        """
        config = UMT5Config.from_dict(load_json(checkpoint / "text_encoder" / "config.json"))
        config.dtype = dtype
        weights = Weights(checkpoint / "text_encoder", "model")
        encoder = load_module(lambda: nn.Module.to(UMT5EncoderModel(config), dtype), weights, device)
        return cls(_load_tokenizer(checkpoint / "tokenizer"), encoder, pinned)

    def encode(self, prompts: list[str]) -> Text:
        """Return the hidden states of each prompt, computed or from the cache."""
        texts = [self._encode(clean(prompt)) for prompt in prompts]
        return Text(torch.cat([text.hidden for text in texts]), torch.cat([text.mask for text in texts]))

    def _encode(self, prompt: str) -> Text:
        text = self._cache.pop(prompt, None) or self._compute(prompt)
        self._cache[prompt] = text
        if len(self._cache) > CACHED_PROMPTS:
            del self._cache[next(old for old in self._cache if old != self._pinned)]
        return text

    def _compute(self, prompt: str) -> Text:
        tokens = self._tokenizer(
            [prompt], padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
        )
        ids, mask = (tokens[name].to(self._encoder.device) for name in ("input_ids", "attention_mask"))
        return Text(self._encoder(input_ids=ids, attention_mask=mask).last_hidden_state, mask)


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    if not folder.is_dir():
        raise CheckpointError(folder, "is missing, or is no folder")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(folder, f"is no tokenizer: {error}") from error
    return tokenizer
