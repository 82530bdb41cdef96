"""`pipeline cache verify`: whether a cache is whole, and whether it says what its teacher says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.params import read_params
from stages.config import MachineConfig
from stages.config.base import build
from stages.context import Context
from stages.errors import StageError
from storage.cache_check import NEXT, CacheCheck
from storage.errors import CorruptError

if TYPE_CHECKING:
    from stages.against_teacher.agreement import Agreement

UNCHANGED = "nothing was changed"


def verify(folder: Path, context: Context, *, deep: bool, sequences: int | None, device: str, as_json: bool) -> None:
    """Check, print what was found, and raise `CorruptError` or `StageError` unless all is well.

    `sequences` of the cache are run through the teacher; None: none are, and no tensor library is loaded.
    """
    check = CacheCheck(folder, workers=context.threads)
    run_checks(check, context, deep=deep)
    agreement = None
    if sequences is not None and not check.problems:
        agreement = _against_teacher(check, context, sequences, device)
    if as_json:
        click.echo(json.dumps(_as_json(check, deep, agreement), indent=2, ensure_ascii=False))
    else:
        _print(check, context, deep, agreement)
    if check.problems:
        named = {problem.shard for problem in check.problems if problem.shard}
        count, shards = len(check.problems), f"{len(named)} shards" if len(named) != 1 else "1 shard"
        raise CorruptError(
            f"{folder}: {count} {'problem' if count == 1 else 'problems'} in {len(check.files)} files, of {shards}; {NEXT}"
        )
    if agreement is not None and not agreement.within:
        outside = "; ".join(
            f"{found.split}: {found.name} {found.found:.3g}, limit {found.limit:.3g}"
            for found in agreement.measured
            if not found.within
        )
        raise StageError(
            f"{folder} does not say what its teacher says: {outside}; every byte is as it was written, so it was made wrongly: "
            "move it away and run `pipeline cache-teacher` again"
        )


def run_checks(check: CacheCheck, context: Context, *, deep: bool) -> None:
    """All steps of the check, with progress; ends where a stop was asked for."""
    read = 0

    def done(_: str, size: int) -> None:
        context.stop_if_asked(UNCHANGED)
        nonlocal read
        read += size
        context.progress.advance(1, megabytes=round(read / 1e6, 1))

    def decoded(name: str, _: int) -> None:
        context.stop_if_asked(UNCHANGED)
        context.progress.advance(1, shard=name.rpartition("/")[2].removesuffix(".zarr"))

    check.structure()
    context.progress.begin("read every byte", len(check.files), "files")
    check.digests(done)
    if deep:
        context.progress.begin("decode every shard", len(check.shards), "shards")
        check.contents(decoded)


def _against_teacher(check: CacheCheck, context: Context, sequences: int, device: str) -> Agreement:
    from dataclasses import replace

    from stages import device as tensor_device
    from stages.against_teacher.compare import compare_with_teacher
    from storage import CacheReader

    recorded = [manifest.computed_with.get("threads") for manifest in check.shards.values()]
    threads = next((count for count in recorded if isinstance(count, int)), None)
    name = tensor_device.resolve_device(device)
    context = replace(context, device=name, threads=tensor_device.set_up(name, threads))
    computed_with = {shard: manifest.computed_with for shard, manifest in check.shards.items()}
    # A device that was named is the one that is meant, whatever the machine's parameters say.
    machine = _machine(context.artefacts.project / "params.yaml") if device == "auto" else None
    return compare_with_teacher(CacheReader(check.folder), context, sequences, computed_with, machine)


def _machine(params_file: Path) -> MachineConfig | None:
    """That section of the parameters alone; None where there are none: a cache is verified without them."""
    section = read_params(params_file).get("machine") if params_file.is_file() else None
    return None if section is None else build(MachineConfig, section, "machine")


def _print(check: CacheCheck, context: Context, deep: bool, agreement: Agreement | None) -> None:
    if agreement is not None:
        context.progress.table(
            f"teacher beside cache, {agreement.sequences} sequences, {agreement.positions:,} positions, "
            f"{'the same' if agreement.same_hardware else 'another'} device, torch and number of threads",
            ["", "found", "limit", "within"],
            [
                [
                    f"{found.split}: {found.name}",
                    f"{found.found:.4g}",
                    f"{'>=' if found.at_least else '<='} {found.limit:.4g}",
                    "yes" if found.within else "NO",
                ]
                for found in agreement.measured
            ],
        )
    if check.problems:
        print_problems(check)
    elif check.manifest is not None:
        context.progress.summary(
            "the cache is whole",
            {
                "root digest": check.manifest.root_digest,
                "shards": len(check.shards),
                "files": len(check.files),
                "megabytes": round(check.bytes / 1e6, 2),
                "read": "every byte, and every shard decoded" if deep else "every byte",
            },
        )


def print_problems(check: CacheCheck) -> None:
    """Every problem on a line of stdout: shard, file, what is wrong."""
    for problem in check.problems:
        click.echo(f"{problem.shard or 'beside the shards'}: {problem}")


def _as_json(check: CacheCheck, deep: bool, agreement: Agreement | None) -> dict[str, Any]:
    good = not check.problems and (agreement is None or agreement.within)
    found: dict[str, Any] = {
        "folder": str(check.folder),
        "good": good,
        "deep": deep,
        "root_digest": check.manifest.root_digest if check.manifest else None,
        "shards": len(check.shards),
        "files": len(check.files),
        "bytes": check.bytes,
        "problems": [
            {"shard": problem.shard, "file": problem.file, "what": problem.what} for problem in check.problems
        ],
        "next": NEXT if check.problems else None,
    }
    if agreement is not None:
        found["against_teacher"] = {
            "sequences": agreement.sequences,
            "positions": agreement.positions,
            "same_hardware": agreement.same_hardware,
            "within": agreement.within,
            "figures": [
                {
                    "split": figure.split,
                    "name": figure.name,
                    "found": figure.found,
                    "limit": figure.limit,
                    "at_least": figure.at_least,
                    "within": figure.within,
                }
                for figure in agreement.measured
            ],
        }
    return found
