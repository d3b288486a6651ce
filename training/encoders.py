"""The frozen text encoder and the latent normalisation, as training a transformer uses them.

The text encoder is that of the checkpoint, trained by `training.text`. Captions are padded only to the
longest of a batch; attention ignores the padding.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, UMT5EncoderModel

from model.io.json_file import load_json
from model.spec.prompt import clean
from model.text import Text


@dataclass(frozen=True)
class FrozenEncoders:
    """Hold tokenizer, text encoder, and mean and deviation of the latents, all on one device."""

    tokenizer: PreTrainedTokenizerBase
    encoder: UMT5EncoderModel
    mean: Float[Tensor, "c 1 1 1"]
    std: Float[Tensor, "c 1 1 1"]

    @classmethod
    def load(cls, checkpoint: Path, device: torch.device) -> "FrozenEncoders":
        """Load `tokenizer/`, `text_encoder/` and the latent statistics in `vae/config.json`."""
        vae = load_json(checkpoint / "vae" / "config.json")
        mean, std = (torch.tensor(vae[name], device=device) for name in ("latents_mean", "latents_std"))
        encoder = UMT5EncoderModel.from_pretrained(checkpoint / "text_encoder").eval().requires_grad_(False)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint / "tokenizer")
        return cls(tokenizer, encoder.to(device), mean[:, None, None, None], std[:, None, None, None])

    @property
    def device(self) -> torch.device:
        """Return the device of the encoder and the statistics."""
        return self.mean.device

    def encode_text(self, captions: list[str]) -> Text:
        """Return the hidden states of captions, padded to the longest."""
        tokens = self.tokenizer([clean(caption) for caption in captions], padding=True, return_tensors="pt")
        ids, mask = (tokens[name].to(self.device) for name in ("input_ids", "attention_mask"))
        return Text(self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state, mask)

    def normalise(self, latents: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b c f h w"]:
        """Normalise latents as the transformer expects them, in fp32 on the device."""
        return (latents.to(self.device, torch.float32) - self.mean) / self.std
