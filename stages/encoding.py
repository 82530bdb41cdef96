"""From texts to sequences of token ids: documents cut to length or packed, each sequence with its special tokens.

The tokenizer works in Rust on all cores and gives plain ids; special tokens are put around them here, on arrays.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from stages.errors import InputError
from stages.sequences import TokenIds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_AHEAD = 2
"""Batches of texts that are with the tokenizer at a time."""


@dataclass(frozen=True, kw_only=True)
class Framing:
    """What a tokenizer puts around a text, and between texts that share a sequence."""

    prefix: tuple[int, ...]
    """Ids before the text: `[CLS]`, `<s>`, or none."""
    suffix: tuple[int, ...]
    """Ids after it: `[SEP]`, `</s>`, or none."""
    separator: int | None
    """Ends a document within a packed sequence; None where the tokenizer has nothing that could."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> Framing:
        """Found by encoding a text. Raises `InputError` for a tokenizer that puts special tokens elsewhere."""
        backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())  # a copy: its settings are changed
        backend.no_truncation()
        backend.no_padding()
        for probe in chain(("a",), tokenizer.get_vocab()):
            encoding = backend.encode(probe)
            added = np.array(encoding.special_tokens_mask, dtype=bool)
            if not added.all():
                break
        else:
            raise InputError(
                "the tokenizer gives no token for any entry of its vocabulary; expected one that encodes text; choose another in "
                "params.yaml (tokenize)"
            )
        first, last = np.flatnonzero(~added)[[0, -1]]
        if added[first : last + 1].any():
            raise InputError(
                "the tokenizer puts special tokens into the middle of a text; expected them before and after; choose another "
                "in params.yaml (tokenize)"
            )
        suffix = tuple(encoding.ids[last + 1 :])
        ends = (tokenizer.sep_token_id if tokenizer.sep_token_id in suffix else None, tokenizer.eos_token_id)
        separator = next((end for end in (*ends, tokenizer.sep_token_id) if end is not None), None)
        return cls(prefix=tuple(encoding.ids[:first]), suffix=suffix, separator=separator)

    @property
    def size(self) -> int:
        """Special tokens of a sequence that holds one text."""
        return len(self.prefix) + len(self.suffix)


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Makes the sequences of some documents; a value, so that it says what they depend on."""

    framing: Framing
    sequence_tokens: int
    min_sequence_tokens: int
    packing: Literal["document", "full"]
    dtype: str
    """Of the ids: `uint16` or `uint32`."""
    split_special_tokens: bool
    """Whether special tokens written out in a text are taken apart like any other word."""
    left: bool
    """Whether a long document is cut from its end, so that a shorter piece is its beginning."""

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerFast,
        *,
        sequence_tokens: int,
        min_sequence_tokens: int,
        packing: Literal["document", "full"],
        dtype: np.dtype[Any],
    ) -> Encoder:
        """The encoder for a tokenizer. Raises `InputError` where `sequence_tokens` leave no room, or nothing separates documents."""
        framing = Framing.of(tokenizer)
        if sequence_tokens <= framing.size:
            raise InputError(
                f"tokenize.sequence_tokens is {sequence_tokens}, of which the tokenizer's special tokens take "
                f"{framing.size}; expected at least {framing.size + 1}; raise it"
            )
        if packing == "full" and framing.separator is None:
            raise InputError(
                "tokenize.packing is full, and the tokenizer has neither a separator nor an end-of-text token to put "
                "between documents; expected one, or tokenize.packing: document"
            )
        return cls(
            framing=framing,
            sequence_tokens=sequence_tokens,
            min_sequence_tokens=min_sequence_tokens,
            packing=packing,
            dtype=dtype.name,
            split_special_tokens=tokenizer.split_special_tokens,
            left=tokenizer.truncation_side == "left",
        )

    def prepare(self, backend: Tokenizer) -> Tokenizer:
        """Set the tokenizer to give all ids of a text and nothing else; returns it."""
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = self.split_special_tokens
        return backend

    def sequences(self, backend: Tokenizer, batches: Iterable[list[str]]) -> tuple[npt.NDArray[np.int64], TokenIds]:
        """The sequences of documents that come in batches: lengths i8 (S,) and their ids, one after the other."""
        framed = self._packed if self.packing == "full" else self._separate
        parts = list(framed(self._documents(backend, batches)))
        lengths = [part[0] for part in parts]
        ids = [part[1] for part in parts]
        empty = np.empty(0, dtype=np.int64), np.empty(0, dtype=self.dtype)
        return np.concatenate([empty[0], *lengths]), np.concatenate([empty[1], *ids])

    def _documents(self, backend: Tokenizer, batches: Iterable[list[str]]) -> Iterator[list[npt.NDArray[Any]]]:
        """Per batch, the ids of each text that has any, without special tokens.

        Rust encodes on all cores without holding Python up, while the ids of an earlier batch are taken over here. It has two
        batches at a time: where one has only its longest text left, the cores go on with the other.
        """
        encoding: deque[Future[list[Encoding]]] = deque()
        with ThreadPoolExecutor(_AHEAD, "encode") as pool:
            for texts in batches:
                # `_fast` leaves out the offsets into the text, which nobody asks for.
                encoding.append(pool.submit(backend.encode_batch_fast, texts, add_special_tokens=False))
                if len(encoding) > _AHEAD:
                    yield self._ids(encoding.popleft().result())
            while encoding:
                yield self._ids(encoding.popleft().result())

    def _ids(self, encodings: list[Encoding]) -> list[npt.NDArray[Any]]:
        return [np.fromiter(encoding.ids, self.dtype, len(encoding)) for encoding in encodings if len(encoding)]

    def _separate(
        self, batches: Iterator[list[npt.NDArray[Any]]]
    ) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[Any]]]:
        """Each document alone, in as many pieces as it takes."""
        room = self.sequence_tokens - self.framing.size
        for documents in batches:
            lengths = np.array([len(document) for document in documents], dtype=np.int64)
            counts = -(-lengths // room)
            last = np.cumsum(counts) - 1  # index of each document's last piece
            bodies = np.full(counts.sum(), room, dtype=np.int64)
            bodies[last] = lengths - (counts - 1) * room
            # From the left, pieces are taken from the end on: the short one comes last, and is the beginning.
            pieces = (
                [piece for document in documents for piece in _from_the_end(document, room)] if self.left else documents
            )
            yield self._framed(bodies, pieces)

    def _packed(
        self, batches: Iterator[list[npt.NDArray[Any]]]
    ) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[Any]]]:
        """Documents one after the other with a separator between them, cut into full sequences; the last may be shorter."""
        room = self.sequence_tokens - self.framing.size
        separator = np.array([self.framing.separator], dtype=self.dtype)
        rest = np.empty(0, dtype=self.dtype)
        for documents in batches:
            stream = np.concatenate([rest, *(part for document in documents for part in (document, separator))])
            # Cut where a token more is known to follow the separator, which ends no sequence that is the last.
            full = max(0, len(stream) - 1) // room
            rest = stream[full * room :]
            yield self._framed(np.full(full, room, dtype=np.int64), [stream[: full * room]])
        yield self._framed(np.array([len(rest) - 1] if len(rest) > 1 else [], dtype=np.int64), [rest[:-1]])

    def _framed(
        self, bodies: npt.NDArray[np.int64], ids: list[npt.NDArray[Any]]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
        """Lengths and ids of the sequences whose bodies have these lengths (S,) and ids, special tokens put around them.

        Those shorter than `min_sequence_tokens` are left out.
        """
        if not len(bodies):
            return bodies, np.empty(0, dtype=self.dtype)
        flat = np.concatenate(ids)
        lengths = bodies + self.framing.size
        kept = lengths >= self.min_sequence_tokens
        if not kept.all():
            flat = flat[np.repeat(kept, bodies)]
            bodies, lengths = bodies[kept], lengths[kept]
        framed = np.empty(lengths.sum(), dtype=self.dtype)
        ends = np.cumsum(lengths)
        is_body = np.ones(len(framed), dtype=bool)
        for place, special in enumerate(self.framing.prefix):
            framed[ends - lengths + place] = special
            is_body[ends - lengths + place] = False
        for place, special in enumerate(reversed(self.framing.suffix), start=1):
            framed[ends - place] = special
            is_body[ends - place] = False
        framed[is_body] = flat
        return lengths, framed


def _from_the_end(document: npt.NDArray[Any], room: int) -> Iterator[npt.NDArray[Any]]:
    for stop in range(len(document), 0, -room):
        yield document[max(0, stop - room) : stop]
