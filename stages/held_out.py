"""How close a student is to the teacher on a cached split: computed from the cache, without the teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.batches import Batch, TargetDecoder, Wanted, decoder_for, split_batches
from stages.context import Context
from stages.heads import Head, row_chunks
from stages.losses import IGNORED
from stages.models import encoder_hidden
from storage import CacheReader, Split

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SUMS = (
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


@torch.inference_mode()
def held_out_figures(
    student: PreTrainedModel, reader: CacheReader, split: Split, *, batch_size: int, context: Context
) -> dict[str, float]:
    """Means over the split's cached positions, all of them or the masked ones.

    `kl_*` is KL(teacher || student) over the full vocabulary at T = 1 in nats, the teacher rebuilt from its cached hidden
    state; `agreement_*` the share of positions with the same most likely id; `mlm_loss` the cross-entropy in nats and
    `masked_accuracy` the share of correct ids on masked tokens; `hidden_cosine` the mean cosine of last hidden states,
    where both have one size.
    """
    device = context.device
    decoder, teacher_head = decoder_for(reader.description, split), Head.load(reader.folder).to(device)
    sums = dict.fromkeys(_SUMS, 0.0)
    context.progress.begin(f"evaluate on {split}", reader.description.splits[split].sequences, "sequences")
    for batch in split_batches(reader, split, batch_size=batch_size, wanted=Wanted(hidden=True, logits=False)):
        context.stop_if_asked("nothing was written")
        _add_batch(sums, {name: tensor.to(device) for name, tensor in batch.items()}, student, teacher_head, decoder)
        context.progress.advance(len(batch["input_ids"]))
    rows, masked = max(1.0, sums["rows"]), max(1.0, sums["masked"])
    means = {
        "mlm_loss": sums["mlm"] / masked,
        "masked_accuracy": sums["correct"] / masked,
        "kl_masked": sums["kl_masked"] / masked,
        "kl_all": sums["kl"] / rows,
        "agreement_masked": sums["agree_masked"] / masked,
        "agreement_all": sums["agree"] / rows,
        "teacher_mlm_loss": sums["teacher_mlm"] / masked,
        "teacher_masked_accuracy": sums["teacher_correct"] / masked,
    }
    if Head.of(student).hidden_size == teacher_head.hidden_size:
        means["hidden_cosine"] = sums["cosine"] / rows
    return {name: round(value, 5) for name, value in means.items()} | {
        "positions": int(rows),
        "masked_tokens": int(masked),
    }


def _add_batch(
    sums: dict[str, float], batch: Batch, student: PreTrainedModel, teacher_head: Head, decoder: TargetDecoder
) -> None:
    student_head = Head.of(student)
    rows = encoder_hidden(student, batch["input_ids"], batch["attention_mask"]).flatten(0, 1)[batch["row_index"]]
    teacher_rows, labels = decoder.hidden(batch), batch["labels"]
    if rows.shape == teacher_rows.shape:
        sums["cosine"] += float(F.cosine_similarity(rows, teacher_rows, dim=-1).sum())
    for part in row_chunks(len(rows), student_head.vocabulary_size):
        _add_rows(sums, student_head.logits(rows[part]), teacher_head.logits(teacher_rows[part]), labels[part])


def _add_rows(sums: dict[str, float], student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> None:
    log_q, log_p = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    student_best, teacher_best = log_q.argmax(-1), log_p.argmax(-1)
    agree = student_best == teacher_best
    masked = labels != IGNORED
    target = labels.clamp_min(0)[:, None]
    added = {
        "rows": torch.ones_like(kl),
        "masked": masked,
        "kl": kl,
        "kl_masked": kl * masked,
        "agree": agree,
        "agree_masked": agree & masked,
        "mlm": -log_q.gather(1, target)[:, 0] * masked,
        "correct": (student_best == labels) & masked,
        "teacher_mlm": -log_p.gather(1, target)[:, 0] * masked,
        "teacher_correct": (teacher_best == labels) & masked,
    }
    for name, values in added.items():
        sums[name] += float(values.sum(dtype=torch.float64))
