"""Stage `tokenize`: documents to sequences of token ids, shuffled once, with fixed ids.

Not called `tokenize.py`, which would shadow a module of the standard library.
"""

from __future__ import annotations

import hashlib
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerFast

from stages import encode_documents, token_parts
from stages.config import ALGORITHMS, Config, TokenizeConfig, to_plain
from stages.context import Context
from stages.encode_documents import EncodeDocuments, parts_of, text_batches
from stages.encoding import Encoder
from stages.errors import InputError
from stages.lasting_task import LastingTask
from stages.models import load_tokenizer
from stages.outputs import whole_folder
from stages.provenance import write_resolved
from stages.sequences import COUNTS, TOKENIZER, SequenceWriter, SplitFigures, write_description
from stages.token_parts import PartFigures, PartId, Shuffled, read_figures
from stages.tokenizer import load_for_teacher, special_token_ids, train_wordpiece
from stages.work_folder import shared_out, work_folder
from storage.arrays import id_dtype
from storage.files import sha256_file
from storage.layout import SPLITS, Split

_ROW_GROUP_TOKENS = 1 << 20
_KEPT = "what was encoded is kept in .cache-work"


def run(config: Config, context: Context) -> None:
    """Write `data/tokens` from `data/documents`: tokenizer, sequences per split, token counts, `tokens.json`.

    A document longer than `tokenize.sequence_tokens` becomes several sequences, each with its special tokens, or, with
    `tokenize.packing: full`, documents share sequences of full length; remainders shorter than
    `tokenize.min_sequence_tokens` are dropped. Parts of the documents are encoded by `context.runner` and kept in a work
    folder until all are there. Raises `InputError` for missing documents, an unfit tokenizer, and a split that gives no
    sequence, and `LockedError` while another process does the same; then nothing is written.
    """
    documents = context.artefacts.documents.absolute()
    for split in SPLITS:
        if not (documents / f"{split}.parquet").is_file():
            raise InputError(
                f"there are no documents in {documents} ({split}.parquet is missing); run: pipeline corpus"
            )
    loaded = _loaded(config, context)
    spec, content = _determined_by(config.tokenize, loaded, documents, context)
    with work_folder("tokenize", "the tokens", spec, content, context) as work:
        tokenizer = _tokenizer(config.tokenize, loaded, work / TOKENIZER, context)
        vocabulary_size = max(tokenizer.get_vocab().values()) + 1
        encoder = Encoder.of(
            tokenizer,
            sequence_tokens=config.tokenize.sequence_tokens,
            min_sequence_tokens=config.tokenize.min_sequence_tokens,
            packing=config.tokenize.packing,
            dtype=id_dtype(vocabulary_size),
        )
        job = EncodeDocuments(documents=documents, work=work, encoder=encoder, seed=config.tokenize.seed)
        parts = _encoded(job, context)
        with whole_folder(context.artefacts.tokens) as folder:
            shutil.copytree(work / TOKENIZER, folder / TOKENIZER, copy_function=shutil.copyfile)
            counts = np.zeros(vocabulary_size, dtype=np.int64)
            splits: dict[Split, SplitFigures] = {}
            for split in SPLITS:
                shuffled = Shuffled(work, parts[split], id_dtype(vocabulary_size))
                _require_sequences(shuffled, split, config.tokenize)
                counted = counts if split == "train" else None
                splits[split] = _write(shuffled, split, folder / f"{split}.parquet", counted, context)
            pq.write_table(pa.table({"count": counts}), folder / COUNTS)
            write_description(
                folder,
                vocabulary_size=vocabulary_size,
                special_tokens=special_token_ids(tokenizer),
                special_ids=tuple(sorted(set(tokenizer.all_special_ids))),
                splits=splits,
            )
            write_resolved(folder, config, "tokenize")
    figures: dict[str, int] = {"vocabulary": vocabulary_size}
    figures["longest sequence"] = max(split.longest for split in splits.values())
    for name, split_figures in splits.items():
        figures[f"{name} sequences"] = split_figures.sequences
        figures[f"{name} tokens"] = split_figures.tokens
    context.progress.summary("tokenize", figures)


def _encoded(job: EncodeDocuments, context: Context) -> dict[Split, list[tuple[PartId, PartFigures]]]:
    """All parts of each split, in order, and what they hold: those that are missing are encoded, in any order."""
    parts = list(chain.from_iterable(parts_of(job.documents / f"{split}.parquet", split) for split in SPLITS))
    done: dict[PartId, PartFigures] = {}
    reading = LastingTask(context, "read back what is there", len(parts), "parts", kept=_KEPT)
    for part in parts:
        found = read_figures(job.work, part)
        if found is not None:
            done[part] = found
        reading()
    total = sum(pq.read_metadata(job.documents / f"{split}.parquet").num_rows for split in SPLITS)
    kept = sum(figures.documents for figures in done.values())
    context.progress.begin("tokenize", total, "documents", done=kept)
    if done:
        context.progress.message(f"{kept:,} of {total:,} documents were encoded by an earlier run")
    for part, figures in shared_out(job, [part for part in parts if part not in done], context, job.work):
        done[part] = figures
        context.progress.advance(figures.documents, sequences=sum(figures.sequences for figures in done.values()))
    return {split: [(part, done[part]) for part in parts if part.split == split] for split in SPLITS}


def _determined_by(
    config: TokenizeConfig, loaded: PreTrainedTokenizerFast | None, documents: Path, context: Context
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and digests on which the parts depend, and nothing else."""
    parameters = to_plain(config)
    parameters.pop("load")  # where from; what it is stands below
    files = {split: documents / f"{split}.parquet" for split in SPLITS}
    size = sum(file.stat().st_size for file in files.values())
    reading = LastingTask(context, "read the documents", size, "bytes", kept=_KEPT)
    content = {
        "documents": {split: sha256_file(file, reading) for split, file in files.items()},
        "tokenizer": None if loaded is None else _digest(loaded),
        "tokenizers": version("tokenizers"),
    }
    return {
        "tokenize": parameters,
        "algorithm": ALGORITHMS["tokenize"],
        "part_bytes": encode_documents.PART_BYTES,
        "part_format": token_parts.FORMAT,
    }, content


def _digest(tokenizer: PreTrainedTokenizerFast) -> str:
    """Of what a loaded tokenizer does, and of its settings."""
    said = f"{tokenizer.backend_tokenizer.to_str()}{tokenizer.init_kwargs!r}"
    return hashlib.sha256(said.encode()).hexdigest()


def _loaded(config: Config, context: Context) -> PreTrainedTokenizerFast | None:
    """The tokenizer that is not trained here."""
    if config.tokenize.tokenizer != "load":
        return None
    assert config.tokenize.load is not None  # refused by TokenizeConfig
    return load_for_teacher(config.tokenize.load, context.artefacts.project, config.teacher.objective)


def _tokenizer(
    config: TokenizeConfig, loaded: PreTrainedTokenizerFast | None, folder: Path, context: Context
) -> PreTrainedTokenizerFast:
    """The tokenizer, saved in `folder`: the loaded one, or the one trained here, now or by an earlier run."""
    if loaded is not None or not folder.is_dir():
        tokenizer = _trained(config, context) if loaded is None else loaded
        with whole_folder(folder) as draft:
            tokenizer.save_pretrained(draft)
        return tokenizer
    trained = load_tokenizer(folder)
    assert isinstance(trained, PreTrainedTokenizerFast)
    return trained


def _trained(config: TokenizeConfig, context: Context) -> PreTrainedTokenizerFast:
    assert config.train is not None  # refused by TokenizeConfig
    train = context.artefacts.documents / "train.parquet"
    context.progress.message(f"training a WordPiece tokenizer of {config.train.vocabulary_size} entries")
    return train_wordpiece(lambda: chain.from_iterable(text_batches(train)), config.train, config.sequence_tokens)


def _require_sequences(shuffled: Shuffled, split: Split, config: TokenizeConfig) -> None:
    if not shuffled.sequences:
        raise InputError(
            f"the {split} split gives no sequence: every document has fewer than {config.min_sequence_tokens} "
            "tokens; expected longer documents, or a smaller tokenize.min_sequence_tokens"
        )


def _write(
    shuffled: Shuffled,
    split: Split,
    target: Path,
    counts: np.ndarray[Any, np.dtype[np.int64]] | None,
    context: Context,
) -> SplitFigures:
    """Write the sequences of a split in their order; adds the occurrences of each id to `counts` (V,)."""
    writing = LastingTask(context, f"put {split} in order", shuffled.sequences, "sequences", kept=_KEPT)
    digest, longest = hashlib.sha256(), 0
    for lengths in shuffled.lengths():
        digest.update(lengths.astype("<u4").data)
        longest = max(longest, int(lengths.max(initial=0)))
        writing(0)  # the first of two passes, and much the shorter one
    written: Future[None] | None = None
    with SequenceWriter(target, shuffled.dtype) as writer, ThreadPoolExecutor(1) as pool:
        for lengths, ids in shuffled.groups(max(1, _ROW_GROUP_TOKENS // longest)):
            writing(len(lengths))
            if written is not None:
                written.result()
            written = pool.submit(
                writer.write_group, lengths, ids
            )  # compressed while it is counted, and the next put in order
            digest.update(ids.astype("<u4").data)
            if counts is not None:
                counts += np.bincount(ids, minlength=len(counts))
        if written is not None:
            written.result()
    return SplitFigures(
        sequences=shuffled.sequences, tokens=shuffled.tokens, longest=longest, sha256=digest.hexdigest()
    )
