"""Students of their teacher's own class, of every family that the tests know: what is copied computes what it did."""

import dataclasses

import pytest
import torch
from torch import nn

from stages.blocks import blocks_of
from stages.config import ConfigError, StudentConfig
from stages.errors import InputError
from stages.models import load_language_model, load_model_config
from stages.students import build_student, copy_teacher, layer_map
from tests.stages.tiny_models import CAUSAL_FAMILIES, MASKED_FAMILIES, tiny_model

STUDENT = StudentConfig(architecture="same", initialise="teacher", layers=3, dropout=0.1, seed=0)
REFUSED = {"albert", "gemma2", "cohere", "granite"}
FAMILIES = sorted({*MASKED_FAMILIES, *CAUSAL_FAMILIES} - REFUSED)


def objective_of(kind):
    return "causal" if kind in CAUSAL_FAMILIES else "masked"


def student_of(config, teacher, objective):
    student = build_student(config, "half", teacher.config.to_dict(), objective)
    copy_teacher(config, student, teacher, layer_map(config, "half", teacher.config.num_hidden_layers))
    return student


def logits(model):
    ids = torch.arange(3, 33).reshape(2, 15)
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_copy_of_every_block_is_the_teacher_and_a_shorter_one_is_the_same_after_saving(kind, tmp_path):
    teacher, objective = tiny_model(kind), objective_of(kind)
    whole = student_of(STUDENT, teacher, objective)
    torch.testing.assert_close(logits(whole), logits(teacher), rtol=1e-5, atol=1e-5)
    shorter = student_of(dataclasses.replace(STUDENT, layers=2), teacher, objective)
    assert type(shorter) is type(teacher)
    for ours, theirs in ((0, 0), (1, 2)):
        for name, tensor in blocks_of(shorter)[ours].state_dict().items():
            assert torch.equal(tensor, blocks_of(teacher)[theirs].state_dict()[name]), name
    shorter.save_pretrained(tmp_path)
    torch.testing.assert_close(
        logits(load_language_model(tmp_path, objective=objective, attention=None)),
        logits(shorter),
        rtol=1e-5,
        atol=1e-5,
    )
    assert load_model_config(tmp_path)["model_type"] == kind


@pytest.mark.parametrize("kind", ["roberta", "gpt2"])
def test_twelve_blocks_of_these_give_the_six_of_the_published_students(kind):
    teacher = tiny_model(kind, num_hidden_layers=12)
    student = student_of(dataclasses.replace(STUDENT, layers=6), teacher, objective_of(kind))
    for ours, theirs in enumerate((0, 2, 4, 7, 9, 11)):
        for mine, copied in zip(
            blocks_of(student)[ours].parameters(), blocks_of(teacher)[theirs].parameters(), strict=True
        ):
            assert torch.equal(mine, copied)


def test_the_dropout_is_the_students_wherever_its_family_has_one():
    student = student_of(STUDENT, tiny_model("gpt2"), "causal")
    assert {module.p for module in student.modules() if isinstance(module, nn.Dropout)} == {0.1}
    student = student_of(dataclasses.replace(STUDENT, dropout=0.25), tiny_model("bert"), "masked")
    assert {module.p for module in student.modules() if isinstance(module, nn.Dropout)} == {0.25}


def test_a_teacher_in_half_precision_is_copied_into_full():
    teacher = tiny_model("llama").to(torch.bfloat16)
    student = student_of(STUDENT, teacher, "causal")
    assert student.dtype == torch.float32
    assert torch.equal(student.lm_head.weight, teacher.lm_head.weight.float())


def test_blocks_that_attend_otherwise_stay_what_they_are():
    types = ["full_attention", "sliding_attention", "full_attention"]
    teacher = tiny_model("modernbert", layer_types=types, local_attention=4)
    student = student_of(dataclasses.replace(STUDENT, layers=2), teacher, "masked")
    assert student.config.layer_types == ["full_attention", "full_attention"]
    student = student_of(dataclasses.replace(STUDENT, layers=2, layer_map=(0, 1)), teacher, "masked")
    assert student.config.layer_types == ["full_attention", "sliding_attention"]


def test_a_block_that_would_be_another_one_in_its_new_place_is_refused():
    # ModernBERT's first block has no norm before its attention.
    config = dataclasses.replace(STUDENT, layers=2, layer_map=(1, 2))
    with pytest.raises(
        InputError,
        match=r"block 1 of the teacher cannot be block 0 of a student of type 'modernbert': its attn_norm is LayerNorm, "
        r"and the student's Identity; expected another layer_map",
    ):
        student_of(config, tiny_model("modernbert"), "masked")


def test_a_setting_that_is_not_in_the_configuration_is_noticed():
    teacher = tiny_model("llama")
    teacher.model.layers[2].self_attn.scaling = 0.5
    with pytest.raises(InputError, match=r"its self_attn.scaling is 0.5, and the student's 0.35"):
        student_of(dataclasses.replace(STUDENT, layers=2), teacher, "causal")


def test_blocks_that_depend_on_their_place_are_taken_from_the_beginning():
    teacher = tiny_model("gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(
        InputError, match=r"depend on their place \(scale_attn_by_inverse_layer_idx\); .*layer_map: \[0, 1\]"
    ):
        student_of(dataclasses.replace(STUDENT, layers=2), teacher, "causal")
    student_of(dataclasses.replace(STUDENT, layers=2, layer_map=(0, 1)), teacher, "causal")


def test_a_family_that_uses_one_block_for_all_layers_is_refused():
    with pytest.raises(InputError, match=r"of type 'albert' are not found: .* \(ALBERT, say, uses one block for all\)"):
        student_of(STUDENT, tiny_model("albert"), "masked")


@pytest.mark.parametrize(("kind", "step"), [("gemma2", "softcap"), ("cohere", "scale"), ("granite", "scale")])
def test_a_head_that_goes_on_after_its_projection_is_refused(kind, step):
    with pytest.raises(
        InputError, match=rf"a student of type '{kind}' \(students.half\) cannot be trained: {step} after its output"
    ):
        student_of(STUDENT, tiny_model(kind), "causal")


def test_a_teacher_that_cannot_do_what_it_is_asked_is_refused():
    with pytest.raises(
        InputError, match=r"models of type 'gpt2' .* are no masked language models; .* teacher.objective: causal"
    ):
        build_student(STUDENT, "half", tiny_model("gpt2").config.to_dict(), "masked")
    with pytest.raises(InputError, match=r"models of type 'distilbert' .* are no causal language models; .* masked"):
        build_student(STUDENT, "half", tiny_model("distilbert").config.to_dict(), "causal")


@pytest.mark.parametrize("kind", ["bert", "distilbert", "modernbert", "gpt2", "llama", "opt", "gpt_neox"])
def test_a_random_student_may_be_narrower(kind, tmp_path):
    config = dataclasses.replace(
        STUDENT, initialise="random", layers=2, hidden_size=24, attention_heads=4, feed_forward_size=20
    )
    student = build_student(config, "narrow", tiny_model(kind).config.to_dict(), objective_of(kind))
    assert (student.config.hidden_size, student.config.num_attention_heads) == (24, 4)
    assert student.get_output_embeddings().weight.shape == (60, 24)
    shapes = {tensor.shape for tensor in blocks_of(student).parameters()}
    assert any(20 in shape for shape in shapes)
    student.save_pretrained(tmp_path)
    torch.testing.assert_close(
        logits(load_language_model(tmp_path, objective=objective_of(kind), attention=None)), logits(student)
    )
    same, other = (
        build_student(
            dataclasses.replace(config, seed=seed), "narrow", tiny_model(kind).config.to_dict(), objective_of(kind)
        )
        for seed in (0, 1)
    )
    assert torch.equal(same.get_input_embeddings().weight, student.get_input_embeddings().weight)
    assert not torch.equal(other.get_input_embeddings().weight, student.get_input_embeddings().weight)


def test_what_is_not_said_of_a_narrower_student_is_as_the_teacher_has_it():
    config = dataclasses.replace(STUDENT, initialise="random", hidden_size=8)
    student = build_student(config, "narrow", tiny_model("gpt2").config.to_dict(), "causal")
    assert (student.config.n_embd, student.config.n_head, student.config.n_inner) == (8, 2, 64)
    student = build_student(config, "narrow", tiny_model("llama", num_key_value_heads=1).config.to_dict(), "causal")
    assert (student.config.head_dim, student.config.num_key_value_heads, student.config.intermediate_size) == (4, 1, 32)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (
            "llama",
            {"hidden_size": 9},
            r"students.odd.hidden_size is 9; allowed: a multiple of the attention heads \(2\)",
        ),
        (
            "llama",
            {"attention_heads": 1, "hidden_size": 15},
            r"students.odd.attention_heads is 1; allowed: a multiple of the teacher's 2 heads of keys",
        ),
        ("bloom", {"feed_forward_size": 20}, r"students.odd.feed_forward_size is 20; allowed: null: .* type 'bloom'"),
        ("qwen2", {"layers": 5}, r"students.odd.layers is 5; allowed: at most the teacher's 3: .* \(layer_types\)"),
    ],
)
def test_a_shape_that_the_family_cannot_have_is_refused(kind, changes, message):
    teacher = tiny_model(kind, num_key_value_heads=2, num_attention_heads=4 if "attention_heads" in changes else 2)
    with pytest.raises(ConfigError, match=message):
        build_student(
            dataclasses.replace(STUDENT, initialise="random", **changes),
            "odd",
            teacher.config.to_dict(),
            objective_of(kind),
        )


def test_a_random_student_may_have_more_blocks_than_its_teacher():
    config = dataclasses.replace(STUDENT, initialise="random", layers=5)
    assert len(blocks_of(build_student(config, "deep", tiny_model("gpt2").config.to_dict(), "causal"))) == 5


@pytest.mark.parametrize("kind", ["bloom", "gpt_neox"])
def test_the_head_of_a_student_is_its_own(kind):
    student = student_of(STUDENT, tiny_model(kind), "causal")
    tied = student.get_output_embeddings().weight is student.get_input_embeddings().weight
    assert tied is student.config.tie_word_embeddings


def test_a_mixture_of_experts_in_some_blocks_only_is_moved_where_the_student_has_one_too():
    experts = {
        "moe_intermediate_size": 8,
        "shared_expert_intermediate_size": 8,
        "num_experts": 2,
        "num_experts_per_tok": 1,
    }
    teacher = tiny_model("qwen2_moe", objective="causal", num_key_value_heads=2, mlp_only_layers=[1], **experts)
    with pytest.raises(InputError, match=r"block 2 of the teacher cannot be block 1 of a student of type 'qwen2_moe'"):
        student_of(dataclasses.replace(STUDENT, layers=2), teacher, "causal")
    student = student_of(dataclasses.replace(STUDENT, layers=2, layer_map=(0, 1)), teacher, "causal")
    assert type(blocks_of(student)[1].mlp) is type(blocks_of(teacher)[1].mlp)
