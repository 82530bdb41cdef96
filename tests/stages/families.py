"""Every family of language models that tests have in small, and inputs for them."""

import pytest
import torch

from tests.stages.tiny_models import CAUSAL_FAMILIES, MASKED_FAMILIES

FAMILIES = [*((kind, "masked") for kind in MASKED_FAMILIES), *((kind, "causal") for kind in CAUSAL_FAMILIES)]
every_family = pytest.mark.parametrize(("kind", "objective"), FAMILIES)


def batch(model, *lengths):
    """Random ids without padding, filled up on the right with 0, and their mask."""
    torch.manual_seed(1)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return torch.randint(3, model.config.vocab_size, mask.shape) * mask, mask
