"""The families of the paper, and models that a user brings: each from text to an evaluated student, with small models."""

import itertools
import json
import re
import shutil
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from pipeline.compare import compare
from stages import cache_teacher, corpus, evaluate, init_student, report, teacher, tokenize_corpus, train_student
from stages.blocks import blocks_of
from stages.config.base import merged
from stages.models import load_model_config, load_tokenizer
from stages.sequences import TokenStore
from storage import CacheReader
from tests.stages.conftest import Project
from tests.stages.tiny_models import tiny_model
from tests.stages.tiny_tokenizers import trained_byte_level, trained_roberta, word_level
from tests.tiny import tiny_text, write_project

CASED = "\n".join(line.capitalize() for line in tiny_text().splitlines())
LANGUAGES = "\n".join(
    (
        "Le vieux meunier ferma la porte du moulin et regarda la rivière sans un bruit.",
        "Der alte Müller schloss die Tür der Mühle und sah lange auf den stillen Fluß.",
        "El viejo molinero cerró la puerta del molino y miró el río durante un año.",
        "The old miller closed the door of the mill and looked at the quiet river.",
    )
    * 30
)


@dataclass(frozen=True, kw_only=True)
class Family:
    """A teacher of three blocks, its tokenizer and text, and what its student of two is to be."""

    kind: str
    tokenizer: object
    student: str
    """Its class."""
    architecture: str = "same"
    text: str = field(default_factory=tiny_text)
    settings: dict = field(default_factory=dict)
    """Of the teacher's configuration."""
    prefix: tuple = ()
    suffix: tuple = ()
    causal: bool = False
    tied: bool = True


BERT = {"prefix": (2,), "suffix": (3,), "architecture": "distilbert", "student": "DistilBertForMaskedLM"}
FAMILIES = {
    "bert": Family(kind="bert", tokenizer=partial(word_level, tiny_text(), lowercase=True), **BERT),
    "bert-cased": Family(kind="bert", tokenizer=partial(word_level, CASED, lowercase=False), text=CASED, **BERT),
    "bert-multilingual": Family(
        kind="bert", tokenizer=partial(word_level, LANGUAGES, lowercase=False, unused=65_600), text=LANGUAGES, **BERT
    ),
    "roberta": Family(
        kind="roberta",
        tokenizer=trained_roberta,
        student="RobertaForMaskedLM",
        settings={"max_position_embeddings": 18, "pad_token_id": 1, "bos_token_id": 0, "type_vocab_size": 1},
        prefix=(0,),
        suffix=(2,),
    ),
    "gpt2": Family(
        kind="gpt2",
        tokenizer=trained_byte_level,
        student="GPT2LMHeadModel",
        settings={"pad_token_id": None, "bos_token_id": 0, "eos_token_id": 0},
        causal=True,
    ),
    "modernbert": Family(
        kind="modernbert",
        tokenizer=partial(word_level, tiny_text(), lowercase=True),
        student="ModernBertForMaskedLM",
        settings={"local_attention": 4, "cls_token_id": 2, "sep_token_id": 3},
        prefix=(2,),
        suffix=(3,),
    ),
    "llama": Family(
        kind="llama",
        tokenizer=partial(trained_byte_level, begin="<s>"),
        student="LlamaForCausalLM",
        settings={"pad_token_id": None, "bos_token_id": 1, "eos_token_id": 0},
        prefix=(1,),
        causal=True,
        tied=False,
    ),
}
MASKED, CAUSAL = ([name for name, family in FAMILIES.items() if family.causal is causal] for causal in (False, True))


def parameters(family):
    """What a project of this family has in params.yaml."""
    objective = "causal" if family.causal else "masked"
    return {
        "tokenize": {"tokenizer": "load", "load": {"path": "given"}},
        "teacher": {"source": "load", "load": {"path": "given"}, "objective": objective},
        "cache": {"preset": "lossless", "sequences": {"train": 96, "validation": 6, "test": 6}},
        "students": {"half": {"architecture": family.architecture, "layers": 2, "layer_map": None}},
        "train": {"weights": {"mlm": 0.0, "clm": 2.0} if family.causal else {}, "learning_rate": 0.003},
    }


def distilled(family, folder):
    """A project that has gone all the way."""
    project = Project(write_project(folder), **parameters(family))
    (folder / "text" / "stories.txt").write_text(family.text, encoding="utf-8")
    tokenizer = family.tokenizer()
    tokenizer.save_pretrained(folder / "given")
    size = len(tokenizer)
    tiny_model(family.kind, vocabulary=size, **family.settings).save_pretrained(folder / "given")
    for stage in (corpus, tokenize_corpus, teacher, cache_teacher):
        project.run(stage)
    project.run(init_student, "half")
    # The figures of the initial weights, to compare with.
    shutil.copytree(project.artefacts.student_init("half"), project.artefacts.student)
    project.run(evaluate)
    (project.artefacts.runs / "evaluation.json").rename(folder / "before.json")
    project.run(train_student)
    project.run(evaluate)
    return project


_MADE = {}


@pytest.fixture(scope="module")
def project_of(tmp_path_factory):
    """`project_of("gpt2")`: a project of that family, made once."""

    def make(name):
        if name not in _MADE:
            _MADE[name] = distilled(FAMILIES[name], tmp_path_factory.mktemp(name) / "project")
        return _MADE[name]

    yield make
    _MADE.clear()


def loaded(family, folder):
    auto = AutoModelForCausalLM if family.causal else AutoModelForMaskedLM
    return auto.from_pretrained(folder, attn_implementation="eager").eval()


def sequences(project, split):
    """Seen ids, original ids and mask of each sequence of a split, as tensors (tokens,)."""
    reader = CacheReader(project.artefacts.cache)
    for shard in reader.shards(split):
        arrays = reader.load(shard)
        for begin, end in itertools.pairwise(arrays.sequence_offsets):
            parts = (arrays.input_ids[begin:end], arrays.original_ids[begin:end], arrays.masked[begin:end] == 1)
            yield tuple(torch.from_numpy(part.astype(np.int64)) for part in parts)


@pytest.mark.parametrize("name", FAMILIES)
def test_sequences_have_the_special_tokens_of_the_family_and_no_mask_on_them(project_of, name):
    project, family = project_of(name), FAMILIES[name]
    store = TokenStore.open(project.artefacts.tokens)
    mask_id = store.special_tokens["mask"]
    assert (mask_id is None) is family.causal
    hidden = 0
    for seen, original, masked in sequences(project, "train"):
        end = len(original) - len(family.suffix)
        assert tuple(original[: len(family.prefix)].tolist()) == family.prefix
        assert tuple(original[end:].tolist()) == family.suffix
        text = original[len(family.prefix) : end]
        assert not set(text.tolist()) & (set(store.special_ids) - {store.special_tokens["unk"]})
        assert not masked[: len(family.prefix)].any()
        assert not masked[end:].any()
        assert torch.equal(seen[masked == 0], original[masked == 0])
        hidden += 0 if family.causal else int((seen == mask_id).sum())
        assert not (family.causal and masked.any())
    assert (hidden > 0) is not family.causal


def test_a_vocabulary_beyond_two_bytes_has_wider_ids_and_keeps_accents_and_case(project_of):
    project = project_of("bert-multilingual")
    arrays = next(
        iter(
            CacheReader(project.artefacts.cache).load(shard)
            for shard in CacheReader(project.artefacts.cache).shards("train")
        )
    )
    assert arrays.original_ids.dtype == np.uint32
    assert arrays.original_ids.max() > 65_535
    tokenizer = load_tokenizer(project.artefacts.student)
    words = tokenizer.convert_ids_to_tokens(sorted(set(arrays.original_ids.tolist())))
    assert {"rivière", "Müller", "año", "Fluß", "miller", "El"} & set(words) > {"miller"}
    narrow = CacheReader(project_of("bert").artefacts.cache)
    assert narrow.load(narrow.shards("train")[0]).original_ids.dtype == np.uint16


def test_a_cased_tokenizer_tells_words_apart_that_an_uncased_one_does_not(project_of):
    cased, uncased = (load_tokenizer(project_of(name).artefacts.student) for name in ("bert-cased", "bert"))
    assert cased.tokenize("The the") == ["The", "the"]
    assert uncased.tokenize("The the") == ["the", "the"]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_student_is_of_its_class_with_the_teachers_outer_blocks_embeddings_and_head(project_of, name):
    project, family = project_of(name), FAMILIES[name]
    student, model = (
        loaded(family, folder) for folder in (project.artefacts.student_init("half"), project.artefacts.teacher)
    )
    assert type(student).__name__ == family.student
    ours, theirs = blocks_of(student), blocks_of(model)
    assert (len(ours), len(theirs)) == (2, 3)
    for place, block in enumerate((0, 2)):  # the spread of three over two
        for mine, copied in zip(ours[place].parameters(), theirs[block].parameters(), strict=True):
            assert torch.equal(mine, copied)
    ends = [(one.get_input_embeddings().weight, one.get_output_embeddings().weight) for one in (student, model)]
    for mine, copied in zip(*ends, strict=True):
        assert torch.equal(mine, copied)
    assert (ends[0][0] is ends[0][1]) is family.tied


@pytest.mark.parametrize("name", FAMILIES)
def test_the_figures_are_those_of_teacher_and_student_run_side_by_side_and_training_lowers_them(project_of, name):
    project, family = project_of(name), FAMILIES[name]
    found = json.loads((project.artefacts.runs / "evaluation.json").read_text())
    student, model = loaded(family, project.artefacts.student), loaded(family, project.artefacts.teacher)
    kl, agree, loss, hit = [], [], [], []
    for seen, original, masked in sequences(project, "test"):
        with torch.no_grad():
            q, p = (one(input_ids=seen[None]).logits[0].log_softmax(-1) for one in (student, model))
        kl.append(F.kl_div(q, p, log_target=True, reduction="none").sum(-1))
        agree.append(p.argmax(-1) == q.argmax(-1))
        said, wanted = (q[:-1], original[1:]) if family.causal else (q[masked == 1], original[masked == 1])
        loss.append(F.cross_entropy(said, wanted, reduction="none"))
        hit.append(said.argmax(-1) == wanted)
    names = ("clm_loss", "next_accuracy") if family.causal else ("mlm_loss", "masked_accuracy")
    for key, parts in zip(("kl_all", "agreement_all", *names), (kl, agree, loss, hit), strict=True):
        assert found[key] == pytest.approx(float(torch.cat(parts).float().mean()), abs=2e-4), key
    assert found["predicted_tokens" if family.causal else "masked_tokens"] == len(torch.cat(loss))
    before = json.loads((project.folder / "before.json").read_text())
    assert found["kl_all"] < before["kl_all"]
    assert found["hidden_cosine"] > before["hidden_cosine"]


def test_positions_of_roberta_begin_after_its_padding_in_the_student_too(project_of):
    project, family = project_of("roberta"), FAMILIES["roberta"]
    student = loaded(family, project.artefacts.student)
    assert student.config.pad_token_id == 1
    ids = next(sequences(project, "test"))[0][None]
    padded = F.pad(ids, (0, 3), value=1)
    with torch.no_grad():
        alone, beside = (student(input_ids=x, attention_mask=(x != 1).long()).logits for x in (ids, padded))
        shifted = student(input_ids=ids, position_ids=torch.arange(2, 2 + ids.shape[1])[None]).logits
    torch.testing.assert_close(beside[:, : ids.shape[1]], alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(shifted, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["modernbert"])
def test_lists_of_the_configuration_with_an_entry_per_layer_are_cut_by_the_layer_map(project_of, name):
    artefacts = project_of(name).artefacts
    theirs, ours = (load_model_config(folder)["layer_types"] for folder in (artefacts.teacher, artefacts.student))
    assert theirs == ["full_attention", "sliding_attention", "sliding_attention"]
    assert ours == [theirs[0], theirs[2]]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_tokenizer_of_the_student_prepares_what_it_reads(project_of, name):
    project, family = project_of(name), FAMILIES[name]
    tokenizer = AutoTokenizer.from_pretrained(project.artefacts.student)
    prepared = tokenizer("the teacher reads a shard", return_tensors="pt")
    assert set(prepared) == {"input_ids", "attention_mask"}
    loaded(family, project.artefacts.student)(**prepared)


def test_the_files_of_a_causal_run_speak_of_the_next_token_and_not_of_masks(project_of):
    project = project_of("gpt2")
    runs = project.artefacts.runs
    figures = json.loads((runs / "train.json").read_text())
    assert "clm" in figures["last"]
    assert "mlm" not in figures["last"]
    assert {"clm_loss", "teacher_clm_loss", "next_accuracy", "kl_all"} <= figures["validation"].keys()
    text = json.dumps(figures) + (runs / "evaluation.json").read_text()
    assert "mlm_loss" not in text
    assert "masked" not in text
    header, *rows = (runs / "validation.csv").read_text().splitlines()
    assert header == "step,kl_masked,kl_all,agreement_all,clm_loss,next_accuracy,hidden_cosine"
    assert all(row.split(",")[1] == "" for row in rows)


def test_the_card_of_a_causal_student_says_how_it_is_used_and_its_code_runs(project_of, monkeypatch, capsys):
    project = project_of("gpt2")
    card = ModelCard.load(project.artefacts.student / "README.md")
    assert card.data.pipeline_tag == "text-generation"
    assert "gpt2" in card.data.tags
    assert {result.task_type for result in card.data.eval_results} == {"text-generation"}
    assert "# half: GPT2LMHeadModel of 2 blocks, its teacher has 3" in card.text
    assert "cross-entropy, nats per next token" in card.text
    assert "2 × next-token cross-entropy" in card.text
    assert "mask" not in card.text.replace("attention_mask", "").lower()
    monkeypatch.chdir(project.folder)
    for block in card.text.split("```python\n")[1:]:
        names = {}
        exec(block.split("```")[0], names)
    assert names["hidden"].shape[2] == 16
    assert capsys.readouterr().out.startswith("This is")


def test_comparison_and_report_of_a_causal_run_speak_of_the_next_token_and_not_of_masks(project_of):
    project = project_of("gpt2")
    project.set(**merged(parameters(FAMILIES["gpt2"]), {"train": {"steps": 2}}))
    compare(project.config, project.context)
    table = project.artefacts.comparison.with_suffix(".md").read_text()
    assert re.match(r"test split, \d+ predicted tokens; seeds 0", table)
    assert "|  | KL, all | agreement, all | CLM loss | next-token accuracy | hidden cosine |" in table
    rows = {row["name"]: row["values"] for row in json.loads(project.artefacts.comparison.read_text())["rows"]}
    assert all(len(values) == 5 for values in rows.values())
    project.run(report)
    html = (project.artefacts.report / "index.html").read_text(encoding="utf-8")
    shown = html.partition("<summary>All parameters</summary>")[0]
    for text in ("CLM loss", "student-clm", "comparison-kl", "all positions", "text-generation"):
        assert text in shown, text
    assert "MLM loss" not in shown
    assert not re.search(r"masked (\w+ )?token|not masked|>Masked<", shown)
