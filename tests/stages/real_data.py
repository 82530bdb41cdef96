"""Published vocabularies and real text, where the data folder is: `$TEACHER_CACHE_DATA`, else `shared/data` beside the repository."""

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from transformers import BertTokenizer, GPT2Tokenizer, RobertaTokenizer

from tests.tiny import ROOT

DATA = Path(os.environ.get("TEACHER_CACHE_DATA", ROOT.parent / "shared" / "data"))

needs_data = pytest.mark.skipif(
    not (DATA / "vocab").is_dir(),
    reason=f"{DATA} is not there: published vocabularies (TEACHER_CACHE_DATA names the folder)",
)


def _bert(file, *, lowercase):
    entries = (DATA / "vocab" / file).read_text(encoding="utf-8").splitlines()
    return BertTokenizer(vocab={entry: number for number, entry in enumerate(entries)}, do_lower_case=lowercase)


def _byte_level(cls, name):
    vocab = json.loads((DATA / "vocab" / f"{name}-vocab.json").read_text(encoding="utf-8"))
    _, *lines = (DATA / "vocab" / f"{name}-merges.txt").read_text(encoding="utf-8").splitlines()
    return cls(vocab=vocab, merges=[tuple(line.split(" ")) for line in lines if line])


TOKENIZERS = {
    "bert": lambda: _bert("bert-base-uncased-vocab.txt", lowercase=True),
    "bert-multilingual": lambda: _bert("bert-base-multilingual-cased-vocab.txt", lowercase=False),
    "roberta": lambda: _byte_level(RobertaTokenizer, "roberta-base"),
    "gpt2": lambda: _byte_level(GPT2Tokenizer, "gpt2"),
}


def paragraphs(language, count):
    """The first paragraphs of some length in the novels of a language (`fr`, `de`, `es`), or in Wikipedia's articles (`en`)."""
    file = DATA / ("wiki_en/train-00000.parquet" if language == "en" else f"novels/{language}.parquet")
    texts = pq.ParquetFile(file).read_row_group(0, columns=["text"]).column("text")
    lines = (line.strip() for text in texts for line in text.as_py().splitlines())
    return [line for line, _ in zip((line for line in lines if len(line) > 200), range(count), strict=False)]
