"""Training a teacher by masked language modelling: its examples, its loss, and the Trainer that drives it."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from stages.config import TeacherTraining
from stages.config.base import refuse
from stages.context import Context
from stages.device import Precision
from stages.errors import Interrupted, StageError
from stages.figures import PREDICTION
from stages.forward_pass import encoder_hidden, input_device
from stages.heads import Head, row_chunks
from stages.losses import IGNORED
from stages.masking import Masker, SeesTokens, Unmasked, next_tokens
from stages.randomness import permutation
from stages.sequences import SequenceSplit
from stages.training.progress import ReportProgress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HELD_OUT_SEQUENCES = 2048
"""Sequences that the held-out figures are computed on, at most: a standard error of about 0.02 nats."""
HELD_OUT_BATCH = 64
_LOG_STEPS = 25
_ROW_MULTIPLE = 64
"""Masked positions of a batch are filled up to a multiple of this. On a CPU oneDNN compiles kernels for every new shape
and keeps them: with any number of rows, a training step took up to half as long again and memory grew with each."""

Example = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""What the model sees (tokens,), and the original ids where a token is to be predicted, IGNORED elsewhere (tokens,)."""


class MaskedSequences(Dataset[Example]):
    """The sequences of a split in the order in which they are trained on, for `steps` batches.

    Each epoch has an order of its own and its own mask variant (dynamic masking), both pure functions of the seeds. The
    split is held in memory: a teacher that is trained in minutes reads a small corpus.
    """

    def __init__(self, split: SequenceSplit, masker: Masker, training: TeacherTraining, *, steps: int) -> None:
        self._offsets, self._ids = split.read(0, len(split))
        self._masker = masker
        # The sequences that do not fill a batch are left out of that epoch.
        batch_size = training.batch_size
        self._per_epoch = len(split) // batch_size * batch_size
        if self._per_epoch == 0:
            raise refuse(
                f"{training.KEY}.batch_size", batch_size, f"at most the {len(split)} training sequences in data/tokens"
            )
        self._count = batch_size * steps
        epochs = range(-(-self._count // self._per_epoch))
        self._orders = [permutation(f"teacher/{training.seed}", epoch, len(split)) for epoch in epochs]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Example:
        epoch, place = divmod(index, self._per_epoch)
        sequence = int(self._orders[epoch][place])
        return mask_example(
            self._masker, sequence, epoch, self._ids[self._offsets[sequence] : self._offsets[sequence + 1]]
        )


def example_of(seen: SeesTokens, sequence: int, original_ids: npt.NDArray[np.integer]) -> Example:
    """One sequence of variant 0 with its labels: the masked tokens, or, for a causal teacher, each token's successor."""
    if isinstance(seen, Unmasked):
        return original_ids.astype(np.int64), next_tokens(original_ids, IGNORED)
    return mask_example(seen, sequence, 0, original_ids)


def mask_example(masker: SeesTokens, sequence: int, variant: int, original_ids: npt.NDArray[np.integer]) -> Example:
    """One masked sequence with its labels."""
    input_ids, masked = masker.mask(sequence, variant, original_ids)
    return input_ids.astype(np.int64), np.where(masked == 1, original_ids.astype(np.int64), IGNORED)


@dataclass(frozen=True)
class Collator:
    """Pads examples to a batch and picks the positions to predict."""

    pad_id: int

    def __call__(self, examples: list[Example]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask` i8 (S, L); `rows` i8 (R,): the masked places in the flattened (S L,); `targets` i8 (R,).

        R is filled up with place 0 and the target IGNORED.
        """
        lengths = np.array([len(input_ids) for input_ids, _ in examples])
        real = np.arange(lengths.max()) < lengths[:, None]
        input_ids, labels = np.full(real.shape, self.pad_id, np.int64), np.full(real.shape, IGNORED, np.int64)
        input_ids[real] = np.concatenate([seen for seen, _ in examples])
        labels[real] = np.concatenate([wanted for _, wanted in examples])
        rows = np.flatnonzero(labels != IGNORED)
        targets = labels.ravel()[rows]
        filling = (0, -len(rows) % _ROW_MULTIPLE)
        batch = {
            "input_ids": input_ids,
            "attention_mask": real.astype(np.int64),
            "rows": np.pad(rows, filling),
            "targets": np.pad(targets, filling, constant_values=IGNORED),
        }
        return {name: torch.from_numpy(array) for name, array in batch.items()}


class MaskedPositions(nn.Module):
    """A masked language model whose head is applied to the masked positions only: exact, and several times cheaper."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def logits(self, input_ids: Tensor, attention_mask: Tensor, rows: Tensor) -> Tensor:
        """Float32 logits (R, V) at the flat positions `rows` (R,) of `input_ids` (S, L)."""
        hidden = encoder_hidden(self.model, input_ids, attention_mask).flatten(0, 1)[rows]
        return Head.of(self.model).logits(hidden).float()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, rows: Tensor, targets: Tensor) -> tuple[Tensor]:
        """The mean cross-entropy over the batch's masked positions in nats; 0 where there are none."""
        logits = self.logits(input_ids, attention_mask, rows)
        count = (targets != IGNORED).sum().clamp_min(1)
        return (F.cross_entropy(logits, targets, reduction="sum", ignore_index=IGNORED) / count,)


def train_teacher(
    model: PreTrainedModel,
    config: TeacherTraining,
    context: Context,
    *,
    examples: MaskedSequences,
    collator: Collator,
    steps: int,
    precision: Precision,
) -> list[dict[str, float]]:
    """Train `model` in place; returns the Trainer's log. The same threads on the same processor give the same weights.

    Raises `Interrupted` when asked to stop (it keeps nothing: it is a matter of minutes) and `StageError` where the loss
    is no longer finite.
    """
    context.progress.begin("train the teacher", steps, "steps")
    with tempfile.TemporaryDirectory() as folder:  # Trainer wants one, and writes nothing there
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=config.batch_size,
            train_sampling_strategy="sequential",
            learning_rate=config.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=config.warmup_steps,
            weight_decay=config.weight_decay,
            adam_beta1=0.9,
            adam_beta2=0.98,
            adam_epsilon=1e-6,
            max_grad_norm=1.0,
            bf16=precision == "bfloat16",
            use_cpu=context.device == "cpu",
            seed=config.seed,
            logging_steps=min(_LOG_STEPS, steps),
            logging_nan_inf_filter=False,
            save_strategy="no",
            remove_unused_columns=False,
            report_to="none",
            disable_tqdm=True,
        )
        # Trainer would split a batch over all GPUs of the machine with DataParallel; there is no public way to forbid it.
        arguments._n_gpu = min(1, arguments.n_gpu)  # noqa: SLF001
        trainer = Trainer(
            model=MaskedPositions(model),
            args=arguments,
            train_dataset=examples,
            data_collator=collator,
            callbacks=[_Watch(context, config.KEY.replace("teacher", context.artefacts.teacher_key, 1))],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    nn.Module.to(model, context.device)  # Trainer chose the first GPU; transformers hides the signature of model.to
    model.train(False)
    return [entry for entry in trainer.state.log_history if "loss" in entry]


class _Watch(ReportProgress):
    """Ends the training where it is asked to, or where it has come to nothing: there are no checkpoints."""

    def __init__(self, context: Context, key: str) -> None:
        super().__init__(context, self._refuse_not_finite)
        self._key = key

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        del args, control, kwargs
        self._context.progress.advance(1)
        if self._context.should_stop():
            raise Interrupted(
                f"stopped as asked at step {state.global_step} of {state.max_steps} of the teacher's training; nothing was "
                "published; run the same command again to start it anew"
            )

    def _refuse_not_finite(self, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            raise StageError(
                f"the teacher's loss is {loss} at step {step}; expected a finite number; lower {self._key}.learning_rate or "
                f"raise {self._key}.warmup_steps, and run: {self._context.artefacts.teacher_command}"
            )


@torch.inference_mode()
def held_out_figures(
    model: PreTrainedModel, split: SequenceSplit, seen: SeesTokens, collator: Collator, context: Context
) -> dict[str, int | float]:
    """Cross-entropy in nats and share of correct ids over the predicted tokens of a split's first sequences.

    Predicted are the masked tokens, by a causal teacher all but the first. The cache's copy of that split begins with the
    same sequences and masks. An id is correct where the most likely one is the original. Raises `InputError` for a model
    whose head is not known.
    """
    offsets, ids = split.read(0, min(len(split), HELD_OUT_SEQUENCES))
    examples = [example_of(seen, i, ids[offsets[i] : offsets[i + 1]]) for i in range(len(offsets) - 1)]
    head, device = Head.of(model), input_device(model)
    loss = correct = 0.0
    count = 0
    context.progress.begin("evaluate the teacher", len(examples), "sequences")
    for start in range(0, len(examples), HELD_OUT_BATCH):
        batch = collator(examples[start : start + HELD_OUT_BATCH])
        hidden = encoder_hidden(model, batch["input_ids"].to(device), batch["attention_mask"].to(device)).flatten(0, 1)
        rows, targets = batch["rows"].to(hidden.device), batch["targets"].to(hidden.device)
        for part in row_chunks(len(rows), head.vocabulary_size):
            logits = head.logits(hidden[rows[part]]).float()
            loss += float(F.cross_entropy(logits, targets[part], reduction="sum", ignore_index=IGNORED))
            correct += float((logits.argmax(-1) == targets[part]).sum())
        count += int((targets != IGNORED).sum())
        context.progress.advance(len(batch["input_ids"]))
        context.stop_if_asked("nothing was published")
    names = PREDICTION["causal" if isinstance(seen, Unmasked) else "masked"]
    values = (round(loss / max(1, count), 5), round(correct / max(1, count), 5), count)
    return {**dict(zip(names, values, strict=True)), "sequences": len(examples)}
