"""The distiller's loss and gradients against the teacher in the loop, its losses written densely in plain PyTorch."""

import functools
import shutil

import pytest
import torch
import torch.nn.functional as F

from stages import cache_teacher, init_student, teacher
from stages.batch_plan import BatchPlan
from stages.batches import PlannedBatches, decoder_for
from stages.config import load_config
from stages.heads import Head
from stages.models import load_language_model, load_masked_lm, load_tokenizer
from stages.sequences import TokenStore
from stages.training.distiller import PARTS, Distiller, wanted_by
from storage import CacheReader
from tests.stages.conftest import Project
from tests.stages.tiny_models import tiny_model
from tests.tiny import tiny_params

LOSSLESS = {"preset": "lossless", "top_k": 8, "sequences": {"train": 16, "validation": 4, "test": 4}}
EVERY_TERM = {"kd": 5.0, "mlm": 2.0, "cos": 1.0, "mse": 0.3}
CAUSAL = {"source": "load", "load": {"path": "given"}, "objective": "causal"}
NEXT_TOKEN = {"weights": {"kd": 5.0, "mlm": 0.0, "clm": 2.0, "cos": 1.0, "mse": 0.3}}


def train_config(**changes):
    causal = "clm" in changes.get("weights", {})
    return load_config(tiny_params(train=changes, **({"teacher": CAUSAL} if causal else {}))).train


def cached(tokenized, folder, **cache):
    """A project with a cache of few sequences."""
    project = Project(shutil.copytree(tokenized, folder), cache={**LOSSLESS, **cache})
    project.run(cache_teacher)
    return project


@pytest.fixture(scope="module")
def masked(tokenized, tmp_path_factory):
    """A lossless cache of a masked teacher: its reader, and functions that load the teacher and a fresh student."""
    project = cached(tokenized, tmp_path_factory.mktemp("masked") / "project")
    project.run(init_student, "half")
    folder = project.artefacts
    return (
        CacheReader(folder.cache),
        lambda: load_masked_lm(folder.teacher),
        lambda: load_masked_lm(folder.student_init("half")),
    )


@pytest.fixture(scope="module")
def causal(tokenized, tmp_path_factory):
    """The same of a GPT-2, with a smaller one for its student."""
    folder = shutil.copytree(tokenized, tmp_path_factory.mktemp("causal") / "project")
    project = Project(folder, cache=LOSSLESS, teacher=CAUSAL, train=NEXT_TOKEN)
    tokens = TokenStore.open(project.artefacts.tokens)
    size = tokens.vocabulary_size
    tiny_model("gpt2", vocabulary=size).save_pretrained(project.folder / "given")
    load_tokenizer(tokens.tokenizer_folder).save_pretrained(project.folder / "given")
    project.run(teacher)
    project.run(cache_teacher)
    return (
        CacheReader(project.artefacts.cache),
        lambda: load_language_model(project.artefacts.teacher, objective="causal"),
        lambda: tiny_model("gpt2", vocabulary=size, num_hidden_layers=1, seed=5),
    )


@functools.cache
def first_step(reader, wanted, micro=8):
    """The batches of one optimizer step."""
    plan = BatchPlan(tuple(n for _, n in reader.description.splits["train"].shards), 8, 0, 1)
    return list(PlannedBatches(reader, plan, wanted=wanted, micro_batch_size=micro, first_step=0, last_step=1))


def from_the_cache(reader, student, config, micro=8):
    """Loss, parts and gradient of one optimizer step of `micro` sequences at a time."""
    distiller = Distiller(student, config, decoder_for(reader.description, "train"), Head.load(reader.folder))
    batches = first_step(reader, wanted_by(config), micro)
    positions = sum(distiller.positions(batch) for batch in batches)
    labelled = sum(len(batch["labels"]) for batch in batches)
    loss, parts = 0.0, torch.zeros(len(PARTS))
    for batch in batches:
        total, found = distiller(batch, torch.tensor([positions, labelled]).float())
        total.backward()
        loss, parts = loss + total.detach(), parts + found
    return loss, dict(zip(PARTS, parts.tolist(), strict=True)), gradient_of(student)


def gradient_of(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def online(reader, teacher_model, student, config):
    """The same by the original recipe: both models on the whole batch, every logit of both, means by hand."""
    weights, temperature = config.weights, config.temperature
    (batch,) = first_step(reader, wanted_by(config))
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with torch.no_grad():
        theirs = teacher_model(**inputs, output_hidden_states=True)
    ours = student(**inputs, output_hidden_states=True)
    real = batch["attention_mask"] == 1
    is_causal = reader.description.objective == "causal"
    if is_causal:
        follows = real[:, 1:]
        token_loss = F.cross_entropy(ours.logits[:, :-1][follows], batch["input_ids"][:, 1:][follows])
        chosen = None
    else:
        chosen = torch.zeros(real.numel(), dtype=torch.bool)
        places = batch["row_index"][: len(batch["labels"])]
        chosen[places] = True
        chosen = chosen.view_as(real)
        token_loss = F.cross_entropy(ours.logits.flatten(0, 1)[places], batch["labels"])
    of_kd, of_cos = (
        chosen if positions == "masked" else real for positions in (config.kd_positions, config.cos_positions)
    )
    z, z_teacher = ours.logits[of_kd], theirs.logits[of_kd]
    kd = F.kl_div(F.log_softmax(z / temperature, -1), F.softmax(z_teacher / temperature, -1), reduction="batchmean")
    mse = F.mse_loss(z, z_teacher, reduction="sum") / len(z)
    states, their_states = ours.hidden_states[-1][of_cos], theirs.hidden_states[-1][of_cos]
    cos = F.cosine_embedding_loss(states, their_states, torch.ones(len(states)))
    loss = weights.kd * temperature**2 * kd + weights.cos * cos + weights.mse * mse
    loss = loss + (weights.clm if is_causal else weights.mlm) * token_loss
    loss.backward()
    found = {"kd": kd, "cos": cos, "mse": mse, "clm" if is_causal else "mlm": token_loss}
    return loss.detach(), {name: float(value.detach()) for name, value in found.items()}, gradient_of(student)


def assert_same(found, expected):
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=0)
    for name, value in expected[1].items():
        assert found[1][name] == pytest.approx(value, rel=1e-4), name
    assert float((found[2] - expected[2]).norm() / expected[2].norm()) < 1e-5


@pytest.mark.parametrize("cos_positions", ["all", "masked"])
@pytest.mark.parametrize("kd_positions", ["all", "masked"])
def test_every_term_of_a_masked_teacher_is_that_of_the_original_recipe(masked, kd_positions, cos_positions):
    reader, teacher_model, student = masked
    config = train_config(weights=EVERY_TERM, kd_positions=kd_positions, cos_positions=cos_positions)
    expected = online(reader, teacher_model(), student(), config)
    assert_same(from_the_cache(reader, student(), config), expected)
    assert_same(from_the_cache(reader, student(), config, micro=2), expected)


@pytest.mark.parametrize(
    "weights", [{"kd": 0.0, "cos": 0.0, "mse": 1.0}, {"kd": 0.0, "mlm": 0.0, "cos": 0.0, "mse": 2.0}]
)
def test_squared_differences_alone_are_learned_from(masked, weights):
    reader, teacher_model, student = masked
    config = train_config(weights=weights)
    expected = online(reader, teacher_model(), student(), config)
    found = from_the_cache(reader, student(), config)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=0)
    assert float((found[2] - expected[2]).norm() / expected[2].norm()) < 1e-5


def test_every_term_of_a_causal_teacher_is_that_of_the_original_recipe(causal):
    reader, teacher_model, student = causal
    config = train_config(**NEXT_TOKEN)
    expected = online(reader, teacher_model(), student(), config)
    assert_same(from_the_cache(reader, student(), config), expected)
    assert_same(from_the_cache(reader, student(), config, micro=2), expected)


def test_restricted_to_the_mask_a_cache_of_all_positions_teaches_as_one_of_masked_positions(
    masked, tokenized, tmp_path
):
    reader, _, student = masked
    narrow = cached(tokenized, tmp_path / "narrow", positions="masked")
    restricted = train_config(kd_positions="masked", cos_positions="masked")
    found = from_the_cache(reader, student(), restricted)
    expected = from_the_cache(CacheReader(narrow.artefacts.cache), student(), train_config())
    assert_same(found, expected)


def test_top_k_targets_and_weights_of_sampled_rows_are_restricted_too(masked, tokenized, tmp_path):
    reader, _, student = masked
    sampled = cached(tokenized, tmp_path / "sampled", positions="sampled", position_fraction=0.5)
    config = train_config(kd_source="top_k", kd_positions="masked", cos_positions="masked")
    found = from_the_cache(CacheReader(sampled.artefacts.cache), student(), config)
    assert_same(found, from_the_cache(reader, student(), config))


def test_parts_without_a_weight_are_not_logged_but_for_the_prediction_of_tokens(masked, causal):
    def parts(reader, student, config):
        return Distiller(student(), config, decoder_for(reader.description, "train"), None).parts

    of_masked, of_causal = (masked[0], masked[2]), (causal[0], causal[2])
    assert parts(*of_masked, train_config()) == ("kd", "mlm", "cos")
    assert parts(*of_masked, train_config(weights={"kd": 1.0, "mlm": 0.0, "cos": 0.0})) == ("kd", "mlm")
    assert parts(*of_causal, train_config(**NEXT_TOKEN)) == ("kd", "clm", "cos", "mse")


def test_gradients_do_not_vanish_in_float16_however_many_positions_a_step_has(masked):
    reader, _, student = masked
    config = train_config(weights=EVERY_TERM)
    decoder, head = decoder_for(reader.description, "train"), Head.load(reader.folder)
    (batch,) = first_step(reader, wanted_by(config))
    counts = torch.tensor([4e6, 6e5])  # those of 8,192 sequences of 512 tokens

    def gradient(dtype, loss_scale):
        model = student()
        distiller = Distiller(model, config, decoder, head)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            total, _ = distiller(batch, counts)
        (total * loss_scale).backward()
        return gradient_of(model) / loss_scale

    expected = gradient(torch.float32, 1.0)
    found = gradient(torch.float16, 65536.0)
    assert float((found - expected).norm() / expected.norm()) < 0.02
