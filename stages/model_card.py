"""The model card: `README.md` of a trained student, in the Hugging Face hub's format, generated from the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from stages.bilstm import HOW_TO_LOAD, KIND
from stages.cache_coding import coding_of
from stages.config import Config, CorpusConfig, TeacherConfig
from stages.config.ensemble import MAIN
from stages.config.layers import Pairs
from stages.figures import LABELS
from stages.model_config import ModelShape
from stages.students import copied_blocks, in_words, kind_of
from storage import CacheReader

TEMPLATE = "model_card.md.j2"

METRICS = (
    ("mlm_loss", "loss", "MLM cross-entropy, nats per masked token"),
    ("masked_accuracy", "accuracy", "accuracy on masked tokens"),
    ("kl_masked", "kl_divergence", "KL(teacher || student), nats per masked token"),
    ("kl_all", "kl_divergence", "KL(teacher || student), nats per position"),
    ("agreement_masked", "agreement", "top-1 agreement with the teacher on masked tokens"),
    ("agreement_all", "agreement", "top-1 agreement with the teacher on all positions"),
    ("clm_loss", "loss", "cross-entropy, nats per next token"),
    ("next_accuracy", "accuracy", "accuracy on next tokens"),
    ("hidden_cosine", "cosine_similarity", "cosine similarity of the last hidden states"),
)
"""Figure of stages/held_out.py, type and name of the hub's metric."""

TASKS = {
    "masked": ("fill-mask", "Masked language modelling"),
    "causal": ("text-generation", "Causal language modelling"),
}
"""By the teacher's objective: the hub's tag and, in words, what the figures are of."""


def model_card(
    config: Config,
    cache: CacheReader,
    *,
    model_id: str,
    figures: Mapping[str, Any],
    provenance: Mapping[str, Any],
    runs: str,
) -> ModelCard:
    """The card of the student that `config` trained from `cache`.

    `model_id` is what `from_pretrained` takes, `runs` the folder with the run's figures. `figures` and `provenance` are the
    contents of `train.json` and `provenance.json` there. No time and no commit is in the card: the same run gives the same
    bytes, and DVC runs what follows only where the student is another one.
    """
    corpus, student, description = config.corpus, config.student, cache.description
    distilled, objective = config.train.distils, description.objective
    kind, tag = kind_of(student, description.teacher_config, objective)
    tags = ["distillation", "knowledge-distillation"] if distilled else []
    header = ModelCardData(
        library_name="transformers",
        pipeline_tag=TASKS[objective][0],
        tags=[*tags, "teacher-cache", tag],
        base_model=_base_models(config),
        datasets=[corpus.hub.name] if corpus.hub and corpus.source == "hub" else None,
        model_name=config.train.student,
        eval_results=list(_eval_results(corpus, figures["validation"], TASKS[objective])),
    )
    teacher_layers = ModelShape.of(description.teacher_config).layers
    copied = copied_blocks(student, config.train.student, teacher_layers) if student.initialise == "teacher" else None
    template = _environment().get_template(TEMPLATE)
    body = template.render(
        config=config,
        cache=cache,
        model_id=model_id,
        kind=kind,
        causal=objective == "causal",
        distilled=distilled,
        figures=figures,
        provenance=provenance,
        runs=runs,
        versions={
            name: provenance["packages"][name]
            for name in ("torch", "transformers", "teacher-cache")
            if name in provenance["packages"]  # a source folder need not be installed
        },
        metrics=[(figure, name) for figure, _, name in METRICS if figure in figures["validation"]],
        teachers=_teachers(config),
        teacher_layers=teacher_layers,
        corpus=_corpus(corpus),
        coding=coding_of(config.cache),
        hidden_size=student.hidden_size or description.hidden_size,
        blocks=copied,
        copied=None if copied is None else in_words(copied),
        how_to_load=HOW_TO_LOAD if student.architecture == KIND else None,
        loss=_loss(config),
        judged_by=LABELS[config.train.validation.metric],
    )
    return ModelCard(f"---\n{header.to_yaml()}\n---\n\n{body}")


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,  # a value that is missing is an error, not an empty place in the text
        autoescape=select_autoescape(),  # HTML only: this is Markdown
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _eval_results(corpus: CorpusConfig, validation: Mapping[str, float], task: tuple[str, str]) -> Iterator[EvalResult]:
    for figure, kind, name in METRICS:
        if figure in validation:
            yield EvalResult(
                task_type=task[0],
                task_name=task[1],
                metric_type=kind,
                metric_name=name,
                metric_value=float(validation[figure]),
                dataset_split="validation",
                **_dataset(corpus),
            )


def _dataset(corpus: CorpusConfig) -> dict[str, Any]:
    """The corpus in the words of a model index."""
    held_out = "documents held out for validation"
    if corpus.hub and corpus.source == "hub":
        return {
            "dataset_type": corpus.hub.name,
            "dataset_name": f"{corpus.hub.name}, {held_out}",
            "dataset_config": corpus.hub.configuration,
            "dataset_revision": corpus.hub.revision,
        }
    name = "docstrings of Python packages" if corpus.source == "docstrings" else "local files"
    return {"dataset_type": corpus.source, "dataset_name": f"{name}, {held_out}"}


def _corpus(corpus: CorpusConfig) -> str:
    """Where the text came from. Local paths are nobody else's business."""
    if corpus.hub and corpus.source == "hub":
        configuration = f", configuration `{corpus.hub.configuration}`" if corpus.hub.configuration else ""
        source = f"the dataset `{corpus.hub.name}`{configuration}, split `{corpus.hub.split}`, revision `{corpus.hub.revision}`"
    elif corpus.docstrings and corpus.source == "docstrings":
        packages = corpus.docstrings.packages
        source = f"the English prose in the docstrings of {len(packages)} Python packages ({', '.join(packages)})"
    else:
        source = "local text files"
    return f"the first {corpus.max_documents:,} documents of {source}" if corpus.max_documents else source


def _teacher(teacher: TeacherConfig) -> str:
    if teacher.source == "train" or teacher.load is None:
        return "a small BERT that was trained from scratch on the same corpus"
    load = teacher.load
    if load.hub_id:
        source = f"`{load.hub_id}`, revision `{load.revision}`"
    else:
        source = f"the model in the Python package `{load.package}`" if load.package else "a local model"
    if teacher.source == "adapt":
        return f"{source}, given a masked-LM head where it had none, and adapted to the same corpus"
    return source


def _base_models(config: Config) -> str | list[str] | None:
    """The hub ids of the teachers that came from there."""
    loaded = (teacher.load.hub_id for teacher, _ in _shares(config) if teacher.load and "load" in teacher.used)
    found = [hub_id for hub_id in loaded if hub_id]
    return found[0] if len(found) == 1 else found or None


def _shares(config: Config) -> list[tuple[TeacherConfig, float]]:
    """The teachers that the student has, the main one first, and the share of each."""
    ensemble, further = config.train.ensemble or {MAIN: 1.0}, config.teachers or {}
    return [(config.teacher, ensemble[MAIN])] + [
        (further[name], share) for name, share in ensemble.items() if name != MAIN and share > 0
    ]


def _teachers(config: Config) -> str:
    """One or more sentences."""
    if config.train.ensemble is None:
        return f"The teacher is {_teacher(config.teacher)}."
    listed = "; ".join(f"{_teacher(teacher)} (share {share:g})" for teacher, share in _shares(config))
    learned = (
        "It learned from several teachers at once, by the weighted sum of their losses"
        if config.train.distils
        else "Its teachers"
    )
    return f"{learned}: {listed}. The teacher of the figures and of the initial weights is the first of them."


def _loss(config: Config) -> str:
    train, weights = config.train, config.train.weights
    of_kd, of_cos = (
        " of masked tokens" if positions == "masked" else "" for positions in (train.kd_positions, train.cos_positions)
    )
    terms = {
        "kd": f"{train.temperature:g}² KL(teacher || student) at temperature {train.temperature:g}{of_kd}",
        "mlm": "masked-LM cross-entropy",
        "clm": "next-token cross-entropy",
        "cos": f"(1 - cosine of {'the last ' if train.layer_map is None else ''}hidden states{_pairs(train.layer_map)}{of_cos})",
        "mse": f"squared difference of the logits{of_kd}",
        "hidden": f"mean squared difference of hidden states{_pairs(train.layer_map)}",
        "relations": "KL of self-attention relations",
        "attention": f"mean squared difference of attention scores{_pairs(train.attention_map)}",
    }
    return " + ".join(f"{getattr(weights, part):g} × {terms[part]}" for part in weights.used)


def _pairs(pairs: Pairs | None) -> str:
    if pairs is None:
        return ""
    layers = (", ".join(map(str, side)) for side in zip(*pairs, strict=True))
    return " (student's {} with the teacher's {})".format(*layers)
