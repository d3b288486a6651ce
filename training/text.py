"""Second stage: the tokenizer and the text encoder, in UMT5's layout, on captions alone.

`python -m training.text RUN CHECKPOINT` trains the encoder to understand: from every token of a
caption alone, one Linear tells each property of the scene, which of two things the token belongs to, and what
that one is like: the way to tell two things apart, which is not found without.
The transformer, which comes after, then finds the whole meaning wherever it looks. Nothing is seen here;
captions cost nothing to make.
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel
from transformers.models.umt5.modeling_umt5 import UMT5Attention

from training.captions import Told, caption, of_second_thing, read
from training.optimiser import Optimiser, learning_rate
from training.stage import Run, Stage, stage
from training.tokenizer import build_tokenizer
from training.world import COLOURS, GROUNDS, MOTIONS, SHAPES, SIZES, SPEEDS, random_scene

WIDTH = 64
STEPS, BATCH = 1500, 64
MUON_RATE, ADAM_RATE = 0.02, 2e-3
LOG_EVERY = 50
PAIR_SHARE = 0.5  # pairs are harder to understand
LEFT_OUT = -100  # the answer that cross entropy does not count
AWAY = -8.0
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
    encoder = new_encoder(len(tokenizer))
    nn.Module.to(encoder, told.device)
    questions = nn.Linear(WIDTH, sum(_sizes())).to(told.device)
    both = nn.ModuleList([encoder, questions])
    optimiser = Optimiser(both, encoder.encoder.block, MUON_RATE, ADAM_RATE)
    run = Run(told.folder, {"encoder": encoder, "questions": questions, "optimiser": optimiser})
    while run.step < told.steps:
        ids, mask, answers, places = (part.to(told.device) for part in batch(tokenizer, BATCH, (1, run.step)))
        hidden = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        loss, right = ask(questions(hidden), mask, answers, places)
        optimiser.step(loss, learning_rate(run.step, told.steps))
        if run.step % LOG_EVERY == 0:
            run.log(loss=loss.item(), right=right.item())
        run.advance()
    run.save()
    return encoder.eval()


@torch.no_grad()
def new_encoder(words: int) -> UMT5EncoderModel:
    """Its heads begin by looking to the words just before, to those just after, to all before, and to all.

    From biases near zero the order of the words is not found in any number of steps that we tried.
    """
    encoder = UMT5EncoderModel(encoder_config(words))
    distance = torch.arange(16.0)  # the buckets of a direction; the far ones are wider
    away, anywhere = torch.full_like(distance, AWAY), torch.zeros_like(distance)
    to_earlier, to_later = (-distance, away, anywhere, anywhere), (away, -distance, away, anywhere)
    biases = torch.cat([torch.stack(to_earlier, 1), torch.stack(to_later, 1)])
    for module in encoder.modules():
        if isinstance(module, UMT5Attention):
            module.relative_attention_bias.weight.copy_(biases)
    return encoder.requires_grad_(True)


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
) -> tuple[Int[Tensor, "b l"], Int[Tensor, "b l"], Int[Tensor, "b properties"], Int[Tensor, "b l"]]:
    """Captions of random scenes, what they say, and which of two things each token belongs to."""
    random = np.random.default_rng(seed)
    captions = [caption(random_scene(random, PAIR_SHARE), random) for _ in range(count)]
    tokens = tokenizer(captions, padding=True, return_tensors="pt")
    answers = torch.tensor([properties(read(told)) for told in captions])
    places = torch.full_like(tokens["input_ids"], LEFT_OUT)
    for row, told in zip(places, captions, strict=True):
        words = of_second_thing(told)
        row[: len(words)] = torch.tensor(words)
    return tokens["input_ids"], tokens["attention_mask"], answers, places


def properties(told: Told) -> list[int]:
    """Each property as a number, 0 where nothing was said of it."""
    numbers = [_number(tuple(GROUNDS), told.ground), _number((False, True), told.striped)]
    for place in range(2):
        thing = told.things[place] if place < len(told.things) else None
        numbers += [_number(values, getattr(thing, name, None)) for name, values in THING_PROPERTIES.items()]
    return numbers


def ask(
    logits: Float[Tensor, "b l classes"],
    mask: Int[Tensor, "b l"],
    answers: Int[Tensor, "b properties"],
    places: Int[Tensor, "b l"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean loss over tokens and properties, and the share of captions understood wholly by every token."""
    guesses = logits.split(_sizes(), dim=-1)
    wanted = answers_of_tokens(mask, answers, places)
    loss = torch.stack([_cross_entropy(*pair) for pair in zip(guesses, wanted, strict=True)]).mean()
    right = torch.ones_like(mask[:, 0], dtype=torch.bool)
    for guess, answer in zip(guesses[: answers.shape[1]], wanted, strict=False):
        right &= ((guess.argmax(-1) == answer) | (answer == LEFT_OUT)).all(1)
    return loss, right.float().mean()


def answers_of_tokens(
    mask: Int[Tensor, "b l"], answers: Int[Tensor, "b properties"], places: Int[Tensor, "b l"]
) -> list[Int[Tensor, "b l"]]:
    """For each question the answer of every token: of the scene, of its own thing, and which one that is."""
    of_scene = answers[:, None].expand(-1, mask.shape[1], -1).masked_fill(mask[..., None] == 0, LEFT_OUT)
    *_, first, second = answers.split([2, len(THING_PROPERTIES), len(THING_PROPERTIES)], dim=1)
    of_thing = torch.where(places[..., None] == 1, second[:, None], first[:, None])
    of_thing = of_thing.masked_fill(places[..., None] == LEFT_OUT, LEFT_OUT)
    return [*of_scene.unbind(-1), *of_thing.unbind(-1), places]


def _cross_entropy(guess: Float[Tensor, "b l classes"], wanted: Int[Tensor, "b l"]) -> Float[Tensor, ""]:
    return F.cross_entropy(guess.flatten(0, 1), wanted.flatten(), ignore_index=LEFT_OUT)


def _sizes() -> list[int]:
    per_thing = [len(values) + 1 for values in THING_PROPERTIES.values()]
    return [len(GROUNDS) + 1, 3, *per_thing, *per_thing, *per_thing, 2]


def _number(values: tuple[object, ...], value: object) -> int:
    return 0 if value is None else 1 + values.index(value)


if __name__ == "__main__":
    main()
