"""The whole stage `tokenize` against the bare tokenizer: what reading, framing, shuffling and writing cost on top.

Ours goes from documents in Parquet to shuffled sequences on disk. The bare side is `encode_batch_fast` over the same texts,
already in memory, in batches as large as ours; what it makes is dropped. Both have a tokenizer that exists (BERT's WordPiece,
30,522 entries) and the same cores: all that this process may use, then one.

Text: the Wikipedia articles of `$TEACHER_CACHE_DATA`, else of `../shared/data`; where neither is there, the docstrings of the
embedded default and a vocabulary trained on them.

Memory is the peak of a process of its own that tokenizes a corpus, beyond what it had after its imports; then of processes that
tokenize four and sixteen times as much. The smallest corpus has less than what the shuffle holds at a time
(`stages.token_parts`: 67 million tokens), so it is from four times on that the peak must stay.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

import pyarrow.parquet as pq
from measure import Spread, arguments, finish, interleaved, memory, ratio, rounds
from student_project import ROOT, real_text
from tokenizers import Tokenizer
from transformers import BertTokenizer

from pipeline.params import read_config
from pipeline.summary import print_table
from stages import corpus, tokenize_corpus
from stages.config import Config, TrainTokenizerConfig
from stages.context import Artefacts, Context
from stages.sequences import TokenStore
from stages.tokenizer import train_wordpiece
from storage.layout import SPLITS

GOALS = {"tokenize_vs_bare": ">= 0.9", "tokenize_memory_16x_vs_4x": "about 1"}
COPIES = (1, 4, 16)
BATCH_CHARACTERS = 1_000_000
VOCABULARY = 30_522
QUICK_DOCUMENTS = 300

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def main() -> None:
    """Measure, print and write."""
    options = arguments(__doc__ or "")
    with tempfile.TemporaryDirectory() as scratch:
        project = make_project(Path(scratch) / "1", copies=1, quick=options.quick)
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
        times = {
            len(chosen): elsewhere(chosen, measured, project, rounds(options))
            for chosen in dict.fromkeys((tuple(cores), (cores[0],)))
        }
        peaks = {1: elsewhere(tuple(cores), peak, project)}
        for copies in COPIES[1:]:
            larger = make_project(Path(scratch) / str(copies), copies=copies, quick=options.quick)
            peaks[copies] = elsewhere(tuple(cores), peak, larger)
            shutil.rmtree(larger)
        characters = sum(len(text) for text in documents(project))
        tokens = TokenStore.open(Artefacts(project=project).tokens)
        count = sum(int(tokens.split(split).lengths.sum()) for split in SPLITS)
    print_table(
        f"tokenizing {characters / 1e6:,.0f} million characters, {count / 1e6:,.1f} million tokens",
        ["", "cores", "seconds", "million tokens/s"],
        [
            [name, number, Spread.of(took).shown(), Spread.of([count / 1e6 / t for t in took]).shown()]
            for number, contenders in times.items()
            for name, took in contenders.items()
        ],
    )
    print_table(
        "peak memory beyond the imports",
        ["corpus", "MB"],
        [[f"{times_as_large}x", f"{size / 1e6:,.0f}"] for times_as_large, size in peaks.items()],
    )
    ratios = {
        "tokenize_vs_bare": ratio(times[len(cores)]["encode_batch_fast"], times[len(cores)]["tokenize"]),
        "tokenize_vs_bare_one_core": ratio(times[1]["encode_batch_fast"], times[1]["tokenize"]),
        "tokenize_memory_4x": Spread.of([peaks[4] / peaks[1]]),
        "tokenize_memory_16x_vs_4x": Spread.of([peaks[16] / peaks[4]]),
    }
    finish(ratios, GOALS, options.json, quick=options.quick)


def make_project(project: Path, *, copies: int, quick: bool) -> Path:
    """A project folder with documents, the text as often as asked for, and a tokenizer."""
    articles = real_text("wiki_en", "train-00000.parquet")
    vocabulary = real_text("vocab", "bert-base-uncased-vocab.txt")
    context = Context(artefacts=Artefacts(project=project))
    text = project / "text"
    text.mkdir(parents=True)
    if articles.is_file() and vocabulary.is_file():
        source = articles
        tokenizer = BertTokenizer(vocab=str(vocabulary))
    else:
        print(f"no articles in {real_text()}: the docstrings of the embedded default stand for them")
        corpus.run(read_config(ROOT / "params.yaml"), context)
        source = project / "docstrings.parquet"
        shutil.copyfile(context.artefacts.documents / "train.parquet", source)
        texts = list(documents(project))
        settings = TrainTokenizerConfig(vocabulary_size=VOCABULARY, lowercase=True, min_frequency=2)
        tokenizer = train_wordpiece(lambda: texts, settings, 512)
    tokenizer.save_pretrained(project / "tokenizer")
    rows = pq.read_table(source, columns=["text"])
    for copy in range(copies):
        pq.write_table(rows[:QUICK_DOCUMENTS] if quick else rows, text / f"{copy}.parquet")
    corpus.run(config(), context)
    return project


def config() -> Config:
    """The parameters of the original recipe, over the text and the tokenizer of `make_project`."""
    return read_config(
        ROOT / "recipes" / "distilbert" / "params.yaml",
        [
            "corpus.source=files",
            "corpus.validation_fraction=0.02",
            "corpus.test_fraction=0.02",
            "corpus.files={paths: [text], document: file, text_column: text}",
            "tokenize.load={path: tokenizer}",
        ],
    )


def documents(project: Path) -> Iterator[str]:
    """The text of every document."""
    for split in SPLITS:
        yield from pq.read_table(Artefacts(project=project).documents / f"{split}.parquet").column("text").to_pylist()


def measured(project: Path, count: int) -> dict[str, list[float]]:
    """Seconds of both, round by round."""
    tokenizer = Tokenizer.from_file(str(project / "tokenizer" / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    batches: list[list[str]] = []
    held = BATCH_CHARACTERS
    for text in documents(project):
        if held >= BATCH_CHARACTERS:
            batches.append([])
            held = 0
        batches[-1].append(text)
        held += len(text)

    def bare() -> None:
        for texts in batches:
            tokenizer.encode_batch_fast(texts)

    contenders = {"encode_batch_fast": bare, "tokenize": lambda: tokenize(project)}
    return interleaved({name: lambda run=run: seconds(run) for name, run in contenders.items()}, count)


def seconds(run: Callable[[], None]) -> float:
    """What one run takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def tokenize(project: Path) -> None:
    """The stage."""
    tokenize_corpus.run(config(), Context(artefacts=Artefacts(project=project)))


def peak(project: Path) -> int:
    """Bytes that tokenizing takes at its peak, beyond what this process has already."""
    before = memory("VmRSS")
    tokenize(project)
    return memory("VmHWM") - before


def elsewhere(
    cores: tuple[int, ...], function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result:
    """What the function returns in a process of its own on these cores: how many threads Rust has is settled at the first batch."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_keep_to, initargs=(cores,)) as pool:
        return pool.submit(function, *args, **kwargs).result()


def _keep_to(cores: tuple[int, ...]) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


if __name__ == "__main__":
    main()
