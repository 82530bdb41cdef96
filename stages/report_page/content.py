"""What the page says, in the order in which it says it: headline, flow, facts, how to load the student, provenance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from stages.cache_coding import coding_of
from stages.config import Config, TeacherConfig
from stages.config.ensemble import MAIN
from stages.figures import LABELS, PREDICTION, Objective, closest
from stages.report_page.run_files import RunFiles
from stages.report_page.tables import faster, smaller
from stages.report_page.units import NO_BREAK, count, data_size, duration, millions, number, percent, plural
from storage.layout import SPLITS

_LOAD_MASKED = """\
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

model = AutoModelForMaskedLM.from_pretrained("models/student")
tokenizer = AutoTokenizer.from_pretrained("models/student")

fill = pipeline("fill-mask", model=model, tokenizer=tokenizer)
for guess in fill(f"The function returns a {tokenizer.mask_token} of numbers."):
    print(f"{guess['score']:.3f}  {guess['sequence']}")
"""

_LOAD_CAUSAL = """\
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

model = AutoModelForCausalLM.from_pretrained("models/student")
tokenizer = AutoTokenizer.from_pretrained("models/student")

generate = pipeline("text-generation", model=model, tokenizer=tokenizer)
print(generate("The function returns", max_new_tokens=12)[0]["generated_text"])
"""

LOAD: dict[Objective, str] = {"masked": _LOAD_MASKED, "causal": _LOAD_CAUSAL}
"""Python that runs in the project folder, by what the teacher predicts."""


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
    alone = {
        "masked": "was trained on the same masked text alone, by masked language modelling,",
        "causal": "was trained on the same text alone, by predicting the next token,",
    }
    learned = "learned from them" if distilled else alone[files.objective]
    others = _further_teachers(files.config)
    taught = "".join(f"; so did the teacher “{name}”, {_named(teacher)}" for name, teacher, _ in others)
    of_each = " of each" if others else ""
    summary = (
        f"The teacher, {_teacher(files)}, ran once over {_corpus(files.config)}{taught}; "
        f"{count(positions)} positions{of_each} were cached. "
        f"The student “{files.training.text('student')}”, {layers}, then {learned} in {count(files.training.number('steps'))} steps "
        f"({number(files.training.number('epochs'))} epochs), with no teacher in memory."
        + (" All figures that compare it with a teacher are of the first." if others else "")
    )
    verb = "distilled into" if distilled else "beside"
    more = f" and {plural(len(others), 'more teacher')}" if others else ""
    return f"{millions(teacher)} parameters{more} {verb} {millions(student)}", summary


def tiles(files: RunFiles) -> list[Tile]:
    """The figures to take home."""
    held_out, split = files.evaluation, files.evaluation.text("split")
    share, parameters = smaller(files.speed)
    cpu = {who: files.speed.record(who).record("cpu").number("latency_ms") for who in ("teacher", "student")}
    speed, word = faster(files.speed.record("ratio").record("cpu").number("latency")).rsplit(" ", 1)
    kl, agreement, loss = closest(files.objective)
    loss_of, loss_of_teacher = held_out.number(loss), held_out.number(f"teacher_{loss}")
    kind = "masked " if files.objective == "masked" else ""
    return [
        Tile(
            "KL to the teacher",
            number(held_out.number(kl)),
            "nats",
            f"mean over {count(_compared(files))} {kind}{split} tokens; 0 would be the same predictions",
        ),
        Tile(
            "Top-1 agreement",
            *_split_unit(percent(held_out.number(agreement))),
            f"of {kind}{split} tokens: student and teacher name the same {'' if kind else 'next '}token first",
        ),
        Tile(
            LABELS[loss],
            number(loss_of),
            "nats",
            f"the teacher's is {number(loss_of_teacher)}; {_gap(loss_of - loss_of_teacher)}",
        ),
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
    kl, agreement, loss = closest(files.objective)
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
            f"{LABELS[loss]} {number(files.teacher.number(loss))} nats",
        ),
        *(
            Step(f"teacher {name}", _named(teacher), f"{percent(share)} of the loss on teachers")
            for name, teacher, share in _further_teachers(config)
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
            f"KL {number(held_out.number(kl))} nats",
            f"{percent(held_out.number(agreement))} agreement on {count(_compared(files))} "
            f"{'masked ' if files.objective == 'masked' else ''}tokens",
        ),
    ]
    return once, often


def cache_facts(files: RunFiles) -> Facts:
    """Counts, sizes and digests of the cache."""
    cache = files.cache
    positions = cache.record("positions")
    config = files.config.cache
    coding = f"preset {config.preset}: " + "; ".join(f"{name} {value}" for name, value in coding_of(config))
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
        *(
            (
                f"Root digest of the cache of {name}",
                provenance.record("further_caches").record(name).text("root_digest"),
            )
            for name, _, _ in _further_teachers(files.config)
        ),
    ]


def packages(files: RunFiles) -> Facts:
    """Names and versions of what the run was made with."""
    versions = files.provenance.record("packages")
    return [(name, versions.text(name)) for name in versions.values]


def parameters_yaml(files: RunFiles) -> str:
    """All parameters of the run, as in params.yaml."""
    values: dict[str, Any] = dict(files.provenance.record("parameters").values)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None, width=96)


def _compared(files: RunFiles) -> float:
    """Tokens that the first figures are means over: the masked ones, or, of a causal teacher, all."""
    return files.evaluation.number(PREDICTION["masked"][2] if files.objective == "masked" else "positions")


def _teacher(files: RunFiles) -> str:
    teacher, steps = files.config.teacher, ""
    if "steps" in files.teacher:
        steps = f" for {count(files.teacher.number('steps'))} steps"
    return _named(teacher) if teacher.source == "load" else f"{_named(teacher)}{steps}"


def _named(teacher: TeacherConfig) -> str:
    if teacher.source == "train" and teacher.train is not None:
        return f"a BERT of {plural(teacher.train.layers, 'layer')} and width {teacher.train.hidden_size} trained here"
    name = (teacher.load.hub_id or teacher.load.package or teacher.load.path) if teacher.load else None
    return f"{name}, adapted here" if teacher.source == "adapt" else f"{name}"


def _further_teachers(config: Config) -> list[tuple[str, TeacherConfig, float]]:
    """Those of the ensemble that are learned from: name, parameters, share."""
    shares, teachers = config.train.ensemble or {}, config.teachers or {}
    return [(name, teachers[name], share) for name, share in shares.items() if name != MAIN and share > 0]


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
