"""The numbers of slices that the model takes pay by the arithmetic, where it takes them."""

from __future__ import annotations

import pytest

from benchmarks.formulas import BASE, REFINED
from benchmarks.slices import GPUS, RANKS, Times, block, table, times

WORK = {"dense": block(BASE, sparse=False), "block-sparse": block(REFINED, sparse=True)}


def test_slices_hide_all_exchanges_but_that_of_one():
    found = Times(attention_s=4.0, others_s=1.0, exchanges_s=1.0, idle_s=0.0)
    assert [found.block_s(count) for count in (1, 2, 4)] == [6.0, 5.5, 5.25]


def test_exchanges_that_are_slower_than_attention_set_the_pace():
    found = Times(attention_s=1.0, others_s=0.0, exchanges_s=4.0, idle_s=0.0)
    assert found.block_s(4) == 4.0


@pytest.mark.parametrize("name", WORK)
@pytest.mark.parametrize("gpu", [gpu for gpu in GPUS if gpu.has_slow_link], ids=lambda gpu: gpu.name)
def test_slices_pay_over_slow_links(gpu, name):
    for ranks in RANKS:
        assert times(gpu, WORK[name], ranks).gain(WORK[name].num_slices) > 0.01


@pytest.mark.parametrize("gpu", [gpu for gpu in GPUS if not gpu.has_slow_link], ids=lambda gpu: gpu.name)
def test_slices_of_dense_attention_do_not_pay_over_fast_links(gpu):
    assert sum(times(gpu, WORK["dense"], ranks).gain(2) for ranks in RANKS) < 0.01


def test_table_names_every_gpu():
    assert len(list(table(WORK["dense"]))) == 2 + len(GPUS)
