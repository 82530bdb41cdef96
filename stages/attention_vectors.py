"""Queries, keys and values of chosen blocks, taken where a model's own projections put them out.

What a projection puts out, bias included, is the same in every kernel of attention and is there in every one, also where the
scores never are. It comes before any rotation of positions (RoPE) and before any norm of queries and keys.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor, nn

from stages.blocks import blocks_of
from stages.errors import InputError
from storage import PartName

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel

_OWN: dict[PartName, re.Pattern[str]] = {
    "queries": re.compile(r"(q|query)(_lin|_proj)?"),
    "keys": re.compile(r"(k|key)(_lin|_proj)?"),
    "values": re.compile(r"(v|value)(_lin|_proj)?"),
}
"""What families call a projection that is a module of its own: `query` (BERT), `q_lin` (DistilBERT), `q_proj` (Llama), `q` (MPNet)."""
_FUSED = {"gpt2": "c_attn", "openai-gpt": "c_attn", "modernbert": "Wqkv", "phi3": "qkv_proj"}
"""By `model_type`, the one module whose output is queries, keys and values side by side. By family and not by name: others
have such a module with the heads' queries, keys and values interleaved (GPT-NeoX, BLOOM)."""


@dataclass(frozen=True)
class Projection:
    """A module, and what of its output's last axis is the queries, keys or values."""

    module: nn.Module
    start: int
    width: int

    def of(self, output: Tensor) -> Tensor:
        """(S, L, W) of the module's output (S, L, ...)."""
        return output.narrow(-1, self.start, self.width)


class AttentionTaps:
    """Takes the queries, keys and values of a model's blocks out of its forward passes, gradients included.

    `blocks` are counted from 1, `parts` are of `queries`, `keys`, `values`. A context manager: once a forward pass was made
    within it, `taps[part, block]` is what that pass gave, (S, L, W) with all heads side by side, on the block's device and in
    the projection's dtype. It is there until the next pass.

    A model that is compiled keeps the hooks that it had when it was first called: enter before that, once for all passes.
    Gradient checkpointing has to be the non-reentrant kind: the other one makes its first pass without gradients.

    Raises `InputError` for a block that the model does not have, and for a family whose projections are not found.
    """

    def __init__(self, model: PreTrainedModel, blocks: Collection[int], parts: Collection[PartName]) -> None:
        self._projections = {
            (part, block): projection
            for block in blocks
            for part, projection in projections(model, block).items()
            if part in parts
        }
        self._handles: list[RemovableHandle] = []
        self._taken: dict[tuple[PartName, int], Tensor] = {}

    def __enter__(self) -> Self:
        for place, projection in self._projections.items():
            self._handles.append(projection.module.register_forward_hook(self._hook(place, projection)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._handles:
            self._handles.pop().remove()

    def __getitem__(self, place: tuple[PartName, int]) -> Tensor:
        return self._taken[place]

    def _hook(self, place: tuple[PartName, int], projection: Projection) -> Callable[[nn.Module, Any, Tensor], None]:
        def take(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            self._taken[place] = projection.of(output)

        return take


def attention_widths(model: PreTrainedModel, blocks: Collection[int], parts: Collection[PartName]) -> tuple[int, ...]:
    """W of each of `parts`, the same in all of `blocks`. The model need not have weights.

    Raises `InputError` as `AttentionTaps` does, and where blocks differ.
    """
    widths = {tuple(projections(model, block)[part].width for part in parts) for block in blocks}
    if len(widths) != 1:
        raise InputError(
            f"blocks {', '.join(map(str, blocks))} of a model of type {model.config.model_type!r} have {' and '.join(parts)} of "
            f"different widths ({', '.join(map(str, sorted(widths)))}); expected blocks that are alike (cache.attention_layers)"
        )
    return widths.pop()


def projections(model: PreTrainedModel, block: int) -> dict[PartName, Projection]:
    """Where the self-attention of a block, counted from 1, puts out queries, keys and values. Raises as `AttentionTaps`."""
    blocks, kind = blocks_of(model), model.config.model_type
    if not 1 <= block <= len(blocks):
        raise InputError(
            f"block {block} of a model of type {kind!r} is asked for; expected 1 to {len(blocks)} (cache.attention_layers)"
        )
    leaves = [
        (name.rpartition(".")[2], module) for name, module in blocks[block - 1].named_modules() if _width(module) > 0
    ]
    settings = model.config.get_text_config(decoder=True)
    if not hasattr(settings, "num_attention_heads"):
        raise InputError(
            f"models of type {kind!r} have no self-attention: there are no queries, keys and values to read; expected another model, or "
            "cache.attention_vectors: null"
        )
    heads = int(settings.num_attention_heads)
    key_heads = int(getattr(settings, "num_key_value_heads", None) or heads)
    if kind in _FUSED:
        fused = _only([module for name, module in leaves if name == _FUSED[kind]], _FUSED[kind], kind, block)
        size = _width(fused) // (heads + 2 * key_heads)
        query, key = heads * size, key_heads * size
        found: dict[PartName, Projection] = {
            "queries": Projection(fused, 0, query),
            "keys": Projection(fused, query, key),
            "values": Projection(fused, query + key, key),
        }
    else:
        found = {}
        for part, pattern in _OWN.items():
            module = _only([module for name, module in leaves if pattern.fullmatch(name)], part, kind, block)
            found[part] = Projection(module, 0, _width(module))
    query, key = found["queries"].width, found["keys"].width
    if query * key_heads != key * heads:
        raise InputError(
            f"block {block} of a model of type {kind!r} projects to queries of {query} values and keys of {key}, which its {heads} "
            f"and {key_heads} heads do not explain; expected heads of one width: what else is in there is not known here"
        )
    return found


def _width(module: nn.Module) -> int:
    """Features that a linear module puts out; 0 for any other. GPT-2's `Conv1D` calls them `nf`."""
    return int(getattr(module, "out_features", 0) or getattr(module, "nf", 0))


def _only(modules: Sequence[nn.Module], what: str, kind: str, block: int) -> nn.Module:
    if len(modules) != 1:
        raise InputError(
            f"queries, keys and values of models of type {kind!r} cannot be taken: block {block} has {len(modules)} projections to "
            f"{what}; expected one each, named q, k, v or query, key, value (with _proj or _lin), or a family whose fused one is "
            f"known ({', '.join(sorted(_FUSED))})"
        )
    return modules[0]
