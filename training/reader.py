"""What the transformer's stages need of the encoders: captions read, latents normalised.

It uses the checkpoint's own text encoder, as trained by `training.text`, but pads captions to the longest
of a batch only: padding is left out of what is attended to.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, UMT5EncoderModel

from model.io.json_file import load_json
from model.text import Text, clean


@dataclass(frozen=True)
class Reader:
    """The frozen text encoder, and the mean and deviation of latents; everything on one device."""

    tokenizer: PreTrainedTokenizerBase
    encoder: UMT5EncoderModel
    mean: Float[Tensor, "c 1 1 1"]
    std: Float[Tensor, "c 1 1 1"]

    @classmethod
    def load(cls, checkpoint: Path, device: torch.device) -> "Reader":
        """From `tokenizer/`, `text_encoder/` and the VAE's configuration."""
        vae = load_json(checkpoint / "vae" / "config.json")
        mean, std = (torch.tensor(vae[name], device=device) for name in ("latents_mean", "latents_std"))
        encoder = UMT5EncoderModel.from_pretrained(checkpoint / "text_encoder").eval().requires_grad_(False)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint / "tokenizer")
        return cls(tokenizer, encoder.to(device), mean[:, None, None, None], std[:, None, None, None])

    @property
    def device(self) -> torch.device:
        """Where everything is."""
        return self.mean.device

    def read(self, captions: list[str]) -> Text:
        """Hidden states of captions, padded to the longest."""
        tokens = self.tokenizer([clean(caption) for caption in captions], padding=True, return_tensors="pt")
        ids, mask = (tokens[name].to(self.device) for name in ("input_ids", "attention_mask"))
        return Text(self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state, mask)

    def normalised(self, latents: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b c f h w"]:
        """Latents as the transformer sees them, in fp32 on the device."""
        return (latents.to(self.device, torch.float32) - self.mean) / self.std
