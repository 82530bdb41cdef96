"""The plots of the report. One figure is one question; each has a title, axes with units and a caption that says what one sees."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from stages.config import TrainConfig
from stages.figures import LABELS, PREDICTION, Objective, closest
from stages.report_page.drawing import FIRST, LOG_RANGE, SECOND, WIDTH, Plot, axes, finish, logarithmic, style
from stages.report_page.run_files import Curves, Histogram, RunFiles
from stages.report_page.units import NO_BREAK, number, percent, plural

_CURVE = 2
"""Points that make one: the figures of the finished student alone are in the tables."""


def training_plots(run: RunFiles, folder: Path) -> list[Plot]:
    """Loss, its parts and the learning rate of the student, over steps; a part of weight 0 is no part and is not drawn."""
    loss = PREDICTION[run.objective][0]
    panels = [("loss", "Student: loss", "loss (weighted sum)", f"What is minimised: {_formula(run.config.train)}.")]
    curves = [
        plot
        for column, title, unit, caption in [*panels, *_parts(run.config.train)]
        for plot in _curve(
            run.training_curves,
            column,
            folder,
            name=f"student-{column}",
            title=title,
            unit=unit,
            caption=caption,
            held_out=_points(run.validation_curves, loss) if loss == f"{column}_loss" else [],
        )
    ]
    held_out = validation_plots(run, folder)
    return [*curves, *held_out, *_learning_rate(run.training_curves, run.config.train, folder)]


def validation_plots(run: RunFiles, folder: Path) -> list[Plot]:
    """KL to the teacher on the validation split, over steps; none where only the finished student was validated."""
    kl, _, _ = closest(run.objective)
    if len(_points(run.validation_curves, kl)) < _CURVE:
        return []
    rules = run.config.train.validation
    measured = "on all of it" if rules.sequences is None else f"on its first {plural(rules.sequences, 'sequence')}"
    of = "Masked tokens" if run.objective == "masked" else "All positions"
    caption = f"{of} of the validation split, measured {measured}; no text of it is trained on."
    if rules.keep == "best":
        kept = f"{run.training.number('kept_step'):,.0f}"
        caption += f" The student has the weights of step {kept}, the best by {LABELS[rules.metric]}."
    return list(
        _curve(
            run.validation_curves,
            kl,
            folder,
            name="student-validation-kl",
            title="Student: KL to the teacher, held out",
            unit="nats, at T = 1",
            caption=caption,
        )
    )


def _formula(train: TrainConfig) -> str:
    weights = train.weights
    terms = (f"{getattr(weights, part):g}{NO_BREAK}{'T² kd' if part == 'kd' else part}" for part in weights.used)
    return " + ".join(terms) + (f" with T{NO_BREAK}={NO_BREAK}{train.temperature:g}" if weights.kd else "")


def _parts(train: TrainConfig) -> list[tuple[str, str, str, str]]:
    """Column, title, unit and caption of each part of the loss."""
    over = " over its cached ids and one bucket for the rest" if train.kd_source == "top_k" else ""
    of_kd, of_cos = (
        ", masked tokens only" if positions == "masked" else ""
        for positions in (train.kd_positions, train.cos_positions)
    )
    last = "the last hidden states of student and teacher"
    states = last if train.layer_map is None else "hidden states of student and teacher, mean over pairs of layers"
    panels = {
        "kd": (
            "Student: KL to the teacher (kd)",
            f"nats, at T = {train.temperature:g}",
            f"Distance from the teacher's distribution{over} at temperature {train.temperature:g}{of_kd}, without its weight.",
        ),
        "mlm": (
            "Student: masked-token loss (mlm)",
            "nats",
            "Cross-entropy with the true token, without its weight.",
        ),
        "clm": (
            "Student: next-token loss (clm)",
            "nats",
            "Cross-entropy with the token that follows, without its weight.",
        ),
        "cos": (
            "Student: hidden states (cos)",
            "1 − cosine",
            f"One minus the cosine between {states}{of_cos}, without its weight; 0: one direction.",
        ),
        "mse": (
            "Student: logits (mse)",
            "squared difference",
            f"Squared difference between the logits of student and teacher, summed over the vocabulary{of_kd}, without its weight.",
        ),
        "hidden": (
            "Student: hidden states (hidden)",
            "squared difference",
            f"Mean squared difference between {states}, without its weight.",
        ),
        "relations": (
            "Student: self-attention relations (relations)",
            "nats",
            "KL from the teacher’s relations between positions to the student’s, summed over the kinds of vectors, without its weight.",
        ),
        "attention": (
            "Student: attention scores (attention)",
            "squared difference",
            "Mean squared difference between the unnormalised attention scores of student and teacher, without its weight.",
        ),
    }
    return [(part, *panels[part]) for part in train.weights.used]


_DECAYS = {"linear": "linear decay to 0", "cosine": "decay along a cosine to 0", "constant": "constant"}


def _learning_rate(curves: Curves, train: TrainConfig, folder: Path) -> Iterator[Plot]:
    rates, title, peak = curves["learning_rate"], "Student: learning rate", train.learning_rate
    if rates:
        with style():
            figure, panel = axes(title, "optimizer step", "learning rate")
            panel.plot(curves["step"], rates, color=FIRST)
            panel.set_xlim(0, 1.02 * max(curves["step"]))
            panel.set_ylim(0, 1.08 * max(rates) or 1)
            warm = train.warmup_steps or train.warmup_fraction
            caption = f"{f'Warm-up to {peak:g}, then' if warm else f'From {peak:g},'} {_DECAYS[train.schedule]}."
            yield finish(figure, folder, name="student-learning-rate", title=title, caption=caption)


def teacher_plots(run: RunFiles, folder: Path) -> list[Plot]:
    """Loss of the teacher's own training; none where it was loaded as it is."""
    caption = "Cross-entropy with the masked tokens while the teacher was trained."
    return list(
        _curve(
            run.teacher_curves, "loss", folder, name="teacher-loss", title="Teacher: loss", unit="nats", caption=caption
        )
    )


Points = list[tuple[float, float]]
"""Steps and values."""


def _points(curves: Curves, column: str) -> Points:
    return [(step, value) for step, value in zip(curves["step"], curves[column], strict=True) if math.isfinite(value)]


def _curve(
    curves: Curves,
    column: str,
    folder: Path,
    *,
    name: str,
    title: str,
    unit: str,
    caption: str,
    held_out: Sequence[tuple[float, float]] = (),
) -> Iterator[Plot]:
    """A column over steps, and beside it, dashed, the same on held-out text where there is more than one value."""
    points = _points(curves, column)
    if not points:
        return
    steps, values = zip(*points, strict=True)
    beside = held_out if len(held_out) >= _CURVE else ()
    everything = [*values, *(value for _, value in beside)]
    log = min(everything) > 0 and max(everything) > LOG_RANGE * min(everything)
    with style():
        figure, panel = axes(title, "optimizer step", f"{unit}, logarithmic" if log else unit)
        panel.plot(steps, values, color=FIRST, marker="o" if len(values) == 1 else None)
        if beside:
            panel.plot(*zip(*beside, strict=True), color=SECOND, linestyle=(0, (3, 1)))
            caption += " Dashed: the same on the validation split."
        panel.set_xlim(0, 1.02 * max(steps))
        if log:
            logarithmic(panel, "y", everything)
        panel.plot(steps[-1], values[-1], "o", color=FIRST, markersize=4, clip_on=False)
        panel.annotate(
            number(values[-1], 3), (steps[-1], values[-1]), xytext=(0, 7), textcoords="offset points", ha="right"
        )
        last = f" At the end: {number(values[-1], 3)}."
        yield finish(figure, folder, name=name, title=title, caption=caption + last)


def bytes_plot(per_position: dict[str, float], folder: Path) -> list[Plot]:
    """Bars: bytes that each array takes per cached position of the train split; none where there is no array."""
    if not per_position:
        return []
    rows = sorted(per_position.items(), key=lambda item: item[1])
    total = sum(per_position.values())
    title = "Bytes per cached position"
    with style():
        figure, panel = axes(title, "bytes per position, compressed", "", height=0.9 + 0.29 * len(rows))
        bars = panel.barh(range(len(rows)), [value for _, value in rows], color=FIRST, height=0.62)
        labels = [f"{number(value, 3)}  ({percent(value / total)})" if total else "0" for _, value in rows]
        panel.bar_label(bars, labels, padding=4)
        panel.set_xlim(0, 1.42 * max(value for _, value in rows) or 1)
        panel.set_yticks(range(len(rows)), [name for name, _ in rows])
        panel.tick_params(axis="y", length=0)
        panel.grid(visible=False)
        largest = rows[-1][0]
        caption = (
            f"{largest} alone is {percent(rows[-1][1] / total)} of a cached position."
            if total
            else "Nothing is stored."
        )
        return [finish(figure, folder, name="cache-bytes", title=title, caption=caption)]


_SPREADS = {
    "entropy": ("Entropy of the teacher", "entropy (nats)", "To the right the teacher is less sure of the token."),
    "retained_mass": (
        "Mass in the top k",
        "share of the teacher's probability that is kept",
        "To the right more of the teacher's distribution lies in the cached logits.",
    ),
}


def spread_plots(histograms: Sequence[Histogram], folder: Path, objective: Objective) -> list[Plot]:
    """Histograms over train positions, masked against not masked where any are: one plot per figure and temperature."""
    words = (
        {"masked": "masked tokens", "unmasked": "tokens not masked (dashed)"}
        if objective == "masked"
        else {"unmasked": "all cached positions"}
    )
    drawn = []
    for figure, temperature in dict.fromkeys((one.figure, one.temperature) for one in histograms):
        if figure in _SPREADS:
            chosen = [one for one in histograms if (one.figure, one.temperature) == (figure, temperature)]
            drawn.append(_spread(chosen, folder, figure, f"{float(temperature):g}", words))
    return drawn


def _spread(
    histograms: Sequence[Histogram], folder: Path, kind: str, temperature: str, words: Mapping[str, str]
) -> Plot:
    what, unit, reading = _SPREADS[kind]
    title = f"{what}, T = {temperature}"
    with style():
        figure, panel = axes(title, unit, "% of positions, per bin", height=0.62 * WIDTH)
        # The labels stand on the side where there is less to cover.
        middle = (histograms[0].edges[0] + histograms[0].edges[-1]) / 2
        left = sum(
            share for one in histograms for low, share in zip(one.edges, one.shares, strict=False) if low < middle
        )
        x, side = (0.98, "right") if left > len(histograms) / 2 else (0.02, "left")
        for one in histograms:
            masked = one.positions == "masked"
            colour = SECOND if masked else FIRST
            shares = [100 * share for share in one.shares]
            panel.stairs(shares, one.edges, color=colour, alpha=0.18, fill=True)
            panel.stairs(shares, one.edges, color=colour, linewidth=1.3, linestyle="-" if masked else (0, (3, 1)))
            panel.annotate(
                words[one.positions],
                (x, 0.98 if masked else 0.88),
                xycoords="axes fraction",
                ha=side,
                va="top",
                color=colour,
                weight="bold",
            )
        panel.set_xlim(histograms[0].edges[0], max(one.edges[-1] for one in histograms))
        panel.set_ylim(bottom=0)
        name = f"cache-{kind.replace('_', '-')}-{temperature.replace('.', '-')}"
        return finish(figure, folder, name=name, title=title, caption=f"Positions of the train split. {reading}")
