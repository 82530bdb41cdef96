import json
import shutil
import signal
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from stages import encode_documents, lasting_task, token_parts, tokenize_corpus
from stages.config import TrainTokenizerConfig, load_config
from stages.context import Artefacts, Context, Silent
from stages.corpus import SCHEMA
from stages.errors import InputError, Interrupted
from stages.randomness import permutation
from stages.sequences import TokenStore
from stages.sharing import InProcess
from stages.tokenizer import train_wordpiece
from storage.errors import LockedError
from tests.stages.runners import AfterCalls, Backwards, Counting, Processes, StopsIn
from tests.stages.tiny_tokenizers import WORDS, bert_like
from tests.tiny import ROOT, tiny_params, tiny_text

SPLITS = ("train", "validation", "test")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Writes documents, runs the stage and opens its output."""

    def run(
        train=None,
        evaluation=("alpha beta gamma delta",),
        folder="project",
        should_stop=lambda: False,
        progress=None,
        runner=None,
        documents_per_part=None,
        **section,
    ):
        project = tmp_path / folder
        (project / "data" / "documents").mkdir(parents=True, exist_ok=True)
        texts = {"train": train or tiny_text(60).splitlines(), "validation": evaluation, "test": evaluation}
        for split, documents in texts.items():
            rows = [{"document_id": str(n), "text": text} for n, text in enumerate(documents)]
            table = SCHEMA.empty_table().from_pylist(rows, SCHEMA)
            pq.write_table(table, project / f"data/documents/{split}.parquet", row_group_size=documents_per_part)
        if documents_per_part:
            monkeypatch.setattr(encode_documents, "PART_BYTES", 1)
        context = Context(
            artefacts=Artefacts(project=project),
            should_stop=should_stop,
            progress=progress or Silent(),
            runner=runner or InProcess(),
        )
        tokenize_corpus.run(load_config(tiny_params(tokenize=section)), context)
        return TokenStore.open(context.artefacts.tokens)

    return run


def sequences(store, split="train"):
    offsets, ids = store.split(split).read(0, len(store.split(split)))
    return [ids[a:b].tolist() for a, b in pairwise(offsets)]


@pytest.fixture
def bert_folder(tmp_path):
    """A BERT tokenizer whose words are one token each, as its users save it."""
    bert_like().save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_a_long_document_is_split_without_losing_a_token_and_each_piece_has_its_special_tokens(run, bert_folder):
    words = [WORDS[i % 7] for i in range(61)]
    store = run([" ".join(words)], tokenizer="load", load={"path": str(bert_folder)}, sequence_tokens=10)
    pieces = sequences(store)
    assert all(piece[0] == 2 and piece[-1] == 3 and len(piece) <= 10 for piece in pieces)
    assert [len(piece) for piece in pieces].count(10) == 7
    tokenizer = AutoTokenizer.from_pretrained(store.tokenizer_folder)
    found = Counter(token for piece in pieces for token in tokenizer.convert_ids_to_tokens(piece[1:-1]))
    assert found == Counter(words)


def test_remainders_that_are_too_short_are_dropped(run, bert_folder):
    text = " ".join(WORDS)  # pieces of 6, then a remainder of 4, special tokens included 8 and 6
    load = {"tokenizer": "load", "load": {"path": str(bert_folder)}, "sequence_tokens": 8}
    assert sorted(map(len, sequences(run([text], min_sequence_tokens=6, **load)))) == [6, 8]
    assert sorted(map(len, sequences(run([text], min_sequence_tokens=7, evaluation=[text], **load)))) == [8]


def test_sequences_are_shuffled_once_with_the_seed(run, bert_folder):
    texts = [" ".join(WORDS[i] for i in (n // 100, n // 10 % 10, n % 10)) for n in range(200)]
    load = {"tokenizer": "load", "load": {"path": str(bert_folder)}}
    found = sequences(run(texts, **load))
    numbers = [int("".join(str(i - 5) for i in sequence[1:-1])) for sequence in found]
    assert sorted(numbers) == list(range(200))
    assert numbers == permutation("tokenize/0/train", 0, 200).tolist()
    assert found != sequences(run(texts, seed=1, **load))


def test_the_permutation_is_pinned():
    """Another one would give every sequence another id, and so another mask."""
    assert permutation("tokenize/0/train", 0, 12).tolist() == [10, 1, 2, 0, 6, 5, 9, 7, 11, 4, 8, 3]


def test_the_same_documents_and_parameters_give_the_same_files(run, tmp_path):
    run(folder="one")
    run(folder="two")
    files = {path.relative_to(tmp_path / "one"): path for path in (tmp_path / "one/data/tokens").rglob("*")}
    assert {path.name for path in files} >= {"tokens.json", "token_counts.parquet", "tokenizer.json", "train.parquet"}
    for name, path in files.items():
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_training_a_tokenizer_gives_the_same_in_every_process(tmp_path):
    """The trainer's own hash maps are seeded at random, and what they order must not be seen."""
    text = tmp_path / "text.txt"
    text.write_text(tiny_text(300))
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from stages.config import TrainTokenizerConfig\n"
        "from stages.tokenizer import train_wordpiece\n"
        "lines = Path(sys.argv[1]).read_text().splitlines()\n"
        "config = TrainTokenizerConfig(vocabulary_size=150, lowercase=True, min_frequency=1)\n"
        "print(train_wordpiece(lambda: lines, config, 16).backend_tokenizer.to_str())\n"
    )
    command = [sys.executable, "-c", program, str(text)]
    other = subprocess.run(command, capture_output=True, check=True, cwd=ROOT, text=True).stdout
    assert train(text.read_text().splitlines(), vocabulary_size=150).backend_tokenizer.to_str() == other.strip()


def train(texts, **changes):
    values = {"vocabulary_size": 120, "lowercase": True, "min_frequency": 1, **changes}
    return train_wordpiece(lambda: texts, TrainTokenizerConfig(**values), 16)


def test_a_trained_tokenizer_is_a_normal_hugging_face_one(tmp_path):
    tokenizer = train(tiny_text(50).splitlines())
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(loaded, PreTrainedTokenizerFast)
    assert len(loaded) == 120
    assert loaded.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    encoded = loaded("The Teacher reads [MASK].")
    assert set(encoded) == {"input_ids", "attention_mask"}
    assert loaded.decode(encoded["input_ids"]) == "[CLS] the teacher reads [MASK]. [SEP]"
    assert loaded("a", "the")["input_ids"] == [2, *loaded.convert_tokens_to_ids(["a"]), 3, loaded.vocab["the"], 3]


def test_a_trained_tokenizer_keeps_case_if_asked_and_knows_no_rare_characters():
    texts = ["Anna and Otto and Anna", "anna and otto ñ"]
    cased = train(texts, lowercase=False, min_frequency=2)
    assert cased.tokenize("Anna") != cased.tokenize("anna")
    assert cased.tokenize("ñ") == ["[UNK]"]


def test_the_alphabet_leaves_room_for_words():
    texts = ["".join(chr(0x4E00 + i) for i in range(200)), *["the cat and the hat"] * 9]
    tokenizer = train(texts, vocabulary_size=100)
    assert len(tokenizer) <= 100
    assert tokenizer.tokenize("the cat") == ["the", "cat"]


def test_a_loaded_tokenizer_is_saved_the_same_wherever_it_came_from(run, bert_folder, tmp_path):
    elsewhere = tmp_path / "elsewhere" / "bert"
    elsewhere.parent.mkdir()
    elsewhere.symlink_to(bert_folder)
    stores = [run(tokenizer="load", load={"path": str(folder)}) for folder in (bert_folder, elsewhere)]
    digests = [store.content_digests()["tokenizer"] for store in stores]
    again = run(tokenizer="load", load={"path": str(stores[0].tokenizer_folder)}, folder="again")
    assert {*digests, again.content_digests()["tokenizer"]} == {digests[0]}


def test_a_tokenizer_without_mask_or_padding_token_is_refused(run, tmp_path):
    tokenizer = train(tiny_text(20).splitlines())
    for role in ("mask", "pad"):
        kept = {f"{r}_token": f"[{r.upper()}]" for r in ("mask", "pad", "unk") if r != role}
        folder = tmp_path / f"no-{role}"
        PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **kept).save_pretrained(folder)
        with pytest.raises(InputError, match=rf"no-{role} has no {role} token"):
            run(tokenizer="load", load={"path": str(folder)})


def test_a_missing_tokenizer_folder_is_refused(run):
    with pytest.raises(InputError, match=r"nowhere"):
        run(tokenizer="load", load={"path": "nowhere"})


def test_missing_documents_name_the_command_that_makes_them(tmp_path):
    with pytest.raises(InputError, match=r"there are no documents in .*; run: pipeline corpus"):
        tokenize_corpus.run(load_config(tiny_params()), Context(artefacts=Artefacts(project=tmp_path)))


def test_a_split_that_gives_no_sequence_is_refused_and_nothing_is_written(run, tmp_path):
    with pytest.raises(InputError, match=r"the validation split gives no sequence: .* fewer than 4 tokens"):
        run(evaluation=["a"])
    assert [path.name for path in (tmp_path / "project/data").iterdir()] == ["documents"]


def test_it_stops_when_asked_and_writes_nothing(run, tmp_path):
    with pytest.raises(Interrupted):
        run(should_stop=lambda: True)
    assert [path.name for path in (tmp_path / "project/data").iterdir()] == ["documents"]


@pytest.mark.usefixtures("bert_folder")
@pytest.mark.parametrize(
    ("task", "left"), [("read the documents", 12), ("read back what is there", 12), ("put train in order", 0)]
)
def test_a_stop_is_seen_while_files_are_read_and_put_in_order_and_what_was_encoded_is_kept(
    run, monkeypatch, task, left
):
    monkeypatch.setattr(lasting_task, "SHOWN_AFTER", 0.0)
    texts = [" ".join(WORDS) for _ in range(20)]
    stop = StopsIn(task)
    with pytest.raises(Interrupted, match=r"what was encoded is kept in \.cache-work"):
        run(texts, documents_per_part=2, progress=stop, should_stop=stop.should_stop, **LOAD)
    runner = Counting()
    run(texts, documents_per_part=2, runner=runner, **LOAD)
    assert len(runner.items) == left


def test_row_groups_are_small_and_the_order_does_not_depend_on_them(run, monkeypatch, tmp_path):
    whole = sequences(run())
    monkeypatch.setattr(tokenize_corpus, "_ROW_GROUP_TOKENS", 200)
    monkeypatch.setattr(encode_documents, "_BATCH_CHARACTERS", 500)
    assert sequences(run()) == whole
    assert pq.ParquetFile(tmp_path / "project/data/tokens/train.parquet").num_row_groups > 3


LOAD = {"tokenizer": "load", "load": {"path": "../bert"}}


@pytest.mark.usefixtures("bert_folder")
@pytest.mark.parametrize(("packing", "other"), [("document", Processes(2)), ("full", Backwards())])
def test_the_files_do_not_depend_on_who_encodes_the_parts_and_when(run, tmp_path, packing, other):
    texts = [" ".join(WORDS[: 1 + n % 10]) for n in range(60)]
    runners = {"in-order": InProcess(), "otherwise": other}
    for folder, runner in runners.items():
        run(texts, folder=folder, runner=runner, documents_per_part=7, packing=packing, **LOAD)
    for path in (tmp_path / "in-order/data/tokens").rglob("*"):
        if path.is_file():
            name = path.relative_to(tmp_path / "in-order")
            for folder in runners:
                assert path.read_bytes() == (tmp_path / folder / name).read_bytes(), (folder, name)


@pytest.mark.usefixtures("bert_folder")
def test_parts_are_shuffled_together_whatever_the_merge_holds_at_a_time(run, monkeypatch):
    texts = [" ".join(WORDS[i] for i in (n // 100, n // 10 % 10, n % 10)) for n in range(200)]
    whole = sequences(run(texts, documents_per_part=20, **LOAD))
    numbers = [int("".join(str(i - 5) for i in sequence[1:-1])) for sequence in whole]
    assert sorted(numbers) == list(range(200))
    halves = [sum(number < 100 for number in numbers[start : start + 50]) for start in range(0, 200, 50)]
    assert all(10 < count < 40 for count in halves)  # documents of all parts are everywhere
    monkeypatch.setattr(token_parts, "_RANGE_TOKENS", 50)
    assert sequences(run(texts, documents_per_part=20, **LOAD)) == whole


@pytest.mark.usefixtures("bert_folder")
def test_packed_sequences_are_full_and_keep_short_documents(run):
    texts = [WORDS[n % 10] for n in range(50)]  # 3 tokens each, special ones included: too short on their own
    store = run(texts, sequence_tokens=12, min_sequence_tokens=4, packing="full", **LOAD)
    lengths = store.split("train").lengths.tolist()
    assert sorted(lengths, reverse=True) == [12] * 9 + [11]  # 99 tokens, separators included, in bodies of 10
    assert all(sequence[0] == 2 and sequence[-1] == 3 for sequence in sequences(store))
    assert store.token_counts[5:].sum() == 50


KILLED = """
import os, signal, sys
from pathlib import Path
from stages import encode_documents, token_parts, tokenize_corpus
from stages.config import load_config
from stages.context import Artefacts, Context, Silent
from tests.tiny import tiny_params

class Fatal(Silent):
    parts = 0
    def advance(self, amount=1, **figures):
        self.parts += 1
        if self.parts == 3:
            os.kill(os.getpid(), signal.SIGKILL)

encode_documents.PART_BYTES = 1
load = {"tokenizer": "load", "load": {"path": "../bert"}}
tokenize_corpus.run(load_config(tiny_params(tokenize=load)), Context(artefacts=Artefacts(project=Path(sys.argv[1])), progress=Fatal()))
"""


@pytest.mark.usefixtures("bert_folder")
def test_a_killed_run_goes_on_with_the_parts_that_are_whole(run, tmp_path):
    texts = [" ".join(WORDS[: 2 + n % 9]) for n in range(60)]
    expected = run(texts, folder="undisturbed", documents_per_part=6, **LOAD).content_digests()
    shutil.copytree(tmp_path / "undisturbed/data/documents", tmp_path / "killed/data/documents")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path / "killed"], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    (work,) = (tmp_path / "killed/.cache-work").glob("tokenize-*/")
    damaged = min(work.glob("train-*")) / "sequences"
    damaged.write_bytes(damaged.read_bytes()[:-2])

    runner = Counting()
    store = run(texts, folder="killed", documents_per_part=6, runner=runner, **LOAD)
    assert store.content_digests() == expected
    assert 1 < len(runner.items) <= 12 - 3 + 1  # 12 parts, 3 of them there, one of these damaged
    assert damaged.parent.name in map(str, runner.items)  # two are in hand at once: which three are there is chance
    assert not work.exists()


@pytest.mark.usefixtures("bert_folder")
def test_what_was_encoded_with_other_parameters_or_documents_is_not_taken(run, tmp_path):
    texts = [" ".join(WORDS) for _ in range(20)]
    with pytest.raises(Interrupted):
        run(
            texts, should_stop=AfterCalls(3 + 12 + 3), documents_per_part=2, **LOAD
        )  # files, parts that may be there, parts
    for change in ({"sequence_tokens": 9}, {"train": [*texts, "beta beta beta"]}):
        runner = Counting()
        run(**{"train": texts, "documents_per_part": 2, **LOAD, **change}, runner=runner)
        assert len(runner.items) >= 12
    assert len(list((tmp_path / "project/.cache-work").glob("tokenize-*/"))) == 1  # the interrupted run's


@pytest.mark.usefixtures("bert_folder")
def test_two_at_the_same_work_are_refused(run, tmp_path):
    seen = []

    class Second(InProcess):
        def run(self, job, items, place):
            seen.append(job)
            if len(seen) == 1:
                with pytest.raises(LockedError, match="another process works on the tokens"):
                    run(runner=Second(), **LOAD)
            return super().run(job, items, place)

    run(runner=Second(), **LOAD)
    assert len(seen) == 1


def test_a_trained_tokenizer_is_kept_for_the_next_start(run, tmp_path):
    with pytest.raises(Interrupted):
        run(should_stop=AfterCalls(3 + 2), documents_per_part=5)  # files, parts that may be there
    (work,) = (tmp_path / "project/.cache-work").glob("tokenize-*/")
    kept = {path.name: path.read_bytes() for path in (work / "tokenizer").iterdir()}
    store = run(documents_per_part=5)
    assert {path.name: path.read_bytes() for path in store.tokenizer_folder.iterdir()} == kept


def test_the_description_and_the_resolved_parameters_lie_beside_the_tokens(run):
    store = run()
    content = json.loads((store.folder / "tokens.json").read_text())
    assert content["splits"]["train"]["sequences"] == len(store.split("train"))
    assert content["splits"]["train"]["tokens"] == store.token_counts.sum()
    resolved = json.loads(Path(store.folder / "resolved-config.json").read_text())
    assert load_config(tiny_params(**resolved)) == load_config(tiny_params())
