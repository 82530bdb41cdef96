import numpy as np
import torch

from stages.masking import Masker
from stages.planning.teacher_probe import CHUNK_BYTES, TeacherMemory, micro_batches
from stages.sequences import TokenStore
from stages.teacher_targets import mask_shard
from storage import ShardId


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
