import pytest
import torch

from stages.config import StudentConfig
from stages.errors import InputError
from stages.forward_pass import encoder_hidden
from stages.heads import Head
from stages.students import build_student
from tests.stages.tiny_models import tiny_bert


def distilbert():
    config = StudentConfig(architecture="distilbert", initialise="random", layers=1, dropout=0.0, seed=0)
    return build_student(config, "x", tiny_bert().config.to_dict())


@pytest.mark.parametrize("build", [tiny_bert, distilbert, lambda: tiny_bert(hidden_act="gelu_new")])
def test_the_head_alone_gives_the_logits_of_the_whole_model(build):
    model = build()
    ids = torch.randint(60, (2, 9))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        logits = Head.of(model).logits(encoder_hidden(model, ids, mask))
        torch.testing.assert_close(logits, model(input_ids=ids, attention_mask=mask).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 0.0), (torch.float16, 2e-2)])
def test_a_head_that_was_stored_computes_what_the_model_computes(tmp_path, dtype, tolerance):
    head = Head.of(tiny_bert())
    for name, data in head.files(dtype).items():
        (tmp_path / name).write_bytes(data)
    hidden = torch.randn(5, 16)
    with torch.no_grad():
        torch.testing.assert_close(
            Head.load(tmp_path).logits(hidden), head.logits(hidden), rtol=tolerance, atol=tolerance
        )


def test_storing_a_head_twice_gives_the_same_bytes():
    assert Head.of(tiny_bert()).files(torch.float16) == Head.of(tiny_bert()).files(torch.float16)


def test_a_head_in_float32_has_no_gradients_and_copies_nothing_that_is_float32_already():
    head = Head.of(tiny_bert())
    assert {name: tensor.data_ptr() for name, tensor in head.float().tensors.items()} == {
        name: tensor.data_ptr() for name, tensor in head.tensors.items()
    }
    wide = Head.of(tiny_bert().to(torch.bfloat16)).float()
    assert {(tensor.dtype, tensor.requires_grad) for tensor in wide.tensors.values()} == {(torch.float32, False)}


def test_features_and_projection_make_the_logits():
    head = Head.of(tiny_bert())
    weight, bias = head.projection
    hidden = torch.randn(3, 16)
    with torch.no_grad():
        torch.testing.assert_close(head.features(hidden) @ weight.T + bias, head.logits(hidden))
    assert (head.vocabulary_size, head.hidden_size) == (60, 16)


def test_an_activation_that_the_format_does_not_have_is_refused():
    with pytest.raises(
        InputError, match="activation QuickGELUActivation in the head of models of type 'bert' is not kn"
    ):
        Head.of(tiny_bert(hidden_act="quick_gelu"))


def test_a_head_with_an_unknown_part_is_refused():
    for part, reason in ((torch.nn.Linear(16, 16), "more than one dense step"), (torch.nn.Conv1d(2, 2, 1), "a Conv1d")):
        model = tiny_bert()
        model.cls.predictions.further = part
        with pytest.raises(InputError, match=f"head of models of type 'bert' is not known: it has {reason}"):
            Head.of(model)


def test_a_bare_encoder_has_no_head():
    with pytest.raises(InputError, match="no output projection"):
        Head.of(tiny_bert().bert)


def test_an_unknown_step_in_a_stored_head_is_refused():
    with pytest.raises(InputError, match="the step 'fourier'"):
        Head(({"op": "fourier"},), {}).logits(torch.zeros(1, 2))
