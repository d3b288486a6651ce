"""The tokenizer, and the labels and loss of the text encoder's training."""

from typing import Any

import pytest
import torch

from training.captions import parse_caption
from training.text import (
    IGNORE_INDEX,
    batch,
    encoder_config,
    new_encoder,
    property_classes,
    property_loss,
    token_labels,
)
from training.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_caption_word_is_one_token(tokenizer):
    assert tokenizer.tokenize("a red ball moving left") == ["▁a", "▁red", "▁ball", "▁moving", "▁left"]


def test_case_and_punctuation_are_ignored(tokenizer):
    plain = tokenizer("on a black ground a red ball rests")["input_ids"]
    assert tokenizer("On a BLACK ground, a red ball rests.")["input_ids"] == plain


def test_caption_ends_with_end_token(tokenizer):
    assert tokenizer("a red ball")["input_ids"][-1] == tokenizer.eos_token_id == 1
    assert tokenizer("")["input_ids"] == [1]


def test_unknown_word_is_spelled_with_letters(tokenizer):
    tokens = tokenizer.tokenize("zebra")
    assert "".join(tokens).strip("▁") == "zebra"
    assert "<unk>" not in tokens


def test_tokens_are_padded_to_requested_length(tokenizer):
    tokens = tokenizer(["a red ball"], padding="max_length", max_length=512, truncation=True)
    assert len(tokens["input_ids"][0]) == 512
    assert sum(tokens["attention_mask"][0]) == 4


def test_encoder_has_embedding_for_every_token(tokenizer):
    ids, *_ = batch(tokenizer, 32, (0,))
    assert int(ids.max()) < encoder_config(len(tokenizer)).vocab_size


def test_property_that_is_not_mentioned_has_class_zero(tokenizer):
    without_background, with_background = (
        property_classes(parse_caption("a red ball rests")),
        property_classes(parse_caption("on a black ground a small red ball rests")),
    )
    assert without_background[:2] == [0, 0]
    assert with_background[:2] == [1, 1]
    assert without_background[7:] == [0] * 5
    assert len(without_background) == len(with_background) == 12


def test_seed_determines_batch(tokenizer):
    assert all(
        torch.equal(a, b)
        for a, b in zip(batch(tokenizer, 8, (1, 2)), batch(tokenizer, 8, (1, 2)), strict=True)
    )


def perfect_logits(mask, classes, owners):
    """Return logits that predict every label; padding is labelled, too, but ignored."""
    sizes = [5, 3, *[5, 7, 9, 3, 3] * 3, 2]
    labels = token_labels(mask, classes, owners)
    one_hot = torch.nn.functional.one_hot
    each = [one_hot(label.clamp(min=0), size) for label, size in zip(labels, sizes, strict=True)]
    return 50.0 * torch.cat(each, -1)


def test_perfect_logits_have_no_loss_and_full_accuracy(tokenizer):
    _, *labels = batch(tokenizer, 8, (3,))
    loss, accuracy = property_loss(perfect_logits(*labels), *labels)
    assert float(loss) < 1e-6
    assert float(accuracy) == 1


def test_wrong_token_but_not_padding_makes_caption_inaccurate(tokenizer):
    _, mask, *labels = batch(tokenizer, 8, (3,))
    logits = perfect_logits(mask, *labels)
    logits[mask == 0] = -logits[mask == 0]
    assert float(property_loss(logits, mask, *labels)[1]) == 1
    logits[0, 0] = -logits[0, 0]
    assert float(property_loss(logits, mask, *labels)[1]) == pytest.approx(7 / 8)


def test_token_labels_describe_owner_of_token():
    mask, first, second = torch.ones(1, 3, dtype=torch.long), [1, 2, 3, 1, 1], [4, 5, 6, 2, 2]
    owners = torch.tensor([[0, 1, IGNORE_INDEX]])
    labels = token_labels(mask, torch.tensor([[0, 0, *first, *second]]), owners)
    shape, colour = labels[12:14]
    assert shape.tolist() == [[1, 4, IGNORE_INDEX]]
    assert colour.tolist() == [[2, 5, IGNORE_INDEX]]
    assert torch.equal(labels[-1], owners)


def test_new_heads_attend_before_after_and_everywhere():
    encoder = new_encoder(50)
    attention: Any = encoder.get_submodule("encoder.block.0.layer.0.SelfAttention")
    bias = attention.compute_bias(9, 9)[0]
    before, after, all_before, everywhere = bias.softmax(-1)[:, 4]
    assert before[:5].sum() > 0.99
    assert after[4:].sum() > 0.99
    assert torch.allclose(all_before[:5], torch.full((5,), 0.2), atol=1e-3)
    assert torch.allclose(everywhere, torch.full((9,), 1 / 9))
