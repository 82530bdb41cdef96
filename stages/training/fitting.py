"""Whether what the losses compare inside of student and teacher can be compared, once the cache says what the teacher is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig

from stages.config import Config, check_student_shape, check_teacher_layers
from stages.config.base import refuse, require
from stages.model_config import ModelShape
from storage import CacheDescription

_ROTATED = ("rope_", "rotary_")
"""How settings of families begin that rotate queries and keys; those with `relative_attention` add to their product."""


def check_inside(config: Config, description: CacheDescription) -> None:
    """Refuse losses on layers, blocks, widths or heads that student or teacher do not have. Raises `ConfigError`."""
    train, teacher = config.train, ModelShape.of(description.teacher_config)
    check_teacher_layers(train, config.cache, teacher.layers)
    check_student_shape(
        config,
        teacher_hidden_size=teacher.hidden_size,
        teacher_attention_heads=_attention_heads(description.teacher_config),
    )
    layout = description.splits["train"].layout
    widths = dict(zip(layout.attention_vectors, layout.attention_widths, strict=True))
    if train.weights.relations > 0 and train.relations is not None:
        for part in train.relations.compared:
            require(
                widths[part] % train.relations.heads == 0,
                "train.relations.heads",
                train.relations.heads,
                f"a divisor of the width of the teacher's {part}, {widths[part]}",
            )
    if train.weights.attention > 0:
        reason = _not_scores(description.teacher_config, widths)
        if reason is not None:
            raise refuse(
                "train.weights.attention",
                train.weights.attention,
                f"0, as {teacher.kind} {reason}; train.weights.relations reads each kind of vectors by itself",
            )


def _attention_heads(teacher_config: Mapping[str, Any]) -> int | None:
    return getattr(AutoConfig.for_model(**teacher_config).get_text_config(decoder=True), "num_attention_heads", None)


def _not_scores(teacher_config: Mapping[str, Any], widths: Mapping[Any, int]) -> str | None:
    """Why the product of queries and keys is not what the attention of this teacher is made of; None where it is."""
    if widths["queries"] != widths["keys"]:
        return "shares keys among heads"
    if any(
        name.startswith(_ROTATED) or (value and name.startswith("relative_attention"))
        for name, value in teacher_config.items()
    ):
        return "has positions in its attention: scores are not the products of queries and keys alone"
    return None
