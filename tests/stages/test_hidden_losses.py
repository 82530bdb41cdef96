import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.hidden_losses import squared_difference_sum


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 7), weighted=st.booleans())
def test_the_squared_difference_equals_the_mean_over_the_width_summed_over_rows(seed, rows, weighted):
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = (torch.randn(rows, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    weights = torch.rand(rows, generator=generator, dtype=torch.float64) if weighted else None
    ours.requires_grad_()
    expected = sum(
        F.mse_loss(ours[row], theirs[row]) * (1.0 if weights is None else weights[row]) for row in range(rows)
    )
    found = squared_difference_sum(ours, theirs, weights)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, ours), torch.autograd.grad(expected, ours))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_states_are_compared_in_float32_under_autocast_too(dtype):
    ours, theirs = torch.randn(5, 8).to(dtype).requires_grad_(), torch.randn(5, 8)
    with torch.autocast("cpu", dtype):
        found = squared_difference_sum(ours, theirs)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, squared_difference_sum(ours.detach().float(), theirs))
    assert torch.autograd.grad(found, ours)[0].dtype == dtype
