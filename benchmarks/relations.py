"""What relations of self-attention add to the recipe, and what they are worth alone, at equal steps.

A real pretrained encoder (`recipes/minilm`: MiniLM-L6 with an LM head, adapted to English Wikipedia), and one student of three
layers: the same initial weights, sequences, masks, order, steps and learning rate for all, from one cache.

    recipe      KL of the predictions, masked tokens, cosine of the last hidden states: 5 / 2 / 1
    relations   MiniLMv2's relations of queries, keys and values of the last block alone; the head stays as it was initialised
    both        the recipe, and the relations with weight 1

Held-out figures over the test split, against the teacher's full distribution at T = 1; two seeds each. The text is that of
`$TEACHER_CACHE_DATA`, else of `../shared/data`. Where neither is there, and with `--quick`, text and teacher are the embedded
default's: the table says which.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from measure import Spread, arguments, finish
from student_project import QUICK, ROOT, context_in, quiet, real_text

from pipeline.params import read_config
from pipeline.summary import print_table
from stages import cache_teacher, corpus, init_student, teacher, tokenize_corpus, train_student
from stages.config import Config
from stages.held_out import held_out_figures
from stages.models import load_masked_lm
from storage import CacheReader

GOALS = {"kl_both_vs_recipe": "< 1", "mlm_both_vs_recipe": "<= 1"}
FIGURES = {
    "kl_masked": "KL, masked",
    "kl_all": "KL, all",
    "agreement_masked": "agreement, masked",
    "mlm_loss": "MLM loss",
}
RUNS = {
    "recipe": ["train.weights={kd: 5.0, mlm: 2.0, cos: 1.0}"],
    "relations": ["train.weights={kd: 0.0, mlm: 0.0, cos: 0.0, relations: 1.0}"],
    "both": ["train.weights={kd: 5.0, mlm: 2.0, cos: 1.0, relations: 1.0}"],
}
SEEDS = (0, 1)
RELATIONS = ["cache.attention_vectors=[queries, keys, values]", "train.validation.steps=null"]
REAL = [
    "teacher.adapt.steps=600",
    "teacher.adapt.float32_steps=400",
    "cache.sequences={train: 3200, validation: 32, test: 192}",
    "train.steps=200",
    "train.relations={heads: 24}",
]
"""The recipe cut down to what two cores do in less than 50 minutes."""
EMBEDDED = ["train.relations={heads: 16}"]


def wikipedia() -> Path | None:
    """English Wikipedia as Parquet, where it is there."""
    file = real_text("wiki_en", "train-00000.parquet")
    return file if file.is_file() else None


class Project:
    """A folder with a cache, and the parameters that it was made with."""

    def __init__(self, folder: Path, *, quick: bool) -> None:
        text = None if quick else wikipedia()
        self.teacher = "MiniLM-L6, Wikipedia" if text else "the embedded default"
        self._file = ROOT / ("recipes/minilm/params.yaml" if text else "params.yaml")
        self._overrides = [*RELATIONS, *(REAL if text else EMBEDDED), *(QUICK if quick else [])]
        if text:
            self._overrides.append(f"corpus.files.paths=[{text}]")
        self.context = context_in(folder)

    def config(self, overrides: Sequence[str] = ()) -> Config:
        """The parameters with some values changed."""
        return read_config(self._file, [*self._overrides, *overrides])

    def prepare(self) -> None:
        """All that the students have in common."""
        config = self.config()
        for stage in (corpus, tokenize_corpus, teacher, cache_teacher):
            stage.run(config, self.context)
        init_student.run(config, self.context, config.train.student)

    def figures(self, folder: Path) -> dict[str, float]:
        """Held-out figures of the student in a folder."""
        student = load_masked_lm(folder, device=self.context.device)
        reader = CacheReader(self.context.artefacts.cache)
        return held_out_figures(student, reader, "test", batch_size=32, context=self.context)

    def trained(self, run: str, seed: int) -> dict[str, float]:
        """Those of a run's student."""
        train_student.run(self.config([*RUNS[run], f"train.seed={seed}"]), self.context)
        return self.figures(self.context.artefacts.student)


def row(name: str, figures: Sequence[dict[str, float]]) -> list[str]:
    """Means over seeds, and half their distance."""
    cells = []
    for key in FIGURES:
        values = [of[key] for of in figures]
        spread = f" ± {(max(values) - min(values)) / 2:.3f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.3f}{spread}")
    return [name, *cells]


def main() -> None:
    """Measure, print and write."""
    options = arguments(__doc__ or "")
    quiet()
    with tempfile.TemporaryDirectory() as scratch:
        project = Project(Path(scratch), quick=options.quick)
        project.prepare()
        student = project.config().train.student
        before = project.figures(project.context.artefacts.student_init(student))
        seeds = SEEDS[:1] if options.quick else SEEDS
        figures = {run: [project.trained(run, seed) for seed in seeds] for run in RUNS}
    print_table(
        f"held-out text, teacher: {project.teacher}, {os.cpu_count()} cores",
        ["student", *FIGURES.values()],
        [row("before training", [before]), *(row(run, of) for run, of in figures.items())],
    )

    def ratio(run: str, figure: str) -> Spread:
        pairs = zip(figures[run], figures["recipe"], strict=True)
        return Spread.of([ours[figure] / theirs[figure] for ours, theirs in pairs])

    ratios = {
        "kl_relations_vs_recipe": ratio("relations", "kl_masked"),
        "kl_both_vs_recipe": ratio("both", "kl_masked"),
        "mlm_both_vs_recipe": ratio("both", "mlm_loss"),
    }
    finish(ratios, GOALS, options.json, quick=options.quick)


if __name__ == "__main__":
    main()
