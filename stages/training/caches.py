"""The caches that a training reads: whether they are those of its parameters, and their batches."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from stages.batches import PlannedBatches
from stages.batches.joined import JoinedBatches
from stages.cache_location import cache_name, open_cache
from stages.config import Config, ConfigError, cache_spec, check_ensemble_widths, check_teacher_layers
from stages.config.ensemble import MAIN
from stages.context import Context
from stages.errors import InputError
from stages.model_config import ModelShape
from stages.models import weights_digest
from stages.sequences import TokenStore
from stages.training.distiller import wanted_by
from stages.training.run import TrainingRun, batch_plan
from stages.training.teachers import (
    FurtherCache,
    further_shares,
    main_share,
    memory_of_each,
    refuse_other_rows,
)
from storage import CacheReader, MismatchError, SharedBy, differing_fields


def check_cache(config: Config, context: Context, reader: CacheReader) -> None:
    """Refuse a cache whose `spec` is not that of the parameters, or whose content is not that of the files at hand.

    Raises `storage.MismatchError` naming the fields and what to do.
    """
    _check_spec(config, context, reader)
    found: dict[str, str] = {}
    if context.artefacts.teacher.is_dir():
        found["teacher"] = weights_digest(context.artefacts.teacher)
    if context.artefacts.tokens.is_dir():
        found.update(TokenStore.open(context.artefacts.tokens).content_digests())
    _check_content(context, reader, found)


def _check_spec(config: Config, context: Context, reader: CacheReader) -> None:
    artefacts = context.artefacts
    differences = differing_fields(cache_spec(config), reader.description.spec)
    if differences:
        again = "dvc repro cache-teacher" if artefacts.further_teacher is None else artefacts.cache_command
        raise MismatchError(
            f"{cache_name(artefacts)} was made with other parameters: {'; '.join(differences)}. Put these back in "
            f"params.yaml, or make a cache with the new ones where the teacher is: {again}",
            differences,
        )


def _check_content(context: Context, reader: CacheReader, found: dict[str, str]) -> None:
    """`found` are digests of the files at hand."""
    content = {name: reader.description.content[name] for name in found}
    differences = differing_fields(found, content)
    if differences:
        raise MismatchError(
            f"{cache_name(context.artefacts)} was made from other files than the ones here: {'; '.join(differences)}; "
            f"run: {context.artefacts.cache_command}",
            differences,
        )


def further_caches(config: Config, context: Context, main: CacheReader) -> list[FurtherCache]:
    """The caches of the other teachers of an ensemble, made with these parameters and of the same rows as the main one.

    Their tokens are those of the main cache, which were compared with the files at hand.
    """
    found: list[FurtherCache] = []
    for name, share in further_shares(config.train).items():
        of_teacher, there = config.of_teacher(name), context.of_teacher(name)
        artefacts = there.artefacts
        if artefacts.root is None and not artefacts.cache.is_dir():
            raise InputError(
                f"{artefacts.cache} is missing: the cache of the teacher {name} of train.ensemble; run: "
                f"{artefacts.cache_command} where that teacher is, then bring {artefacts.shown(artefacts.cache.parent)} here"
            )
        reader = open_cache(of_teacher, there, "train")
        _check_spec(of_teacher, there, reader)
        if artefacts.teacher.is_dir():
            _check_content(there, reader, {"teacher": weights_digest(artefacts.teacher)})
        refuse_other_rows(main, name, reader, artefacts.cache_command)
        try:
            check_teacher_layers(config.train, config.cache, ModelShape.of(reader.description.teacher_config).layers)
        except ConfigError as error:
            raise ConfigError(f"teachers.{name}: {error}") from None
        found.append(FurtherCache(name=name, share=share, reader=reader))
    if config.train.ensemble is not None:
        check_ensemble_widths(config.train, *_widths(config, main, found))
        readers = [main, *(cache.reader for cache in found)]
        memory_of_each(readers, batch_plan(config, main), wanted_by(config.train), memory_bytes(config))
    return found


def _widths(config: Config, main: CacheReader, further: Sequence[FurtherCache]) -> tuple[int, dict[str, int]]:
    """Sizes of the hidden states of the student, and of each teacher that it learns from."""
    of_main = main.description.hidden_size
    teachers = {MAIN: of_main} if main_share(config.train) > 0 else {}
    teachers |= {cache.name: cache.reader.description.hidden_size for cache in further}
    return config.student.hidden_size or of_main, teachers


def left_out_of_cosine(config: Config, main: CacheReader, further: Sequence[FurtherCache]) -> str | None:
    """A line on the teachers whose hidden states the cosine loss cannot compare with the student's; None where there are none."""
    if config.train.ensemble is None or config.train.weights.cos == 0:
        return None
    student, teachers = _widths(config, main, further)
    others = [f"{name} ({size})" for name, size in teachers.items() if size != student]
    if not others:
        return None
    return f"no cosine loss from {', '.join(others)}: the student's hidden states have {student} values"


def memory_bytes(config: Config) -> int:
    """What all decoded shards may take."""
    return int(config.machine.shard_memory_gb * 2**30)


def batches_of(
    config: Config, context: Context, reader: CacheReader, run_: TrainingRun, first_step: int
) -> PlannedBatches | JoinedBatches:
    """This process's micro-batches from `first_step` on, of all the caches of the run."""
    train, wanted = config.train, wanted_by(config.train)
    caches = {MAIN: reader, **{cache.name: cache.reader for cache in run_.further}}
    rooms = memory_of_each(list(caches.values()), run_.plan, wanted, memory_bytes(config))
    main, *others = (
        PlannedBatches(
            cache,
            run_.plan,
            wanted=wanted,
            micro_batch_size=train.micro_batch_size,
            first_step=first_step,
            last_step=run_.steps,
            rank=context.rank,
            world_size=context.world_size,
            memory_bytes=room,
            shared_by=_shared_by(context, run_, name),
            pin_memory=context.device != "cpu",
        )
        for (name, cache), room in zip(caches.items(), rooms, strict=True)
    )
    if not others:
        return main
    return JoinedBatches(main, dict(zip(list(caches)[1:], others, strict=True)))


def _shared_by(context: Context, run_: TrainingRun, cache: str) -> SharedBy | None:
    """The processes of this node, which read the cache of that name by one loader; None where this one is alone."""
    node = context.node
    if node.size == 1:
        return None
    name = hashlib.sha256(f"{node.launch}/{run_.fingerprint}/{cache}".encode()).hexdigest()[:16]
    # A path of a Unix socket has some 100 characters at most, so it does not lie below the project.
    address = Path(tempfile.gettempdir()) / f"teacher-cache-{os.getuid()}-{name}.sock"
    return SharedBy(rank=node.rank, size=node.size, address=address)
