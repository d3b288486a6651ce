"""OpenAI's client lists the models of the service."""

from __future__ import annotations

import openai
import pytest
from openai import OpenAI

from tests.pools import set_only_pool
from tests.service.conftest import CAPABILITY


@pytest.fixture
def models(listening, redis):
    """Return the models API of a client, before a worker has started."""
    with OpenAI(base_url=f"http://127.0.0.1:{listening}/v1", api_key="none", max_retries=0) as client:
        yield client.models


def test_models_of_all_pools_are_listed(models, redis):
    assert list(models.list()) == []
    set_only_pool(redis, CAPABILITY)
    assert [(model.id, model.object) for model in models.list()] == [("LongCat-Video", "model")]
    assert models.retrieve("LongCat-Video").id == "LongCat-Video"


def test_unknown_model_is_not_found(models, redis):
    set_only_pool(redis, CAPABILITY)
    for name in ("sora-2", "org/name"):
        with pytest.raises(openai.NotFoundError) as missing:
            models.retrieve(name)
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
