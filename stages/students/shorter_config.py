"""A teacher's configuration with fewer blocks, and narrower ones where that is asked for: what a student of its class is built from."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from stages.config import StudentConfig
from stages.config.base import refuse, require
from stages.errors import InputError
from stages.model_config import ModelShape
from stages.students.layer_map import layer_map, spread_layers

_DROPOUTS = (
    *("dropout", "attention_dropout", "activation_dropout", "hidden_dropout", "embedding_dropout", "mlp_dropout"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "embd_pdrop", "resid_pdrop", "attn_pdrop"),
)
"""What configurations call the dropout of blocks and embeddings."""

_FEED_FORWARD = ("intermediate_size", "n_inner", "hidden_dim", "ffn_dim", "ffn_hidden_size", "d_ff")
"""What they call the inner width of a feed-forward network."""

_AS_WIDE = ("embedding_size", "word_embed_proj_dim")
"""Widths that follow that of the hidden states where they are the same in the teacher."""

_NOT_BY_LAYER = ("architectures", "eos_token_id", "pruned_heads")
"""Lists that may have as many entries as there are layers by chance."""

_BY_PLACE = ("scale_attn_by_inverse_layer_idx",)
"""Settings by which a block computes something else in another place."""


def shorter_config(student: StudentConfig, name: str, teacher_config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the student called `name`, as plain JSON for `models.language_model_from_config`.

    Lists with an entry per layer (`layer_types`) are cut by the layer map, or, for random weights, by the spread of DistilBERT.
    Raises `ConfigError` for a shape that is not possible, `InputError` for a family whose configuration cannot say it.
    """
    values: dict[str, Any] = deepcopy(dict(teacher_config))
    shape = ModelShape.of(teacher_config)
    teacher = AutoConfig.for_model(**deepcopy(values))
    if teacher.get_text_config(decoder=True) is not teacher:
        raise InputError(
            f"a model of type {shape.kind!r} is made of several models, each with a configuration of its own; expected a language "
            "model alone"
        )
    copied = student.initialise == "teacher"
    if copied or student.layers <= shape.layers:
        blocks = layer_map(student, name, shape.layers) if copied else spread_layers(shape.layers, student.layers)
    else:
        blocks = None
    for key, value in teacher_config.items():
        if isinstance(value, list | tuple) and len(value) == shape.layers and key not in _NOT_BY_LAYER:
            if blocks is None:
                raise refuse(
                    f"students.{name}.layers",
                    student.layers,
                    f"at most the teacher's {shape.layers}: its configuration says of each layer what it is ({key})",
                )
            values[key] = [value[block] for block in blocks]
        if key in _BY_PLACE and value and copied and blocks != tuple(range(student.layers)):
            raise InputError(
                f"blocks of the teacher, of type {shape.kind!r}, depend on their place ({key}); expected a student with the first "
                f"ones (students.{name}.layer_map: {list(range(student.layers))})"
            )
    values[_key(teacher, "num_hidden_layers")] = student.layers
    _set_dropout(values, student, name, shape.kind)
    if (student.hidden_size, student.attention_heads, student.feed_forward_size) != (None, None, None):
        _set_width(values, student, name, teacher)
    return values


def _key(config: PreTrainedConfig, name: str) -> str:
    """What a family calls what most call `name`."""
    return str(type(config).attribute_map.get(name, name))


def _set_dropout(values: dict[str, Any], student: StudentConfig, name: str, kind: str) -> None:
    known = [key for key in _DROPOUTS if isinstance(values.get(key), int | float)]
    require(
        bool(known) or student.dropout == 0,
        f"students.{name}.dropout",
        student.dropout,
        f"0, as models of type {kind!r} have none",
    )
    values.update(dict.fromkeys(known, student.dropout))


def _set_width(values: dict[str, Any], student: StudentConfig, name: str, teacher: PreTrainedConfig) -> None:
    """Hidden size, heads and feed-forward size of a student with random weights; each as the teacher's where it is None."""
    kind = teacher.model_type
    keys = {
        "hidden_size": _key(teacher, "hidden_size"),
        "attention_heads": _key(teacher, "num_attention_heads"),
        # As an attribute of the class: what else stands in a config.json is kept, and means nothing.
        "feed_forward_size": next((key for key in _FEED_FORWARD if key in values and hasattr(type(teacher), key)), ""),
    }
    for setting, key in keys.items():
        wanted, found = getattr(student, setting), values.get(key)
        if wanted is not None and (key not in values or isinstance(found, list)):
            raise refuse(
                f"students.{name}.{setting}",
                wanted,
                f"null: the configuration of models of type {kind!r} has no one value for it",
            )
    old_width, old_heads = int(teacher.hidden_size), getattr(teacher, "num_attention_heads", None)
    width, heads = student.hidden_size or old_width, student.attention_heads or old_heads
    if student.hidden_size is not None:
        values.update({keys["hidden_size"]: width} | {key: width for key in _AS_WIDE if values.get(key) == old_width})
    inner = keys["feed_forward_size"]
    if inner:
        # GPT-2 leaves it out where it is four times the width.
        values[inner] = student.feed_forward_size or values[inner] or 4 * old_width
    if heads is None or old_heads is None:
        return
    require(width % heads == 0, f"students.{name}.hidden_size", width, f"a multiple of the attention heads ({heads})")
    values[keys["attention_heads"]] = heads
    if values.get("head_dim") == old_width // old_heads:
        values["head_dim"] = width // heads
    groups = values.get("num_key_value_heads")
    if groups == old_heads:
        values["num_key_value_heads"] = heads
    elif groups is not None:
        require(
            heads % groups == 0,
            f"students.{name}.attention_heads",
            heads,
            f"a multiple of the teacher's {groups} heads of keys and values",
        )
