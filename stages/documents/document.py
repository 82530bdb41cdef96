"""What the sources of documents give."""

from __future__ import annotations

from typing import NamedTuple

from stages.errors import InputError


class Document(NamedTuple):
    """One document: the unit that is never split between train, validation and test."""

    document_id: str
    """Names the document within its source, the same on every machine."""
    text: str


def usable(text: object, refuse_empty: bool, source: str, number: int) -> bool:
    """Whether a document has text. `number` counts the documents of `source` from 1.

    Raises `InputError` for an empty one if `refuse_empty`, and for one that is not text at all.
    """
    if text is not None and not isinstance(text, str):
        raise InputError(
            f"{source}, document {number}: expected text, found {type(text).__name__}; name the text column"
        )
    if text and not text.isspace():
        return True
    if refuse_empty:
        raise InputError(
            f"{source}, document {number}: it is empty; remove it, or set corpus.empty_documents to skip to pass over "
            "empty documents"
        )
    return False
