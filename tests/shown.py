"""What a document shows of a command's output, held against what the command says."""

from __future__ import annotations

import re

FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
"""Language and content of a fenced block."""


def labels(output: str) -> list[str]:
    """What names each line of an output, figures apart."""
    firsts = [re.split(r" {2,}|\t", line.strip())[0] for line in output.splitlines() if line.strip()]
    return [re.sub(r"[\d.,]+", "0", first) for first in firsts]


def missing(shown: str, output: str) -> list[str]:
    """The labels of the shown lines that do not come in the output after those before them."""
    found = iter(labels(output))
    return [label for label in labels(shown.replace("...\n", "")) if label not in found]
