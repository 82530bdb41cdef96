"""What is kept of a row of logits, against the plain way of getting it: statistics, the best ids, and draws.

BERT's vocabulary, one core, rows as many as `cache-teacher` goes over at a time. Plain: `log_softmax` at each temperature for
logsumexp and entropy; `torch.topk` and the same order of ties; `torch.multinomial` for as many draws with replacement.
Ratios are plain / ours. On a GPU, where there is one, with as many rows as it is given there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from measure import Spread, arguments, finish, interleaved, one_core, ratio, rounds
from torch import Tensor

from pipeline.summary import print_table
from stages import device as tensor_device
from stages.draws import draw_ids
from stages.target_selection import Scratch, statistics, top_k

TEMPERATURES = (1.0, 2.0)
K, DRAWS = 32, 50


def plain_statistics(logits: Tensor) -> Tensor:
    """What `statistics` gives, from log-probabilities."""
    columns = [logits.amax(-1)]
    for temperature in TEMPERATURES:
        scaled = logits / temperature
        log_p = scaled.log_softmax(-1)
        columns += [scaled.logsumexp(-1), -(log_p.exp() * log_p).sum(-1)]
    return torch.stack(columns, -1)


def plain_top_k(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The k largest of the whole row, among equal ones the smaller id first."""
    values, ids = logits.topk(K, dim=-1, sorted=False)
    ids, by_id = ids.sort(dim=-1)
    values, by_value = values.gather(-1, by_id).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(-1, by_value)


def plain_draws(logits: Tensor) -> Tensor:
    """Ids from torch's own sampler, which cannot be told which random numbers to take."""
    return (logits / 2.0).softmax(-1).multinomial(DRAWS, replacement=True)


def seconds(device: str, run: Callable[[], object]) -> float:
    """The fastest of several runs: each is short."""
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        run()
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return best


@torch.inference_mode()
def main() -> None:
    """Measure, print and write."""
    options = arguments(__doc__ or "")
    device = tensor_device.resolve_device("auto")
    with one_core():
        tensor_device.set_up(device, 1)
        rows, vocabulary_size = (4, 3000) if options.quick else (68 if device == "cpu" else 4096, 30_522)
        generator = torch.Generator().manual_seed(0)
        logits = (2 * torch.randn(rows, vocabulary_size, generator=generator)).to(device)
        uniform = torch.rand(rows, DRAWS, dtype=torch.float64, generator=generator).to(device)
        scratch = Scratch.of(rows, vocabulary_size, logits.device) if device == "cpu" else None
        fused = statistics if device == "cpu" else torch.compile(statistics)
        torch.testing.assert_close(fused(logits, TEMPERATURES, scratch), plain_statistics(logits), rtol=1e-4, atol=1e-4)
        assert all(torch.equal(a, b) for a, b in zip(top_k(logits, K), plain_top_k(logits), strict=True))
        runs: dict[str, Callable[[], object]] = {
            "plain statistics": partial(plain_statistics, logits),
            "our statistics": partial(fused, logits, TEMPERATURES, scratch),
            "plain top_k": partial(plain_top_k, logits),
            "our top_k": partial(top_k, logits, K),
            "plain draws": partial(plain_draws, logits),
            "our draws": partial(draw_ids, logits, uniform, 2.0, None, scratch),
        }
        times = interleaved({name: partial(seconds, device, run) for name, run in runs.items()}, rounds(options))
    print_table(
        f"{rows:,} rows of {vocabulary_size:,} logits, {device}",
        ["", "microseconds per row"],
        [[name, Spread.of([1e6 * t / rows for t in took]).shown(1)] for name, took in times.items()],
    )
    names = ("statistics", "top_k", "draws")
    ratios = {f"selection_{name}": ratio(times[f"plain {name}"], times[f"our {name}"]) for name in names}
    finish(ratios, {}, options.json, quick=options.quick)


if __name__ == "__main__":
    main()
