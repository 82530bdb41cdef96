import json

import pytest
import torch
from transformers import BertTokenizerFast

from stages.errors import InputError
from stages.models import (
    load_encoder,
    load_masked_lm,
    load_model_config,
    load_tokenizer,
    require_model,
    weights_digest,
)
from stages.students import INPUTS
from tests.stages.tiny_models import tiny_bert

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "shard"]


@pytest.fixture
def bert_tokenizer(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    folder = tmp_path / "tokenizer"
    BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(folder)
    return folder


def test_a_students_tokenizer_makes_no_token_types_also_after_it_was_saved(bert_tokenizer, tmp_path):
    assert "token_type_ids" in load_tokenizer(bert_tokenizer)("the shard")
    load_tokenizer(bert_tokenizer, inputs=INPUTS).save_pretrained(tmp_path / "student")
    assert set(load_tokenizer(tmp_path / "student")("the shard")) == {"input_ids", "attention_mask"}


def test_a_saved_tokenizer_does_not_say_where_it_was_loaded_from(bert_tokenizer, tmp_path):
    load_tokenizer(bert_tokenizer).save_pretrained(tmp_path / "copy")
    assert str(tmp_path) not in (tmp_path / "copy" / "tokenizer_config.json").read_text()


def test_an_encoder_without_a_masked_lm_head_is_refused(tmp_path):
    tiny_bert().bert.save_pretrained(tmp_path)
    with pytest.raises(
        InputError, match=r"lack \d+ tensors of BertForMaskedLM .* expected a model with its masked-LM head"
    ):
        load_masked_lm(tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path):
    for load in (load_masked_lm, load_model_config, load_tokenizer):
        with pytest.raises(InputError, match="could be loaded from"):
            load(tmp_path / "nothing")
    with pytest.raises(InputError, match="run: pipeline teacher"):
        require_model(tmp_path, "the teacher", "pipeline teacher")


def cut(data):
    return data[: len(data) // 2]


@pytest.mark.parametrize("damage", [cut, lambda _: b"", lambda data: b"\xff" * len(data)])
def test_damaged_weights_are_refused_naming_the_folder(tmp_path, damage):
    tiny_bert().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(
        InputError, match=f"no masked language model could be loaded from {tmp_path}: its files are damaged"
    ):
        load_masked_lm(tmp_path)


def test_weights_of_another_shape_than_the_configuration_says_are_refused(tmp_path):
    tiny_bert().save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "vocab_size": 61}))
    with pytest.raises(InputError, match=rf"the weights in {tmp_path} do not fit .* is \(60,.*expected \(61,"):
        load_masked_lm(tmp_path)


@pytest.mark.parametrize("damage", [cut, lambda _: b"null"])
def test_a_damaged_configuration_is_refused_naming_the_folder(tmp_path, damage):
    tiny_bert().save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_bytes(damage(config.read_bytes()))
    for load, what in ((load_model_config, "model configuration"), (load_masked_lm, "masked language model")):
        with pytest.raises(InputError, match=f"no {what} could be loaded from {tmp_path}: "):
            load(tmp_path)


def test_a_configuration_value_of_the_wrong_type_is_named(tmp_path):
    tiny_bert().save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_size": "wide"}))
    with pytest.raises(InputError, match=r"'hidden_size' expected int, got str \(value: 'wide'\)"):
        load_model_config(tmp_path)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("damage", [cut, lambda _: b"null", lambda _: b"[1]"])
def test_a_damaged_tokenizer_is_refused_naming_the_folder(bert_tokenizer, file, damage):
    path = bert_tokenizer / file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=f"no tokenizer could be loaded from {bert_tokenizer}: "):
        load_tokenizer(bert_tokenizer)


def test_a_tokenizer_of_an_unknown_kind_is_refused_naming_the_folder(bert_tokenizer):
    path = bert_tokenizer / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model": {"type": "of a later version"}}))
    with pytest.raises(InputError, match=f"no tokenizer could be loaded from {bert_tokenizer}: its files are damaged"):
        load_tokenizer(bert_tokenizer)


def test_the_digest_follows_weights_and_configuration(tmp_path):
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        tiny_bert(seed=seed).save_pretrained(tmp_path / name)
    one, same, other = (weights_digest(tmp_path / name) for name in ("one", "same", "other"))
    assert one == same != other
    config = tmp_path / "same" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "layer_norm_eps": 1e-5}))
    read = []
    assert weights_digest(tmp_path / "same", read.append) != one
    files = [tmp_path / "same" / name for name in ("config.json", "model.safetensors")]
    assert sum(read) == sum(file.stat().st_size for file in files)


def test_a_model_is_loaded_in_the_wanted_arithmetic_and_in_eval_mode(tmp_path):
    tiny_bert().save_pretrained(tmp_path)
    model = load_masked_lm(tmp_path, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert not model.training


def test_an_encoder_says_whether_it_brought_its_head(tmp_path):
    model = tiny_bert()
    model.save_pretrained(tmp_path / "whole")
    model.bert.save_pretrained(tmp_path / "bare")
    assert load_encoder(tmp_path / "whole", seed=0)[1]
    first, has_head = load_encoder(tmp_path / "bare", seed=0)
    assert not has_head
    again, _ = load_encoder(tmp_path / "bare", seed=0)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
