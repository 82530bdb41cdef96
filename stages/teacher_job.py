"""What a process does that computes shards of the teacher's targets: one at a time, each published as soon as it is there."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Protocol, TypeVar

import torch

from stages.cache_description import require_teacher, require_tokens
from stages.cache_figures import shard_figures
from stages.config import CacheConfig, Config
from stages.context import Artefacts
from stages.device import torch_dtype
from stages.errors import InputError, ShardError
from stages.heads import Head
from stages.kept_head import holds_head
from stages.masking import SeesTokens, masker_of
from stages.sequences import TokenStore
from stages.sharing import Place
from stages.teacher_loading import load_teacher, spread_of
from stages.teacher_targets import SeenSequences, TargetsComputer, mask_shard
from storage import SPLITS, CacheDescription, InvalidTargetsError, Layout, ShardId, ShardPublisher, ShardTargets, Split

OF_ONE_SHARD = (ShardError, InvalidTargetsError)
"""Errors that say nothing of the other shards."""


Seen_contra = TypeVar("Seen_contra", bound=SeenSequences, contravariant=True)


class Computed(Protocol):
    """What a teacher said about a shard: on its way from the device, perhaps."""

    def targets(self) -> ShardTargets:
        """The targets, ready to be checked and stored. Waits for the device."""


class Computes(Protocol[Seen_contra]):
    """A teacher, ready to say what is to be cached of sequences. To be used by one thread."""

    def compute(self, seen: Seen_contra, layout: Layout, should_stop: Callable[[], bool]) -> Computed:
        """All of one shard. Raises `Interrupted` where `should_stop` says so."""


@dataclass(frozen=True, kw_only=True)
class TeacherJob:
    """The teacher's pass over shards of the described cache, whose work folder another process holds the lock of."""

    artefacts: Artefacts
    """With an absolute path: the processes may have another working directory."""
    description: CacheDescription
    config: Config
    at_once: int = 3
    """One shard is computed while two are checked, encoded and written, as a GPU is faster than one thread can write. Elsewhere
    the third one waits for its turn. The same for all, as who hands the shards out may be another kind of machine."""

    def head_is_there(self) -> bool:
        """Whether the work folder holds the teacher's head: then nothing is to be loaded for it."""
        return holds_head(
            self.artefacts.cache_work / self.description.fingerprint,
            self.artefacts.teacher,
            objective=self.config.teacher.objective,
            precision=torch_dtype(self.config.cache.precision),
            dtype=torch_dtype(self.config.cache.head_dtype),
        )

    def require_inputs(self) -> None:
        """Raise `InputError` unless what the teacher is to read is that of the description, as it was recorded."""
        require_tokens(self.description, TokenStore.open(self.artefacts.tokens))

    @contextmanager
    def begin(self, place: Place) -> Iterator[_Worker]:
        """The teacher, loaded; its head is put into the cache. What is given publishes a shard, unless it is there already.

        That raises `Interrupted` once `place.should_stop` says so; `ShardError` and `storage.InvalidTargetsError` where this
        shard cannot be read or computed, or the teacher gives what must not be stored; `InputError` here and there where the tokens
        or the teacher are not those of the description; `storage.errors.WriteError` where nothing can be written.
        """
        tokens = TokenStore.open(self.artefacts.tokens)
        self.require_inputs()
        publisher = ShardPublisher(self.artefacts.cache_work, self.description)
        computer, sees = self.load(place, publisher), self.sees(tokens)
        # All forward passes are done in one thread: each that does one has a pool of `place.threads` of its own.
        with ThreadPoolExecutor(1, "teacher", torch.set_num_threads, (place.threads,)) as thread:
            yield _Worker(
                job=self,
                place=place,
                tokens=tokens,
                tokens_again=TokenStore.open(self.artefacts.tokens),
                sees=sees,
                computer=computer,
                publisher=publisher,
                thread=thread,
            )

    def load(self, place: Place, publisher: ShardPublisher) -> Computes[Any]:
        """The teacher that the description is of; its LM head is put into the cache. Raises as `begin`."""
        config = self.config.cache
        teacher = load_teacher(
            self.artefacts.teacher,
            objective=self.config.teacher.objective,
            attention=config.attention,
            dtype=torch_dtype(config.precision),
            device=place.device,
            spread=spread_of(self.config.machine, self.artefacts.cache_work, self.description.fingerprint),
        )
        require_teacher(self.description, self.artefacts.teacher)  # after it was loaded: it may be replaced at any time
        computer = TargetsComputer(
            teacher,
            temperatures=self.description.temperatures,
            pad_id=self.description.pad_id,
            batch_tokens=config.batch_tokens,
            compiled=config.compile,
        )
        for name, data in Head.of(teacher).files(torch_dtype(config.head_dtype)).items():
            publisher.add_file(name, data)
        return computer

    def sees(self, tokens: TokenStore) -> Callable[[ShardId], SeenSequences]:
        """What gives a shard's sequences as the teacher sees them; called by one thread at a time."""
        maskers: dict[Split, SeesTokens] = {split: masker_of(self.config, tokens, split) for split in SPLITS}
        seed = self.config.masking.seed
        return lambda shard: mask_shard(tokens, maskers[shard.split], shard, self.description.span(shard), seed=seed)


@dataclass(frozen=True, kw_only=True)
class _Worker:
    """All that a process needs; called in several threads."""

    job: TeacherJob
    place: Place
    tokens: TokenStore
    tokens_again: TokenStore
    """The same, with buffers of its own: what the targets are compared with was read from the disk once more."""
    sees: Callable[[ShardId], SeenSequences]
    computer: Computes[Any]
    publisher: ShardPublisher
    thread: ThreadPoolExecutor
    reading: Lock = field(default_factory=Lock)

    def __call__(self, shard: ShardId) -> None:
        if self.publisher.find(shard) is not None:  # done by a process that was lost before it could say so
            return
        description = self.job.description
        with self._reading(shard):
            seen = self.sees(shard)
        targets = self._compute(shard, seen)
        with self._reading(shard):
            read = self.tokens_again.split(shard.split).read(*description.span(shard))
        targets.check_against(description, shard, *read)
        rows = targets.row_token
        masked = (seen.masked if rows is None else seen.masked[rows]) == 1
        figures = shard_figures(targets, masked, description.temperatures) if description.task is None else {}
        self.publisher.publish(shard, targets, computed_with(self.job.config, self.place), figures)

    def _compute(self, shard: ShardId, seen: SeenSequences) -> ShardTargets:
        layout = self.job.description.splits[shard.split].layout
        try:
            computed = self.thread.submit(self.computer.compute, seen, layout, self.place.should_stop).result()
            return computed.targets()
        except (RuntimeError, MemoryError) as error:
            traceback.clear_frames(error.__traceback__)  # they hold what is on the device, and the error is kept
            raise ShardError(why_not(shard, error, self.job.config.cache, self.place.device)) from error

    @contextmanager
    def _reading(self, shard: ShardId) -> Iterator[None]:
        """One thread reads at a time. The tokens that were read are those of the description."""
        with self.reading:
            try:
                yield
                failed = None
            except (InputError, IndexError) as error:
                failed = error
            self.job.require_inputs()
        if failed is not None:
            raise ShardError(f"shard {shard} cannot be read: {failed}") from failed


def why_not(shard: ShardId, error: Exception, config: CacheConfig, device: str) -> str:
    """Why torch did not compute a shard, on one line (it says much more), and what can be done."""
    said = str(error).strip().split("\n")[0]
    no_memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in said
    steps = [f"set cache.batch_tokens to less than {config.batch_tokens}"] if no_memory else []
    steps += ["set cache.compile to false"] if config.compile else []
    return (
        f"shard {shard} cannot be computed: {f'no memory is left on {device}' if no_memory else 'the teacher failed'} "
        f"({type(error).__name__}: {said}); {' or '.join(steps) or '--debug shows where'}"
    )


def computed_with(config: Config, place: Place) -> dict[str, str | int]:
    """What may change the last bits of a shard. No time and no host: it is part of the cache."""
    return {
        "batch_tokens": config.cache.batch_tokens,
        **({"compiled": 1} if config.cache.compile else {}),
        "device": torch.device(place.device).type,
        "threads": place.threads,
        "torch": torch.__version__.split("+")[0],
    }
