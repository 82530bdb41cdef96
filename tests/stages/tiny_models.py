"""Small real models, built on the spot."""

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    set_seed,
)


def tiny_bert(*, vocabulary=60, hidden=16, layers=3, positions=24, seed=0, **changes) -> BertForMaskedLM:
    """A BERT with random weights large enough that its distributions are not flat."""
    set_seed(seed)
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=positions,
        initializer_range=0.3,
        **changes,
    )
    model = BertForMaskedLM(config).eval()
    with torch.no_grad():
        model.bert.embeddings.token_type_embeddings.weight.normal_()
        model.cls.predictions.bias.normal_()
    return model


SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}
MASKED_FAMILIES = {
    "bert": {},
    "roberta": {"max_position_embeddings": 25},  # of which it can use 24
    "distilbert": {},
    "modernbert": {"cls_token_id": 1, "sep_token_id": 2},
    "albert": {"embedding_size": 8},
    "mpnet": {"max_position_embeddings": 25},
    "electra": {"embedding_size": 8},
    "deberta-v2": {},
}
"""`model_type` -> what it wants beyond `SIZES`."""
CAUSAL_FAMILIES = {
    "gpt2": {},
    "llama": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 2, "head_dim": 8},
    "qwen2": {"num_key_value_heads": 2, "head_dim": 8},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 8, "final_logit_softcapping": 2.0},
    "cohere": {"num_key_value_heads": 2, "logit_scale": 0.25},
    "granite": {"num_key_value_heads": 2, "logits_scaling": 3.0},
    "gpt_neox": {},
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 16},
    "bloom": {},
}


def tiny_model(kind, *, vocabulary=60, positions=24, seed=0, objective=None, **changes):
    """A model of this family with random weights, large enough that its distributions are not flat, biases included."""
    objective = objective or ("causal" if kind in CAUSAL_FAMILIES else "masked")
    settings = {
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        **SIZES,
        **MASKED_FAMILIES.get(kind, {}),
        **CAUSAL_FAMILIES.get(kind, {}),
        **changes,
    }
    set_seed(seed)
    build = AutoModelForMaskedLM if objective == "masked" else AutoModelForCausalLM
    model = build.from_config(AutoConfig.for_model(kind, **settings)).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("bias"):
                tensor.normal_(std=0.3)
    return model
