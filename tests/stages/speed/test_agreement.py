import pytest
import torch

from stages.speed.agreement import MAX_SENTENCES, compare_outputs
from stages.speed.onnx_files import WithHidden
from stages.speed.sentences import Sentences
from tests.stages.tiny_models import tiny_bert


def sentences(count=5):
    return Sentences(source="here", ids=tuple(tuple(range(3, 5 + number % 4)) for number in range(count)), pad_id=0)


def test_a_model_agrees_with_itself():
    model = WithHidden(tiny_bert())
    found = compare_outputs(model, model, sentences())
    assert (found["hidden_max_difference"], found["logits_max_difference"]) == (0, 0)
    assert found["hidden_cosine"] == pytest.approx(1, abs=1e-5)
    assert found["agreement"] == 1
    assert found["positions"] == sentences().tokens


def test_differences_are_the_largest_ones_and_agreement_counts_positions():
    def model(input_ids, attention_mask):
        del attention_mask
        logits = torch.zeros(*input_ids.shape, 4)
        logits[..., 1] = 1.0
        return torch.ones(*input_ids.shape, 2), logits

    def other(input_ids, attention_mask):
        hidden, logits = model(input_ids, attention_mask)
        hidden[:, 0] -= 0.25
        logits[:, 0, 3] += 2.5  # another id is the most likely one at the first position
        return hidden, logits

    found = compare_outputs(model, other, sentences(1))
    assert found["hidden_max_difference"] == 0.25
    assert found["logits_max_difference"] == 2.5
    assert found["agreement"] == 0.5  # of two positions


def test_of_many_sentences_some_are_compared():
    model = WithHidden(tiny_bert())
    many = sentences(3 * MAX_SENTENCES)
    assert compare_outputs(model, model, many)["positions"] < many.tokens / 2
