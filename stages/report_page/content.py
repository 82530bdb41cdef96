"""What the page says, in the order in which it says it: headline, flow, facts, how to load the student, provenance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from stages.config import Config
from stages.report_page.run_files import RunFiles
from stages.report_page.tables import faster, smaller
from stages.report_page.units import NO_BREAK, count, data_size, duration, millions, number, percent, plural
from storage.layout import SPLITS

LOAD = """\
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

model = AutoModelForMaskedLM.from_pretrained("models/student")
tokenizer = AutoTokenizer.from_pretrained("models/student")

fill = pipeline("fill-mask", model=model, tokenizer=tokenizer)
for guess in fill(f"The function returns a {tokenizer.mask_token} of numbers."):
    print(f"{guess['score']:.3f}  {guess['sequence']}")
"""
"""Python that runs in the project folder."""


@dataclass(frozen=True)
class Tile:
    """A key figure: what it is, the number, its unit, and what it means."""

    label: str
    value: str
    unit: str
    meaning: str


@dataclass(frozen=True)
class Step:
    """A stage of the road: its command, what it made, and its key figure."""

    stage: str
    figure: str
    detail: str


Facts = list[tuple[str, str]]
"""Names and values."""


def headline(files: RunFiles) -> tuple[str, str]:
    """What was distilled into what: a title, and a sentence."""
    teacher, student = (files.speed.record(who).number("parameters") for who in ("teacher", "student"))
    positions = files.cache.record("positions").number("train")
    layers = plural(files.config.student.layers, "layer")
    distilled = files.config.train.distils
    learned = (
        "learned from them" if distilled else "was trained on the same masked text alone, by masked language modelling,"
    )
    summary = (
        f"The teacher, {_teacher(files)}, ran once over {_corpus(files.config)}; {count(positions)} positions were cached. "
        f"The student “{files.training.text('student')}”, {layers}, then {learned} in {count(files.training.number('steps'))} steps "
        f"({number(files.training.number('epochs'))} epochs), with no teacher in memory."
    )
    verb = "distilled into" if distilled else "beside"
    return f"{millions(teacher)} parameters {verb} {millions(student)}", summary


def tiles(files: RunFiles) -> list[Tile]:
    """The figures to take home."""
    held_out, split = files.evaluation, files.evaluation.text("split")
    share, parameters = smaller(files.speed)
    cpu = {who: files.speed.record(who).record("cpu").number("latency_ms") for who in ("teacher", "student")}
    speed, word = faster(files.speed.record("ratio").record("cpu").number("latency")).rsplit(" ", 1)
    mlm, teacher_mlm = held_out.number("mlm_loss"), held_out.number("teacher_mlm_loss")
    return [
        Tile(
            "KL to the teacher",
            number(held_out.number("kl_masked")),
            "nats",
            f"mean over {count(held_out.number('masked_tokens'))} masked {split} tokens; 0 would be the same predictions",
        ),
        Tile(
            "Top-1 agreement",
            *_split_unit(percent(held_out.number("agreement_masked"))),
            f"of masked {split} tokens: student and teacher name the same token first",
        ),
        Tile("MLM loss", number(mlm), "nats", f"the teacher's is {number(teacher_mlm)}; {_gap(mlm - teacher_mlm)}"),
        Tile("Parameters", *_split_unit(share), parameters),
        Tile(
            "CPU latency",
            speed,
            word,
            f"{number(cpu['student'], 3)} ms for one sequence against {number(cpu['teacher'], 3)} ms",
        ),
        Tile(
            "Cache",
            number(files.cache_run.number("bytes_per_train_position")),
            "bytes per position",
            f"{data_size(files.cache_run.number('bytes'))} for all splits",
        ),
    ]


def flow(files: RunFiles) -> tuple[list[Step], list[Step]]:
    """The road in two parts: once, where the teacher is; then from the cache alone."""
    config, cache, training = files.config, files.cache, files.training
    held_out = files.evaluation
    vocabulary = config.tokenize.train
    words = (
        plural(vocabulary.vocabulary_size, "token")
        if config.tokenize.tokenizer == "train" and vocabulary
        else "its own"
    )
    once = [
        Step("corpus", _corpus(config), f"split by document, {percent(config.corpus.test_fraction)} for test"),
        Step(
            "tokenize", f"up to {plural(config.tokenize.sequence_tokens, 'token')} per sequence", f"vocabulary: {words}"
        ),
        Step(
            "teacher",
            f"{millions(files.teacher.number('parameters'))} parameters",
            f"MLM loss {number(files.teacher.number('mlm_loss'))} nats",
        ),
        Step(
            "cache-teacher",
            f"{count(cache.record('positions').number('train'))} positions",
            f"{data_size(files.cache_run.number('bytes'))}, {duration(files.cache_run.number('seconds'))}",
        ),
        Step(
            "init-student",
            f"{millions(files.speed.record('student').number('parameters'))} parameters",
            f"{plural(config.student.layers, 'layer')}, {_initialisation(config)}",
        ),
    ]
    often = [
        Step(
            "train-student",
            plural(training.number("steps"), "step"),
            f"{number(training.number('epochs'), 3)} epochs in {duration(training.number('seconds'))}, {training.text('precision')}",
        ),
        Step(
            "evaluate",
            f"KL {number(held_out.number('kl_masked'))} nats",
            f"{percent(held_out.number('agreement_masked'))} agreement on {count(held_out.number('masked_tokens'))} masked tokens",
        ),
    ]
    return once, often


def cache_facts(files: RunFiles) -> Facts:
    """Counts, sizes and digests of the cache."""
    cache = files.cache
    positions = cache.record("positions")
    config = files.config.cache
    coding = f"preset {config.preset}: " + "; ".join(f"{name} {value}" for name, value in config.in_words())
    return [
        ("Cached positions", ", ".join(f"{split} {count(positions.number(split))}" for split in SPLITS)),
        ("Size", f"{data_size(files.cache_run.number('bytes'))} in all"),
        ("Per train position", f"{number(files.cache_run.number('bytes_per_train_position'))} bytes"),
        ("Coding", coding),
        (
            "Shards computed",
            f"{count(files.cache_run.number('shards_computed'))} in the last start, {duration(files.cache_run.number('seconds'))}",
        ),
        ("Fingerprint", cache.text("fingerprint")),
        ("Root digest", cache.text("root_digest")),
    ]


def provenance_facts(files: RunFiles) -> Facts:
    """Commit and fingerprints, in full."""
    provenance = files.provenance
    cache = provenance.record("cache")
    return [
        (
            "Git commit",
            provenance.text("commit") if provenance.values.get("commit") else "unknown: not in a git repository",
        ),
        ("Training run", provenance.text("run_fingerprint")),
        ("Cache fingerprint", cache.text("fingerprint")),
        ("Cache root digest", cache.text("root_digest")),
    ]


def packages(files: RunFiles) -> Facts:
    """Names and versions of what the run was made with."""
    versions = files.provenance.record("packages")
    return [(name, versions.text(name)) for name in versions.values]


def parameters_yaml(files: RunFiles) -> str:
    """All parameters of the run, as in params.yaml."""
    values: dict[str, Any] = dict(files.provenance.record("parameters").values)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None, width=96)


def _teacher(files: RunFiles) -> str:
    teacher, steps = files.config.teacher, ""
    if "steps" in files.teacher:
        steps = f" for {count(files.teacher.number('steps'))} steps"
    if teacher.source == "train" and teacher.train is not None:
        return f"a BERT of {plural(teacher.train.layers, 'layer')} and width {teacher.train.hidden_size} trained here{steps}"
    name = (teacher.load.hub_id or teacher.load.package or teacher.load.path) if teacher.load else None
    return f"{name}, adapted here{steps}" if teacher.source == "adapt" else f"{name}"


def _corpus(config: Config) -> str:
    corpus = config.corpus
    if corpus.source == "hub" and corpus.hub:
        return corpus.hub.name
    if corpus.source == "files" and corpus.files:
        return f"local files ({', '.join(corpus.files.paths)})"
    return f"docstrings of {plural(len(corpus.docstrings.packages) if corpus.docstrings else 0, 'package')}"


def _initialisation(config: Config) -> str:
    return "copied from the teacher" if config.student.initialise == "teacher" else "random weights"


def _gap(difference: float) -> str:
    if difference == 0:
        return "no difference"
    return f"the student's is {number(abs(difference), 3)} {'higher' if difference > 0 else 'lower'}"


def _split_unit(text: str) -> tuple[str, str]:
    value, _, unit = text.partition(NO_BREAK)
    return value, unit
