"""Stage `tokenize`: documents to sequences of token ids, shuffled once, with fixed ids.

Not called `tokenize.py`, which would shadow a module of the standard library.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerFast

from stages.config import Config, TokenizeConfig
from stages.context import Context
from stages.errors import InputError
from stages.model_config import Objective
from stages.outputs import whole_folder
from stages.provenance import write_resolved
from stages.randomness import permutation
from stages.sequences import (
    COUNTS,
    TOKENIZER,
    SequenceSplit,
    SequenceWriter,
    TokenIds,
    TokenStore,
    write_description,
)
from stages.tokenizer import load_for_teacher, special_token_ids, train_wordpiece
from storage.arrays import id_dtype
from storage.layout import SPLITS, Split

_BATCH_CHARACTERS = 1_000_000
_ROW_GROUP_TOKENS = 1 << 20


def run(config: Config, context: Context) -> None:
    """Write `data/tokens` from `data/documents`: tokenizer, sequences per split, token counts, `tokens.json`.

    A document longer than `tokenize.sequence_tokens` becomes several sequences, each with its special tokens;
    remainders shorter than `tokenize.min_sequence_tokens` are dropped. Raises `InputError` for missing documents, an
    unfit tokenizer, and a split that gives no sequence; then nothing is written.
    """
    documents = context.artefacts.documents
    for split in SPLITS:
        if not (documents / f"{split}.parquet").is_file():
            raise InputError(
                f"there are no documents in {documents} ({split}.parquet is missing); run: pipeline corpus"
            )
    tokenizer = _tokenizer(config.tokenize, config.teacher.objective, context)
    vocabulary_size = max(tokenizer.get_vocab().values()) + 1
    with whole_folder(context.artefacts.tokens) as folder:
        # Saved before it is used: encoding leaves its truncation in the tokenizer.
        tokenizer.save_pretrained(folder / TOKENIZER)
        encoder = _Encoder(tokenizer, config.tokenize, id_dtype(vocabulary_size))
        for split in SPLITS:
            unshuffled = folder / "unshuffled.bin"
            lengths = encoder.encode(documents / f"{split}.parquet", unshuffled, split, context)
            ids = np.memmap(unshuffled, dtype=id_dtype(vocabulary_size), mode="r")
            order = permutation(f"tokenize/{config.tokenize.seed}/{split}", 0, len(lengths))
            _write_in_order(order, lengths, ids, folder / f"{split}.parquet")
            unshuffled.unlink()
        counts = _token_counts(SequenceSplit(folder / "train.parquet"), vocabulary_size)
        pq.write_table(pa.table({"count": counts}), folder / COUNTS)
        write_description(
            folder,
            vocabulary_size=vocabulary_size,
            special_tokens=special_token_ids(tokenizer),
            special_ids=tuple(sorted(set(tokenizer.all_special_ids))),
        )
        write_resolved(folder, config, "tokenize")
    _report(context, vocabulary_size)


def _tokenizer(config: TokenizeConfig, objective: Objective, context: Context) -> PreTrainedTokenizerFast:
    if config.tokenizer == "load":
        assert config.load is not None  # refused by TokenizeConfig
        tokenizer = load_for_teacher(config.load, context.artefacts.project, objective)
    else:
        assert config.train is not None
        train = context.artefacts.documents / "train.parquet"
        context.progress.message(f"training a WordPiece tokenizer of {config.train.vocabulary_size} entries")
        tokenizer = train_wordpiece(
            lambda: (text for batch in _batches(train) for text in batch), config.train, config.sequence_tokens
        )
    room = config.sequence_tokens - tokenizer.num_special_tokens_to_add()
    if room < 1:
        raise InputError(
            f"tokenize.sequence_tokens is {config.sequence_tokens}, of which the tokenizer's special tokens take "
            f"{config.sequence_tokens - room}; expected room for one token more"
        )
    return tokenizer


class _Encoder:
    """Encodes documents into sequences of limited length."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, config: TokenizeConfig, dtype: np.dtype[np.generic]) -> None:
        self._tokenizer = tokenizer
        self._config = config
        self._dtype = dtype

    def encode(self, documents: Path, target: Path, split: Split, context: Context) -> npt.NDArray[np.int64]:
        """Write the ids of all sequences, one after the other, to the file `target`; return their lengths (N,).

        Raises `InputError` if there is no sequence.
        """
        lengths: list[int] = []
        context.progress.begin(f"tokenize {split}", pq.read_metadata(documents).num_rows, "documents")
        with target.open("wb") as file:
            for texts in _batches(documents):
                context.stop_if_asked("no sequence was written")
                for ids in self._sequences(texts):
                    lengths.append(len(ids))
                    file.write(np.array(ids, dtype=self._dtype).tobytes())
                context.progress.advance(len(texts), sequences=len(lengths))
        if not lengths:
            raise InputError(
                f"the {split} split gives no sequence: every document has fewer than {self._config.min_sequence_tokens} "
                "tokens; expected longer documents, or a smaller tokenize.min_sequence_tokens"
            )
        return np.array(lengths, dtype=np.int64)

    def _sequences(self, texts: list[str]) -> Iterator[list[int]]:
        pieces = self._tokenizer(
            texts,
            truncation=True,
            max_length=self._config.sequence_tokens,
            return_overflowing_tokens=True,  # the rest of a long document: further sequences, with special tokens
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        return (piece for piece in pieces if len(piece) >= self._config.min_sequence_tokens)


def _batches(documents: Path) -> Iterator[list[str]]:
    """The texts of a Parquet file of documents, about a million characters at a time."""
    texts: list[str] = []
    characters = 0
    with pq.ParquetFile(documents) as file:
        for batch in file.iter_batches(columns=["text"], batch_size=256):
            for text in batch.column(0).to_pylist():
                texts.append(text)
                characters += len(text)
                if characters >= _BATCH_CHARACTERS:
                    yield texts
                    texts, characters = [], 0
    if texts:
        yield texts


def _write_in_order(order: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], ids: TokenIds, target: Path) -> None:
    """Write sequence `order[n]` as sequence n. Of `ids`, what a row group needs is read: a corpus may exceed the memory."""
    starts = np.cumsum(lengths) - lengths
    rows = max(1, _ROW_GROUP_TOKENS // int(lengths.max()))
    with SequenceWriter(target, ids.dtype) as writer:
        for begin in range(0, len(order), rows):
            chosen = order[begin : begin + rows]
            counts = lengths[chosen]
            # Index of each token: the start of its sequence plus its place in the sequence.
            places = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            writer.write_group(counts, ids[np.repeat(starts[chosen], counts) + places])


def _token_counts(split: SequenceSplit, vocabulary_size: int) -> npt.NDArray[np.int64]:
    counts = np.zeros(vocabulary_size, dtype=np.int64)
    for _, ids in split.groups():
        counts += np.bincount(ids, minlength=vocabulary_size)
    return counts


def _report(context: Context, vocabulary_size: int) -> None:
    store = TokenStore.open(context.artefacts.tokens)
    figures: dict[str, int] = {"vocabulary": vocabulary_size, "longest sequence": store.longest}
    for split in SPLITS:
        lengths = store.split(split).lengths
        figures[f"{split} sequences"] = len(lengths)
        figures[f"{split} tokens"] = int(lengths.sum())
    context.progress.summary("tokenize", figures)
