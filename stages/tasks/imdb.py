"""IMDb's film reviews (Maas et al. 2011): the original folder of text files, or tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stages.errors import InputError
from stages.tasks.classification import Classification, LabelledText
from stages.tasks.task import Layout

LABELS = ("neg", "pos")


@dataclass(frozen=True, kw_only=True)
class Imdb(Classification):
    """Reviews are tables as on the hub (`text`, `label`), or a file each, as in aclImdb: `train/pos/0_9.txt`."""

    def read(self, path: Path, message: Callable[[str], None]) -> list[LabelledText]:
        if not path.is_dir():
            return super().read(path, message)
        examples = []
        for number, label in enumerate(LABELS):
            files = sorted((path / label).glob("*.txt"))
            if not files:
                raise InputError(f"{path / label} has no .txt files; expected the reviews of aclImdb in neg/ and pos/")
            examples += [LabelledText((_text(file),), number) for file in files]
        return examples

    def read_unlabelled(self, path: Path, message: Callable[[str], None]) -> list[LabelledText]:
        """Also a folder of reviews, such as aclImdb's `train/unsup`."""
        if not path.is_dir():
            return super().read_unlabelled(path, message)
        files = sorted(path.glob("*.txt"))
        if not files:
            raise InputError(f"{path} has no .txt files; expected one for each review, as in aclImdb's train/unsup")
        return [LabelledText((_text(file),), 0) for file in files]


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{file} cannot be read as text in UTF-8 ({error}); convert it, e.g. `iconv -f latin1 -t utf-8`"
        ) from error


IMDB = Imdb(
    kind="IMDb",
    layout=Layout(
        train=("train.parquet", "train.csv", "train"),
        evaluation={"": ("test.parquet", "test.csv", "test")},
        hub="imdb",
        configuration="plain_text",
        evaluation_splits={"": "test"},
    ),
    texts=("text",),
    labels=LABELS,
    measures=("accuracy",),
)
