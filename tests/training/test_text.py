"""The tokenizer and what the text encoder is taught."""

import pytest
import torch

from training.captions import read
from training.text import LEFT_OUT, answers_of_tokens, ask, batch, encoder_config, new_encoder, properties
from training.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_a_word_of_the_grammar_is_one_token(tokenizer):
    assert tokenizer.tokenize("a red ball moving left") == ["▁a", "▁red", "▁ball", "▁moving", "▁left"]


def test_case_and_punctuation_do_not_count(tokenizer):
    plain = tokenizer("on a black ground a red ball rests")["input_ids"]
    assert tokenizer("On a BLACK ground, a red ball rests.")["input_ids"] == plain


def test_a_caption_ends_with_the_end_token(tokenizer):
    assert tokenizer("a red ball")["input_ids"][-1] == tokenizer.eos_token_id == 1
    assert tokenizer("")["input_ids"] == [1]


def test_other_words_are_spelled(tokenizer):
    tokens = tokenizer.tokenize("zebra")
    assert "".join(tokens).strip("▁") == "zebra"
    assert "<unk>" not in tokens


def test_padding_fills_up_to_what_the_pipeline_asks_for(tokenizer):
    tokens = tokenizer(["a red ball"], padding="max_length", max_length=512, truncation=True)
    assert len(tokens["input_ids"][0]) == 512
    assert sum(tokens["attention_mask"][0]) == 4


def test_every_token_has_a_place_in_the_encoder(tokenizer):
    ids, *_ = batch(tokenizer, 32, (0,))
    assert int(ids.max()) < encoder_config(len(tokenizer)).vocab_size


def test_what_was_not_said_is_an_answer(tokenizer):
    silent, full = (
        properties(read("a red ball rests")),
        properties(read("on a black ground a small red ball rests")),
    )
    assert silent[:2] == [0, 0]
    assert full[:2] == [1, 1]
    assert silent[7:] == [0] * 5
    assert len(silent) == len(full) == 12


def test_a_batch_is_the_same_for_the_same_seed(tokenizer):
    assert all(
        torch.equal(a, b)
        for a, b in zip(batch(tokenizer, 8, (1, 2)), batch(tokenizer, 8, (1, 2)), strict=True)
    )


def sure_of(mask, answers, places):
    """Logits of one who knows every answer, and what padding is asked, which does not count."""
    sizes = [5, 3, *[5, 7, 9, 3, 3] * 3, 2]
    right = answers_of_tokens(mask, answers, places)
    each = [torch.nn.functional.one_hot(r.clamp(min=0), size) for r, size in zip(right, sizes, strict=True)]
    return 50.0 * torch.cat(each, -1)


def test_perfect_answers_are_right_and_cost_nothing(tokenizer):
    _, *asked = batch(tokenizer, 8, (3,))
    loss, right = ask(sure_of(*asked), *asked)
    assert float(loss) < 1e-6
    assert float(right) == 1


def test_one_wrong_token_makes_a_caption_wrong_but_padding_does_not(tokenizer):
    _, mask, *asked = batch(tokenizer, 8, (3,))
    logits = sure_of(mask, *asked)
    logits[mask == 0] = -logits[mask == 0]
    assert float(ask(logits, mask, *asked)[1]) == 1
    logits[0, 0] = -logits[0, 0]
    assert float(ask(logits, mask, *asked)[1]) == pytest.approx(7 / 8)


def test_a_token_is_asked_of_its_own_thing():
    mask, first, second = torch.ones(1, 3, dtype=torch.long), [1, 2, 3, 1, 1], [4, 5, 6, 2, 2]
    places = torch.tensor([[0, 1, LEFT_OUT]])
    asked = answers_of_tokens(mask, torch.tensor([[0, 0, *first, *second]]), places)
    shape, colour = asked[12:14]
    assert shape.tolist() == [[1, 4, LEFT_OUT]]
    assert colour.tolist() == [[2, 5, LEFT_OUT]]
    assert torch.equal(asked[-1], places)


def test_heads_begin_looking_before_and_after():
    encoder = new_encoder(50)
    bias = encoder.encoder.block[0].layer[0].SelfAttention.compute_bias(9, 9)[0]
    before, after, all_before, everywhere = bias.softmax(-1)[:, 4]
    assert before[:5].sum() > 0.99
    assert after[4:].sum() > 0.99
    assert torch.allclose(all_before[:5], torch.full((5,), 0.2), atol=1e-3)
    assert torch.allclose(everywhere, torch.full((9,), 1 / 9))
