"""Second stage: the tokenizer and the text encoder, in UMT5's layout, on captions alone.

`python -m training.text RUN CHECKPOINT` trains the encoder to understand: from every token of a
caption alone, one Linear tells each property of the scene. The transformer, which comes after, then
finds the whole meaning wherever it looks. Nothing is seen here; captions cost nothing to make.
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from training.captions import Told, caption, read
from training.optimiser import ADAM_BETAS, learning_rate
from training.stage import Run, Stage, stage
from training.tokenizer import build_tokenizer
from training.world import COLOURS, GROUNDS, MOTIONS, SHAPES, SIZES, SPEEDS, random_scene

WIDTH = 64
STEPS, BATCH, LEARNING_RATE = 8000, 64, 2e-3
LOG_EVERY = 50
PAIR_SHARE = 0.5  # pairs are harder to understand
THING_PROPERTIES = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "motion": MOTIONS,
    "speed": SPEEDS,
    "size": SIZES,
}


def main() -> None:
    """Train, resuming where the last run stopped, and write `tokenizer/` and `text_encoder/`."""
    told = stage("text", __doc__, STEPS)
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(told.checkpoint / "tokenizer")
    train(told, tokenizer).save_pretrained(told.checkpoint / "text_encoder")


def train(told: Stage, tokenizer: PreTrainedTokenizerFast) -> UMT5EncoderModel:
    """Every token is asked for every property; what was not said is an answer too."""
    torch.manual_seed(0)
    encoder = UMT5EncoderModel(encoder_config(len(tokenizer)))
    nn.Module.to(encoder, told.device)
    questions = nn.Linear(WIDTH, sum(_sizes())).to(told.device)
    parameters = [*encoder.parameters(), *questions.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=LEARNING_RATE, betas=ADAM_BETAS)
    run = Run(told.folder, {"encoder": encoder, "questions": questions, "optimiser": optimiser})
    while run.step < told.steps:
        ids, mask, answers = (part.to(told.device) for part in batch(tokenizer, BATCH, (1, run.step)))
        hidden = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        loss, right = ask(questions(hidden), mask, answers)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.param_groups[0]["lr"] = LEARNING_RATE * learning_rate(run.step, told.steps)
        optimiser.step()
        if run.step % LOG_EVERY == 0:
            run.log(loss=loss.item(), right=right.item())
        run.advance()
    run.save()
    return encoder.eval()


def encoder_config(words: int) -> UMT5Config:
    """UMT5's layout, small."""
    return UMT5Config(
        vocab_size=words,
        d_model=WIDTH,
        d_kv=16,
        d_ff=128,
        num_layers=3,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
    )


def batch(
    tokenizer: PreTrainedTokenizerFast, count: int, seed: tuple[int, ...]
) -> tuple[Int[Tensor, "b l"], Int[Tensor, "b l"], Int[Tensor, "b properties"]]:
    """Captions of random scenes, and what they say."""
    random = np.random.default_rng(seed)
    captions = [caption(random_scene(random, PAIR_SHARE), random) for _ in range(count)]
    tokens = tokenizer(captions, padding=True, return_tensors="pt")
    answers = torch.tensor([properties(read(told)) for told in captions])
    return tokens["input_ids"], tokens["attention_mask"], answers


def properties(told: Told) -> list[int]:
    """Each property as a number, 0 where nothing was said of it."""
    numbers = [_number(tuple(GROUNDS), told.ground), _number((False, True), told.striped)]
    for place in range(2):
        thing = told.things[place] if place < len(told.things) else None
        numbers += [_number(values, getattr(thing, name, None)) for name, values in THING_PROPERTIES.items()]
    return numbers


def ask(
    logits: Float[Tensor, "b l classes"], mask: Int[Tensor, "b l"], answers: Int[Tensor, "b properties"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean loss over tokens and properties, and the share of captions understood wholly by every token."""
    loss, right = logits.new_zeros(()), torch.ones_like(answers[:, 0], dtype=torch.bool)
    for answer, guess in zip(answers.T, logits.split(_sizes(), dim=-1), strict=True):
        wanted = answer[:, None].expand(mask.shape).masked_fill(mask == 0, -100)
        loss = loss + F.cross_entropy(guess.flatten(0, 1), wanted.flatten(), ignore_index=-100)
        right &= ((guess.argmax(-1) == wanted) | (mask == 0)).all(1)
    return loss / answers.shape[1], right.float().mean()


def _sizes() -> list[int]:
    per_thing = [len(values) + 1 for values in THING_PROPERTIES.values()]
    return [len(GROUNDS) + 1, 3, *per_thing, *per_thing]


def _number(values: tuple[object, ...], value: object) -> int:
    return 0 if value is None else 1 + values.index(value)


if __name__ == "__main__":
    main()
