"""What a model's configuration says: whether such a model can be used here, and how large it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING, AutoConfig

from stages.errors import InputError
from stages.figures import Objective

IN_WORDS: dict[Objective, str] = {"masked": "masked language model", "causal": "causal language model"}
_FAMILIES: dict[Objective, Any] = {"masked": MODEL_FOR_MASKED_LM_MAPPING, "causal": MODEL_FOR_CAUSAL_LM_MAPPING}


def refuse_unsupported(raw: Mapping[str, Any], name: str, objective: Objective) -> None:
    """Raise `InputError`, with the reason, for a model `name` whose config.json, `raw`, says that it cannot be a teacher or student."""
    kind = raw.get("model_type")
    if kind not in CONFIG_MAPPING and raw.get("auto_map"):
        raise InputError(
            f"the model {name} is of type {kind!r} and brings code of its own (trust_remote_code), which is never run here; "
            "expected a family that transformers knows"
        )
    if raw.get("is_encoder_decoder"):
        raise InputError(
            f"the model {name} (type {kind!r}) is an encoder with a decoder; expected an encoder (teacher.objective: masked) "
            "or a decoder (causal) alone: a cache has one sequence per example"
        )
    if "quantization_config" in raw:
        method = (raw["quantization_config"] or {}).get("quant_method", "unknown")
        raise InputError(
            f"the weights in {name} are quantised ({method}); expected them in floating point: what they stand for would "
            "depend on the kernels of the machine"
        )
    if kind not in CONFIG_MAPPING:
        return  # transformers says it better
    config = CONFIG_MAPPING[str(kind)]
    other: Objective = "causal" if objective == "masked" else "masked"
    if config not in _FAMILIES[objective] and config in _FAMILIES[other]:
        raise InputError(
            f"models of type {kind!r} ({name}) are no {IN_WORDS[objective]}s; expected another model, or "
            f"teacher.objective: {other}"
        )


def class_name(config: Mapping[str, Any], objective: Objective) -> str:
    """The class in transformers of a model with this configuration (from `models.load_model_config`), which has one for `objective`."""
    return str(_FAMILIES[objective][CONFIG_MAPPING[config["model_type"]]].__name__)


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What the stages need to know of a model's size, whatever its family calls it."""

    kind: str
    """`model_type` of its configuration."""
    layers: int
    hidden_size: int
    vocabulary_size: int
    """Entries of the head, which may be more than the tokenizer has."""
    positions: int | None
    """Tokens of the longest sequence that it takes; None where its family knows no limit."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ModelShape:
        """The shape in a configuration from `models.load_model_config`. Raises `InputError` for one that says none."""
        whole = AutoConfig.for_model(**config)
        text = whole.get_text_config(decoder=True)
        try:
            layers, width, vocabulary = (
                int(getattr(text, name)) for name in ("num_hidden_layers", "hidden_size", "vocab_size")
            )
        except (AttributeError, TypeError) as error:
            raise InputError(
                f"the configuration of a model of type {whole.model_type!r} does not say how large it is ({error}); expected "
                "num_hidden_layers, hidden_size and vocab_size in its config.json"
            ) from None
        positions = getattr(text, "max_position_embeddings", None)
        if not isinstance(positions, int) or positions <= 0:
            positions = None
        elif whole.model_type in _POSITIONS_AFTER_PADDING:
            positions -= (1 if whole.pad_token_id is None else int(whole.pad_token_id)) + 1
        return cls(
            kind=whole.model_type, layers=layers, hidden_size=width, vocabulary_size=vocabulary, positions=positions
        )


_POSITIONS_AFTER_PADDING = frozenset(
    {
        *("camembert", "data2vec-text", "ibert", "lilt", "longformer", "luke", "markuplm", "mpnet", "roberta"),
        *("roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
    }
)
"""Families that count positions from `pad_token_id + 1` (RoBERTa's): the first entries of their table are never used."""
