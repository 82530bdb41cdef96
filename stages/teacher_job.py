"""What a process does that computes shards of the teacher's targets: one at a time, each published as soon as it is there."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock

import torch

from stages.cache_figures import shard_figures
from stages.config import Config
from stages.context import Artefacts
from stages.heads import Head
from stages.masking import SeesTokens, masker_of
from stages.sequences import TokenStore
from stages.sharing import Place
from stages.teacher_loading import load_teacher, spread_of
from stages.teacher_targets import TargetsComputer, mask_shard
from storage import SPLITS, CacheDescription, ShardId, ShardPublisher, Split

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class TeacherJob:
    """The teacher's pass over shards of the described cache, whose work folder another process holds the lock of."""

    artefacts: Artefacts
    """With an absolute path: the processes may have another working directory."""
    description: CacheDescription
    config: Config
    at_once: int = 2
    """One shard is checked, encoded and written while the next is computed. A GPU is faster than one thread can write."""

    @contextmanager
    def begin(self, place: Place) -> Iterator[_Worker]:
        """The teacher, loaded; its head is put into the cache. What is given publishes a shard, unless it is there already.

        That raises `Interrupted` once `place.should_stop` says so, `storage.InvalidTargetsError` where the teacher gives what
        must not be stored, `storage.errors.WriteError` where nothing can be written.
        """
        config = self.config.cache
        tokens = TokenStore.open(self.artefacts.tokens)
        teacher = load_teacher(
            self.artefacts.teacher,
            objective=self.config.teacher.objective,
            attention=config.attention,
            dtype=_DTYPES[config.precision],
            device=place.device,
            spread=spread_of(self.config.machine, self.artefacts.cache_work),
        )
        computer = TargetsComputer(
            teacher,
            temperatures=self.description.temperatures,
            pad_id=self.description.pad_id,
            batch_tokens=config.batch_tokens,
            compiled=config.compile,
        )
        publisher = ShardPublisher(self.artefacts.cache_work, self.description)
        for name, data in Head.of(teacher).files(_DTYPES[config.head_dtype]).items():
            publisher.add_file(name, data)
        # All forward passes are done in one thread: each that does one has a pool of `place.threads` of its own.
        with ThreadPoolExecutor(1, "teacher", torch.set_num_threads, (place.threads,)) as thread:
            yield _Worker(
                job=self,
                place=place,
                tokens=tokens,
                maskers={split: masker_of(self.config, tokens, split) for split in SPLITS},
                computer=computer,
                publisher=publisher,
                thread=thread,
            )


@dataclass(frozen=True, kw_only=True)
class _Worker:
    """All that a process needs; called in several threads."""

    job: TeacherJob
    place: Place
    tokens: TokenStore
    maskers: dict[Split, SeesTokens]
    computer: TargetsComputer
    publisher: ShardPublisher
    thread: ThreadPoolExecutor
    reading: Lock = field(default_factory=Lock)

    def __call__(self, shard: ShardId) -> None:
        if self.publisher.find(shard) is not None:  # done by a process that was lost before it could say so
            return
        description, seed = self.job.description, self.job.config.masking.seed
        layout = description.splits[shard.split].layout
        with self.reading:
            seen = mask_shard(self.tokens, self.maskers[shard.split], shard, description.span(shard), seed=seed)
        computed = self.thread.submit(self.computer.compute, seen, layout, self.place.should_stop).result()
        targets = computed.targets()
        with self.reading:
            read = self.tokens.split(shard.split).read(*description.span(shard))
        targets.check_against(description, shard, *read)
        rows = seen.rows(layout)
        masked = (seen.masked if rows is None else seen.masked[rows]) == 1
        figures = shard_figures(targets, masked, description.temperatures)
        self.publisher.publish(shard, targets, computed_with(self.job.config, self.place), figures)


def computed_with(config: Config, place: Place) -> dict[str, str | int]:
    """What may change the last bits of a shard. No time and no host: it is part of the cache."""
    return {
        "batch_tokens": config.cache.batch_tokens,
        **({"compiled": 1} if config.cache.compile else {}),
        "device": torch.device(place.device).type,
        "threads": place.threads,
        "torch": torch.__version__.split("+")[0],
    }
