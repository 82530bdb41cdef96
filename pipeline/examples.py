"""How each command is called, for the end of its --help. A test parses every line."""

from __future__ import annotations

import click

EXAMPLES: dict[str, tuple[str, ...]] = {
    "init": ("pipeline init", "pipeline init minilm --into my-student"),
    "corpus": ("pipeline corpus", "pipeline corpus --workers 4 -S corpus.max_documents=1000"),
    "tokenize": ("pipeline tokenize", "pipeline tokenize --workers 4"),
    "teacher": ("pipeline teacher", "pipeline teacher large"),
    "plan": ("pipeline plan", "pipeline plan --workers 1,8,64 --json plan.json"),
    "cache-teacher": (
        "pipeline cache-teacher --dry-run",
        "pipeline cache-teacher --workers 2",
        "pipeline cache-teacher --root s3://bucket/caches --shards 1/8",
    ),
    "init-student": ("pipeline init-student", "pipeline init-student half"),
    "train-student": (
        "pipeline train-student --dry-run",
        "pipeline train-student -S train.steps=50 -S train.temperature=4",
        "torchrun --nproc-per-node 2 -m pipeline train-student",
    ),
    "evaluate": ("pipeline evaluate --json", "pipeline evaluate --speed --batch-sizes 1,8,32"),
    "finetune": (
        "pipeline finetune --dry-run",
        "pipeline finetune SST-2 --model student",
        "pipeline finetune --distil",
    ),
    "report": ("pipeline report",),
    "compare": (
        "pipeline compare",
        "pipeline compare --gather --json -",
        "pipeline compare runs ../other/runs --json -",
    ),
    "cache": ("pipeline cache info", "pipeline cache verify --deep"),
    "cache info": ("pipeline cache info", "pipeline cache info --teacher large --json"),
    "cache verify": ("pipeline cache verify --deep", "pipeline cache verify --against-teacher 8 --json"),
    "cache repair": ("pipeline cache repair",),
    "cache push": ("pipeline cache push s3://bucket/caches --verify",),
    "cache pull": (
        "pipeline cache pull s3://bucket/caches",
        "pipeline cache pull file:///mnt/caches --fingerprint 3f9a --split train",
    ),
    "completion": (
        'eval "$(pipeline completion bash)"',
        'eval "$(pipeline completion zsh)"',
        "pipeline completion fish | source",
    ),
}
"""Command, without `pipeline` -> what is typed."""


def add_examples(group: click.Group, path: str = "") -> None:
    """Put the examples below the help of every command of the group. Raises `KeyError` for one that has none."""
    for name, command in group.commands.items():
        whole = f"{path} {name}".strip()
        lines = "\n".join(f"  {line}" for line in EXAMPLES[whole])
        command.epilog = f"\b\nExamples:\n{lines}"  # \b: click leaves the lines as they are
        if isinstance(command, click.Group):
            add_examples(command, whole)
