"""How close a student is to the teacher on a cached split: computed from the cache, without the teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.batches import Batch, TargetDecoder, Wanted, decoder_for, labelled_first, split_batches
from stages.context import Context
from stages.figures import PREDICTION, Objective
from stages.forward_pass import encoder_hidden
from stages.heads import Head, filled, row_chunks
from storage import CacheReader, Split

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SUMS = (
    "rows",
    "masked",
    "kl",
    "kl_masked",
    "agree",
    "agree_masked",
    "mlm",
    "correct",
    "teacher_mlm",
    "teacher_correct",
    "cosine",
)
"""What `held_out_sums` adds up; the last one where hidden states of student and teacher have one size.

`masked` are the tokens that are predicted, the loss on them `mlm`: by a causal model each token's successor."""


def held_out_figures(
    student: PreTrainedModel, reader: CacheReader, split: Split, *, batch_size: int, context: Context | None = None
) -> dict[str, float]:
    """Means over the split's cached positions, all of them or the masked ones.

    `kl_*` is KL(teacher || student) over the full vocabulary at T = 1 in nats, the teacher rebuilt from its cached hidden
    state; `agreement_*` the share of positions with the same most likely id; `mlm_loss` the cross-entropy in nats and
    `masked_accuracy` the share of correct ids on masked tokens; `hidden_cosine` the mean cosine of last hidden states,
    where both have one size. Of a causal teacher `clm_loss` and `next_accuracy` are those of the token that follows, and there
    is no `*_masked`.

    `context` has the device and the progress display, and may stop it; None: on the student's device, without a word.
    """
    if context is None:
        device = str(student.device)
        sums = held_out_sums(student, reader, split, batch_size=batch_size, device=device, done=lambda _: None)
        return means(sums.tolist(), reader.description.objective)
    context.progress.begin(f"evaluate on {split}", reader.description.splits[split].sequences, "sequences")

    def done(sequences: int) -> None:
        context.progress.advance(sequences)
        context.stop_if_asked("nothing was written")

    sums = held_out_sums(student, reader, split, batch_size=batch_size, device=context.device, done=done)
    return means(sums.tolist(), reader.description.objective)


def means(sums: Sequence[float], objective: Objective) -> dict[str, float]:
    """The figures of `held_out_figures` from sums."""
    of = dict(zip(SUMS, sums, strict=False))
    rows, masked = max(1.0, of["rows"]), max(1.0, of["masked"])
    loss, accuracy, tokens = PREDICTION[objective]
    figures = {
        loss: of["mlm"] / masked,
        accuracy: of["correct"] / masked,
        "kl_all": of["kl"] / rows,
        "agreement_all": of["agree"] / rows,
        f"teacher_{loss}": of["teacher_mlm"] / masked,
        f"teacher_{accuracy}": of["teacher_correct"] / masked,
    }
    if objective == "masked":
        figures |= {"kl_masked": of["kl_masked"] / masked, "agreement_masked": of["agree_masked"] / masked}
    if "cosine" in of:
        figures["hidden_cosine"] = of["cosine"] / rows
    return {name: round(value, 5) for name, value in figures.items()} | {"positions": int(rows), tokens: int(masked)}


@torch.no_grad()  # not inference_mode: what a model keeps of a forward pass must serve the training that goes on
def held_out_sums(
    student: PreTrainedModel,
    reader: CacheReader,
    split: Split,
    *,
    batch_size: int,
    device: str,
    done: Callable[[int], None],
    sequences: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Tensor:
    """The sums `SUMS` over positions, f8 (10 or 11,), of the split's first `sequences` (None: all), or this rank's share of them.

    `done` is told how many sequences each batch had, and may raise to end it. The student is in evaluation mode meanwhile.
    """
    decoder, teacher_head = decoder_for(reader.description, split), Head.load(reader.folder).to(device)
    names = SUMS if Head.of(student).hidden_size == teacher_head.hidden_size else SUMS[:-1]
    sums = torch.zeros(len(names), dtype=torch.float64, device=device)
    batches = split_batches(
        reader,
        split,
        batch_size=batch_size,
        wanted=Wanted(hidden=True, logits=False),
        sequences=sequences,
        rank=rank,
        world_size=world_size,
    )
    was_training = student.training
    student.train(False)
    try:
        for batch in batches:
            on_device = {name: tensor.to(device) for name, tensor in labelled_first(batch).items()}
            sums += _of_batch(on_device, student, teacher_head, decoder)
            done(len(batch["input_ids"]))
    finally:
        student.train(was_training)
    return sums


def _of_batch(batch: Batch, student: PreTrainedModel, teacher_head: Head, decoder: TargetDecoder) -> Tensor:
    """The sums of a batch whose labelled rows come first."""
    student_head, labels = Head.of(student), batch["labels"]
    rows = encoder_hidden(student, batch["input_ids"], batch["attention_mask"]).flatten(0, 1)[batch["row_index"]]
    teacher_rows, count, masked = decoder.hidden(batch), len(rows), len(labels)
    ours, theirs = student_head.features(filled(rows)), teacher_head.features(filled(teacher_rows))
    ids = F.pad(labels, (0, len(ours) - masked))[:, None]
    compared = torch.cat(
        [
            _compare_(student_head.project(ours[part]), teacher_head.project(theirs[part]), ids[part])
            for part in row_chunks(len(ours), student_head.vocabulary_size, at_least=_least_rows(ours.device))
        ],
        dim=1,
    ).double()
    of_all, of_masked = compared[:, :count].sum(1), compared[:, :masked].sum(1)
    counts = torch.tensor([count, masked], dtype=torch.float64, device=rows.device)
    sums = [counts, of_all[:1], of_masked[:1], of_all[1:2], of_masked[1:]]
    if rows.shape == teacher_rows.shape:
        sums.append(F.cosine_similarity(rows, teacher_rows, dim=-1).sum(0, keepdim=True, dtype=torch.float64))
    return torch.cat(sums)


def _least_rows(device: torch.device) -> int:
    """Of logits at a time: a CPU keeps few of them in its caches, a GPU wants much to do at once."""
    return 64 if device.type == "cpu" else 2048


def _compare_(student: Tensor, teacher: Tensor, ids: Tensor) -> Tensor:
    """KL, agreement, and loss and hit at `ids` (n, 1) of the student and of the teacher, f4 (6, n).

    `student` and `teacher` are logits (n, V), and are used up.
    """
    student.sub_(student.amax(-1, keepdim=True))
    best = teacher.argmax(-1, keepdim=True)
    teacher.sub_(teacher.gather(1, best))
    at_best, at_id, teacher_at_id = student.gather(1, best), student.gather(1, ids), teacher.gather(1, ids)
    p = teacher.exp()
    # From the difference: the KL is small where both are large.
    difference = torch.linalg.vecdot(p, teacher.sub_(student))
    p_total, q_total = p.sum(-1), student.exp_().sum(-1)
    log_p_total, log_q_total = p_total.log(), q_total.log()
    return torch.stack(
        [
            difference / p_total - log_p_total + log_q_total,
            (at_best[:, 0] == 0).float(),
            log_q_total - at_id[:, 0],
            (at_id[:, 0] == 0).float(),
            log_p_total - teacher_at_id[:, 0],
            (teacher_at_id[:, 0] == 0).float(),
        ]
    )
