"""The cache and the student to measure with: those named, those that lie here, or small ones made on the spot."""

from __future__ import annotations

from pathlib import Path

from pipeline.params import read_config
from stages import cache_teacher, corpus, init_student, teacher, tokenize_corpus, train_student
from stages.context import Artefacts, Context

ROOT = Path(__file__).parents[2]
FEW = (
    "teacher.train.steps=150",
    "teacher.train.float32_steps=150",
    "cache.preset=lossless",
    "cache.sequences={train: 1024, validation: 256, test: 16}",
    "train.steps=60",
    "train.checkpoint_steps=60",
)
"""The embedded default with few steps: the figures are of a teacher that has learned little more than word frequencies."""


def find(cache: Path | None, folder: Path) -> Path:
    """The cache named, else `cache/current` of the working folder, else a small one made below `folder`."""
    if cache is not None:
        return cache
    here = Artefacts(project=Path.cwd()).cache
    if (here / "manifest.json").is_file():
        return here
    print(f"no cache is named and none at {here}: a small one is made, with few teacher steps. Its figures say little.")
    return make(folder / "project")


def make(project: Path) -> Path:
    """Run the project's stages on the embedded default, up to a student; the cache's folder."""
    config = read_config(ROOT / "params.yaml", FEW)
    context = Context(artefacts=Artefacts(project=project))
    project.mkdir(parents=True)
    for stage in (corpus, tokenize_corpus, teacher, cache_teacher):
        print(f"  stage {stage.__name__.rpartition('.')[2]}")
        stage.run(config, context)
    init_student.run(config, context, config.train.student)
    train_student.run(config, context)
    return context.artefacts.cache


def find_student(student: Path | None, cache: Path) -> Path | None:
    """The student named, else the trained one of the cache's project, else one of its initial ones; None without any."""
    if student is not None:
        return student
    models = cache.resolve().parents[1] / "models"
    candidates = [models / "student", *sorted((models / "student-init").glob("*"))]
    return next((folder for folder in candidates if (folder / "config.json").is_file()), None)
