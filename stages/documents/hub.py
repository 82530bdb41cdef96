"""Documents of a dataset of the Hugging Face hub, at a pinned revision. One document per row."""

from __future__ import annotations

from collections.abc import Generator

from stages.config import HubDatasetConfig
from stages.context import Context
from stages.documents.document import Document, usable
from stages.errors import InputError


def hub_documents(config: HubDatasetConfig, context: Context, *, refuse_empty: bool) -> Generator[Document]:
    """The rows of one split of the dataset; a document's id is its row number.

    The dataset is downloaded once into the cache of the `datasets` library and read from there. Raises `InputError`
    for a dataset, revision, split or column that is not there.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    name = f"{config.name}@{config.revision}"
    try:
        rows = load_dataset(config.name, config.configuration, split=config.split, revision=config.revision)
    except (DatasetsError, HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"corpus.hub: cannot load {name} (configuration {config.configuration}, split {config.split}): {reason}; "
            "check the name, revision and split, the network, and `hf auth login` for a gated dataset"
        ) from error
    if config.text_column not in rows.column_names:
        raise InputError(
            f"corpus.hub.text_column is {config.text_column!r}, which {name} does not have; "
            f"its columns are {', '.join(rows.column_names)}"
        )
    context.progress.begin("read dataset", len(rows), "documents")
    for number, text in enumerate(rows[config.text_column], start=1):
        if usable(text, refuse_empty, name, number):
            yield Document(str(number), text)
        context.progress.advance()
