import dataclasses

import pytest
import torch

from stages.config import ConfigError, StudentConfig
from stages.errors import InputError
from stages.forward_pass import encoder_hidden
from stages.students import build_student, copy_teacher, layer_map
from tests.stages.tiny_models import tiny_bert, tiny_model

STUDENT = StudentConfig(architecture="distilbert", initialise="teacher", layers=2, dropout=0.0, seed=0)


def student_of(config, teacher):
    student = build_student(config, "half", teacher.config.to_dict())
    copy_teacher(config, student, teacher, layer_map(config, "half", teacher.config.num_hidden_layers))
    return student


def test_a_copy_of_every_block_reproduces_the_teacher():
    teacher = tiny_bert()
    student = student_of(dataclasses.replace(STUDENT, layers=3), teacher)
    ids = torch.randint(60, (4, 20))
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    with torch.no_grad():
        theirs = teacher(input_ids=ids, attention_mask=mask).logits
        ours = student(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(ours[mask == 1], theirs[mask == 1], rtol=1e-5, atol=1e-5)


def test_the_chosen_blocks_are_the_ones_copied():
    teacher = tiny_bert()
    student = student_of(dataclasses.replace(STUDENT, layer_map=(2, 0)), teacher)
    for ours, theirs in ((0, 2), (1, 0)):
        torch.testing.assert_close(
            student.distilbert.transformer.layer[ours].ffn.lin1.weight,
            teacher.bert.encoder.layer[theirs].intermediate.dense.weight,
        )


def test_the_student_keeps_its_projection_tied_to_its_embeddings():
    student = student_of(STUDENT, tiny_bert())
    assert student.vocab_projector.weight is student.distilbert.embeddings.word_embeddings.weight


def test_a_random_student_depends_on_its_seed_only():
    config = dataclasses.replace(STUDENT, initialise="random", hidden_size=8)
    teacher = tiny_bert().config.to_dict()
    one, same, other = (build_student(c, "x", teacher) for c in (config, config, dataclasses.replace(config, seed=1)))
    assert torch.equal(one.vocab_transform.weight, same.vocab_transform.weight)
    assert not torch.equal(one.vocab_transform.weight, other.vocab_transform.weight)
    assert one.config.dim == 8


def test_a_width_that_the_heads_do_not_divide_is_refused():
    config = dataclasses.replace(STUDENT, initialise="random", hidden_size=9)
    with pytest.raises(
        ConfigError, match=r"students.odd.hidden_size is 9; allowed: a multiple of the attention heads \(2\)"
    ):
        build_student(config, "odd", tiny_bert().config.to_dict())


def test_a_teacher_of_another_family_is_refused():
    message = (
        r"needs a masked teacher of type bert; the teacher is of type gpt2; expected students.half.architecture: same"
    )
    with pytest.raises(InputError, match=message):
        build_student(STUDENT, "half", {"model_type": "gpt2"})


def test_a_bert_that_predicts_the_next_token_is_refused():
    with pytest.raises(InputError, match=r"needs a masked teacher of type bert; the teacher is causal"):
        build_student(STUDENT, "half", tiny_bert(is_decoder=True).config.to_dict(), "causal")


def test_a_shorter_distilbert_can_be_made_of_a_distilbert():
    teacher = tiny_model("distilbert")
    student = student_of(STUDENT, teacher)
    assert type(student) is type(teacher)
    for ours, theirs in ((0, 0), (1, 2)):
        assert torch.equal(
            student.distilbert.transformer.layer[ours].ffn.lin1.weight,
            teacher.distilbert.transformer.layer[theirs].ffn.lin1.weight,
        )
    assert torch.equal(student.vocab_transform.weight, teacher.vocab_transform.weight)


def test_padding_does_not_change_the_hidden_states_of_real_tokens():
    teacher = tiny_bert()
    ids = torch.randint(60, (1, 10))
    padded = torch.cat([ids, torch.zeros(1, 6, dtype=torch.long)], 1)
    with torch.no_grad():
        alone = encoder_hidden(teacher, ids, torch.ones_like(ids))
        beside = encoder_hidden(teacher, padded, (torch.arange(16)[None] < 10).long())
    torch.testing.assert_close(beside[:, :10], alone, rtol=1e-5, atol=1e-5)
