"""Parameters of the stages `corpus`, `tokenize` and of the masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from stages.config.base import joined, require, require_seed, require_settings


@dataclass(frozen=True, kw_only=True)
class DocstringsConfig:
    """The embedded default: English prose in the docstrings of installed packages."""

    packages: tuple[str, ...]
    """Distribution names. Versions are pinned by the lock file, so the corpus is the same on every machine."""
    max_seen_share: float
    """A paragraph is dropped when more than this share of its 6-grams was seen before."""

    def __post_init__(self) -> None:
        require(bool(self.packages), "corpus.docstrings.packages", self.packages, "at least one package name")
        require(0 < self.max_seen_share <= 1, "corpus.docstrings.max_seen_share", self.max_seen_share, "0 < x <= 1")


@dataclass(frozen=True, kw_only=True)
class FilesConfig:
    """Local text, JSON lines or Parquet files."""

    paths: tuple[str, ...]
    """Files, folders (read recursively) or glob patterns, relative to the project folder."""
    document: Literal["file", "paragraph", "line"]
    """What one document of a plain text file is. JSON lines and Parquet have one document per row."""
    text_column: str | None = None
    """Column that holds the text in JSON lines and Parquet files."""

    def __post_init__(self) -> None:
        require(bool(self.paths), "corpus.files.paths", self.paths, "at least one file, folder or pattern")


@dataclass(frozen=True, kw_only=True)
class HubDatasetConfig:
    """A dataset of the Hugging Face hub."""

    name: str
    """Its id, as in `wikimedia/wikipedia`."""
    revision: str
    """A commit or tag: an unpinned dataset would not reproduce."""
    split: str
    """The split that documents are taken from, as in `train`; the project makes its own of it."""
    text_column: str
    """The column that holds the text."""
    configuration: str | None = None
    """Its configuration, for a dataset of several."""

    def __post_init__(self) -> None:
        require(bool(self.name), "corpus.hub.name", self.name, "the id of a dataset")
        require(bool(self.revision), "corpus.hub.revision", self.revision, "a commit or tag of the dataset")


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Stage `corpus`: where documents come from and how they are split."""

    source: Literal["docstrings", "files", "hub"]
    """Which of the sections below counts."""
    validation_fraction: float
    """Share of the documents held out for validation."""
    test_fraction: float
    """Share of the documents held out for the test."""
    seed: int
    """Of the split into train, validation and test, by document."""
    empty_documents: Literal["refuse", "skip"]
    """What becomes of a document without text."""
    max_documents: int | None = None
    """Only the first documents of the source, in its order; null takes all."""
    docstrings: DocstringsConfig | None = None
    files: FilesConfig | None = None
    hub: HubDatasetConfig | None = None

    def __post_init__(self) -> None:
        for name in ("validation_fraction", "test_fraction"):
            require(0 < getattr(self, name) < 0.5, f"corpus.{name}", getattr(self, name), "0 < x < 0.5")
        require(
            self.max_documents is None or self.max_documents >= 3,
            "corpus.max_documents",
            self.max_documents,
            "null or at least 3",
        )
        require_seed("corpus.seed", self.seed)
        require_settings(self, "corpus", "source", self.source)


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerConfig:
    """A WordPiece tokenizer trained on the corpus."""

    vocabulary_size: int
    """Entries, special tokens included."""
    lowercase: bool
    """Read capital letters as small ones, and drop accents."""
    min_frequency: int
    """How often a pair of pieces must occur before it is joined."""

    def __post_init__(self) -> None:
        require(self.vocabulary_size >= 32, "tokenize.train.vocabulary_size", self.vocabulary_size, "32 or more")
        require(self.min_frequency >= 1, "tokenize.train.min_frequency", self.min_frequency, "1 or more")


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """A tokenizer or model that exists: a local folder, a hub id with a pinned revision, or an installed Python package."""

    KEY: ClassVar[str] = "load"

    path: str | None = None
    """A Hugging Face folder, relative to the project."""
    hub_id: str | None = None
    """An id of the hub, as in `google-bert/bert-base-uncased`."""
    revision: str | None = None
    """A commit or tag of the hub id: an unpinned one would not reproduce."""
    package: str | None = None
    """Import name of an installed package that carries the model's files."""

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in ("path", "hub_id", "package") if getattr(self, name) is not None}
        allowed = "one of path (a folder), hub_id (with its revision) and package"
        require(len(given) == 1, "load", given, f"{allowed}{', the others null' if given else ''}")
        require(
            self.hub_id is None or bool(self.revision), "load.revision", self.revision, "a commit or tag of the hub id"
        )


@dataclass(frozen=True, kw_only=True)
class TokenizeConfig:
    """Stage `tokenize`: documents to sequences of token ids."""

    tokenizer: Literal["train", "load"]
    """`train`: a new one, on this corpus. `load`: one that exists, the teacher's as a rule."""
    sequence_tokens: int
    """Longest sequence, special tokens included. Longer documents are split."""
    min_sequence_tokens: int
    """Shorter remainders of a split document are dropped; special tokens included."""
    seed: int
    """Of the one shuffle that gives sequences their ids."""
    train: TrainTokenizerConfig | None = None
    load: SourceConfig | None = None
    packing: Literal["document", "full"] = joined("document")
    """`document`: a sequence is a document or a piece of one. `full`: documents one after the other, cut to full length."""

    def __post_init__(self) -> None:
        require(self.sequence_tokens >= 4, "tokenize.sequence_tokens", self.sequence_tokens, "4 or more")
        require(
            3 <= self.min_sequence_tokens <= self.sequence_tokens,
            "tokenize.min_sequence_tokens",
            self.min_sequence_tokens,
            f"3 to tokenize.sequence_tokens ({self.sequence_tokens})",
        )
        require_seed("tokenize.seed", self.seed)
        require_settings(self, "tokenize", "tokenizer", self.tokenizer)


@dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """Which tokens are predicted, and what stands in their place (BERT's 80/10/10, DistilBERT's smoothing)."""

    probability: float
    """Share of a sequence's tokens that is masked in the train split."""
    evaluation_probability: float
    """The same for validation and test."""
    mask: float
    """Share of the selected tokens replaced by the mask token."""
    random: float
    """Share replaced by a random token; the rest is kept."""
    smoothing: float
    """A token is chosen with weight count^-smoothing, so rare tokens come up more often; 0 turns it off."""
    variants: int
    """Masks per sequence of the train split; each costs one teacher pass. Epoch e trains on variant e mod variants."""
    seed: int
    """Of the masks; also of draws and sampled positions of the cache."""

    def __post_init__(self) -> None:
        for name in ("probability", "evaluation_probability"):
            require(0 < getattr(self, name) < 1, f"masking.{name}", getattr(self, name), "0 < x < 1")
        for name in ("mask", "random"):
            require(0 <= getattr(self, name) <= 1, f"masking.{name}", getattr(self, name), "0 to 1")
        require(self.mask + self.random <= 1, "masking.mask + masking.random", self.mask + self.random, "at most 1")
        require(self.smoothing >= 0, "masking.smoothing", self.smoothing, "0 or more")
        require(self.variants >= 1, "masking.variants", self.variants, "1 or more")
        require_seed("masking.seed", self.seed)
