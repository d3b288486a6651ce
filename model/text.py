"""Prompts to hidden states: cleaning, tokenizer, UMT5 encoder, and a small cache by prompt.

`model.pipeline` keeps one `TextEncoder`, on the leader alone (it weighs 11 GB). What it computed stays on the
device: 4 MB for each prompt of the release, for the prompts seen last and for those that every job may need.
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
from model.spec.errors import CheckpointError
from model.transformer.config import load_json

MAX_TOKENS = 512
REMEMBERED_PROMPTS = 64


class Text(NamedTuple):
    """Hidden states of prompts, padded to 512 tokens, and which tokens are not padding."""

    hidden: Float[Tensor, "b l c"]
    mask: Int[Tensor, "b l"]


def clean(prompt: str) -> str:
    """Mend broken encodings, undo HTML escapes (twice: some are nested), collapse white space."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split())


class TextEncoder:
    """The tokenizer and the UMT5 encoder of a checkpoint."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, encoder: UMT5EncoderModel, lasting: str | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._encoder = encoder
        self._lasting = None if lasting is None else clean(lasting)
        self._remembered: OrderedDict[str, Text] = OrderedDict()

    @classmethod
    def load(
        cls, checkpoint: Path, device: torch.device, dtype: torch.dtype, lasting: str | None = None
    ) -> "TextEncoder":
        """Load `tokenizer/` and `text_encoder/`; the prompt `lasting` is never forgotten once encoded.

        Raises CheckpointError.
        """
        config = UMT5Config.from_dict(load_json(checkpoint / "text_encoder" / "config.json"))
        config.dtype = dtype
        weights = Weights(checkpoint / "text_encoder", "model")
        encoder = load_module(lambda: nn.Module.to(UMT5EncoderModel(config), dtype), weights, device)
        return cls(_load_tokenizer(checkpoint / "tokenizer"), encoder, lasting)

    def encode(self, prompts: list[str]) -> Text:
        """Hidden states of each prompt after cleaning; one seen lately is not computed again."""
        texts = [self._encode(clean(prompt)) for prompt in prompts]
        return Text(torch.cat([text.hidden for text in texts]), torch.cat([text.mask for text in texts]))

    def _encode(self, prompt: str) -> Text:
        text = self._remembered.pop(prompt, None) or self._compute(prompt)
        self._remembered[prompt] = text
        if len(self._remembered) > REMEMBERED_PROMPTS:
            del self._remembered[next(old for old in self._remembered if old != self._lasting)]
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
