import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stages import cache_teacher, init_student, lasting_task
from stages.config import ConfigError
from stages.context import Context, Silent
from stages.errors import InputError, Interrupted, ItemsError
from stages.outputs import write_text
from stages.sharing import MOST_FAILURES
from stages.teacher_job import TeacherJob
from storage import CacheDescription, CacheReader, CacheWork, LockedError
from storage.files import has_other_names
from tests.stages.runners import StopsIn
from tests.stages.tiny_models import tiny_bert
from tests.storage.damage import flip_a_bit

RUN_STAGE = """
import sys, yaml
from pathlib import Path
from stages import cache_teacher
from stages.config import load_config
from stages.context import Artefacts, Context
folder = Path(sys.argv[1])
config = load_config(yaml.safe_load((folder / "params.yaml").read_text()))
cache_teacher.run(config, Context(artefacts=Artefacts(project=folder)))
"""


def digest(project):
    return CacheReader(project.artefacts.cache).root_digest


def published(project):
    return sorted(path.name for path in project.artefacts.cache_work.glob("*/manifest/[!.]*.json"))


def test_a_second_run_finds_the_cache_whole_and_changes_nothing(make_project):
    project = make_project()
    project.run(cache_teacher)
    before = digest(project), project.artefacts.cache_run.read_text()
    project.run(cache_teacher)
    assert (digest(project), project.artefacts.cache_run.read_text()) == before


def test_two_runs_in_two_folders_give_the_same_bytes(make_project):
    one, other = make_project(), make_project()
    one.run(cache_teacher)
    other.run(cache_teacher)
    assert digest(one) == digest(other)


class StopsAfter(Silent):
    """Asks to stop once so many shards are done."""

    def __init__(self, shards):
        self.left = shards

    def advance(self, _amount=1, **_figures):
        self.left -= 1

    def should_stop(self):
        return self.left <= 0


def test_a_stopped_run_keeps_its_shards_and_resumes_to_the_same_root_digest(make_project, cached):
    project = make_project()
    stop = StopsAfter(3)
    with pytest.raises(Interrupted, match="every finished shard"):
        project.run(
            cache_teacher,
            context=Context(artefacts=project.artefacts, should_stop=stop.should_stop, progress=stop),
        )
    kept = len(published(project))
    assert 3 <= kept < 3 + TeacherJob.at_once  # those in hand may have been as good as done
    assert not project.artefacts.cache.exists()
    project.run(cache_teacher)
    assert digest(project) == digest(cached)
    assert (
        json.loads(project.artefacts.cache_run.read_text())["shards_computed"]
        == len(CacheReader(project.artefacts.cache).description.shard_ids()) - kept
    )


def test_a_killed_run_resumes_to_the_same_root_digest(make_project):
    expected = make_project(cache={"shard_tokens": 64})
    expected.run(cache_teacher)
    project = make_project(cache={"shard_tokens": 64})
    command = [sys.executable, "-c", RUN_STAGE, str(project.folder)]
    process = subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and len(published(project)) < 4:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not project.artefacts.cache.exists()
    project.run(cache_teacher)
    assert digest(project) == digest(expected)


def test_a_damaged_cache_is_made_whole_by_computing_the_bad_shard_only(make_project):
    project = make_project()
    project.run(cache_teacher)
    before = digest(project)
    bad = next((project.artefacts.cache / "shards").glob("train-*/hidden/c/0/0/0"))
    bad.write_bytes(bad.read_bytes()[:-3])
    project.run(cache_teacher)
    assert digest(project) == before
    assert json.loads(project.artefacts.cache_run.read_text())["shards_computed"] == 1


@pytest.mark.parametrize(
    ("task", "kept"),
    [
        ("read the teacher", "all is as it was"),
        ("read the tokens", "all is as it was"),
        ("read cache/current", "cache/current is as it was"),
        ("read back what is there", "every shard that is whole is kept in"),
    ],
)
def test_a_stop_is_seen_while_what_is_there_is_read_and_nothing_is_lost(copy_cached, monkeypatch, task, kept):
    project = copy_cached()
    before = digest(project)
    bad = next((project.artefacts.cache / "shards").glob("train-*/hidden/c/0/0/0"))
    flip_a_bit(bad, 5)
    monkeypatch.setattr(lasting_task, "SHOWN_AFTER", 0.0)
    stop = StopsIn(task)
    context = Context(artefacts=project.artefacts, progress=stop, should_stop=stop.should_stop)
    with pytest.raises(Interrupted, match=kept):
        project.run(cache_teacher, context=context)
    project.run(cache_teacher)
    assert digest(project) == before
    assert json.loads(project.artefacts.cache_run.read_text())["shards_computed"] == 1


def test_a_changed_parameter_makes_another_cache_and_keeps_the_old_one_aside(make_project):
    project = make_project()
    project.run(cache_teacher)
    first = digest(project)
    project.set(cache={"top_k": 8})
    project.run(cache_teacher)
    assert digest(project) != first
    project.set()
    project.run(cache_teacher)
    assert digest(project) == first


def test_a_cache_that_was_removed_is_there_again_where_the_projects_files_are_hard_links(make_project, monkeypatch):
    """DVC removes outputs that it has not recorded, and links by hard links where it is told to."""
    project = make_project()
    tokens = project.artefacts.tokens / "train.parquet"
    os.link(tokens, project.folder / "in DVC's store")
    project.run(cache_teacher)
    before = digest(project)
    shutil.rmtree(project.artefacts.cache)
    monkeypatch.setattr(TeacherJob, "begin", None)  # nobody is to be asked
    project.run(cache_teacher)
    assert digest(project) == before
    assert json.loads(project.artefacts.cache_run.read_text())["shards_computed"] == 0


def test_elsewhere_a_finished_cache_has_no_second_names(make_project):
    """DVC that copies would copy such files once more."""
    project = make_project()
    project.run(cache_teacher)
    assert not has_other_names(project.artefacts.cache)


def test_how_fast_it_is_computed_is_not_part_of_what_it_is(make_project):
    one, other = make_project(), make_project(cache={"batch_tokens": 64})
    one.run(cache_teacher)
    other.run(cache_teacher)
    assert (
        CacheReader(one.artefacts.cache).description.fingerprint
        == CacheReader(other.artefacts.cache).description.fingerprint
    )


def test_masked_positions_hold_the_rows_of_all_positions_at_the_masked_tokens(make_project):
    everywhere, masked = make_project(), make_project(cache={"positions": "masked"})
    for project in (everywhere, masked):
        project.run(cache_teacher)
    wide, narrow = CacheReader(everywhere.artefacts.cache), CacheReader(masked.artefacts.cache)
    shard = wide.shards("train")[0]
    full, part = wide.load(shard), narrow.load(shard)
    np.testing.assert_array_equal(part.row_token, np.flatnonzero(full.masked))
    np.testing.assert_array_equal(part.top_ids[:, 0], full.top_ids[full.masked == 1, 0])
    assert narrow.description.splits["test"].layout.positions == "all"


def test_variants_mask_the_same_sequences_differently(make_project):
    project = make_project(masking={"variants": 2})
    project.run(cache_teacher)
    reader = CacheReader(project.artefacts.cache)
    one, two = (reader.load(reader.shards("train", variant)[0]) for variant in (0, 1))
    np.testing.assert_array_equal(one.original_ids, two.original_ids)
    assert not np.array_equal(one.masked, two.masked)
    assert len(reader.shards("test", 0)) > 0


def test_a_second_coordinator_is_kept_out(make_project):
    project = make_project()
    project.run(cache_teacher)
    description = CacheReader(project.artefacts.cache).description
    shutil.rmtree(project.artefacts.cache)
    with CacheWork.open(project.artefacts.cache_work, description), pytest.raises(LockedError):
        project.run(cache_teacher)


def spoil(project, name, index):
    """Let the teacher give NaN where it uses these embeddings."""
    weights = project.artefacts.teacher / "model.safetensors"
    tensors = load_file(weights)
    tensors[f"bert.embeddings.{name}.weight"][index] = torch.nan
    save_file(tensors, weights, metadata={"format": "pt"})


def test_a_teacher_that_gives_nan_stops_naming_shard_and_sequence_and_publishes_nothing_of_it(make_project):
    project = make_project()
    spoil(project, "word_embeddings", 17)
    with pytest.raises(ItemsError, match=r"shard train-v0-\d{6} .* at sequence \d+, position \d+"):
        project.run(cache_teacher)
    assert not project.artefacts.cache.exists()


class Counts(Silent):
    """Remembers how much there was to do, how often something was done, and what was said."""

    def __init__(self):
        self.total, self.done, self.said = None, 0, []

    def begin(self, _task, total, _unit, _done=0):
        self.total = total

    def advance(self, amount=1, **_figures):
        self.done += amount

    def message(self, text):
        self.said.append(text)


def test_shards_that_always_fail_are_named_while_the_others_are_done_and_the_next_start_does_them_alone(make_project):
    project = make_project(cache={"shard_tokens": 16, "sequences": {"train": 12, "validation": 2, "test": 2}})
    spoil(project, "position_embeddings", 15)  # of the sequences that have 16 tokens
    first, second = Counts(), Counts()
    for counts in (first, second):
        with pytest.raises(
            ItemsError,
            match=r"more failed, each named above\); every finished shard .* is kept in .*; the same command",
        ):
            project.run(cache_teacher, context=Context(artefacts=project.artefacts, progress=counts))
        failed = [said.split()[0] for said in counts.said if "failed, the others go on" in said]
        description = CacheDescription.from_bytes(next(project.artefacts.cache_work.glob("*/cache.json")).read_bytes())
        shards = {str(shard) for shard in description.shard_ids()}
        assert set(failed) == shards - {name.removesuffix(".json") for name in published(project)}
        assert 1 < len(failed) < len(shards)
    assert second.done == 0 < first.done
    assert second.total == first.total - first.done > 0


def test_nothing_more_is_begun_once_so_many_shards_failed_that_it_cannot_be_the_shards(make_project):
    project = make_project(cache={"shard_tokens": 16})
    spoil(project, "word_embeddings", 17)
    with pytest.raises(ItemsError, match=f"and {MOST_FAILURES - 1} more failed"):
        project.run(cache_teacher)
    assert published(project) == []


class Meanwhile(Counts):
    """Does something once the pass has begun, or once a shard of it is done."""

    def __init__(self, do, *, shards=0):
        super().__init__()
        self.do, self.shards = do, shards

    def begin(self, task, total, unit, done=0):
        super().begin(task, total, unit, done)
        self._count(task == "cache the teacher")

    def advance(self, amount=1, **figures):
        super().advance(amount, **figures)
        self._count(1)

    def _count(self, happened):
        if happened and self.do is not None:
            self.shards -= 1
            if self.shards < 0:
                self.do()
                self.do = None


def run_while(project, do, shards=0):
    cache_teacher.run(
        project.config, Context(artefacts=project.artefacts, progress=(progress := Meanwhile(do, shards=shards)))
    )
    return progress


@pytest.mark.parametrize("shards", [0, 2])
def test_tokens_that_are_made_anew_during_the_pass_are_not_mixed_in(make_project, cached, shards):
    project = make_project()
    file = project.artefacts.tokens / "tokens.json"
    before = file.read_bytes()

    def tokenize():
        content = json.loads(before)
        content["splits"]["train"]["sha256"] = "0" * 64
        write_text(file, json.dumps(content))  # whole or not at all, as the stage does it: threads read it

    with pytest.raises(
        InputError, match=r"data/tokens is not the one .* digest of the tokens is .*put it back, or run"
    ):
        run_while(project, tokenize, shards)
    assert len(published(project)) < shards + TeacherJob.at_once
    assert (len(published(project)) > 0) == (shards > 0)
    file.write_bytes(before)
    project.run(cache_teacher)
    assert digest(project) == digest(cached)


def test_a_teacher_that_is_replaced_before_it_is_loaded_or_before_the_cache_is_finished_is_refused(
    make_project, cached
):
    project = make_project()
    weights = project.artefacts.teacher / "model.safetensors"
    before = weights.read_bytes()
    description = CacheReader(cached.artefacts.cache).description
    every = len(description.shard_ids())
    for shards, kept in ((0, 0), (every, every)):
        with pytest.raises(InputError, match=r"models/teacher is not the one .* digest of the teacher is"):
            run_while(project, lambda: spoil(project, "word_embeddings", 17), shards)
        assert len(published(project)) == kept
        assert not project.artefacts.cache.exists()
        weights.write_bytes(before)
    project.run(cache_teacher)
    assert digest(project) == digest(cached)


def test_a_shard_whose_tokens_cannot_be_read_is_named_and_the_others_are_done(make_project, cached):
    project = make_project()
    file = project.artefacts.tokens / "validation.parquet"
    before = file.read_bytes()
    with pytest.raises(ItemsError, match=r"shard validation-v0-000000 cannot be read: .*validation.parquet"):
        run_while(project, lambda: file.write_bytes(before[:4] + bytes(64) + before[68:]))
    shards = [str(shard) for shard in CacheReader(cached.artefacts.cache).description.shard_ids()]
    assert published(project) == sorted(f"{shard}.json" for shard in shards if not shard.startswith("validation"))


def test_more_logits_than_the_teachers_vocabulary_are_refused(make_project):
    project = make_project(teacher={"source": "load", "load": {"path": "elsewhere"}}, cache={"top_k": 400})
    with pytest.raises(ConfigError, match=r"cache.top_k is 400; allowed: at most the teacher's vocabulary \(\d+\)"):
        project.run(cache_teacher)


def test_a_teacher_with_a_smaller_vocabulary_than_the_tokenizer_is_refused(make_project):
    project = make_project()
    tiny_bert(vocabulary=50, hidden=32, layers=2, positions=16).save_pretrained(project.artefacts.teacher)
    with pytest.raises(InputError, match=r"the tokenizer has \d+ entries and the teacher's vocabulary 50"):
        project.run(cache_teacher)


def test_sequences_longer_than_the_teachers_positions_are_refused(make_project):
    project = make_project()
    tiny_bert(vocabulary=200, hidden=32, layers=2, positions=12).save_pretrained(project.artefacts.teacher)
    with pytest.raises(
        InputError, match=r"the longest sequence in data/tokens has 16 tokens and the teacher 12 positions"
    ):
        project.run(cache_teacher)


def test_tokens_made_with_other_parameters_than_the_cache_would_claim_are_refused(make_project):
    project = make_project(tokenize={"min_sequence_tokens": 5})
    with pytest.raises(InputError, match=r"tokenize.min_sequence_tokens: 5 .* run: pipeline tokenize"):
        project.run(cache_teacher)


def test_a_teacher_with_other_words_for_the_same_ids_is_refused(make_project):
    project = make_project()
    file = project.artefacts.teacher / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    one, other = list(vocabulary)[10:12]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match="the same id would mean different words"):
        project.run(cache_teacher)


def test_a_run_killed_before_its_report_reports_at_the_next_start(make_project):
    project = make_project()
    project.run(cache_teacher)
    project.artefacts.cache_run.unlink()
    project.run(cache_teacher)
    assert json.loads(project.artefacts.cache_run.read_text())["shards_computed"] == 0


@pytest.mark.parametrize("name", ["run.json", "figures.json", "distributions.csv"])
def test_figures_that_are_missing_or_of_another_cache_are_written_anew(make_project, name):
    project = make_project()
    project.run(cache_teacher)
    beside = project.artefacts.cache.parent
    figures = json.loads((beside / "figures.json").read_text())
    (beside / name).unlink()
    project.run(cache_teacher)
    assert (beside / name).is_file()
    (beside / "figures.json").write_text(json.dumps({**figures, "root_digest": "of another"}))
    project.run(cache_teacher)
    assert json.loads((beside / "figures.json").read_text()) == figures


def test_more_sequences_than_there_are_is_refused(make_project):
    project = make_project(cache={"sequences": {"train": 10**6}})
    with pytest.raises(
        ConfigError, match=r"cache.sequences.train is 1000000; allowed: null or at most the \d+ sequences"
    ):
        project.run(cache_teacher)


def test_a_missing_teacher_names_the_command(make_project):
    project = make_project()
    shutil.rmtree(project.artefacts.teacher)
    with pytest.raises(InputError, match="pipeline teacher"):
        project.run(cache_teacher)


def test_a_teacher_without_its_masked_lm_head_is_refused(make_project):
    project = make_project()
    tiny_bert(vocabulary=200, hidden=32, layers=2, positions=16).bert.save_pretrained(project.artefacts.teacher)
    with pytest.raises(InputError, match=r"lack \d+ tensors of BertForMaskedLM"):
        project.run(init_student, "half")


def test_the_shard_in_hand_is_dropped_between_two_batches(make_project):
    project = make_project(cache={"shard_tokens": 10**6, "batch_tokens": 16})
    asked = []

    def should_stop():
        asked.append(None)
        return len(asked) > 8

    with pytest.raises(Interrupted, match="every finished shard"):
        project.run(cache_teacher, context=Context(artefacts=project.artefacts, should_stop=should_stop))
    assert published(project) == []
    assert not list(project.folder.rglob(".tmp-*"))
