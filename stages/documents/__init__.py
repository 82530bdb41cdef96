"""Where documents come from: docstrings of installed packages, local files, or a dataset of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Generator

from stages.config import CorpusConfig
from stages.context import Context
from stages.documents.document import Document

__all__ = ["Document", "stream_documents"]


def stream_documents(config: CorpusConfig, context: Context) -> Generator[Document]:
    """The documents of a source that is one stream, lazily, in an order that is the same every time: docstrings, hub.

    Raises `InputError` for a source that is missing or cannot be read, and for an empty document where
    `corpus.empty_documents` is `refuse`.
    """
    # Imported when chosen: `datasets` takes seconds to load, and worker processes of the docstrings need none of it.
    if config.hub is not None and config.source == "hub":
        from stages.documents.hub import hub_documents

        return hub_documents(config.hub, context, refuse_empty=config.empty_documents == "refuse")
    from stages.documents.docstrings import docstring_documents

    assert config.docstrings is not None  # refused by CorpusConfig
    return docstring_documents(config.docstrings, context)
