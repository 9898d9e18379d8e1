"""Tiny models run fastest on one thread, and give the same rounding everywhere on one."""

import pytest
import torch

from tests.replicas.torch_engine.builders import (
    COPYING,
    build_model,
    clear_prompts,
    copying_weights,
)


@pytest.fixture(autouse=True, scope="package")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def copying():
    """A model that accepts some drafts and rejects others."""
    return build_model(COPYING, copying_weights())


@pytest.fixture(scope="session")
def references():
    """Prompt -> the 48 tokens with which transformers continues it greedily."""
    lengths = [3, 9, 14, 17, 21, 26, 33, 40, 64, 71, 90, 100]
    return clear_prompts(COPYING, copying_weights(), lengths, 48)
