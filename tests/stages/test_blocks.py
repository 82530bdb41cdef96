import pytest
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from stages.blocks import blocks_of
from stages.errors import InputError
from tests.stages.tiny_models import CAUSAL_FAMILIES, MASKED_FAMILIES, tiny_bert, tiny_model


@pytest.mark.parametrize("kind", sorted({"bert", "roberta", "distilbert", "modernbert", "gpt2", "llama", "qwen2"}))
def test_the_blocks_of_a_family_are_found_whatever_it_calls_them(kind):
    assert kind in MASKED_FAMILIES or kind in CAUSAL_FAMILIES
    assert len(blocks_of(tiny_model(kind))) == 3


def test_a_list_inside_of_a_block_is_not_taken_for_the_blocks():
    model = tiny_bert(layers=2)
    for block in model.bert.encoder.layer:
        block.extra = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    assert blocks_of(model) is model.bert.encoder.layer


def test_a_model_without_a_list_of_blocks_is_refused():
    model = BertForMaskedLM(BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8))
    model.bert.encoder.layer = nn.ModuleList([model.bert.encoder.layer[0]])
    with pytest.raises(InputError, match="blocks of a model of type 'bert' are not found"):
        blocks_of(model)
