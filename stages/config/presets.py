"""The presets of the cache: what a name stands for."""

from __future__ import annotations

from dataclasses import dataclass

from storage import HiddenName, LogitsName


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Values that a preset's name stands for."""

    hidden: HiddenName
    logits: LogitsName
    top_k: int
    draws: int = 0
    draw_temperature: float = 1.0


PRESETS = {
    "lossless": Preset(hidden="float32", logits="float32", top_k=64),
    "exact": Preset(hidden="float16", logits="float16", top_k=64),
    "balanced": Preset(hidden="int8", logits="grid", top_k=32),
    # The draws are for the published training temperature; the few logits beside them say how sure the teacher was.
    "small": Preset(hidden="none", logits="grid", top_k=8, draws=50, draw_temperature=2.0),
}
"""Named points on the ladder of size against error; figures in docs/performance.md. A field that is set beside `preset` wins."""
