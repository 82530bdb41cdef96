"""The kernel against the functions it stands for: on a GPU where there is one, else by Triton's interpreter where Triton is installed."""

import pytest
import torch

from stages import loss_kernel
from stages.divergences import DenseTargets, DrawnTargets, TopKTargets
from stages.losses import _Rows, distillation_loss

pytest.importorskip("triton", reason="Triton is not installed (it comes with torch's GPU builds)")
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
ROWS, VOCABULARY = (37, 30_522) if ON_GPU else (5, 37)
KINDS = ("none", "dense", "top_k", "top_k of everything", "draws")


@pytest.fixture(autouse=True)
def _several_blocks_per_row(monkeypatch):
    if not ON_GPU:
        monkeypatch.setattr(loss_kernel, "_BLOCK", 16)


def targets_of(kind, teacher, temperature):
    """Targets from the teacher's logits, in their dtype."""
    log_p = torch.log_softmax(teacher / temperature, -1)
    if kind == "dense":
        return DenseTargets(teacher.clone())
    if kind.startswith("top_k"):
        k = teacher.shape[1] if kind.endswith("everything") else min(20, teacher.shape[1] // 4)
        found, ids = log_p.topk(k, -1)
        if k < teacher.shape[1]:  # a row may have fewer: it repeats its first id, with nothing
            ids[1, -2:], found[1, -2:] = ids[1, 0], float("-inf")
        return TopKTargets(ids, found)
    if kind == "draws":
        ids = torch.multinomial(log_p.exp(), 9, replacement=True)
        shares = torch.rand(ids.shape, dtype=teacher.dtype, device=teacher.device)
        ids[0, 5], ids[2] = ids[0, 1], ids[2, :1]  # an id may stand there more than once
        return DrawnTargets(ids, shares / shares.sum(-1, keepdim=True), -(log_p.exp() * log_p).sum(-1))
    return None


def in_dtype(targets, dtype):
    """The same targets as a cache gives them."""
    if isinstance(targets, DenseTargets):
        return DenseTargets(targets.logits.to(dtype))
    if isinstance(targets, TopKTargets):
        return TopKTargets(targets.ids, targets.log_probabilities.float())
    return targets and DrawnTargets(targets.ids, targets.shares.float(), targets.entropy.float())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16] if ON_GPU else [torch.float32])
@pytest.mark.parametrize("spread", [1.0, 12.0])
def test_value_and_gradient_of_each_row_are_those_of_the_float64_reference(kind, temperature, dtype, spread):
    torch.manual_seed(0)
    if kind.endswith("everything") and ON_GPU:
        pytest.skip("so many ids per row are not what the kernel is for")
    logits, teacher = ((spread * torch.randn(ROWS, VOCABULARY, device=DEVICE)).to(dtype) for _ in range(2))
    logits[1, :3] = logits[1].amax() + 4 * spread  # a sure student
    labelled = ROWS // 2
    if kind == "none":  # then only what is predicted is computed
        logits = logits[:labelled]
    labels = torch.randint(VOCABULARY, (labelled,), device=DEVICE)
    labels[1] = 1
    weights = torch.rand(2, len(logits), device=DEVICE, dtype=torch.float64)
    mlm_weights = weights[1, :labelled]
    targets = targets_of(kind, teacher.double(), temperature)

    wanted = logits.double()
    rows = _Rows(
        labels=labels,
        kd_weights=weights[0],
        mlm_weights=mlm_weights,
        row_weights=weights[1],
        temperature=temperature,
        mse_scale=None,
    )
    sums = rows.plain_(
        wanted, targets_of(kind, teacher.double(), temperature) if kind == "dense" else targets, slice(0, ROWS)
    )
    found = logits.clone()
    kl, ce = loss_kernel.losses_(
        found, in_dtype(targets, dtype), labels, weights[0].float(), mlm_weights.float(), temperature
    )

    torch.testing.assert_close((kl.double() * weights[1]).sum(), sums[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ce.double().sum(), sums[1], rtol=1e-4, atol=1e-4)
    close = {"rtol": 1e-4, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-6}
    torch.testing.assert_close(found.double(), wanted, **close)


def test_a_block_without_rows_or_labels_gives_nothing():
    none = torch.empty(0, dtype=torch.int64, device=DEVICE)
    weights = torch.ones(0, device=DEVICE)
    kl, ce = loss_kernel.losses_(torch.empty(0, VOCABULARY, device=DEVICE), None, none, weights, weights, 2.0)
    assert (len(kl), len(ce)) == (0, 0)
    row = torch.zeros(1, VOCABULARY, device=DEVICE)
    kl, ce = loss_kernel.losses_(row, DenseTargets(row.clone()), none, torch.ones(1, device=DEVICE), weights, 2.0)
    assert len(ce) == 0
    torch.testing.assert_close(kl, torch.zeros_like(kl), rtol=0, atol=1e-6)
    torch.testing.assert_close(row, torch.zeros_like(row), rtol=0, atol=1e-6)


def test_what_the_kernel_does_not_compute_is_left_to_the_plain_functions():
    ids, log_p = torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1)
    assert not loss_kernel.serves(TopKTargets(ids, log_p, renormalise=True))
    assert loss_kernel.serves(TopKTargets(ids, log_p))
    assert not loss_kernel.is_for(torch.zeros(1, device="cpu"), torch.float32)
    if ON_GPU:
        assert not loss_kernel.is_for(torch.zeros(1, device="cuda"), torch.float64)


@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
@pytest.mark.parametrize("kind", ["none", "dense", "top_k", "draws"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_a_loss_on_a_gpu_has_value_and_gradients_of_the_same_on_a_cpu(kind, precision):
    torch.manual_seed(0)
    rows, vocabulary, width = 300, 5000, 64
    features, weight, bias = torch.randn(rows, width), 0.3 * torch.randn(vocabulary, width), torch.randn(vocabulary)
    teacher, labels = 3 * torch.randn(rows, vocabulary), torch.randint(vocabulary, (50,))
    targets = in_dtype(targets_of(kind, teacher.double(), 2.0), torch.float32)

    def computed(device):
        inputs = [tensor.to(device).requires_grad_() for tensor in (features, weight, bias)]
        moved = targets and type(targets)(
            *(x.to(device) if isinstance(x, torch.Tensor) else x for x in vars(targets).values())
        )
        with torch.autocast("cuda", precision, enabled=device == "cuda" and precision != torch.float32):
            loss = distillation_loss(
                *inputs,
                labels=labels.to(device),
                targets=moved,
                temperature=2.0,
                kd_scale=0.7,
                mlm_scale=0.3,
                chunk_rows=128,
            )
        return [x.cpu() for x in (loss.total, loss.kd_sum, loss.mlm_sum, *torch.autograd.grad(loss.total, inputs))]

    for one, other in zip(computed("cuda"), computed("cpu"), strict=True):
        error = (one - other).norm() / other.norm().clamp_min(1e-9)
        assert error < (1e-5 if precision == torch.float32 else 2e-2)
