"""`pipeline plan`: what a cache will cost, and when it pays, before anything is spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stages.cache_description import describe
from stages.config import CacheConfig, Config
from stages.context import Context
from stages.device import torch_dtype
from stages.errors import ConfigError
from stages.heads import Head
from stages.models import count_parameters, require_model
from stages.planning.break_even import StudentRun, stage_one_hours
from stages.planning.disk import probe_disk
from stages.planning.sample import draw_samples
from stages.planning.sizes import cache_bytes, described, preset_caches, split_size, weigh_cache, weigh_presets
from stages.planning.teacher_probe import TeacherProbe
from stages.sequences import TokenStore
from stages.teacher_loading import load_teacher, spread_of
from storage import CacheDescription
from storage.disk_probe import scratch
from storage.size_estimate import ShardCost, bytes_beside_shards

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def run(
    config: Config, context: Context, *, sample_tokens: int, workers: Sequence[int] = (1, 2, 4, 8)
) -> dict[str, Any]:
    """The plan as plain JSON (docs/planning.md). Writes nothing but probes into `.cache-work`, which are removed.

    About `sample_tokens` tokens of the train split are run through the teacher (`draw_samples`).

    Raises `ConfigError` where the parameters ask for caches of tasks, which are not planned, `InputError` where tokens or teacher
    are missing, do not fit each other, or the teacher gives NaN, `LockedError` where another plan is being made,
    `storage.errors.WriteError` where nothing may be written, and `Interrupted` between two probes when asked to stop.
    """
    artefacts = context.artefacts
    if config.cache.targets != "language_model" and artefacts.further_teacher is None:
        raise ConfigError(
            f"cache.targets is {config.cache.targets}, and only the cache of a language model is planned, not those of tasks; "
            "`pipeline cache-teacher --dry-run` says what there is of each task's; for the language model's cache run: pipeline plan "
            "-S cache.targets=language_model"
        )
    tokens = TokenStore.open(artefacts.tokens)
    require_model(artefacts.teacher, "the teacher", artefacts.teacher_command)
    description = describe(config, context, tokens)
    teacher = load_teacher(
        artefacts.teacher,
        objective=config.teacher.objective,
        attention=config.cache.attention,
        dtype=torch_dtype(config.cache.precision),
        device=context.device,
        spread=spread_of(config.machine, artefacts.cache_work),
    )
    head = Head.of(teacher)
    caches = preset_caches(config)
    presets = {name: described(cache, description) for name, cache in caches.items()}
    samples = draw_samples(config, context, tokens, description, sample_tokens)
    probe = TeacherProbe(teacher, head, config, context, pad_id=description.pad_id)
    with scratch(artefacts.cache_work, "plan") as folder:
        disk = probe_disk(folder, at_root=artefacts.root is not None, tracked=artefacts.tokens)
        probe.begin(samples)
        stage_one = probe.stage_one(description, samples["train"])
        held = {split: probe.hold(presets.values(), split, pieces) for split, pieces in samples.items()}
        costs = weigh_cache(folder, context, description, stage_one.sample, held)
        costs_of_presets = weigh_presets(folder, context, presets, held)
        online = probe.online(samples["train"])
    beside = _bytes_beside(config.cache, description, head, tokens)
    total = cache_bytes(config, description, costs, beside)
    to_run = sum(plan.tokens * plan.variants for plan in description.splits.values())
    teacher_seconds = to_run / stage_one.tokens_per_second
    write_seconds = disk.write_seconds(total)
    student_run = StudentRun.of(config, description, online, costs["train"].read_seconds_per_row)
    return {
        "fingerprint": description.fingerprint,
        "device": _devices(config, context, teacher),
        "threads": context.threads,
        "preset": config.cache.preset,
        "positions": config.cache.positions,
        "sample_tokens": {split: sum(len(piece.original_ids) for piece in samples[split]) for split in samples},
        "splits": {split: split_size(config, description, split, cost) for split, cost in costs.items()},
        "bytes_beside_shards": beside,
        "bytes": total,
        "presets": {
            name: _preset(config, presets[name], costs, _bytes_beside(caches[name], presets[name], head, tokens))
            for name, costs in costs_of_presets.items()
        },
        "disk": disk.needing(total),
        "teacher": {
            "parameters": count_parameters(teacher),
            "precision": config.cache.precision,
            "attention": config.cache.attention,
            "compiled": config.cache.compile,
            "batch_tokens": config.cache.batch_tokens,
            "tokens_to_run": to_run,
            "tokens_per_second": round(stage_one.tokens_per_second, 1),
            "slowest": round(min(stage_one.rates), 1),
            "fastest": round(max(stage_one.rates), 1),
        },
        "hours": {
            str(number): round(stage_one_hours(teacher_seconds, write_seconds, number), 6)
            for number in sorted({1, *workers})
        },
        "write_hours": None if write_seconds is None else round(write_seconds / 3600, 6),
        "student_run": student_run.to_json(3600 * stage_one_hours(teacher_seconds, write_seconds)),
        "memory": online.memory.to_json(keeps_head=student_run.keeps_head),
    }


def _devices(config: Config, context: Context, teacher: PreTrainedModel) -> str:
    """That which the teacher runs on, or all that `machine.device_map` has spread it over."""
    if config.machine.device_map is None:
        return context.device
    placed: Mapping[str, int | str] = vars(teacher)["hf_device_map"]  # set by transformers, without a declaration
    places = dict.fromkeys(placed.values())  # a GPU has a number, and the others names
    return ", ".join(f"cuda:{place}" if isinstance(place, int) else str(place) for place in places)


def _bytes_beside(cache: CacheConfig, description: CacheDescription, head: Head, tokens: TokenStore) -> int:
    """What a cache of this description holds once."""
    return bytes_beside_shards(description, head.files(torch_dtype(cache.head_dtype)), tokens.tokenizer_folder)


def _preset(
    config: Config, description: CacheDescription, costs: Mapping[Any, ShardCost], beside: int
) -> dict[str, Any]:
    train = split_size(config, description, "train", costs["train"])
    return {
        "bytes": cache_bytes(config, description, costs, beside),
        "bytes_per_train_position": round(sum(train["bytes_per_position"].values()), 2),
    }
