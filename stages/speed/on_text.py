"""Size and speed of a trained student beside its teacher, on sentences as they come, in PyTorch and in ONNX Runtime."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stages.cache_location import open_cache
from stages.config import Config
from stages.context import Artefacts, Context
from stages.errors import InputError
from stages.forward_pass import encoder_hidden
from stages.model_config import ModelShape
from stages.models import (
    DIGEST_SHOWN,
    count_parameters,
    folder_bytes,
    language_model_from_config,
    load_language_model,
    load_tokenizer,
    require_model,
    weights_digest,
)
from stages.outputs import whole_folder, write_json
from stages.speed import onnx_files
from stages.speed.agreement import compare_outputs
from stages.speed.passes import STOPPED, Forward, Pass, full_pass, throughput, times_as_fast
from stages.speed.sentences import Sentences, cached_sentences, read_sentences
from stages.speed.tables import show

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH_SIZES = (8, 32)


def run(
    config: Config,
    context: Context,
    *,
    sentences_file: Path | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    onnx: bool = False,
) -> None:
    """Write `runs/speed.json`: `models/student` and `models/teacher` over the same sentences, taking turns.

    The sentences are those of a file (`read_sentences`), else the cached sequences of `evaluate.split`. Where the teacher is not here,
    one of its shape with random weights takes its place: it is as fast. `onnx` exports both as well, times that, and leaves the
    student's files in `models/onnx`. Raises `InputError` where models, sentences or packages are missing, where the student cannot be
    exported, and `Interrupted` between two measurements.
    """
    if onnx:
        onnx_files.require_onnx()
    student, teacher = subjects = _load(config, context)
    sentences = _sentences(config, context, sentences_file, subjects)
    with tempfile.TemporaryDirectory() as scratch:
        for subject in subjects:
            subject.add_torch(context)
        if onnx:
            for subject in subjects:
                _add_onnx(subject, Path(scratch) / subject.name, sentences, context)
        contenders = {(who.name, engine): forward for who in subjects for engine, forward in who.engines.items()}
        passes = full_pass(contenders, sentences, context)
        by_size = {size: throughput(contenders, sentences, size, context) for size in batch_sizes}
        if onnx:
            _keep(student.model, Path(scratch) / student.name, context.artefacts)
    for who in subjects:
        for engine, figures in who.figures.items():
            per_second = {str(size): batches.per_second((who.name, engine)) for size, batches in by_size.items()}
            figures |= {**passes[who.name, engine].figures(), "sentences_per_second": per_second}
    result: dict[str, Any] = {
        "sentences": {
            "source": sentences.source,
            "count": len(sentences),
            "tokens": sentences.tokens,
            "longest": sentences.longest,
        },
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", *(onnx_files.PACKAGES if onnx else ()))},
        "student": student.described(),
        "teacher": teacher.described(),
        "ratio": {
            "parameters": round(count_parameters(student.model) / count_parameters(teacher.model), 4),
            "engines": {
                engine: {
                    "latency": _ratio(passes, engine),
                    "throughput": {str(size): _ratio(batches.passes, engine) for size, batches in by_size.items()},
                }
                for engine in student.engines
                if engine in teacher.engines
            },
        },
    }
    write_json(context.artefacts.speed_on_text, result)
    show(result, context.progress)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model that is measured: in float32, on the CPU, and in further engines made of it."""

    name: str
    model: PreTrainedModel
    folder: Path | None
    """Of its files; None: its weights are random, and only its shape is the teacher's."""
    engines: dict[str, Forward] = field(default_factory=dict)
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By engine."""

    def add(self, engine: str, forward: Forward, **figures: Any) -> None:
        """One more engine to be timed, and what is known of it."""
        self.engines[engine], self.figures[engine] = forward, figures

    def add_torch(self, context: Context) -> None:
        """PyTorch on the CPU and, where there is one, on the GPU: the base model's forward pass, the part that any use runs."""
        size = None if self.folder is None else folder_bytes(self.folder)
        self.add("torch", lambda ids, attention_mask: encoder_hidden(self.model, ids, attention_mask), bytes=size)
        if context.device != "cpu":
            self.add("cuda", _on_gpu(self.model, context.device), bytes=size)

    def described(self) -> dict[str, Any]:
        """Size, origin and figures."""
        return {
            "parameters": count_parameters(self.model),
            "weights": "random" if self.folder is None else weights_digest(self.folder)[:DIGEST_SHOWN],
            "engines": self.figures,
        }


def _load(config: Config, context: Context) -> tuple[Subject, Subject]:
    """Student and teacher."""
    artefacts, objective = context.artefacts, config.teacher.objective
    require_model(artefacts.student, "the trained student", "pipeline train-student")
    student = load_language_model(artefacts.student, objective=objective, attention=None)
    if artefacts.teacher.is_dir():
        folder: Path | None = artefacts.teacher
        teacher = load_language_model(artefacts.teacher, objective=objective, attention=None)
    else:
        folder = None
        teacher = language_model_from_config(open_cache(config, context).description.teacher_config, objective)
        context.progress.message(
            "models/teacher is not here: a model of its shape with random weights is timed in its place"
        )
    ours, theirs = (ModelShape.of(model.config.to_dict()).vocabulary_size for model in (student, teacher))
    if ours != theirs:
        raise InputError(
            f"models/student has a vocabulary of {ours} and the teacher one of {theirs}; expected a student of this teacher; run: "
            "pipeline train-student"
        )
    return (
        Subject(name="student", model=student, folder=artefacts.student),
        Subject(name="teacher", model=teacher, folder=folder),
    )


def _sentences(config: Config, context: Context, file: Path | None, subjects: Sequence[Subject]) -> Sentences:
    if file is None:
        split = config.evaluate.split
        return cached_sentences(open_cache(config, context, split), split)
    limits = [ModelShape.of(subject.model.config.to_dict()).positions for subject in subjects]
    tokenizer = load_tokenizer(context.artefacts.student)
    return read_sentences(file, tokenizer, min((limit for limit in limits if limit is not None), default=None))


def _on_gpu(model: PreTrainedModel, device: str) -> Forward:
    """A forward pass from inputs in main memory to the end of the computation on `device`."""
    there = copy.deepcopy(model)
    torch.nn.Module.to(there, device)  # transformers hides the signature of model.to

    def forward(ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = encoder_hidden(there, ids.to(device), attention_mask.to(device))
        torch.cuda.synchronize(device)
        return hidden

    return forward


def _add_onnx(subject: Subject, folder: Path, sentences: Sentences, context: Context) -> None:
    """ONNX Runtime, float32 and int8, from files in `folder`; a teacher for which there are none is left out, saying so."""
    context.stop_if_asked(STOPPED)
    context.progress.message(f"exporting the {subject.name} to ONNX")
    folder.mkdir()
    try:
        onnx_files.export_onnx(subject.model, folder, f"the {subject.name}")
    except InputError as error:
        if subject.name == "student":
            raise
        context.progress.message(str(error))
        return
    threads = torch.get_num_threads()
    for engine, whole, encoder in (
        ("onnx", onnx_files.MODEL, onnx_files.ENCODER),
        ("onnx_int8", onnx_files.MODEL_INT8, onnx_files.ENCODER_INT8),
    ):
        figures: dict[str, Any] = {"bytes": (folder / whole).stat().st_size}
        if subject.folder is not None:  # what random weights say means nothing
            session = onnx_files.OnnxSession(folder / whole, threads=threads)
            figures["against_torch"] = compare_outputs(onnx_files.WithHidden(subject.model), session, sentences)
        subject.add(engine, onnx_files.OnnxSession(folder / encoder, threads=threads), **figures)


def _keep(model: PreTrainedModel, folder: Path, artefacts: Artefacts) -> None:
    """The student's files in `models/onnx`, with the configuration and the tokenizer that they go with."""
    with whole_folder(artefacts.student_onnx) as target:
        for file in sorted(folder.glob("*.onnx")):
            shutil.copyfile(file, target / file.name)
        model.config.save_pretrained(target)
        load_tokenizer(artefacts.student).save_pretrained(target)


def _ratio(passes: Mapping[tuple[str, str], Pass], engine: str) -> dict[str, float]:
    return times_as_fast(passes["student", engine], passes["teacher", engine])
