"""Small real models, built on the spot."""

import torch
from transformers import BertConfig, BertForMaskedLM, set_seed


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
