"""Checkpoints of a training run: `checkpoint-N` folders, whole or absent.

What is in one beside the student's folder: optimizer, scheduler, log, the state of each process's random numbers, what is
trained with the student and not published (`beside.safetensors`, where there is any), and `run.json`: which run and cache it
belongs to, and size and digest of every file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stages.errors import InputError, StageError
from storage.files import discard, sha256_file, sync_folder, sync_tree, write_durably

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RECORD = "run.json"
_DRAFT = ".tmp-draft"
_BESIDE = "beside.safetensors"
_OF_TORCHS_WRITER = ("inline_container", "PytorchStreamWriter", "iostream error")
"""What stands in the errors of `torch.save` that are about its file."""
_STUDENT = "student."
"""What the names of its tensors begin with in a distiller."""


@dataclass(frozen=True, kw_only=True)
class LogState:
    """What was added up for the log since its last line."""

    since: int
    """Step of that line."""
    sums: list[list[float]]
    """Of the loss and its parts, by process."""
    seconds: float
    """How long the run has trained, over all processes that had a part in it."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A whole checkpoint."""

    folder: Path
    step: int
    """Optimizer steps done."""
    processes: int
    log: LogState


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """The checkpoints of one run, in a folder of their own."""

    folder: Path
    run: str
    """Fingerprint of the run."""
    cache: str
    """Root digest of the cache that it trains from."""
    further_caches: Mapping[str, str] = field(default_factory=dict)
    """Those of the caches of the other teachers of an ensemble, by name."""
    fsdp: bool = False
    """Whether the optimizer's state is written as FSDP has it."""
    kept: int = 2

    @property
    def draft(self) -> Path:
        """Where a checkpoint is written before it has its name."""
        return self.folder / _DRAFT

    def newest(self, message: Callable[[str], None]) -> Checkpoint | None:
        """The newest whole checkpoint, or None; `message` is told of each that is damaged.

        Raises `InputError` for one of another run, or from another cache.
        """
        for folder in sorted(self._found(), key=checkpoint_step, reverse=True):
            try:
                return self._read(folder)
            except _DamagedError as error:
                message(f"{folder.name} is damaged ({error}): taking the one before it")
        return None

    def publish(self, checkpoint: Checkpoint, *, best_step: int | None) -> None:
        """Complete the draft, make it durable and give it its name; remove older ones, but not that of `best_step`."""
        draft, final = self.draft / checkpoint.folder.name, checkpoint.folder
        files = {
            path.relative_to(draft).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
            for path in sorted(draft.rglob("*"))
            if path.is_file()
        }
        record = {
            "run": self.run,
            "cache_root_digest": self.cache,
            **({"further_cache_root_digests": dict(self.further_caches)} if self.further_caches else {}),
            "step": checkpoint.step,
            "processes": checkpoint.processes,
            "fsdp": self.fsdp,
            "log": asdict(checkpoint.log),
            "files": files,
        }
        write_durably(draft / RECORD, (json.dumps(record, indent=2) + "\n").encode())
        sync_tree(draft)
        discard(final)  # one that was damaged
        draft.rename(final)
        sync_folder(self.folder)
        self._rotate(checkpoint.step, best_step)

    def _rotate(self, newest: int, best_step: int | None) -> None:
        """Keep the newest ones; those with a higher step were found damaged when this process began."""
        steps = sorted((checkpoint_step(path) for path in self._found()), reverse=True)
        kept = [step for step in steps if step <= newest][: self.kept]
        for step in set(steps) - {*kept, best_step}:
            discard(self.folder / f"checkpoint-{step}")

    def _found(self) -> list[Path]:
        return [path for path in self.folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]

    def _read(self, folder: Path) -> Checkpoint:
        try:
            record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            run, cache, fsdp, files = record["run"], record["cache_root_digest"], record["fsdp"], record["files"]
            further: dict[str, str] = record.get("further_cache_root_digests", {})
            checkpoint = Checkpoint(
                folder=folder,
                step=record["step"],
                processes=record["processes"],
                log=LogState(**record["log"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _DamagedError(f"{RECORD} cannot be read: {error}") from error
        belongs = [("run", run, self.run), ("cache", cache, self.cache)]
        belongs += [
            (f"cache of {name}", further.get(name, "none"), self.further_caches.get(name, "none"))
            for name in sorted({*further, *self.further_caches})
        ]
        for what, found, expected in belongs:
            if found != expected:
                raise InputError(
                    f"{folder} belongs to another {what} ({found[:12]}, in its {RECORD}); expected {expected[:12]}; put it back where "
                    "it was, or remove it, and run again"
                )
        if fsdp != self.fsdp:
            raise InputError(
                f"{folder} was written with machine.fsdp: {str(fsdp).lower()}; set it so and run again, or remove that folder"
            )
        for name, of_file in files.items():
            _check_file(folder / name, of_file["bytes"], of_file["sha256"])
        return checkpoint


class _DamagedError(Exception):
    """A checkpoint that is not what its record says."""


def _check_file(path: Path, size: int, digest: str) -> None:
    try:
        found = path.stat().st_size
        if found != size:
            raise _DamagedError(f"{path.name} has {found:,} bytes of {size:,}")
        if sha256_file(path) != digest:
            raise _DamagedError(f"{path.name} has other bytes than were written")
    except OSError as error:
        raise _DamagedError(f"{path.name} cannot be read: {error.strerror or error}") from error


def load_weights(student: PreTrainedModel, folder: Path) -> None:
    """Load `model.safetensors` of a checkpoint into a student. Raises `InputError` where tensors are missing or unknown.

    Tied weights are stored once, under one of their names.
    """
    try:
        loaded = load_file(folder / "model.safetensors")
        result = student.load_state_dict(loaded, strict=False)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(f"{folder} cannot be loaded ({error}); remove that folder and run again") from error
    state = student.state_dict()
    filled = {state[name].data_ptr() for name in loaded if name in state}
    missing = [name for name in result.missing_keys if state[name].data_ptr() not in filled]
    if missing or result.unexpected_keys:
        raise InputError(
            f"{folder} is no checkpoint of this student: missing {missing}, unknown {result.unexpected_keys}; "
            "remove that folder and run again"
        )


def split_state(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of a distiller: the student's by their names in it, and those that are trained beside it."""
    student = {name.removeprefix(_STUDENT): tensor for name, tensor in state.items() if name.startswith(_STUDENT)}
    return student, {name: tensor for name, tensor in state.items() if not name.startswith(_STUDENT)}


def save_beside(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write what is trained beside the student; no file where that is nothing."""
    if tensors:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / _BESIDE)


def load_beside(distiller: nn.Module, folder: Path) -> None:
    """Load it from a checkpoint. Raises `InputError` where tensors are missing, unknown or of another shape."""
    _, expected = split_state(distiller.state_dict())
    if not expected:
        return
    try:
        loaded = load_file(folder / _BESIDE)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder / _BESIDE} cannot be loaded ({error}); remove {folder} and run again") from error
    found, wanted = ({name: tuple(tensor.shape) for name, tensor in some.items()} for some in (loaded, expected))
    if found != wanted:
        raise InputError(f"{folder / _BESIDE} holds {found}; expected {wanted}; remove {folder} and run again")
    distiller.load_state_dict(loaded, strict=False)


def checkpoint_step(folder: Path) -> int:
    """Optimizer steps done at `checkpoint-N`."""
    return int(folder.name.rpartition("-")[2])


def checkpoint_of(folder: Path, step: int) -> Path:
    """The checkpoint of a step among those of a run. Raises `InputError` where it is not there."""
    checkpoint = folder / f"checkpoint-{step}"
    if not checkpoint.is_dir():
        raise InputError(
            f"{checkpoint} is missing: the best weights of a run that is over; bring it back, or remove {folder} to train anew"
        )
    return checkpoint


def log_of(checkpoint: Path) -> list[dict[str, float]]:
    """What the run has logged up to a checkpoint."""
    state: dict[str, Any] = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    log: list[dict[str, float]] = state["log_history"]
    return log


@contextmanager
def said_where_not_written(step: int, folder: Path) -> Iterator[None]:
    """Raise `StageError` where a checkpoint cannot be written into `folder`: of a full disk torch and safetensors speak differently."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        said = str(error).strip().split("\n")[0]
        if isinstance(error, RuntimeError) and not any(name in said for name in _OF_TORCHS_WRITER):
            raise
        raise StageError(
            f"the checkpoint of step {step} cannot be written to {folder} ({said}); make room there and run the same command again: "
            "it resumes from the checkpoint before it"
        ) from error
