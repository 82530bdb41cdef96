"""Teachers of many families through tokenize, teacher and cache-teacher: what is cached is what the model says."""

import gc
import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from stages import cache_teacher, corpus, plan, teacher, tokenize_corpus
from stages.against_teacher.compare import compare_with_teacher
from stages.config import cache_spec
from stages.errors import InputError
from stages.heads import Head
from stages.models import load_tokenizer
from stages.sequences import TokenStore
from storage import CacheDescription, CacheReader
from tests.stages.conftest import Project
from tests.stages.tiny_models import tiny_model
from tests.stages.tiny_tokenizers import trained_byte_level
from tests.tiny import write_project

FEW = {"train": 12, "validation": 4, "test": 4}
LOSSLESS = {"preset": "lossless", "top_k": 16, "sequences": FEW, "attention": "eager"}
GIVEN = {"source": "load", "load": {"path": "given"}}
CAUSAL = {
    "teacher": {**GIVEN, "objective": "causal"},
    "tokenize": {"tokenizer": "load", "load": {"path": "given"}},
    "train": {"weights": {"mlm": 0.0, "clm": 2.0}},
}


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    """A project folder with documents, and in `given` a tokenizer without mask and padding token."""
    project = Project(write_project(tmp_path_factory.mktemp("byte-level")))
    trained_byte_level().save_pretrained(project.folder / "given")
    project.run(corpus)
    return project.folder


@pytest.fixture
def causal(byte_level, tmp_path):
    """`causal(kind)`: such a project with that teacher, through all stages that make the cache."""

    def make(kind, *, stages=(tokenize_corpus, teacher, cache_teacher), begin=None, cache=None, **changes) -> Project:
        project = Project(
            shutil.copytree(byte_level, tmp_path / kind), **{**CAUSAL, "cache": {**LOSSLESS, **(cache or {})}}
        )
        if begin:
            trained_byte_level(begin=begin).save_pretrained(project.folder / "given")
        size = len(load_tokenizer(project.folder / "given"))
        tiny_model(kind, **{"vocabulary": size, **changes}).save_pretrained(project.folder / "given")
        for stage in stages:
            project.run(stage)
        return project

    return make


def assert_cached_is_said(project, model):
    """Every row of every split against the model's own logits, one sequence at a time."""
    reader = CacheReader(project.artefacts.cache)
    head = Head.load(reader.folder)
    for shard in reader.description.shard_ids():
        arrays, layout = reader.load(shard), reader.description.splits[shard.split].layout
        cached_hidden, cached_logits = arrays.decoded_hidden(layout), arrays.decoded_logits(layout)
        for begin, end in itertools.pairwise(arrays.sequence_offsets):
            ids = torch.from_numpy(arrays.input_ids[begin:end].astype(np.int64))[None]
            with torch.no_grad():
                said = model(input_ids=ids).logits[0]
            rows = slice(int(begin), int(end))
            hidden = torch.from_numpy(cached_hidden[rows, -1])
            torch.testing.assert_close(head.logits(hidden), said, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(torch.from_numpy(arrays.stat[rows, 1]), said.logsumexp(-1), rtol=1e-4, atol=1e-4)
            best = said.topk(layout.top_k)
            torch.testing.assert_close(torch.from_numpy(cached_logits[rows]), best.values, rtol=1e-4, atol=1e-4)
            found = said.gather(-1, torch.from_numpy(arrays.top_ids[rows].astype(np.int64)))
            torch.testing.assert_close(found, best.values, rtol=1e-4, atol=1e-4)
    return reader


def test_the_vectors_of_attention_of_a_teacher_with_grouped_queries_have_widths_of_their_own(causal):
    vectors = {"attention_vectors": ["queries", "keys", "values"], "attention_layers": [1, 3]}
    project = causal("llama", cache=vectors, num_attention_heads=4)
    reader = CacheReader(project.artefacts.cache)
    layout = reader.description.splits["train"].layout
    assert layout.vectors(16) == {"hidden": 16, "queries": 16, "keys": 8, "values": 8}
    computed_with = {shard: {} for shard in reader.description.shard_ids()}
    assert compare_with_teacher(reader, project.context, 8, computed_with).within


def test_a_teacher_whose_projections_are_not_known_is_refused_before_its_pass(causal):
    vectors = {"attention_vectors": ["keys"]}
    project = causal("bloom", stages=(tokenize_corpus, teacher), cache=vectors)
    with pytest.raises(InputError, match="queries, keys and values of models of type 'bloom' cannot be taken"):
        project.run(cache_teacher)
    assert not list(project.artefacts.cache_work.rglob("cache.json"))


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "modernbert", "albert", "mpnet"])
def test_what_is_cached_of_a_masked_teacher_is_what_it_says(make_project, kind):
    project = make_project(teacher=GIVEN, cache=LOSSLESS)
    tokens = TokenStore.open(project.artefacts.tokens)
    tiny_model(kind, vocabulary=tokens.vocabulary_size).save_pretrained(project.folder / "given")
    load_tokenizer(tokens.tokenizer_folder).save_pretrained(project.folder / "given")
    project.run(teacher)
    project.run(cache_teacher)
    model = AutoModelForMaskedLM.from_pretrained(project.folder / "given", attn_implementation="eager").eval()
    reader = assert_cached_is_said(project, model)
    assert reader.description.required_features == ()
    assert "objective" not in json.loads((reader.folder / "cache.json").read_text())


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2", "cohere"])
def test_what_is_cached_of_a_causal_teacher_is_what_it_says_of_the_next_token(causal, kind):
    project = causal(kind)
    model = AutoModelForCausalLM.from_pretrained(project.folder / "given", attn_implementation="eager").eval()
    reader = assert_cached_is_said(project, model)
    assert (reader.description.objective, reader.description.required_features) == ("causal", ("causal",))
    arrays = reader.load(reader.shards("train")[0])
    np.testing.assert_array_equal(arrays.input_ids, arrays.original_ids)
    assert not arrays.masked.any()
    assert CacheDescription.from_json(json.loads((reader.folder / "cache.json").read_text())) == reader.description


def test_the_figures_of_a_causal_teacher_are_of_the_next_token(causal):
    project = causal("gpt2", stages=(tokenize_corpus, teacher))
    found = json.loads((project.artefacts.runs / "teacher.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(project.artefacts.teacher).eval()
    offsets, ids = TokenStore.open(project.artefacts.tokens).split("validation").read(0, found["sequences"])
    loss = correct = count = 0.0
    for begin, end in itertools.pairwise(offsets):
        sequence = torch.from_numpy(ids[begin:end].astype(np.int64))
        with torch.no_grad():
            logits = model(input_ids=sequence[None]).logits[0, :-1]
        loss += float(torch.nn.functional.cross_entropy(logits, sequence[1:], reduction="sum"))
        correct += float((logits.argmax(-1) == sequence[1:]).sum())
        count += len(sequence) - 1
    assert found["clm_loss"] == pytest.approx(loss / count, abs=1e-4)
    assert (found["next_accuracy"], found["predicted_tokens"]) == (pytest.approx(correct / count, abs=1e-5), count)
    assert found["precision"] == "float32"


def test_tokens_have_the_special_tokens_of_the_tokenizers_own_template_and_no_others(causal):
    bare, begun = causal("gpt2", stages=(tokenize_corpus,)), causal("llama", stages=(tokenize_corpus,), begin="<s>")
    for project, first in ((bare, None), (begun, 1)):
        store = TokenStore.open(project.artefacts.tokens)
        roles = {role: token for role, token in store.special_tokens.items() if token is not None}
        assert roles == ({"bos": 0, "eos": 0} if first is None else {"bos": 1, "eos": 0})
        offsets, ids = store.split("train").read(0, 20)
        special = {int(token) for token in np.unique(ids)} & set(store.special_ids)
        assert special == (set() if first is None else {first})
        if first is not None:
            assert set(ids[offsets[:-1]].tolist()) == {first}


def test_sampled_positions_of_a_causal_teacher_are_a_share_of_all_tokens(causal):
    sampled = {"positions": "sampled", "position_fraction": 0.25, "sequences": {**FEW, "train": 96}}
    reader = CacheReader(causal("gpt2", cache=sampled).artefacts.cache)
    arrays = [reader.load(shard) for shard in reader.shards("train")]
    rows, tokens = (sum(len(getattr(part, name)) for part in arrays) for name in ("row_token", "original_ids"))
    assert 0.2 < rows / tokens < 0.3
    assert reader.description.splits["test"].layout.positions == "all"


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_vocabulary_padded_beyond_the_tokenizer_is_kept_as_the_teacher_gives_it(causal, make_project, kind):
    if kind == "gpt2":
        project = causal(kind, vocabulary=320)
        model = AutoModelForCausalLM.from_pretrained(project.folder / "given").eval()
    else:
        project = make_project(cache=LOSSLESS)
        tiny_model(kind, vocabulary=320).save_pretrained(project.artefacts.teacher)
        project.run(cache_teacher)
        model = AutoModelForMaskedLM.from_pretrained(project.artefacts.teacher).eval()
    reader = assert_cached_is_said(project, model)
    entries = TokenStore.open(project.artefacts.tokens).vocabulary_size
    assert entries < reader.description.vocabulary_size == Head.load(reader.folder).vocabulary_size == 320
    arrays = reader.load(reader.shards("train")[0])
    assert arrays.top_ids.max() >= entries > arrays.input_ids.max()


def test_a_teacher_on_more_than_one_device_gives_the_same_targets(causal):
    whole = causal("gpt2")
    size = sum(tensor.nbytes for tensor in load_file(whole.artefacts.teacher / "model.safetensors").values())
    expected = CacheReader(whole.artefacts.cache)
    machine = {"device_map": "auto", "max_memory": {"cpu": f"{size / 1500:.1f}KB"}}
    parts = Project(
        shutil.copytree(whole.folder, whole.folder.with_name("parts")), **CAUSAL, cache=LOSSLESS, machine=machine
    )
    for folder in ("models", "cache"):
        shutil.rmtree(parts.folder / folder)
    parts.run(teacher)
    parts.run(cache_teacher)
    gc.collect()
    assert not list(parts.artefacts.cache_work.glob("*offload*"))
    found = CacheReader(parts.artefacts.cache)
    assert (found.description.fingerprint, found.root_digest) == (
        expected.description.fingerprint,
        expected.root_digest,
    )


def test_roberta_reads_as_many_tokens_as_its_table_has_beyond_the_padding(make_project):
    project = make_project(cache=LOSSLESS)
    size = TokenStore.open(project.artefacts.tokens).vocabulary_size
    tiny_model("roberta", vocabulary=size, max_position_embeddings=16).save_pretrained(project.artefacts.teacher)
    with pytest.raises(InputError, match=r"has 16 tokens and the teacher 15 positions .*sequence_tokens to at most 15"):
        project.run(cache_teacher)


def test_sequences_beyond_the_positions_of_a_causal_teacher_are_refused(causal):
    with pytest.raises(InputError, match=r"longest sequence in data/tokens has 16 tokens and the teacher 12 positions"):
        causal("gpt2", stages=(tokenize_corpus, teacher), positions=12)


def test_a_masked_teacher_needs_a_tokenizer_with_a_mask(byte_level, tmp_path):
    project = Project(shutil.copytree(byte_level, tmp_path / "it"), tokenize=CAUSAL["tokenize"])
    with pytest.raises(InputError, match=r"has no mask token; .* or teacher.objective: causal"):
        project.run(tokenize_corpus)


def test_a_causal_cache_is_verified_against_its_teacher(causal):
    project = causal("llama", cache={"preset": "balanced", "top_k": 16})
    reader = CacheReader(project.artefacts.cache)
    agreement = compare_with_teacher(reader, project.context, 20, {})
    assert agreement.within
    assert agreement.positions > 20


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_cache_of_a_causal_teacher_is_planned_with_the_positions_it_will_have(causal, kind):
    sampled = {"positions": "sampled", "position_fraction": 0.25, "sequences": {**FEW, "train": 96}}
    project = causal(kind, cache=sampled)
    planned = plan.run(project.config, project.context, sample_tokens=400)
    reader = CacheReader(project.artefacts.cache)
    assert planned["fingerprint"] == reader.description.fingerprint
    assert planned["memory"]["activations"] > 0
    for split, found in planned["splits"].items():
        rows = sum(len(reader.load(shard).stat) for shard in reader.shards(split))
        assert found["positions"] == pytest.approx(rows, rel=0.1)


def test_a_teacher_on_more_than_one_device_is_planned_and_verified_as_it_is_cached(causal):
    project = causal("gpt2")
    size = sum(tensor.nbytes for tensor in load_file(project.artefacts.teacher / "model.safetensors").values())
    project.set(
        **CAUSAL,
        cache=LOSSLESS,
        machine={"device_map": "auto", "max_memory": {"cpu": f"{size / 1500:.1f}KB"}},
    )
    assert plan.run(project.config, project.context, sample_tokens=100)["device"] == "cpu, disk"
    reader = CacheReader(project.artefacts.cache)
    assert compare_with_teacher(reader, project.context, 20, {}, project.config.machine).within


def test_the_identity_of_a_causal_cache_has_no_masks_but_the_seed_of_what_is_drawn(byte_level, tmp_path):
    project = Project(shutil.copytree(byte_level, tmp_path / "it"), **CAUSAL)
    spec = cache_spec(project.config)
    assert (spec["masking"], spec["teacher"]["objective"]) == ({"seed": 0}, "causal")
    project.set(**CAUSAL, masking={"probability": 0.5})
    assert cache_spec(project.config) == spec
