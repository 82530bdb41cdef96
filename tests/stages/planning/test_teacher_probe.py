from dataclasses import replace

import numpy as np
import pytest
import torch

from stages import plan
from stages.context import Silent
from stages.masking import Masker
from stages.planning.teacher_probe import CHUNK_BYTES, TeacherMemory, micro_batches, values_per_token
from stages.sequences import TokenStore
from stages.teacher_targets import mask_shard
from storage import ShardId
from tests.stages.tiny_models import tiny_model


class Counted(Silent):
    """What was announced, and what was done."""

    def __init__(self):
        self.totals, self.done = [], 0

    def begin(self, task, total, unit, done=0):  # noqa: ARG002  the protocol's
        self.totals.append(total)

    def advance(self, amount=1, **figures):  # noqa: ARG002
        self.done += amount


def test_micro_batches_hold_all_sequences_in_their_order_padded_at_the_end(make_project):
    project = make_project()
    tokens = TokenStore.open(project.artefacts.tokens)
    masker = Masker.of(project.config.masking, tokens, "train")
    seen = mask_shard(tokens, masker, ShardId("train", 0, 0), (3, 7), seed=0)
    batches = list(micro_batches(seen, 3, pad_id=0))
    assert [len(ids) for ids, _ in batches] == [3, 3, 1]
    rows = [row[mask == 1] for ids, masks in batches for row, mask in zip(ids, masks, strict=True)]
    assert np.array_equal(torch.cat(rows).numpy(), seen.input_ids)
    assert [len(row) for row in rows] == np.diff(seen.offsets.astype(int)).tolist()
    assert all((mask[:, 1:] <= mask[:, :-1]).all() for _, mask in batches)


def test_a_student_that_keeps_the_head_saves_all_but_the_head_and_its_logits():
    memory = TeacherMemory(weights=400, activations=2 * CHUNK_BYTES + 70, method="measured", head=90)
    assert memory.to_json(keeps_head=False)["saved"] == 400 + 70 + 2 * CHUNK_BYTES
    assert memory.to_json(keeps_head=True)["saved"] == 400 + 70 - 90


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own compiler imports it
def test_a_probe_compiles_the_teacher_where_the_cache_does_and_announces_all_that_it_runs(
    make_project, monkeypatch, compiled
):
    modules, compile_module = [], torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **how: (modules.append(self), compile_module(self, **how))
    )
    project, counted = make_project(cache={"compile": compiled}), Counted()
    context = replace(project.context, progress=counted)
    with torch.compiler.set_stance("force_eager"):  # it says what would be compiled, without the minute that this takes
        planned = plan.run(project.config, context, sample_tokens=400)
    assert planned["teacher"]["compiled"] is compiled
    assert len(modules) == compiled
    (probed,) = counted.totals
    assert counted.done == probed
    pieces = planned["sample_tokens"]
    assert (probed > sum(pieces.values()) + 3 * pieces["train"]) == compiled


@pytest.mark.parametrize(
    ("kind", "widest"),
    [("bert", 40), ("gpt2", 4 * 16), ("llama", 40), ("gpt_neox", 3 * 16), ("modernbert", 2 * 40), ("albert", 40)],
)
def test_the_widest_layer_of_a_block_is_found_in_every_family_and_no_table_of_embeddings_is_taken_for_one(kind, widest):
    teacher = tiny_model(kind, vocabulary=500, intermediate_size=40)
    assert values_per_token(teacher) == 2 * 16 + 2 * widest
