"""SQuAD v1.1 (Rajpurkar et al. 2016): where in a context the answer to a question stands.

A context that is too long for the model is read in windows that overlap; the best answer of all windows counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from stages.config.base import refuse
from stages.config.finetune import TaskKind, TaskTraining
from stages.errors import InputError
from stages.tasks.reading import read_table
from stages.tasks.squad_scoring import best, exact_match, f1
from stages.tasks.task import ENCODED_AT_ONCE, Encoded, Heads, Layout, Outputs, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COLUMNS = ("id", "title", "context", "question", "answers")
QUESTION_TOKENS = 64
"""A longer question is cut, as by BERT; where inputs are short, one of more than a quarter of them."""
ANSWER_TOKENS = 30
"""Longest answer that is looked for."""
CANDIDATES = 20
"""Best first and last tokens of a window that are combined."""


class Answer(NamedTuple):
    """A reference answer."""

    text: str
    start: int
    """Its first character in the context."""


class Question(NamedTuple):
    """One example."""

    id: str
    title: str
    """Of the article."""
    context: str
    question: str
    answers: tuple[Answer, ...]
    """At least one; the first is the one that is learned."""


@dataclass(frozen=True, kw_only=True)
class Squad:
    """The `Task`."""

    kind: TaskKind
    layout: Layout
    head: Heads = "answers"
    labels: tuple[str, ...] | None = None
    metrics: tuple[str, ...] = ("exact_match", "f1")
    scored_by: tuple[str, ...] = ("f1",)

    def read(self, path: Path, message: Callable[[str], None]) -> list[Question]:
        del message
        if path.suffix == ".json":
            return _official(path)
        if path.suffix != ".parquet":
            raise InputError(f"{path} is nothing that SQuAD can be read from; expected SQuAD's .json, or .parquet")
        return self.from_rows(read_table(path, COLUMNS), str(path))

    def read_unlabelled(self, path: Path, message: Callable[[str], None]) -> list[Question]:
        """Questions on contexts, in the same layouts; titles, ids and answers are not looked at."""
        del message
        if path.suffix == ".json":
            return _official(path, labelled=False)
        if path.suffix != ".parquet":
            raise InputError(f"{path} is nothing that SQuAD can be read from; expected SQuAD's .json, or .parquet")
        rows = read_table(path, ("context", "question"))
        return [Question("", "", row["context"], row["question"], ()) for row in rows]

    def from_rows(self, rows: Iterable[Mapping[str, Any]], where: str) -> list[Question]:
        questions = []
        for row in rows:
            answers = row["answers"]
            pairs = zip(answers["text"], answers["answer_start"], strict=True)
            questions.append(
                _checked(
                    Question(
                        id=row["id"],
                        title=row["title"],
                        context=row["context"],
                        question=row["question"],
                        answers=tuple(Answer(text, int(start)) for text, start in pairs),
                    ),
                    where,
                )
            )
        return questions

    def unit(self, example: Question) -> str:
        return example.title

    def asks(self, example: Question) -> tuple[str, ...]:
        return example.question, example.context

    def check(self, tokenizer: PreTrainedTokenizerBase, training: TaskTraining, name: str) -> None:
        longest = _question_tokens(training)
        room = training.max_tokens - longest - tokenizer.num_special_tokens_to_add(pair=True)
        if training.overlap_tokens >= room:
            raise refuse(
                f"finetune.tasks.{name}.training.overlap_tokens",
                training.overlap_tokens,
                f"less than {room}, as an input of {training.max_tokens} tokens (training.max_tokens, or the model's positions) "
                f"begins with a question of up to {longest}",
            )

    def encode(
        self,
        examples: Sequence[Question],
        tokenizer: PreTrainedTokenizerBase,
        training: TaskTraining,
        *,
        learning: bool,
        done: Callable[[int], None],
    ) -> Encoded:
        longest = _question_tokens(training)
        rows: list[Row] = []
        example: list[int] = []
        offsets: list[list[tuple[int, int] | None]] = []
        for start in range(0, len(examples), ENCODED_AT_ONCE):
            some = examples[start : start + ENCODED_AT_ONCE]
            encoding = tokenizer(
                _cut([question.question.strip() for question in some], tokenizer, longest),
                [question.context for question in some],
                truncation="only_second",
                max_length=training.max_tokens,
                stride=training.overlap_tokens,
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
                return_attention_mask=False,
            )
            for window, place in enumerate(encoding["overflow_to_sample_mapping"]):
                row: Row = {"input_ids": np.asarray(encoding["input_ids"][window], np.uint32)}
                if "token_type_ids" in encoding:
                    row["token_type_ids"] = np.asarray(encoding["token_type_ids"][window], np.uint8)
                parts = encoding.sequence_ids(window)
                spans = [
                    span if part == 1 else None
                    for part, span in zip(parts, encoding["offset_mapping"][window], strict=True)
                ]
                if learning:
                    first, last = _tokens_of(some[place].answers[0], spans)
                    row["start_positions"], row["end_positions"] = np.asarray(first), np.asarray(last)
                rows.append(row)
                example.append(start + place)
                offsets.append([] if learning else spans)
            done(len(some))
        return Encoded(rows=rows, example=example, offsets=None if learning else offsets)

    def figures(self, sets: Mapping[str, tuple[Sequence[Question], Encoded, Sequence[Outputs]]]) -> dict[str, float]:
        ((questions, encoded, outputs),) = sets.values()
        found = answers(questions, encoded, outputs)
        expected = [[answer.text for answer in question.answers] for question in questions]
        return {
            name: float(np.mean([best(score, ours, theirs) for ours, theirs in zip(found, expected, strict=True)]))
            for name, score in (("exact_match", exact_match), ("f1", f1))
        }


def answers(questions: Sequence[Question], encoded: Encoded, outputs: Sequence[Outputs]) -> list[str]:
    """The answer to each question: the span with the highest sum of logits over all its windows; empty where there is none."""
    assert encoded.offsets is not None
    found, scores = [""] * len(questions), [-np.inf] * len(questions)
    for place, spans, (starts, ends) in zip(encoded.example, encoded.offsets, outputs, strict=True):
        score, first, last = best_span(starts, ends, spans)
        if score > scores[place]:
            scores[place] = score
            begin, end = spans[first], spans[last]
            assert begin is not None
            assert end is not None
            found[place] = questions[place].context[begin[0] : end[1]]
    return found


def best_span(
    starts: npt.NDArray[np.float32], ends: npt.NDArray[np.float32], spans: Sequence[tuple[int, int] | None]
) -> tuple[float, int, int]:
    """Score, first and last token of the best answer within a window's context; the score is -inf where there is none.

    `starts` and `ends` f4 (L,) are logits. Only the `CANDIDATES` best of each are combined, as in BERT's run_squad.
    """
    firsts, lasts = (np.argsort(-logits, kind="stable")[:CANDIDATES] for logits in (starts, ends))
    inside = np.array([span is not None for span in spans])
    pairs = starts[firsts][:, None] + ends[lasts][None, :]
    length = lasts[None, :] - firsts[:, None]
    allowed = inside[firsts][:, None] & inside[lasts][None, :] & (length >= 0) & (length < ANSWER_TOKENS)
    pairs = np.where(allowed, pairs, -np.inf)
    row, column = np.unravel_index(int(pairs.argmax()), pairs.shape)
    return float(pairs[row, column]), int(firsts[row]), int(lasts[column])


def _question_tokens(training: TaskTraining) -> int:
    return min(QUESTION_TOKENS, training.max_tokens // 4)


def _tokens_of(answer: Answer, spans: Sequence[tuple[int, int] | None]) -> tuple[int, int]:
    """First and last token of an answer in a window; (0, 0) where it does not stand there as a whole, as in BERT's run_squad."""
    begin, end = answer.start, answer.start + len(answer.text)
    inside = [place for place, span in enumerate(spans) if span is not None and span[1] > begin and span[0] < end]
    if not inside:
        return 0, 0
    first, last = spans[inside[0]], spans[inside[-1]]
    assert first is not None
    assert last is not None
    whole = first[0] <= begin and last[1] >= end
    return (inside[0], inside[-1]) if whole else (0, 0)


def _cut(questions: list[str], tokenizer: PreTrainedTokenizerBase, longest: int) -> list[str]:
    """The questions, their ends left out after so many tokens."""
    encoding = tokenizer(
        questions, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, verbose=False
    )
    return [
        question if len(spans) <= longest else question[: spans[longest - 1][1]]
        for question, spans in zip(questions, encoding["offset_mapping"], strict=True)
    ]


def _official(path: Path, *, labelled: bool = True) -> list[Question]:
    """The questions of SQuAD's own JSON; unless `labelled`, texts alone."""
    try:
        articles = json.loads(path.read_text(encoding="utf-8"))["data"]
        questions = [
            Question(
                id=question["id"] if labelled else "",
                title=article["title"] if labelled else "",
                context=paragraph["context"],
                question=question["question"],
                answers=tuple(
                    Answer(answer["text"], answer["answer_start"])
                    for answer in (question["answers"] if labelled else ())
                ),
            )
            for article in articles
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not SQuAD's JSON ({type(error).__name__}: {error}); expected data, paragraphs, qas and answers as in v1.1"
        ) from error
    return [_checked(question, str(path)) for question in questions] if labelled else questions


def _checked(question: Question, where: str) -> Question:
    if not question.answers:
        raise InputError(
            f"{where}: question {question.id} has no answer; expected SQuAD v1.1, in which all can be answered (2.0 is not supported)"
        )
    for answer in question.answers:
        found = question.context[answer.start : answer.start + len(answer.text)]
        if found != answer.text:
            raise InputError(
                f"{where}: the answer {answer.text!r} of question {question.id} is not at character {answer.start} of its context "
                f"({found!r} is); expected SQuAD's own file, its texts unchanged"
            )
    return question


SQUAD = Squad(
    kind="SQuAD",
    layout=Layout(
        train=("train-v1.1.json", "train.parquet"),
        evaluation={"": ("dev-v1.1.json", "validation.parquet", "dev.parquet")},
        hub="squad",
        configuration="plain_text",
        evaluation_splits={"": "validation"},
    ),
)
