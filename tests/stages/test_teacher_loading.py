import gc
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM, BloomConfig, T5Config

from stages.config import MachineConfig
from stages.errors import InputError
from stages.forward_pass import encoder_hidden, encoder_states
from stages.heads import Head
from stages.model_config import ModelShape
from stages.models import Spread, load_model_config
from stages.teacher_loading import check_teacher, load_teacher, spread_of
from storage.files import remove_temporaries
from tests.stages.families import FAMILIES, batch, every_family
from tests.stages.tiny_models import CAUSAL_FAMILIES, tiny_bert, tiny_model


def saved(folder, kind, **changes):
    """The folder, with a tiny model of this family."""
    tiny_model(kind, **changes).save_pretrained(folder)
    return folder


@every_family
@torch.no_grad()
def test_the_head_alone_gives_the_logits_of_every_family(tmp_path, kind, objective):
    model = load_teacher(saved(tmp_path, kind), objective=objective, attention=None)
    ids, mask = batch(model, 9, 9)
    expected = model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(Head.of(model).logits(encoder_hidden(model, ids, mask)), expected, rtol=1e-5, atol=1e-5)
    for name, data in Head.of(model).files(torch.float32).items():
        (tmp_path / name).write_bytes(data)
    stored = Head.load(tmp_path)
    torch.testing.assert_close(stored.logits(encoder_hidden(model, ids, mask)), expected, rtol=1e-5, atol=1e-5)


def test_the_shape_is_the_same_whatever_a_family_calls_it():
    for kind, _ in FAMILIES:
        shape = ModelShape.of(tiny_model(kind).config.to_dict())
        assert (shape.kind, shape.layers, shape.hidden_size, shape.vocabulary_size) == (kind, 3, 16, 60)
        assert shape.positions == 24
    assert ModelShape.of(BloomConfig().to_dict()).positions is None


def test_the_shape_is_read_from_the_configuration_in_a_folder(tmp_path):
    assert ModelShape.of(load_model_config(saved(tmp_path, "gpt2"))).layers == 3


def test_a_model_that_reads_ahead_is_no_causal_teacher_and_the_other_way_round(tmp_path):
    both = saved(tmp_path / "both", "bert")
    with pytest.raises(InputError, match=r"'bert' .*read ahead.*expected a causal model, or teacher.objective: masked"):
        load_teacher(both, objective="causal")
    onwards = BertForMaskedLM(BertConfig(**{**tiny_bert().config.to_dict(), "is_decoder": True}))
    onwards.save_pretrained(tmp_path / "onwards")
    with pytest.raises(InputError, match=r"'bert' .*do not read ahead.*or teacher.objective: causal"):
        load_teacher(tmp_path / "onwards", objective="masked")
    load_teacher(tmp_path / "onwards", objective="causal")


@pytest.mark.parametrize(("kind", "wrong", "right"), [("gpt2", "masked", "causal"), ("mpnet", "causal", "masked")])
def test_a_family_that_does_not_do_what_is_wanted_is_refused_by_name(tmp_path, kind, wrong, right):
    with pytest.raises(InputError, match=rf"'{kind}' .* are no {wrong} language models; .* teacher.objective: {right}"):
        load_teacher(saved(tmp_path, kind), objective=wrong)


def test_a_head_that_does_more_than_its_known_steps_is_refused():
    class Doubled(type(tiny_model("gpt2"))):
        def forward(self, *arguments, **settings):
            output = super().forward(*arguments, **settings)
            output.logits = 2 * output.logits
            return output

    model = Doubled(tiny_model("gpt2").config).eval()
    with pytest.raises(
        InputError, match=r"head of models of type 'gpt2' \(it\) is not known: projection give other logits"
    ):
        check_teacher(model, "it", "causal")


def test_a_head_of_another_width_than_the_blocks_is_refused():
    model = tiny_model("opt", word_embed_proj_dim=8)
    with pytest.raises(InputError, match=r"hidden states of 8, 16 values; expected 16 in every layer"):
        check_teacher(model, "it", "causal")


def write_config(folder, **changes):
    """A folder with this configuration alone."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(changes))
    return folder


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (T5Config().to_dict(), "type 't5'.* is an encoder with a decoder; expected an encoder .* or a decoder"),
        (
            {"model_type": "house-made", "auto_map": {"AutoModelForCausalLM": "modeling.Model"}},
            "type 'house-made' and brings code of its own .*never run here",
        ),
        ({"model_type": "house-made"}, "house-made"),
        ({"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}, r"quantised \(gptq\); expected"),
    ],
    ids=["encoder-decoder", "own code", "unknown", "quantised"],
)
def test_a_kind_of_model_that_cannot_work_is_refused_before_its_weights_are_read(tmp_path, config, reason):
    with pytest.raises(InputError, match=reason):
        load_teacher(write_config(tmp_path / "it", **config), objective="causal")


def test_an_attention_kernel_that_the_family_does_not_have_is_refused(tmp_path):
    with pytest.raises(
        InputError, match=r"has no attention kernel 'sdpa' in transformers; expected cache.attention: eager"
    ):
        load_teacher(saved(tmp_path, "bloom"), objective="causal")


def test_a_bare_decoder_is_refused(tmp_path):
    tiny_model("gpt_neox").gpt_neox.save_pretrained(tmp_path)
    with pytest.raises(
        InputError, match=r"lack 1 tensors of GPTNeoXForCausalLM .*language-model head, not a bare decoder"
    ):
        load_teacher(tmp_path, objective="causal")


def test_a_teacher_that_gives_nan_is_left_to_the_guards_that_name_the_sequence():
    model = tiny_bert()
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.fill_(torch.nan)
    check_teacher(model, "it", "masked")


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
@torch.no_grad()
def test_a_teacher_larger_than_one_device_says_what_it_says_on_one(tmp_path, kind):
    saved(tmp_path / "model", kind, tie_word_embeddings=kind != "llama")
    objective = "causal" if kind in CAUSAL_FAMILIES else "masked"
    whole = load_teacher(tmp_path / "model", objective=objective)
    size = sum(tensor.nbytes for tensor in load_file(tmp_path / "model" / "model.safetensors").values())
    parts = load_teacher(
        tmp_path / "model",
        objective=objective,
        spread=Spread(strategy="auto", max_memory={"cpu": f"{size * 2 / 3000}KB"}, offload_folder=tmp_path / "offload"),
    )
    assert (tmp_path / "offload").is_dir()
    assert set(parts.hf_device_map.values()) == {"cpu", "disk"}
    ids, mask = batch(whole, 9, 14)
    for one, other in zip(
        encoder_states(whole, ids, mask, [0, 2]), encoder_states(parts, ids, mask, [0, 2]), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert Head.of(parts).files(torch.float16) == Head.of(whole).files(torch.float16)
    del parts
    gc.collect()
    assert not (tmp_path / "offload").exists()


def test_a_teacher_is_spread_over_devices_only_where_the_machine_is_told_to(tmp_path):
    assert spread_of(MachineConfig(device="cpu"), tmp_path) is None
    machine = MachineConfig(device="cpu", device_map="auto", max_memory={"cpu": "1GiB"})
    one, other = spread_of(machine, tmp_path, "1234"), spread_of(machine, tmp_path, "1234")
    assert (one.strategy, one.max_memory, one.offload_folder.parent) == ("auto", {"cpu": "1GiB"}, tmp_path)
    assert one.offload_folder != other.offload_folder
    for spread in (one, other):  # of processes that were killed
        spread.offload_folder.mkdir()
    remove_temporaries(tmp_path, "1234")
    assert not list(tmp_path.iterdir())


def test_causal_models_load_in_the_arithmetic_of_their_files(tmp_path):
    tiny_model("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    assert load_teacher(tmp_path, objective="causal", dtype="auto").dtype == torch.bfloat16
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16
