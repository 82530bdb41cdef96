"""Second distillation as a whole: a fine-tuned teacher's answers are cached, and a student learns a task from them alone."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    DistilBertConfig,
    DistilBertForMaskedLM,
)

from stages import cache_teacher, finetune
from stages.cache_location import open_cache, push_cache
from stages.cache_origin import Origin
from stages.config import ConfigError, load_config
from stages.errors import InputError, Interrupted
from stages.finetuning.batches import Padded
from stages.finetuning.cached import CachedRows
from stages.finetuning.trainer import fine_tune
from stages.models import load_tokenizer
from stages.task_models import BaseModel
from stages.tasks import TASKS
from stages.tasks.data import read_task
from stages.training.checkpoints import Checkpoints
from storage import CacheReader
from tests.stages.conftest import Project
from tests.stages.tiny_tasks import (
    Counts,
    assert_same_tensors,
    finetuning,
    kept_weights,
    stopping_after,
    write_student,
    write_tasks,
)
from tests.stages.tiny_tokenizers import bert_like
from tests.tiny import tiny_params

TASK_NAMES = ("SST-2", "STS-B", "SQuAD")
UNLABELLED = ["the teacher reads a letter", "a student copies the river", "every writer explains a shard"]
SETTINGS = finetuning(
    {"SST-2": {"unlabelled": ["more.txt"]}, "STS-B": {}, "SQuAD": {}}, checkpoint_steps=2, precision="float32"
)
CACHE = {"shard_tokens": 48, "hidden": "float32"}


class Distilling(Project):
    """A project with a teacher that was fine-tuned on three tasks, their caches, and a student (a DistilBERT)."""

    def cache(self, task, **settings):
        context = settings.pop("context", self.context)
        cache_teacher.run(self.config, context.of_task(task), **settings)

    def finetune(self, *tasks, context=None, **settings):
        finetune.run(self.config, context or self.context, tasks=tasks, **{"distil": True, **settings})

    def reader(self, task):
        return CacheReader(self.artefacts.of_task(task).cache)

    def result(self, model, task):
        return json.loads((self.artefacts.finetuning / model / task / "0.json").read_text(encoding="utf-8"))

    def change(self, cache=None, **changes):
        self.set(cache={**CACHE, **(cache or {})}, finetune={**SETTINGS, **changes})


@pytest.fixture(scope="module")
def made(tokenized, tmp_path_factory):
    """Never changed by a test."""
    project = Distilling(shutil.copytree(tokenized, tmp_path_factory.mktemp("distilling") / "project"))
    project.change()
    write_tasks(project.folder / "tasks")
    (project.folder / "tasks" / "SST-2" / "more.txt").write_text("\n".join(UNLABELLED) + "\n", encoding="utf-8")
    write_student(project.artefacts)
    project.finetune(model="teacher", distil=False)
    for task in TASK_NAMES:
        project.cache(task)
    return project


@pytest.fixture
def project(made, tmp_path):
    copied = Distilling(shutil.copytree(made.folder, tmp_path / "project"))
    copied.change()
    return copied


def rows_of(project, task, **settings):
    return CachedRows(project.reader(task), **{"hidden": False, **settings})


def fine_tuned_teacher(project, task):
    classes = AutoModelForQuestionAnswering if task == "SQuAD" else AutoModelForSequenceClassification
    return classes.from_pretrained(project.artefacts.finetuned("teacher", task) / "0").eval()


def said(teacher, row):
    """What a model says to one input: logits (L, 2) or (C,), and its last hidden states (L, H)."""
    inputs = {name: torch.from_numpy(row[name].astype(np.int64))[None] for name in ("input_ids", "token_type_ids")}
    with torch.inference_mode():
        output = teacher(**inputs, output_hidden_states=True)
    logits = output.logits if "logits" in output else torch.stack([output.start_logits, output.end_logits], -1)
    return logits[0].numpy(), output.hidden_states[-1][0].numpy()


@pytest.mark.parametrize("task", TASK_NAMES)
def test_the_cached_answers_and_hidden_states_are_the_fine_tuned_teachers_own(made, task):
    rows, teacher = rows_of(made, task, hidden=True), fine_tuned_teacher(made, task)
    name = "token_logits" if task == "SQuAD" else "class_logits"
    for row in rows:
        logits, hidden = said(teacher, row)
        np.testing.assert_allclose(row[name], logits, atol=1e-5)
        np.testing.assert_allclose(row["teacher_hidden"], hidden, atol=1e-5)
    assert len(made.reader(task).description.shard_ids()) > 1


@pytest.mark.parametrize("task", TASK_NAMES)
def test_the_cached_inputs_and_labels_are_those_of_the_task(made, task):
    settings, kind = made.config.finetune, TASKS[task]
    data = read_task(settings, task, kind, made.folder, print)
    base = BaseModel.of(made.artefacts.teacher, {kind.head})
    training = base.fitting(settings.training_of(task), task, lambda _: None)
    expected = kind.encode(data.train, base.tokenizer, training, learning=True, done=lambda _: None).rows
    rows = rows_of(made, task)
    assert rows.labelled == len(expected)
    for row, wanted in zip(rows[: len(expected)], expected, strict=True):
        assert row["labelled"] == 1
        for name, values in wanted.items():
            np.testing.assert_array_equal(row[name], values)
    if task == "STS-B":  # two texts, told apart
        assert {1, 0} == set(np.concatenate([row["token_type_ids"] for row in rows]).tolist())


def test_texts_without_labels_follow_with_the_teachers_answers_in_the_place_of_labels(made):
    rows, tokenizer = rows_of(made, "SST-2"), load_tokenizer(made.artefacts.teacher)
    some = rows[rows.labelled :]
    assert [row["labelled"] for row in some] == [0, 0, 0]
    assert [row["input_ids"].tolist() for row in some] == tokenizer(UNLABELLED, truncation=True, max_length=16)[
        "input_ids"
    ]
    assert all(np.isfinite(row["class_logits"]).all() for row in some)


def test_a_cache_of_a_task_has_no_head_and_says_what_it_is_of(made):
    cache = made.artefacts.of_task("STS-B").cache
    assert not (cache / "head.safetensors").exists()
    description = made.reader("STS-B").description
    assert description.task == {"name": "STS-B", "kind": "STS-B", "head": "classification", "labels": None}
    assert not made.artefacts.cache.exists()


def test_hidden_states_are_cached_only_where_they_are_asked_for(project):
    project.change(cache={"hidden": None})
    project.cache("SST-2")
    assert project.reader("SST-2").description.splits["train"].layout.hidden == "none"
    project.change(cache={"hidden": None}, distillation={"weights": {"hidden": 0.1}})
    with pytest.raises(
        InputError, match=r"does not hold the teacher's last hidden states; set it to 0, or set cache\.hidden"
    ):
        project.finetune("SST-2")


def test_a_pass_that_was_killed_between_shards_resumes_to_the_same_root_digest(project):
    expected = project.reader("STS-B").root_digest
    folder = project.artefacts.of_task("STS-B").cache
    shutil.rmtree(folder)
    program = (
        "import os, signal, sys\n"
        "from dataclasses import replace\n"
        "from pathlib import Path\n"
        "from pipeline.params import read_config\n"
        "from stages import cache_teacher\n"
        "from stages.context import Artefacts, Context, Silent\n"
        "class Dies(Silent):\n"
        "    def advance(self, amount=1, **figures):\n"
        "        if figures:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "project = Path(sys.argv[1])\n"
        "context = Context(artefacts=Artefacts(project=project).of_task('STS-B'), progress=Dies())\n"
        "cache_teacher.run(read_config(project / 'params.yaml'), context)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(project.folder)], env=dict(os.environ), check=False)
    assert done.returncode == -signal.SIGKILL
    assert not folder.exists()
    messages = []

    class Says(Counts):
        def message(self, text):
            messages.append(text)

    project.cache("STS-B", context=replace(project.context, progress=Says()))
    assert any(text.startswith("resuming: ") for text in messages)
    assert project.reader("STS-B").root_digest == expected


def test_a_finished_cache_is_left_alone_and_other_examples_make_another(project):
    before = project.reader("SST-2").description
    tokens = project.artefacts.of_task("SST-2").tokens
    written = (tokens / "task.json").stat().st_mtime_ns
    project.cache("SST-2")
    assert (tokens / "task.json").stat().st_mtime_ns == written
    with (project.folder / "tasks" / "SST-2" / "train.tsv").open("a", encoding="utf-8") as file:
        file.write("a student explains the river\t0\n")
    project.cache("SST-2")
    after = project.reader("SST-2").description
    assert after.spec == before.spec
    changed = {name for name in after.content if after.content[name] != before.content[name]}
    assert changed == {"tokens", "labels", "examples"}


def online_loss(teacher, weight_of_teacher, temperature):
    """Hinton's loss with the teacher in the loop, by torch's own functions."""

    def loss(model, batch):
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with torch.inference_mode():
            taught = teacher(**inputs, token_type_ids=batch["token_type_ids"])
        student = model(**inputs)
        if "logits" in taught and taught.logits.shape[-1] == 1:
            return weight_of_teacher * F.mse_loss(student.logits, taught.logits.clone()) + 0.5 * F.mse_loss(
                student.logits[:, 0], batch["labels"]
            )
        names = (
            {"logits": "labels"}
            if "logits" in taught
            else {
                "start_logits": "start_positions",
                "end_logits": "end_positions",
            }
        )
        total = 0.0
        for name, label in names.items():
            # one input at a time, without its padding where a place in it is what is asked for
            terms = []
            for ours, theirs, real in zip(student[name], taught[name].clone(), batch["attention_mask"], strict=True):
                length = int(real.sum()) if name != "logits" else len(ours)
                terms.append(
                    F.kl_div(
                        F.log_softmax(ours[:length] / temperature, -1),
                        F.softmax(theirs[:length] / temperature, -1),
                        reduction="sum",
                    )
                )
            kd = temperature**2 * torch.stack(terms).mean()
            total = total + (weight_of_teacher * kd + 0.5 * F.cross_entropy(student[name], batch[label])) / len(names)
        return total

    return loss


@pytest.mark.parametrize("task", TASK_NAMES)
def test_a_student_learns_from_the_cache_as_with_the_teacher_in_the_loop(project, task, tmp_path):
    settings = {**SETTINGS, "training": {**SETTINGS["training"], "max_steps": 3}, "tasks": {task: {}}}
    project.set(cache=CACHE, finetune=settings)
    project.cache(task)
    project.finetune(task)
    config, rows = project.config.finetune, rows_of(project, task)
    base = BaseModel.of(project.artefacts.student, {TASKS[task].head})
    online = base.with_head(TASKS[task].head, TASKS[task].labels, seed=0, attention="eager")
    fine_tune(
        online,
        rows,
        rows.lengths,
        name=task,
        pad_id=base.pad_id,
        training=config.training_of(task),
        seed=0,
        precision="float32",
        settings=config,
        checkpoints=Checkpoints(folder=tmp_path / "online", run="online", cache="online", kept=1),
        context=project.context,
        loss=online_loss(fine_tuned_teacher(project, task), 0.5, 2.0),
    )
    kept = kept_weights(project, "student-distilled", task)
    # A softmax does not notice a shift of all its logits: these have no gradient but rounding, of which Adam makes steps.
    shifts = ("k_lin.bias", "qa_outputs.bias")
    for name, tensor in online.state_dict().items():
        if name.endswith(shifts):
            continue
        torch.testing.assert_close(kept[name], tensor, atol=1e-5, rtol=0)


def test_neither_teacher_nor_training_examples_are_needed_and_the_three_stand_side_by_side(project):
    project.finetune("SST-2", "STS-B", "SQuAD", distil=False)
    for folder in ("models/finetuned/teacher", "models/teacher", "data"):
        shutil.rmtree(project.folder / folder)
    for path in [*(project.folder / "tasks").rglob("train*"), project.folder / "tasks" / "SST-2" / "more.txt"]:
        path.unlink()
    project.finetune()
    result = project.result("student-distilled", "SST-2")
    assert result["examples"] == {"train": 8, "unlabelled": 3, "evaluation": 8}
    assert result["identity"]["distillation"] == {
        "temperature": 2.0,
        "weights": {"kd": 0.5, "task": 0.5, "hidden": 0.0},
        "cache": project.reader("SST-2").root_digest,
    }
    summary = json.loads((project.artefacts.finetuning / "summary.json").read_text(encoding="utf-8"))
    header = (project.artefacts.finetuning / "summary.md").read_text(encoding="utf-8").splitlines()[0]
    assert header == "|  | teacher | student | of the teacher | student-distilled | of the teacher |"
    assert summary["retention"]["student-distilled"].keys() == summary["retention"]["student"].keys()
    assert (project.artefacts.finetuned("student-distilled", "STS-B") / "0" / "config.json").is_file()


def test_a_distillation_that_was_stopped_comes_out_as_an_uninterrupted_one(project):
    project.change(distillation={"temperature": 1.5, "weights": {"kd": 0.7, "task": 0.2, "hidden": 0.1}})
    project.finetune("SST-2", name="whole")
    with pytest.raises(Interrupted, match=r"stopped as asked at step 1 of 6 on SST-2, seed 0"):
        project.finetune("SST-2", context=stopping_after(project, 1))
    project.finetune("SST-2")
    assert_same_tensors(kept_weights(project, "whole", "SST-2"), kept_weights(project, "student-distilled", "SST-2"))
    assert project.result("whole", "SST-2")["loss"] == project.result("student-distilled", "SST-2")["loss"]


def test_every_weight_and_the_temperature_change_what_is_learned(project):
    variants = {
        "kd": {"weights": {"kd": 1.0, "task": 0.0}},
        "task": {"weights": {"kd": 0.0, "task": 1.0}},
        "hidden": {"weights": {"hidden": 1.0}},
        "temperature": {"temperature": 4.0},
    }
    losses = set()
    for name, changes in variants.items():
        project.change(tasks={"SST-2": {"unlabelled": ["more.txt"], "distillation": changes}})
        project.finetune(name=name)
        losses.add(project.result(name, "SST-2")["loss"])
    assert len(losses) == len(variants)


def test_a_student_with_token_types_learns_from_those_of_the_cache(project):
    project.finetune("STS-B", model="teacher")
    assert project.result("teacher-distilled", "STS-B")["steps"] > 0


def test_results_of_another_cache_or_of_no_cache_are_not_mixed(project):
    project.finetune("SST-2", distil=False)
    with pytest.raises(InputError, match=r"is of other parameters, .*distillation.*; give these results another name"):
        project.finetune("SST-2", name="student")
    project.finetune("SST-2", name="other")
    with pytest.raises(InputError, match=r"distillation"):
        project.finetune("SST-2", name="other", distil=False)
    project.change(cache={"shard_tokens": 64})
    project.cache("SST-2")
    with pytest.raises(InputError, match=r"distillation\.cache"):
        project.finetune("SST-2", name="other")


def test_of_several_fine_tuned_teachers_the_best_is_cached(project):
    scores = {"SST-2": {0: 0.5, 1: 0.9, 2: 0.9}}["SST-2"]
    folder = project.artefacts.finetuned("teacher", "SST-2")
    for seed, score in scores.items():
        if seed:
            shutil.copytree(folder / "0", folder / str(seed))
        file = project.artefacts.finetuning / "teacher" / "SST-2" / f"{seed}.json"
        file.write_text(json.dumps({"score": score}), encoding="utf-8")
    config = json.loads((folder / "1" / "config.json").read_text(encoding="utf-8"))
    (folder / "1" / "config.json").write_text(json.dumps({**config, "said": "best"}), encoding="utf-8")
    project.cache("SST-2")
    assert project.reader("SST-2").description.teacher_config["said"] == "best"


def test_where_there_is_no_fine_tuned_teacher_the_command_that_makes_one_is_named(project):
    shutil.rmtree(project.artefacts.finetuned("teacher", "SST-2"))
    with pytest.raises(
        InputError, match=r"holds no fine-tuned teacher; .* run: pipeline finetune SST-2 --model teacher"
    ):
        project.cache("SST-2")


def test_where_there_is_no_cache_the_command_that_makes_it_is_named(project):
    shutil.rmtree(project.artefacts.of_task("SST-2").cache)
    with pytest.raises(InputError, match=r"is missing: .*; run: pipeline cache-teacher --task SST-2 where"):
        project.finetune("SST-2")


def test_another_tokenizer_is_refused(project):
    bert_like().save_pretrained(project.artefacts.student)
    with pytest.raises(InputError, match=r"the tokenizer in .*models/student is not that of cache/tasks/SST-2/current"):
        project.finetune("SST-2")


def test_a_cache_of_other_parameters_is_refused_with_what_differs(project):
    project.change(training={**SETTINGS["training"], "max_tokens": 12})
    with pytest.raises(
        InputError,
        match=r"made with other parameters: max_tokens: 12 expected, 16 in the cache; .*cache-teacher --task SST-2",
    ):
        project.finetune("SST-2")


@pytest.mark.parametrize("part", ["held_out", "validation"])
def test_a_cache_of_other_training_examples_is_refused_where_the_scored_ones_are_taken_from_them(project, part):
    project.change(tasks={"STS-B": {part: 0.3}})
    with pytest.raises(
        InputError, match=r"it may have learned them.*; run: pipeline finetune STS-B --model teacher --replace"
    ):
        project.cache("STS-B")
    project.finetune("STS-B", model="teacher", distil=False, replace_others=True)
    project.cache("STS-B")
    file = project.folder / "tasks" / "STS-B" / "train.tsv"
    first, *others = file.read_text(encoding="utf-8").splitlines(keepends=True)
    file.write_text("".join([first, *others[::-1]]), encoding="utf-8")  # others are drawn
    with pytest.raises(
        InputError, match=r"the cache of STS-B is of other training examples .* cache-teacher --task STS-B"
    ):
        project.finetune("STS-B")
    file.write_text("".join([first, *others]), encoding="utf-8")
    project.finetune("STS-B")
    assert project.result("student-distilled", "STS-B")["examples"]["train"] == 6


def test_texts_that_are_scored_are_not_cached_without_their_labels(project):
    tasks = project.folder / "tasks" / "SST-2"
    scored = [line.split("\t")[0] for line in (tasks / "dev.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    (tasks / "more.txt").write_text("\n".join([*UNLABELLED, *scored[:2]]) + "\n", encoding="utf-8")
    said = []
    counts = Counts()
    counts.message = said.append
    before = project.reader("SST-2").root_digest
    project.cache("SST-2", context=replace(project.context, progress=counts))
    assert said[0] == "SST-2: left out 2 texts without labels that are examples to be scored"
    assert project.reader("SST-2").root_digest == before


def test_jobs_that_begin_together_write_the_examples_once(project):
    shutil.rmtree(project.artefacts.of_task("STS-B").tokens)
    begun, both = [], threading.Event()

    class Waits(Counts):
        def begin(self, task, total, unit, done=0):
            super().begin(task, total, unit, done)
            begun.append(task)
            both.wait(0.5)  # the other one has time to begin too, where nothing keeps it from that

    context = replace(project.context, progress=Waits()).of_task("STS-B")
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda _: Origin.find(project.config, context).description, range(2)))
    assert begun.count("tokenize STS-B") == 1
    assert {one.fingerprint for one in found} == {project.reader("STS-B").description.fingerprint}


def test_the_shards_of_the_cache_that_are_read_are_counted(project):
    counts = Counts()
    project.finetune("STS-B", context=replace(project.context, progress=counts))
    assert ("read the cache of STS-B", len(project.reader("STS-B").shards("train")), 0) in counts.begun


def test_the_cache_of_a_task_is_not_taken_for_that_of_a_language_model(project, tmp_path):
    shutil.copytree(project.artefacts.of_task("STS-B").cache, project.artefacts.cache)
    with pytest.raises(
        InputError, match=r"cache/current is the cache of the task STS-B, .*; run: pipeline cache-teacher$"
    ):
        open_cache(project.config, project.context)
    url = f"file://{tmp_path / 'root'}"
    for task in ("STS-B", "SST-2"):
        push_cache(project.context.of_task(task), url)
    there = replace(project.context, artefacts=replace(project.artefacts, root=url))
    with pytest.raises(InputError, match=r"holds no finished cache; put one there"):
        open_cache(project.config, there)
    with pytest.raises(InputError, match=r"no finished cache of the task SQuAD; put .* push` --task SQuAD"):
        open_cache(project.config, there.of_task("SQuAD"))
    project.change(cache={"shard_tokens": 60})  # of its task it is still the only one
    assert open_cache(project.config, there.of_task("SST-2")).description.task["name"] == "SST-2"


def test_a_student_whose_hidden_states_have_another_size_is_refused_where_they_are_to_be_learned(project):
    project.change(distillation={"weights": {"hidden": 0.5}})
    config = DistilBertConfig.from_pretrained(project.artefacts.student)
    DistilBertForMaskedLM(DistilBertConfig(**{**config.to_dict(), "dim": 16, "hidden_dim": 32})).save_pretrained(
        project.artefacts.student
    )
    with pytest.raises(
        InputError, match=r"hidden is 0\.5, and hidden states of .* have 16 values where the teacher's have 32"
    ):
        project.finetune("SST-2")


def test_labels_that_change_while_the_teacher_runs_end_the_pass(project):
    shutil.rmtree(project.artefacts.of_task("SST-2").cache)

    class Changes(Counts):
        def advance(self, amount=1, **figures):  # noqa: ARG002
            if figures:  # a shard is there
                file = project.artefacts.of_task("SST-2").tokens / "task.json"
                record = json.loads(file.read_text(encoding="utf-8"))
                file.write_text(json.dumps({**record, "sha256": "0" * 64}), encoding="utf-8")

    with pytest.raises(InputError, match=r"was changed since the pass began: the digest of labels and token types"):
        project.cache("SST-2", context=replace(project.context, progress=Changes()))


def test_examples_that_were_damaged_are_encoded_anew(project):
    before = project.reader("SST-2").root_digest
    file = project.artefacts.of_task("SST-2").tokens / "examples.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    project.cache("SST-2")
    assert project.reader("SST-2").root_digest == before


@pytest.mark.parametrize(
    ("distillation", "message"),
    [
        ({"temperature": 0}, r"finetune\.distillation\.temperature is 0\.0; allowed: more than 0"),
        ({"weights": {"kd": -1}}, r"finetune\.distillation\.weights\.kd is -1\.0; allowed: 0 or more"),
        ({"weights": {"kd": 0, "task": 0}}, r"finetune\.distillation\.weights is .*; allowed: at least one above 0"),
        ({"weight": {}}, r"unknown key finetune\.distillation\.weight; did you mean weights"),
    ],
)
def test_a_distillation_that_cannot_be_is_refused(distillation, message):
    with pytest.raises(ConfigError, match=message):
        load_config(tiny_params(finetune={**SETTINGS, "distillation": distillation}))
    of_task = {**SETTINGS, "tasks": {"SST-2": {"distillation": distillation}}}
    with pytest.raises(ConfigError, match=message.replace(r"finetune\.d", r"finetune\.(tasks\.SST-2\.)?d")):
        load_config(tiny_params(finetune=of_task))


def test_padding_of_cached_rows_is_zero_and_belongs_to_nobody(made):
    rows = rows_of(made, "SQuAD", hidden=True)
    short, long = (min(rows, key=lambda row: len(row["input_ids"])), max(rows, key=lambda row: len(row["input_ids"])))
    batch = Padded(0)([short, long])
    length = len(short["input_ids"])
    assert batch["token_logits"].shape == (2, len(long["input_ids"]), 2)
    assert batch["token_logits"].dtype == torch.float32
    assert not batch["token_logits"][0, length:].any()
    np.testing.assert_array_equal(batch["teacher_hidden"][0, :length].numpy(), short["teacher_hidden"])
