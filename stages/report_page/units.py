"""Numbers for people: few digits, thousands separators, units. Strings out, never to be parsed again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median

NO_BREAK = "\N{NO-BREAK SPACE}"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float, digits: int = 4) -> str:
    """`digits` significant ones, but at most 4 decimals: 0.1750, 0.0783, 71.20, 1,234; powers of ten below 0.001."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if exponent < -3:
        mantissa = f"{value / 10**exponent:.{digits - 1}f}".rstrip("0").rstrip(".")
        return f"{mantissa}{NO_BREAK}×{NO_BREAK}10{str(exponent).translate(_SUPERSCRIPT)}"
    return f"{value:,.{min(4, max(0, digits - 1 - exponent))}f}"


def count(value: float) -> str:
    """A whole number: 593,573."""
    return f"{value:,.0f}"


def plural(value: float, one: str, many: str | None = None) -> str:
    """A whole number and its noun: 1 layer, 12 layers."""
    return f"{count(value)}{NO_BREAK}{one if value == 1 else many or one + 's'}"


def percent(share: float) -> str:
    """0.712 is 71.2 %; what would round to nothing is `< 0.1 %`."""
    if 0 < share < 0.0005:
        return f"<{NO_BREAK}0.1{NO_BREAK}%"
    return f"{100 * share:.1f}{NO_BREAK}%" if math.isfinite(share) else number(share)


def millions(value: float) -> str:
    """Parameters: 2.72 million; below a million all digits."""
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{number(value / size, 3)}{NO_BREAK}{word}"
    return count(value)


def data_size(value: float) -> str:
    """Bytes in decimal units: 224.8 MB."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= size:
            return f"{number(value / size)}{NO_BREAK}{unit}"
    return f"{count(value)}{NO_BREAK}bytes"


def duration(seconds: float) -> str:
    """52.2 s, 4 min 26 s, 2 h 5 min."""
    if seconds < 60:
        return f"{number(seconds, 3)}{NO_BREAK}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{NO_BREAK}min {rest}{NO_BREAK}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{NO_BREAK}h {minutes}{NO_BREAK}min"


def times(factor: float) -> str:
    """A factor: 1.82 ×."""
    return f"{number(factor, 3)}{NO_BREAK}×"


def points(share: float) -> str:
    """A score, a fraction of 1, as it is usual for downstream tasks: 87.5 of 100."""
    return f"{100 * share:.1f}"


def spread(scores: Sequence[float], middle: Callable[[Sequence[float]], float] = median) -> str:
    """The middle of a task's scores and half the distance between the lowest and the highest: 87.5 ± 0.4."""
    half = f" ± {points((max(scores) - min(scores)) / 2)}" if len(scores) > 1 else ""
    return points(middle(scores)) + half.replace(" ", NO_BREAK)


def signed(difference: float, show: Callable[[float], str]) -> str:
    """A difference with its sign, as `show` shows its size: +0.084, −2.3."""
    return f"{'+' if difference > 0 else '−' if difference < 0 else ''}{show(abs(difference))}"


def unbroken(name: str) -> str:
    """A name with a hyphen, which a narrow column would else put on two lines: STS-B."""
    return name.replace("-", "\N{NON-BREAKING HYPHEN}")


def listed(names: Sequence[str]) -> str:
    """MRPC, SST-2 and STS-B."""
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)
