import json

import pytest
import torch
from transformers import BertTokenizerFast

from stages.config import SourceConfig
from stages.errors import InputError
from stages.models import (
    load_masked_lm,
    load_model_config,
    load_tokenizer,
    require_model,
    resolve_source,
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


def test_the_digest_follows_weights_and_configuration(tmp_path):
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        tiny_bert(seed=seed).save_pretrained(tmp_path / name)
    one, same, other = (weights_digest(tmp_path / name) for name in ("one", "same", "other"))
    assert one == same != other
    config = tmp_path / "same" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "layer_norm_eps": 1e-5}))
    assert weights_digest(tmp_path / "same") != one


def test_a_model_is_loaded_in_the_wanted_arithmetic_and_in_eval_mode(tmp_path):
    tiny_bert().save_pretrained(tmp_path)
    model = load_masked_lm(tmp_path, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert not model.training


def test_a_source_is_a_folder_of_the_project_or_a_pinned_hub_id(tmp_path):
    (tmp_path / "bert").mkdir()
    assert resolve_source(SourceConfig(path="bert"), tmp_path) == (str(tmp_path / "bert"), None)
    assert resolve_source(SourceConfig(hub_id="a/b", revision="c0ffee"), tmp_path) == ("a/b", "c0ffee")
    with pytest.raises(InputError, match="is no folder; expected a Hugging Face model"):
        resolve_source(SourceConfig(path="gone"), tmp_path)
