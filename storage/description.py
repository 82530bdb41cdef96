"""cache.json: what a cache is (identity), what its arrays are (layouts) and which shards it has (the plan)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from storage.errors import CorruptError, FormatError
from storage.identity import canonical_json, fingerprint
from storage.layout import FORMAT_VERSION, SPLITS, Layout, ShardId, Split

KNOWN_FEATURES = frozenset(
    {
        *("int8-groups", "logit-grid", "row-token", "row-sample", "bfloat16-bits", "threshold", "draws", "causal"),
        *("attention-vectors", "task"),
    }
)
"""What this reader knows (FORMAT.md, section 7)."""

_NEWER = "update teacher-cache to read it"


@dataclass(frozen=True, kw_only=True)
class SplitDescription:
    """One split: how its arrays are coded, and how its sequences 0 .. `sequences` - 1 are cut into shards."""

    layout: Layout
    variants: int
    sequences: int
    tokens: int
    """Tokens of these sequences, once (not once per variant)."""
    shards: tuple[tuple[int, int], ...]
    """(sequence_start, sequence_count) of each shard; the same in every variant."""

    def __post_init__(self) -> None:
        expected = 0
        for number, (start, count) in enumerate(self.shards):
            if start != expected or count < 1:
                raise ValueError(
                    f"shard {number} is planned as {count} sequences from {start}; expected one or more from {expected}"
                )
            expected += count
        if expected != self.sequences:
            raise ValueError(f"the shards hold {expected} sequences; expected {self.sequences}")
        if self.variants < 1:
            raise ValueError(f"variants is {self.variants}; expected 1 or more")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; `from_json` gives an equal value back."""
        return {
            "layout": self.layout.to_json(),
            "variants": self.variants,
            "sequences": self.sequences,
            "tokens": self.tokens,
            "shards": [list(shard) for shard in self.shards],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SplitDescription:
        """The value that `to_json` wrote."""
        shards = tuple((int(start), int(count)) for start, count in value["shards"])
        layout = Layout.from_json(value["layout"])
        return cls(**{**value, "layout": layout, "shards": shards})


@dataclass(frozen=True, kw_only=True)
class CacheDescription:
    """The content of cache.json (FORMAT.md, section 2)."""

    spec: dict[str, Any]
    content: dict[str, Any]
    temperatures: tuple[float, ...]
    vocabulary_size: int
    hidden_size: int
    special_tokens: dict[str, int | None]
    teacher_config: dict[str, Any]
    splits: dict[Split, SplitDescription]
    objective: Literal["masked", "causal"] = "masked"
    """What the teacher predicts at a token: that token, or the next one."""
    task: dict[str, Any] | None = None
    """`name`, `kind`, `head` and `labels` of the task that the teacher was fine-tuned on; None: it is a language model."""

    def __post_init__(self) -> None:
        if self.objective not in ("masked", "causal"):
            raise ValueError(f"objective is {self.objective!r}; expected masked or causal")
        if 1.0 not in self.temperatures or list(self.temperatures) != sorted(set(self.temperatures)):
            raise ValueError(f"temperatures are {self.temperatures}; expected 1.0 among them, ascending, each once")
        head = "none" if self.task is None else self.task.get("head")
        for split, description in self.splits.items():
            layout = description.layout
            if layout.task != head:
                raise ValueError(f"task of {split} is {layout.task}; expected {head}, the head of the cache's task")
            most = self.vocabulary_size - (1 if layout.draw_from == "tail" else 0)  # there must be a tail
            if layout.top_k > most:
                raise ValueError(
                    f"top_k of {split} is {layout.top_k}; expected at most "
                    + (
                        f"{most}, which leaves a tail to draw from"
                        if layout.draw_from == "tail"
                        else f"the vocabulary, {most}"
                    )
                )
            for name in ("threshold_temperature", "draw_temperature"):
                # 1, where it means nothing, is always declared.
                if getattr(layout, name) not in self.temperatures:
                    raise ValueError(
                        f"{name} of {split} is {getattr(layout, name)}; expected one of {self.temperatures}"
                    )

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of `spec` and `content`: the cache's name."""
        return fingerprint(self.spec, self.content)

    @property
    def pad_id(self) -> int:
        """What to fill sequences up with; 0 where the tokenizer has no padding token: attention masks leave it out."""
        return self.special_tokens.get("pad") or 0

    @property
    def required_features(self) -> tuple[str, ...]:
        """What a reader must know, by name, over all splits."""
        codings = {name for split in self.splits.values() for name in split.layout.required_features}
        return tuple(sorted(codings | ({"causal"} if self.objective == "causal" else set())))

    def is_part_of(self, other: CacheDescription) -> bool:
        """Whether this is the other cache with some of its splits left out."""
        kept = {name: split for name, split in other.splits.items() if name in self.splits}
        fewer = self.splits.keys() < other.splits.keys()
        return fewer and canonical_json(replace(other, splits=kept).to_json()) == canonical_json(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """The content of cache.json."""
        return {
            "format_version": FORMAT_VERSION,
            "required_features": list(self.required_features),
            "fingerprint": self.fingerprint,
            "spec": self.spec,
            "content": self.content,
            "temperatures": list(self.temperatures),
            "vocabulary_size": self.vocabulary_size,
            "hidden_size": self.hidden_size,
            "special_tokens": self.special_tokens,
            "teacher_config": self.teacher_config,
            "splits": {split: description.to_json() for split, description in self.splits.items()},
            # Left out where it is what it was before it joined: older caches keep their bytes.
            **({} if self.objective == "masked" else {"objective": self.objective}),
            **({} if self.task is None else {"task": self.task}),
        }

    @classmethod
    def from_json(cls, value: Any) -> CacheDescription:
        """The description that `to_json` wrote.

        Raises `FormatError` for a version or feature that this reader does not know, `CorruptError` for content that
        no writer of this version makes.
        """
        if not isinstance(value, dict):
            raise CorruptError(f"cache.json holds a {type(value).__name__}; expected an object")
        check_version("cache.json", value)
        unknown = sorted(set(value.get("required_features", ())) - KNOWN_FEATURES)
        if unknown:
            raise FormatError(
                f"cache.json requires the feature {', '.join(unknown)}; "
                f"this reader knows {', '.join(sorted(KNOWN_FEATURES))}; {_NEWER}"
            )
        try:
            description = cls(
                spec=value["spec"],
                content=value["content"],
                temperatures=tuple(map(float, value["temperatures"])),
                vocabulary_size=int(value["vocabulary_size"]),
                hidden_size=int(value["hidden_size"]),
                special_tokens=value["special_tokens"],
                teacher_config=value["teacher_config"],
                objective=value.get("objective", "masked"),
                task=value.get("task"),
                splits={
                    name: SplitDescription.from_json(value["splits"][name])
                    for name in SPLITS
                    if name in value["splits"]
                },
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptError(
                f"cache.json is not as a writer of version {FORMAT_VERSION} makes it: {error!r}"
            ) from error
        found = value.get("fingerprint")
        if found != description.fingerprint:
            raise CorruptError(
                f"cache.json says fingerprint {found}; its spec and content give {description.fingerprint}"
            )
        return description

    @classmethod
    def from_bytes(cls, data: bytes) -> CacheDescription:
        """The description in the bytes of a cache.json. Raises as `from_json`."""
        try:
            return cls.from_json(json.loads(data))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise CorruptError(f"cache.json is no JSON: {error}") from error

    def shard_ids(self) -> list[ShardId]:
        """All shards in order: by split, variant, number."""
        return [
            ShardId(split, variant, number)
            for split in SPLITS
            if split in self.splits
            for variant in range(self.splits[split].variants)
            for number in range(len(self.splits[split].shards))
        ]

    def span(self, shard: ShardId) -> tuple[int, int]:
        """(sequence_start, sequence_count) of a shard. Raises `KeyError` for a shard that is not in the plan."""
        split = self.splits.get(shard.split)
        if split is None or shard.variant >= split.variants or shard.number >= len(split.shards):
            raise KeyError(f"shard {shard} is not in the plan of this cache")
        return split.shards[shard.number]


def check_version(file: str, value: Mapping[str, Any]) -> None:
    """Raise `FormatError` unless `value`, the content of `file`, has the format version of this reader."""
    version = value.get("format_version")
    if version != FORMAT_VERSION:
        raise FormatError(f"{file} has format_version {version!r}; this reader knows {FORMAT_VERSION}; {_NEWER}")
