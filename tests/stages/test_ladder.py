"""Every rung of the codec ladder, from the teacher to a student that was stopped and went on."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stages import cache_teacher, init_student, train_student
from stages.batches import TargetDecoder, Wanted, decoder_for, labelled_first, to_batch
from stages.config import ConfigError
from stages.context import Context
from stages.draws import ShardUniforms
from stages.errors import Interrupted
from stages.heads import Head
from stages.models import load_masked_lm
from stages.training.distiller import Distiller
from storage import CacheReader, ShardArrays

NO_COSINE = {"weights": {"cos": 0.0}}
RUNGS = {
    "bfloat16": ({"hidden": "bfloat16"}, {}),
    "int8 per row": ({"preset": "balanced", "hidden_group": "row"}, {}),
    "layers, and vectors of attention": (
        {"hidden_layers": [0, 1, 2], "attention_vectors": ["queries", "keys", "values"], "attention_layers": [1, 2]},
        {},
    ),
    "coarse grid": ({"preset": "balanced", "grid_step": 0.3}, {"kd_source": "top_k"}),
    "threshold": (
        {"logits": "grid", "selection": "threshold", "threshold": 0.02, "threshold_temperature": 2.0},
        {"kd_source": "top_k"},
    ),
    "small": ({"preset": "small", "top_k": None}, {"kd_source": "draws", **NO_COSINE}),
    "draws alone": ({"preset": "small", "logits": "none", "top_k": None}, {"kd_source": "draws", **NO_COSINE}),
    "head and tail": (
        {"top_k": 4, "draws": 8, "draw_from": "tail", "draw_temperature": 2.0},
        {"kd_source": "top_k", "tail": "draws"},
    ),
    "likely and tail": (
        {"selection": "threshold", "threshold": 0.05, "draws": 8, "draw_from": "tail", "draw_temperature": 2.0},
        {"kd_source": "top_k", "tail": "draws"},
    ),
    "sampled": ({"positions": "sampled", "position_fraction": 0.3}, {}),
    "renormalised": ({}, {"kd_source": "top_k", "tail": "renormalise"}),
}


@pytest.fixture
def cached(make_project):
    """`cached(preset="small")`: a project with that cache, and its reader."""

    def make(train=None, **cache):
        project = make_project(cache=cache, train={"steps": 4, "checkpoint_steps": 2, **(train or {})})
        project.run(cache_teacher)
        return project, CacheReader(project.artefacts.cache)

    return make


def stop_after(project, steps):
    """A context that asks to stop once so many steps are done, and collects the messages."""
    done, messages = 0, []

    class Count:
        def __getattr__(self, name):
            def report(*arguments, **figures):
                nonlocal done
                done += name == "advance" and arguments[:1] == (1,)
                messages.extend(arguments if name == "message" else ())

            return report

    return Context(artefacts=project.artefacts, progress=Count(), should_stop=lambda: done >= steps), messages


@pytest.mark.parametrize("rung", RUNGS)
def test_a_student_of_every_rung_that_was_stopped_goes_on_to_the_same_weights(cached, rung):
    cache, train = RUNGS[rung]
    project, _ = cached(train, **cache)
    project.run(init_student, "half")
    project.run(train_student)
    file = project.artefacts.student / "model.safetensors"
    expected = load_file(file)
    initial = load_file(project.artefacts.student_init("half") / "model.safetensors")
    assert any(not torch.equal(expected[name], initial[name]) for name in expected)
    for folder in (project.artefacts.student, project.artefacts.checkpoints):
        shutil.rmtree(folder)
    context, messages = stop_after(project, 2)
    with pytest.raises(Interrupted, match="step 2 of 4"):
        project.run(train_student, context=context)
    assert sum("renormalise" in message for message in messages) == (rung == "renormalised")
    project.run(train_student)
    for name, tensor in load_file(file).items():
        assert torch.equal(tensor, expected[name]), name


def teacher_says(project, arrays, layers=False):
    """What the teacher says of every token of a shard: logits f8 (N, V), or hidden states (N, all layers, H)."""
    teacher = load_masked_lm(project.artefacts.teacher)
    parts = []
    for begin, end in zip(arrays.sequence_offsets, arrays.sequence_offsets[1:], strict=False):
        ids = torch.from_numpy(arrays.input_ids[begin:end].astype(np.int64))[None]
        with torch.no_grad():
            output = teacher(input_ids=ids, output_hidden_states=layers)
        parts.append(torch.stack(output.hidden_states, 2)[0] if layers else output.logits[0].double())
    return torch.cat(parts)


def first_shard(reader):
    return reader.load(reader.shards("train")[0])


def test_a_threshold_keeps_every_id_that_is_likely_enough(cached):
    project, reader = cached(selection="threshold", threshold=0.03, threshold_temperature=2.0, top_k=5)
    arrays = first_shard(reader)
    p = torch.softmax(teacher_says(project, arrays) / 2, -1).numpy()
    likely = (p >= 0.03).sum(-1)
    sure = (np.abs(p - 0.03) > 1e-6).all(-1)
    np.testing.assert_array_equal(arrays.top_count[sure], likely.clip(1, 5)[sure])
    assert len(np.unique(arrays.top_count)) > 1
    best = np.argsort(-p, axis=-1, kind="stable")
    for row, ids in enumerate(np.split(arrays.top_ids, np.cumsum(arrays.top_count)[:-1])):
        assert ids.tolist() == best[row, : len(ids)].tolist()


def test_the_figures_of_a_threshold_are_those_of_its_entries(cached):
    _, reader = cached(selection="threshold", threshold=0.03, top_k=5)
    shard = reader.shards("train")[0]
    arrays, figures = reader.load(shard), reader.shard_figures(shard)
    masked = arrays.masked[arrays.row_token] == 1
    logits = arrays.decoded_logits(reader.description.splits["train"].layout)
    for index, temperature in enumerate((1.0, 2.0)):
        rows = np.split(logits / temperature, np.cumsum(arrays.top_count)[:-1])
        lse = arrays.stat[:, 1 + 2 * index]
        kept = np.array([np.exp(row - of_all).sum() for row, of_all in zip(rows, lse, strict=True)])
        for name, chosen in (("masked", masked), ("unmasked", ~masked)):
            assert figures[name]["retained_mass"][str(temperature)]["mean"] == pytest.approx(
                kept[chosen].mean(), abs=2e-3
            )


@pytest.mark.parametrize("draw_from", ["all", "tail"])
def test_the_draws_are_a_function_of_seed_sequence_and_position_alone(cached, draw_from):
    settings = {"draws": 20, "draw_from": draw_from, "draw_temperature": 2.0, "top_k": 4}
    project, reader = cached(**settings, batch_tokens=256)
    _, other = cached(**settings, batch_tokens=32, shard_tokens=100)
    arrays, again = (ShardArrays.concatenate([r.load(shard) for shard in r.shards("train")]) for r in (reader, other))
    for name in ("draw_count", "draw_ids", "draw_weight"):
        np.testing.assert_array_equal(getattr(arrays, name), getattr(again, name))

    p = torch.softmax(teacher_says(project, arrays) / 2, -1).numpy()
    if draw_from == "tail":
        np.put_along_axis(p, arrays.top_ids.astype(np.int64), 0.0, axis=1)
        p /= p.sum(-1, keepdims=True)
    lengths = np.diff(arrays.sequence_offsets.astype(np.int64))
    uniforms = ShardUniforms(0, "train", 0)
    u = np.concatenate([uniforms.draws(i, int(n), 20) for i, n in enumerate(lengths)])
    cumulative = np.cumsum(p, -1)
    found = np.split(np.repeat(arrays.draw_ids, arrays.draw_weight), len(p))
    expected = [np.sort(np.searchsorted(cumulative[row], u[row], side="right")) for row in range(len(p))]
    differing = np.mean(np.stack(found) != np.stack(expected))  # a uniform at the very edge of an id's step
    assert differing < 1e-3


def test_sampled_positions_are_the_masked_ones_and_a_share_of_the_others(cached):
    _, reader = cached(positions="sampled", position_fraction=0.3)
    arrays = ShardArrays.concatenate([reader.load(shard) for shard in reader.shards("train")])
    cached_tokens = np.zeros(arrays.tokens, bool)
    cached_tokens[arrays.row_token] = True
    assert cached_tokens[arrays.masked == 1].all()
    others = cached_tokens[arrays.masked == 0]
    assert abs(others.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / len(others))
    assert reader.description.splits["test"].layout.positions == "all"


def test_every_layer_that_is_listed_is_cached_as_the_teacher_has_it(cached):
    project, reader = cached(preset="lossless", hidden_layers=[0, 2])
    arrays = first_shard(reader)
    expected = teacher_says(project, arrays, layers=True)[:, [0, 2]]
    np.testing.assert_allclose(arrays.hidden["hidden"], expected.numpy(), rtol=1e-4, atol=1e-4)


def test_a_tail_of_nothing_is_refused_before_any_work(make_project):
    vocabulary = load_masked_lm(make_project().artefacts.teacher).config.vocab_size
    project = make_project(
        teacher={"source": "load", "load": {"path": "elsewhere"}},
        cache={"top_k": vocabulary, "draws": 4, "draw_from": "tail"},
    )
    with pytest.raises(
        ConfigError, match=rf"cache.draw_from is 'tail'; allowed: all, .* whole vocabulary \({vocabulary}\)"
    ):
        project.run(cache_teacher)


@pytest.mark.parametrize(
    ("layers", "message"), [([0, 3], "0 to 2, as the teacher has 2 blocks"), ([0, 1], "a list that ends in 2")]
)
def test_layers_that_a_loaded_teacher_has_not_or_that_lack_its_last_are_refused(make_project, layers, message):
    project = make_project(teacher={"source": "load", "load": {"path": "elsewhere"}}, cache={"hidden_layers": layers})
    with pytest.raises(ConfigError, match=rf"cache.hidden_layers is .*; allowed: {message}"):
        project.run(cache_teacher)


def sampled(arrays, uniforms, fraction):
    """The rows of `positions: sampled` out of a cache of all positions."""
    lengths = np.diff(arrays.sequence_offsets.astype(np.int64))
    chosen = np.concatenate([uniforms.positions(i, int(n)) for i, n in enumerate(lengths)]) < fraction
    keep = chosen | (arrays.masked == 1)
    row_token = arrays.row_token[keep]
    return dataclasses.replace(
        arrays,
        row_token=row_token,
        row_offsets=np.searchsorted(row_token, arrays.sequence_offsets).astype(np.int64),
        stat=arrays.stat[keep],
        top_ids=arrays.top_ids[keep],
        logits={name: array[keep] for name, array in arrays.logits.items()},
        hidden={name: array[keep] for name, array in arrays.hidden.items()},
    )


def test_sampled_positions_have_the_loss_and_gradient_of_all_positions_on_average(cached):
    fraction, repeats = 0.4, 60
    project, reader = cached()
    project.run(init_student, "half")
    student, decoder = load_masked_lm(project.artefacts.student_init("half")), decoder_for(reader.description, "train")
    arrays = first_shard(reader).select(np.arange(8))
    head = Head.load(reader.folder)

    def parts_and_gradient(rows, decoder):
        batch = labelled_first(to_batch(rows, pad_id=0, wanted=Wanted(hidden=True, logits=False)))
        distiller = Distiller(student, project.config.train, decoder, head)
        distiller.zero_grad()
        labelled = float((arrays.masked == 1).sum())
        total, parts = distiller(batch, torch.tensor([float(distiller.positions(batch)), labelled]))
        total.backward()
        return parts.detach(), torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])

    parts, gradient = parts_and_gradient(arrays, decoder)
    layout = dataclasses.replace(decoder.layout, positions="sampled", position_fraction=fraction)
    results = [
        parts_and_gradient(
            sampled(arrays, ShardUniforms(seed, "train", 0), fraction), TargetDecoder(layout, decoder.temperatures)
        )
        for seed in range(repeats)
    ]
    found = torch.stack([some for some, _ in results])
    error = (found.mean(0) - parts).abs()
    torch.testing.assert_close(found[:, 1], parts[1].expand(repeats))  # MLM: all its tokens are there
    assert (error <= 4 * found.std(0) / repeats**0.5 + 1e-6).all()
    single = sum(float((some - gradient).norm()) for _, some in results) / repeats
    mean = torch.stack([some for _, some in results]).mean(0)
    assert float((mean - gradient).norm()) < 2 * single / repeats**0.5
