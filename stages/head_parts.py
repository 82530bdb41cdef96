"""Which steps a model's head consists of, read off the modules that stand outside of its base model.

The families that transformers knows write their heads in one of two ways: a projection alone (causal models, whose final
norm belongs to the base model), or dense, activation and layer norm before it (BERT and its kin). What a model does beyond
that shows in its logits: `stages.teacher_loading` compares them before anything is cached.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn
from transformers import activations

from stages.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ACTIVATIONS: dict[type[nn.Module], str] = {
    activations.GELUActivation: "gelu",
    activations.NewGELUActivation: "gelu_tanh",
    activations.GELUTanh: "gelu_tanh",
    activations.SiLUActivation: "silu",
    nn.GELU: "gelu",
    nn.ReLU: "relu",
    nn.SiLU: "silu",
    nn.Tanh: "tanh",
}
"""Modules and the names of FORMAT.md, section 6."""

_WRITTEN_AS_A_FUNCTION = "gelu"
"""The activation of a head that has a dense layer and no module for one: RoBERTa and MPNet call this function."""


def head_parts(model: PreTrainedModel) -> tuple[tuple[dict[str, Any], ...], dict[str, Tensor]]:
    """The steps of a model's head (FORMAT.md, section 6), and its parameters by the names that the steps use.

    Raises `InputError`, naming the family, for a head that has something else than the known steps.
    """
    kind = model.config.model_type
    projection: Any = cast("Any", model).get_output_embeddings()  # transformers leaves it untyped
    if not isinstance(projection, nn.Linear):
        raise InputError(
            f"the head of models of type {kind!r} is not known: it has no output projection that is a matrix; "
            "expected dense, activation, layer norm and projection (docs/teachers.md)"
        )
    modules: dict[str, nn.Module] = {}
    activation = _WRITTEN_AS_A_FUNCTION
    for part in _outside_of_base(model):
        if part is projection:
            continue
        if isinstance(part, nn.Linear | nn.LayerNorm):
            role = "dense" if isinstance(part, nn.Linear) else "norm"
            if role in modules:
                raise InputError(
                    f"the head of models of type {kind!r} is not known: it has more than one {role} step; "
                    "expected dense, activation, layer norm and projection (docs/teachers.md), once each"
                )
            modules[role] = part
        elif type(part) in _ACTIVATIONS:
            activation = _ACTIVATIONS[type(part)]
        elif "activation" in type(part).__module__:
            raise InputError(
                f"the activation {type(part).__name__} in the head of models of type {kind!r} is not known; "
                f"expected {', '.join(sorted(set(_ACTIVATIONS.values())))}"
            )
        elif next(part.parameters(), None) is not None:
            raise InputError(
                f"the head of models of type {kind!r} is not known: it has a {type(part).__name__}; "
                "expected dense, activation, layer norm and projection (docs/teachers.md)"
            )
    modules["projection"] = projection
    tensors = {f"{role}.{name}": tensor for role, module in modules.items() for name, tensor in _parameters(module)}
    # Of a model that is spread over devices, all where the projection is; elsewhere this changes nothing.
    tensors = {name: tensor.to(tensors["projection.weight"].device) for name, tensor in tensors.items()}

    def step(op: str, role: str, **settings: Any) -> dict[str, Any]:
        bias = f"{role}.bias"
        return {"op": op, "weight": f"{role}.weight", "bias": bias if bias in tensors else None, **settings}

    steps: list[dict[str, Any]] = []
    if "dense" in modules:
        steps += [step("dense", "dense"), {"op": "activation", "name": activation}]
    norm = modules.get("norm")
    if isinstance(norm, nn.LayerNorm):
        steps.append(step("layer_norm", "norm", eps=norm.eps))
    steps += [step("projection", "projection"), *_after_projection(model)]
    return tuple(steps), tensors


def _outside_of_base(model: PreTrainedModel) -> Iterator[nn.Module]:
    """The modules of the head that have no parts themselves."""
    if model.base_model is model:
        raise InputError(
            f"models of type {model.config.model_type!r} have no base model apart from their head; expected a family that has one "
            "(docs/teachers.md)"
        )
    for child in model.children():
        if child is not model.base_model:
            yield from (part for part in child.modules() if next(part.children(), None) is None)


def _after_projection(model: PreTrainedModel) -> Iterator[dict[str, Any]]:
    """What becomes of the logits: a factor (Cohere, Granite), a soft limit (Gemma)."""
    config = model.config.get_text_config()
    for name, inverse in (
        ("logit_scale", False),
        ("output_multiplier", False),
        ("lm_head_multiplier", False),
        ("logits_scaling", True),
    ):
        factor = getattr(config, name, None)
        if isinstance(factor, int | float) and factor not in (0, 1):
            yield {"op": "scale", "factor": 1 / factor if inverse else float(factor)}
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is not None:
        yield {"op": "softcap", "cap": float(cap)}


def _parameters(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Weight and, where there is one, bias: the module's own, or copies where the model is spread over devices and they lie elsewhere."""
    if not hasattr(module, "_hf_hook"):
        yield from module.named_parameters(recurse=False)
        return
    from accelerate.utils import align_module_device  # type: ignore[import-untyped]  # whose hooks these are

    with align_module_device(module):
        copies = [(name, tensor.detach().clone()) for name, tensor in module.named_parameters(recurse=False)]
    yield from copies
