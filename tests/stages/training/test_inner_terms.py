"""Losses on layers and self-attention: from the cache as with the teacher in the loop, written densely in plain PyTorch."""

import dataclasses
import functools
import math
import shutil

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig

from stages import cache_teacher, init_student, teacher
from stages.batch_plan import BatchPlan
from stages.batches import PlannedBatches, decoder_for
from stages.config import ConfigError, load_config
from stages.heads import Head
from stages.models import load_language_model, load_masked_lm, load_tokenizer
from stages.sequences import TokenStore
from stages.training.distiller import PARTS, Distiller, wanted_by
from stages.training.fitting import check_inside
from storage import CacheReader
from tests.stages.conftest import Project
from tests.stages.tiny_models import tiny_model
from tests.stages.training.conftest import ReadNumbers, narrow
from tests.tiny import tiny_params

INSIDE = {
    "hidden_layers": [0, 1, 2],
    "attention_vectors": ["queries", "keys", "values"],
    "attention_layers": [1, 2],
    "attention_coding": "float32",
}
LOSSLESS = {"preset": "lossless", "top_k": 8, "sequences": {"train": 16, "validation": 4, "test": 4}, **INSIDE}
STUDENTS = {
    "half": {"layers": 2, "layer_map": [1, 0]},
    "narrow": narrow(dropout=0.0),
}
NOTHING = {"kd": 0.0, "mlm": 0.0, "cos": 0.0}
EVERY_TERM = {
    "student": "half",
    "weights": {"kd": 5.0, "mlm": 2.0, "cos": 1.0, "hidden": 0.5, "relations": 3.0, "attention": 0.7},
    "layer_map": [[0, 0], [1, 2], [2, 1]],
    "relations": {"heads": 8, "student_block": 1, "teacher_block": 1},
    "attention_map": [[1, 2], [2, 1]],
}
NARROW = {
    "student": "narrow",
    "weights": {"kd": 5.0, "mlm": 2.0, "cos": 1.0, "hidden": 0.5, "relations": 3.0, "attention": 0.7},
    "layer_map": [[0, 0], [1, 2]],
    "hidden_projection": True,
    "relations": {"heads": 4, "parts": ["values", "queries"]},
    "attention_map": [[1, 2]],
}
CAUSAL = {"source": "load", "load": {"path": "given"}, "objective": "causal"}
NEXT_TOKEN = {
    "weights": {"kd": 0.0, "mlm": 0.0, "clm": 2.0, "cos": 0.0, "hidden": 1.0, "relations": 3.0, "attention": 1.0},
    "layer_map": [[0, 0], [1, 2]],
    "relations": {"heads": 4},
    "attention_map": [[1, 2]],
}


def train_config(**changes):
    causal = "clm" in changes.get("weights", {})
    values = tiny_params(train=changes, cache=LOSSLESS, students=STUDENTS, **({"teacher": CAUSAL} if causal else {}))
    return load_config(values).train


class Inside:
    """A cache, and functions that load its teacher and fresh students."""

    def __init__(self, folder, teacher_model, students):
        self.reader, self.teacher, self.students = CacheReader(folder.cache), teacher_model, students

    @functools.cache  # noqa: B019  as many as the module has tests
    def batches(self, wanted, micro):
        """Those of the first optimizer step."""
        plan = BatchPlan(tuple(n for _, n in self.reader.description.splits["train"].shards), 8, 0, 1)
        return list(PlannedBatches(self.reader, plan, wanted=wanted, micro_batch_size=micro, first_step=0, last_step=1))

    def distiller(self, config):
        decoder = decoder_for(self.reader.description, "train")
        return Distiller(
            self.students[config.student](),
            config,
            decoder,
            Head.load(self.reader.folder),
            teacher_width=self.reader.description.hidden_size,
        )


@pytest.fixture(scope="module")
def masked(tokenized, tmp_path_factory):
    """A lossless cache of all that can be learned from, of a BERT of two blocks."""
    folder = shutil.copytree(tokenized, tmp_path_factory.mktemp("inside") / "project")
    project = Project(folder, cache=LOSSLESS, students=STUDENTS)
    project.run(cache_teacher)
    found = project.artefacts
    students = {}
    for name in STUDENTS:
        project.run(init_student, name)
        students[name] = functools.partial(load_masked_lm, found.student_init(name))
    return Inside(found, lambda: load_masked_lm(found.teacher), students)


@pytest.fixture(scope="module")
def causal(tokenized, tmp_path_factory):
    """The same of a GPT-2 of two blocks, with one of a block for its student."""
    folder = shutil.copytree(tokenized, tmp_path_factory.mktemp("causal") / "project")
    project = Project(folder, cache=LOSSLESS, teacher=CAUSAL, train=NEXT_TOKEN, students=STUDENTS)
    tokens = TokenStore.open(project.artefacts.tokens)
    size = tokens.vocabulary_size
    given = project.folder / "given"
    tiny_model("gpt2", vocabulary=size, num_hidden_layers=2).save_pretrained(given)
    load_tokenizer(tokens.tokenizer_folder).save_pretrained(given)
    project.run(teacher)
    project.run(cache_teacher)
    found = project.artefacts

    def student():
        none = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        return tiny_model("gpt2", vocabulary=size, num_hidden_layers=1, seed=5, **none)

    return Inside(found, lambda: load_language_model(found.teacher, objective="causal"), {"half": student})


def gradient_of(model):
    return torch.cat([p.grad.flatten() for _, p in sorted(model.named_parameters()) if p.grad is not None])


def from_the_cache(inside, config, micro=8):
    """Loss, parts and gradient of one optimizer step of `micro` sequences at a time."""
    distiller = inside.distiller(config).train()
    batches = inside.batches(wanted_by(config), micro)
    counts = torch.tensor(
        [sum(distiller.positions(b) for b in batches), sum(len(b["labels"]) for b in batches)]
    ).float()
    loss, parts = 0.0, torch.zeros(len(PARTS))
    for batch in batches:
        total, found = distiller(batch, counts)
        total.backward()
        loss, parts = loss + total.detach(), parts + found
    return loss, dict(zip(PARTS, parts.tolist(), strict=True)), gradient_of(distiller)


def vectors(model, states, block):
    """Queries, keys and values of a block, from what it reads."""
    read, kind = states[block - 1], model.config.model_type
    if kind == "gpt2":
        layer = model.transformer.h[block - 1]
        found = layer.attn.c_attn(layer.ln_1(read)).chunk(3, -1)
    elif kind == "bert":
        attention = model.bert.encoder.layer[block - 1].attention.self
        found = attention.query(read), attention.key(read), attention.value(read)
    else:
        attention = model.distilbert.transformer.layer[block - 1].attention
        found = attention.q_lin(read), attention.k_lin(read), attention.v_lin(read)
    return dict(zip(("queries", "keys", "values"), found, strict=True))


def scores(x, y, heads, seen):
    """(S, heads, L, L)."""
    split = [z.unflatten(-1, (heads, -1)).transpose(1, 2) for z in (x, y)]
    return (split[0] @ split[1].mT / math.sqrt(split[0].shape[-1])).masked_fill(~seen, -1e9)


def online(inside, config):
    """The same by the papers' formulas: both models on the whole batch, and means over its real positions."""
    weights, temperature = config.weights, config.temperature
    distiller = inside.distiller(config)
    student, projection = distiller.student, distiller.hidden_projection or torch.nn.Identity()
    (batch,) = inside.batches(wanted_by(config), 8)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    teacher_model = inside.teacher()
    with torch.no_grad():
        theirs = teacher_model(**inputs, output_hidden_states=True)
    ours = student(**inputs, output_hidden_states=True)
    real = batch["attention_mask"] == 1
    seen = real[:, None, None, :]
    is_causal = inside.reader.description.objective == "causal"
    if is_causal:
        seen = seen & torch.ones(real.shape[1], real.shape[1], dtype=torch.bool).tril()
        follows = real[:, 1:]
        token_loss = F.cross_entropy(ours.logits[:, :-1][follows], batch["input_ids"][:, 1:][follows])
    else:
        places = batch["row_index"][: len(batch["labels"])]
        token_loss = F.cross_entropy(ours.logits.flatten(0, 1)[places], batch["labels"])
    log_p, log_q = (F.log_softmax(x.logits[real] / temperature, -1) for x in (theirs, ours))
    found = {"kd": (log_p.exp() * (log_p - log_q)).sum(-1).mean(), "clm" if is_causal else "mlm": token_loss}

    def mean(values):
        return torch.stack(values).mean()

    pairs = [
        (projection(ours.hidden_states[i][real]), theirs.hidden_states[j][real])
        for i, j in config.layer_map or ((-1, -1),)
    ]
    found["cos"] = mean([(1 - F.cosine_similarity(s, t, dim=-1)).mean() for s, t in pairs])
    found["hidden"] = mean([F.mse_loss(s, t) for s, t in pairs])
    if config.relations is not None:
        block, their_block = config.relations.student_block or 1, config.relations.teacher_block or 2
        our_vectors = vectors(student, ours.hidden_states, block)
        their_vectors = vectors(teacher_model, theirs.hidden_states, their_block)
        of_parts = []
        for part in config.relations.compared:
            q, p = (
                scores(x[part], x[part], config.relations.heads, seen).log_softmax(-1)
                for x in (our_vectors, their_vectors)
            )
            kl = (p.exp() * (p - q)).sum(-1)  # (S, heads, L)
            of_parts.append(kl.mean(1)[real].mean())
        found["relations"] = torch.stack(of_parts).sum()
    if config.attention_map is not None:
        of_pairs = []
        for i, j in config.attention_map:
            s, t = (
                scores(x["queries"], x["keys"], 2, seen)
                for x in (vectors(student, ours.hidden_states, i), vectors(teacher_model, theirs.hidden_states, j))
            )
            squares = (s - t).square().sum(-1) / seen.sum(-1)
            of_pairs.append(squares.mean(1)[real].mean())
        found["attention"] = mean(of_pairs)
    loss = sum(
        getattr(weights, name) * value * (temperature**2 if name == "kd" else 1) for name, value in found.items()
    )
    loss.backward()
    return loss.detach(), {name: float(value.detach()) for name, value in found.items()}, gradient_of(distiller)


def assert_same(found, expected, config):
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=0)
    for name, value in expected[1].items():
        if getattr(config.weights, name) > 0:
            assert found[1][name] == pytest.approx(value, rel=1e-4), name
    assert float((found[2] - expected[2]).norm() / expected[2].norm()) < 1e-5


@pytest.mark.parametrize("changes", [EVERY_TERM, NARROW], ids=["same width", "narrow student"])
def test_a_lossless_cache_gives_every_term_as_the_teacher_in_the_loop_does(masked, changes):
    config = train_config(**changes)
    expected = online(masked, config)
    assert_same(from_the_cache(masked, config), expected, config)
    assert_same(from_the_cache(masked, config, micro=2), expected, config)


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": {**NOTHING, "hidden": 1.0}},
        {"weights": {**NOTHING, "hidden": 1.0}, "layer_map": [[1, 1]]},
        {"weights": {**NOTHING, "cos": 1.0}, "layer_map": [[1, 0], [2, 2]]},
        {"weights": {**NOTHING, "relations": 1.0}, "relations": {"heads": 2, "student_block": 1}},
        {"weights": {**NOTHING, "attention": 1.0}, "attention_map": [[2, 2]]},
    ],
    ids=["last to last", "one inner pair", "cosine of pairs", "relations", "attention"],
)
def test_each_term_alone_is_learned_from(masked, changes):
    config = train_config(**changes)
    assert config.distils
    expected, found = online(masked, config), from_the_cache(masked, config)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=0)


def test_a_causal_teacher_teaches_what_lies_before_a_position(causal):
    config = train_config(**NEXT_TOKEN)
    expected = online(causal, config)
    assert_same(from_the_cache(causal, config), expected, config)
    assert_same(from_the_cache(causal, config, micro=2), expected, config)


def test_blocks_that_are_computed_again_give_the_same_gradients(masked):
    config = train_config(**EVERY_TERM)
    expected = from_the_cache(masked, config)
    found = from_the_cache(masked, train_config(**EVERY_TERM, gradient_checkpointing=True))
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[2], expected[2])


def test_no_term_reads_a_number_from_the_device(masked):
    counts = []
    for changes in ({"student": "half"}, EVERY_TERM):
        config = train_config(**changes)
        distiller, (batch,) = masked.distiller(config), masked.batches(wanted_by(config), 8)
        with ReadNumbers() as read:
            total, _ = distiller(batch, torch.tensor([80.0, 20.0]))
            total.backward()
        counts.append(read.count)
    assert counts[0] == counts[1]


def test_int8_vectors_give_nearly_the_same_gradient(masked, tokenized, tmp_path):
    coded = {**LOSSLESS, "preset": "balanced", "top_k": None, "attention_coding": None, "hidden_group": 16}
    project = Project(shutil.copytree(tokenized, tmp_path / "project"), cache=coded, students=STUDENTS)
    project.run(cache_teacher)
    compressed = Inside(project.artefacts, masked.teacher, masked.students)
    config = train_config(**EVERY_TERM)
    found, expected = from_the_cache(compressed, config)[2], from_the_cache(masked, config)[2]
    assert 0 < float((found - expected).norm() / expected.norm()) < 0.02


def test_gradients_do_not_vanish_in_float16_however_many_positions_a_step_has(masked):
    config = train_config(**EVERY_TERM)
    (batch,) = masked.batches(wanted_by(config), 8)
    counts = torch.tensor([4e6, 6e5])

    def gradient(dtype, loss_scale):
        distiller = masked.distiller(config)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            total, _ = distiller(batch, counts)
        (total * loss_scale).backward()
        return gradient_of(distiller) / loss_scale

    expected, found = gradient(torch.float32, 1.0), gradient(torch.float16, 65536.0)
    assert float((found - expected).norm() / expected.norm()) < 0.02


def test_only_what_the_losses_read_travels(masked):
    def travels(**changes):
        (batch,) = masked.batches(wanted_by(train_config(**changes)), 8)
        return {name for name in batch if name.startswith(("hidden", "queries", "keys", "values"))}

    assert travels() == {"hidden"}
    assert travels(weights={"kd": 0.0}, layer_map=[[1, 0]]) == {"hidden:0"}
    relations = {"weights": {**NOTHING, "relations": 1.0}, "relations": {"heads": 2, "parts": ["values"]}}
    assert travels(**relations) == {"values:1", "values:2"}


def test_a_projection_begins_as_the_identity_or_as_an_orthogonal_matrix_of_the_seed(masked):
    def projection(**changes):
        return masked.distiller(train_config(**changes, hidden_projection=True)).hidden_projection

    assert torch.equal(projection(student="half").weight, torch.eye(32))
    before = torch.random.get_rng_state()
    weight = projection(student="narrow").weight
    torch.testing.assert_close(weight.T @ weight, torch.eye(16))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(projection(student="narrow").weight, weight)
    assert not torch.equal(projection(student="narrow", seed=1).weight, weight)
    assert projection(student="half", weights={"cos": 0.0}) is None


@pytest.mark.parametrize("kind", ["llama", "modernbert", "mpnet", "roformer"])
def test_attention_of_families_whose_scores_are_not_of_queries_and_keys_alone_is_refused(masked, kind):
    description = masked.reader.description
    config = load_config(tiny_params(train=EVERY_TERM, cache=LOSSLESS, students=STUDENTS))
    check_inside(config, description)
    shape = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2}
    other = AutoConfig.for_model(kind, **shape).to_dict()
    message = rf"train.weights.attention is 0.7; allowed: 0, as {kind} has positions in its attention"
    with pytest.raises(ConfigError, match=message):
        check_inside(config, dataclasses.replace(description, teacher_config=other))
