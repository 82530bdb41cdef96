import csv
import json
import resource
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, pipeline

from stages import cache_teacher, evaluate, init_student, train_student
from stages.config import ConfigError
from stages.context import Context, Silent
from stages.errors import InputError, Interrupted, StageError
from stages.models import load_tokenizer
from stages.training.run import plan_run
from storage import CacheReader, CorruptError, LockedError, MismatchError
from storage.work import lock
from tests.stages.tiny_models import tiny_model


@pytest.fixture
def ready(make_project):
    """`ready(train={...})`: a project with cache and initial student."""

    def make(**overrides):
        project = make_project(**overrides)
        project.run(cache_teacher)
        for name in project.config.students:
            project.run(init_student, name)
        return project

    return make


def newest_checkpoint(project):
    found = (path.parent for path in project.artefacts.checkpoints.glob("*/checkpoint-*/run.json"))
    return max(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def weights(project):
    return load_file(project.artefacts.student / "model.safetensors")


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def stop_after(project, steps):
    """A context that asks to stop once so many optimizer steps are done."""
    done = 0

    class Count:
        def __getattr__(self, name):
            def report(*amount, **figures):
                nonlocal done
                if name == "advance" and amount and amount[0] == 1:
                    done += 1

            return report

    return Context(artefacts=project.artefacts, progress=Count(), should_stop=lambda: done >= steps)


def test_the_student_comes_out_the_same_without_teacher_and_corpus(ready):
    project = ready()
    project.run(train_student)
    project.run(evaluate)
    before, figures = weights(project), (project.artefacts.runs / "evaluation.json").read_text()
    for gone in (project.artefacts.teacher, project.artefacts.documents, project.artefacts.tokens):
        shutil.rmtree(gone)
    for again in (project.artefacts.student, project.artefacts.checkpoints, project.artefacts.runs):
        shutil.rmtree(again)
    project.run(train_student)
    project.run(evaluate)
    assert_same_weights(weights(project), before)
    assert (project.artefacts.runs / "evaluation.json").read_text() == figures


def test_the_student_is_an_ordinary_hugging_face_folder_with_its_tokenizer(ready):
    project = ready()
    project.run(train_student)
    folder = project.artefacts.student
    model = AutoModelForMaskedLM.from_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    assert type(model).__name__ == "DistilBertForMaskedLM"
    found = pipeline("fill-mask", model=model, tokenizer=tokenizer)(f"the {tokenizer.mask_token} reads a shard")
    assert len(found) == 5
    assert not [path for path in folder.iterdir() if path.suffix in {".bin", ".pt", ".pkl"}]


@pytest.mark.parametrize("kd_source", ["hidden", "top_k"])
def test_training_brings_the_student_nearer_to_the_teacher(ready, kd_source):
    project = ready(train={"steps": 60, "kd_source": kd_source, "learning_rate": 0.003})
    project.artefacts.student.parent.mkdir(exist_ok=True)
    shutil.copytree(project.artefacts.student_init("half"), project.artefacts.student)
    project.run(evaluate)
    before = json.loads((project.artefacts.runs / "evaluation.json").read_text())
    project.run(train_student)
    project.run(evaluate)
    after = json.loads((project.artefacts.runs / "evaluation.json").read_text())
    assert after["kl_all"] < 0.8 * before["kl_all"]
    assert after["hidden_cosine"] > before["hidden_cosine"]


def test_accumulated_micro_batches_give_the_student_of_one_large_batch(ready):
    project = ready()
    project.run(train_student)
    whole = weights(project)
    project.set(train={"micro_batch_size": 2})
    project.run(train_student)
    for name, tensor in weights(project).items():
        torch.testing.assert_close(tensor, whole[name], rtol=1e-3, atol=1e-4)


def test_the_curve_holds_every_part_of_the_loss(ready):
    project = ready()
    project.run(train_student)
    rows = list(csv.DictReader((project.artefacts.runs / "train.csv").read_text().splitlines()))
    assert [int(row["step"]) for row in rows] == [2, 4, 6, 8]
    assert all(float(row[name]) > 0 for row in rows for name in ("kd", "mlm", "cos"))
    first = rows[0]
    total = 5 * 2.0**2 * float(first["kd"]) + 2 * float(first["mlm"]) + float(first["cos"])
    assert float(first["loss"]) == pytest.approx(total, rel=1e-4)


def test_the_curve_has_columns_for_squared_differences_only_where_they_are_learned_from(ready):
    project = ready(train={"steps": 2})
    project.run(train_student)
    header = "step,loss,kd,mlm,cos,learning_rate,grad_norm"
    assert (project.artefacts.runs / "train.csv").read_text().startswith(header + "\n")
    project.set(train={"steps": 2, "weights": {"kd": 0.0, "cos": 0.0, "mse": 0.1}})
    project.run(train_student)
    (row,) = csv.DictReader((project.artefacts.runs / "train.csv").read_text().splitlines())
    assert ",".join(row) == header.replace("cos,", "cos,mse,")  # dvc.yaml draws the usual three, empty or not
    assert (row["kd"], row["cos"]) == ("", "")
    assert float(row["loss"]) == pytest.approx(2 * float(row["mlm"]) + 0.1 * float(row["mse"]), rel=1e-4)
    assert json.loads((project.artefacts.runs / "train.json").read_text())["last"].keys() == {"loss", "mlm", "mse"}


def test_the_last_steps_are_in_the_curve_however_seldom_it_is_written(ready):
    project = ready(train={"log_steps": 100})
    project.run(train_student)
    rows = list(csv.DictReader((project.artefacts.runs / "train.csv").read_text().splitlines()))
    assert [int(row["step"]) for row in rows] == [8]


def test_a_stopped_run_resumes_to_the_weights_and_the_log_of_an_uninterrupted_one(ready):
    project = ready(train={"weights": {"kd": 5.0, "mlm": 2.0, "cos": 1.0}}, students={"half": {"dropout": 0.1}})
    project.run(train_student)
    expected, log = weights(project), (project.artefacts.runs / "train.csv").read_text()
    shutil.rmtree(project.artefacts.checkpoints)
    shutil.rmtree(project.artefacts.student)
    with pytest.raises(Interrupted, match="at step 5 of 8; the checkpoint is in"):  # between two lines of the log
        project.run(train_student, context=stop_after(project, 5))
    assert not project.artefacts.student.exists()
    project.run(train_student)
    assert_same_weights(weights(project), expected)
    assert (project.artefacts.runs / "train.csv").read_text() == log


def published(project):
    """Everything that a run publishes."""
    runs, student = project.artefacts.runs, project.artefacts.student
    texts = {
        file.name: file.read_text() for file in (student / "README.md", runs / "train.csv", runs / "provenance.json")
    }
    figures = json.loads((runs / "train.json").read_text())
    assert figures["seconds"] > 0
    return texts, figures


def test_a_run_killed_before_its_publication_publishes_the_same_without_training_again(ready):
    project = ready(students={"half": {"dropout": 0.1}})
    project.run(train_student)
    expected, before = weights(project), published(project)
    shutil.rmtree(project.artefacts.student)
    for name in ("train.json", "train.csv", "provenance.json"):
        (project.artefacts.runs / name).unlink()
    project.run(train_student)
    assert_same_weights(weights(project), expected)
    assert published(project) == before


def test_the_figures_on_the_validation_split_are_those_of_the_published_student(ready):
    project = ready(students={"half": {"dropout": 0.1}})
    project.run(train_student)
    figures = json.loads((project.artefacts.runs / "train.json").read_text())
    project.set(evaluate={"split": "validation"}, students={"half": {"dropout": 0.1}})
    project.run(evaluate)
    evaluated = json.loads((project.artefacts.runs / "evaluation.json").read_text())
    assert figures["validation"].items() <= evaluated.items()
    last = newest_checkpoint(project)
    assert_same_weights(weights(project), load_file(last / "model.safetensors"))


def test_a_stop_during_validation_publishes_nothing_and_the_next_start_publishes(ready):
    project = ready()

    class InValidation:
        reached = False

        def __getattr__(self, name):
            def report(*amount, **figures):
                self.reached = self.reached or "evaluate on validation" in amount

            return report

    progress = InValidation()
    context = Context(artefacts=project.artefacts, progress=progress, should_stop=lambda: progress.reached)
    with pytest.raises(Interrupted, match="nothing was written"):
        project.run(train_student, context=context)
    assert not project.artefacts.student.exists()
    assert not (project.artefacts.runs / "train.json").exists()
    project.run(train_student)
    assert (project.artefacts.student / "README.md").is_file()


def test_runs_of_a_comparison_keep_student_and_figures_apart(ready):
    project = ready()
    artefacts = project.artefacts.of_run("mlm-only")
    project.run(train_student, context=Context(artefacts=artefacts))
    assert not project.artefacts.student.exists()
    assert 'model="models/comparison/mlm-only"' in (artefacts.student / "README.md").read_text()
    assert (artefacts.runs / "provenance.json").is_file()


def stopping_after(project, steps, **changes):
    """A context that asks to stop once so many steps are done."""

    class Steps(Silent):
        done = 0

        def advance(self, amount=1, **_figures):
            self.done += amount

    progress = Steps()
    return Context(
        artefacts=project.artefacts, progress=progress, should_stop=lambda: progress.done >= steps, **changes
    )


def test_the_time_of_a_resumed_run_is_that_of_all_its_parts(ready):
    project = ready()
    with pytest.raises(Interrupted):
        project.run(train_student, context=stopping_after(project, 5))
    record = newest_checkpoint(project) / "run.json"
    content = json.loads(record.read_text())
    content["log"]["seconds"] = 1000.0
    record.write_text(json.dumps(content))
    project.run(train_student)
    assert json.loads((project.artefacts.runs / "train.json").read_text())["seconds"] > 1000


def test_a_run_resumed_under_another_commit_names_both(ready):
    project = ready()
    with pytest.raises(Interrupted):
        project.run(train_student, context=stopping_after(project, 5, commit="aaa"))
    project.run(train_student, context=Context(artefacts=project.artefacts, commit="bbb"))
    provenance = json.loads((project.artefacts.runs / "provenance.json").read_text())
    assert provenance["commit"] == "aaa"
    assert [part["commit"] for part in provenance["resumed_with"]] == ["bbb"]


def test_other_parameters_do_not_resume_another_runs_checkpoints(ready):
    project = ready()
    project.run(train_student)
    project.set(train={"temperature": 4.0})
    project.run(train_student)
    assert len(list(project.artefacts.checkpoints.glob("*/"))) == 2


def test_a_second_process_of_the_same_run_is_kept_out(ready):
    project = ready()
    project.run(train_student)
    run = next(project.artefacts.checkpoints.glob("*/"))
    with lock(project.artefacts.checkpoints, run.name), pytest.raises(LockedError, match="this training run"):
        project.run(train_student)


def test_frozen_positions_stay_as_they_were_initialised(ready):
    project = ready(train={"freeze_position_embeddings": True})
    project.run(train_student)
    name = "distilbert.embeddings.position_embeddings.weight"
    initial = load_file(project.artefacts.student_init("half") / "model.safetensors")
    assert torch.equal(weights(project)[name], initial[name])


def test_a_cache_made_with_other_parameters_is_refused_with_the_fields_that_differ(ready):
    project = ready()
    project.set(masking={"probability": 0.2}, cache={"top_k": 8})
    with pytest.raises(MismatchError, match=r"masking.probability: 0.2 .* 0.3") as caught:
        project.run(train_student)
    assert "cache.top_k" in str(caught.value)
    assert "dvc repro cache-teacher" in str(caught.value)
    assert len(caught.value.fields) == 2


def test_a_cache_of_another_teacher_than_the_one_here_is_refused(ready):
    project = ready()
    config = project.artefacts.teacher / "config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(MismatchError, match="made from other files"):
        project.run(train_student)


def test_missing_initial_weights_name_the_command_and_the_place(ready):
    project = ready()
    shutil.rmtree(project.artefacts.student_init("half"))
    with pytest.raises(InputError, match=r"run: pipeline init-student half where the teacher is"):
        project.run(train_student)


def test_initial_weights_of_another_shape_are_refused(ready):
    project = ready()
    project.set(students={"half": {"layer_map": [1]}})
    with pytest.raises(InputError, match=r"students.half.layer_map"):
        project.run(train_student)


def test_a_random_student_can_be_initialised_and_trained_where_there_is_no_teacher(ready):
    students = {"half": {"initialise": "random", "layer_map": None, "hidden_size": 16}}
    project = ready(students=students, train={"weights": {"cos": 0.0}})
    for gone in (project.artefacts.teacher, project.artefacts.tokens, project.artefacts.student_init("half")):
        shutil.rmtree(gone)
    project.run(init_student, "half")
    project.run(train_student)
    project.run(evaluate)
    assert "hidden_cosine" not in json.loads((project.artefacts.runs / "evaluation.json").read_text())


def test_a_narrower_student_with_a_cosine_loss_is_refused(ready):
    students = {"half": {"initialise": "random", "layer_map": None, "hidden_size": 16}}
    project = ready(students=students, train={"weights": {"cos": 0.0}})
    with pytest.raises(ConfigError, match=r"students.half.hidden_size is 16; allowed: 32"):
        project.set(students=students)


def test_a_damaged_shard_stops_the_training_with_its_name(ready):
    project = ready()
    shard = next((project.artefacts.cache / "shards").glob("train-*"))
    data = next(path for path in shard.glob("hidden/c/**/*") if path.is_file())
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(CorruptError, match=shard.name.removesuffix(".zarr")):
        project.run(train_student)


def test_a_loss_that_is_not_finite_stops_the_training(ready):
    project = ready(train={"learning_rate": 1e30, "warmup_steps": 0, "max_grad_norm": 1e30})
    with pytest.raises(StageError, match=r"the loss is .* lower train.learning_rate"):
        project.run(train_student)
    assert not project.artefacts.student.exists()


def test_weights_that_became_useless_in_the_last_step_are_not_published(ready):
    project = ready(train={"steps": 1, "log_steps": 1, "learning_rate": 1e30, "warmup_steps": 0, "max_grad_norm": 1e30})
    with pytest.raises(
        StageError, match=r"of the trained student on the validation split is .* lower train.learning_rate"
    ):
        project.run(train_student)
    assert not project.artefacts.student.exists()
    assert not (project.artefacts.runs / "train.json").exists()


def test_a_batch_that_processes_do_not_share_evenly_is_refused(ready):
    project = ready()
    context = Context(artefacts=project.artefacts, world_size=3)
    with pytest.raises(ConfigError, match=r"a multiple of train.micro_batch_size x processes = 8 x 3"):
        plan_run(project.config, context, CacheReader(project.artefacts.cache))


def test_initial_weights_that_were_made_for_another_teacher_are_refused(copy_cached):
    project = copy_cached()
    folder = project.artefacts.student_init("half")
    resolved = (folder / "resolved-config.json").read_text()
    tiny_model("distilbert", vocabulary=40).save_pretrained(folder)
    (folder / "resolved-config.json").write_text(resolved)
    message = r"was made for another teacher: its vocabulary is 40 and its hidden size 16; expected 120 and 32, as cache/current"
    with pytest.raises(InputError, match=message):
        project.run(train_student)


@pytest.mark.parametrize("first_too_large", ["model.safetensors", "optimizer.pt"])
def test_a_checkpoint_that_cannot_be_written_is_said_and_the_one_before_it_is_resumed(ready, first_too_large):
    project = ready(train={"steps": 4, "checkpoint_steps": 2})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    class FullDisk(Silent):
        def advance(self, *_, **__):
            for file in project.artefacts.checkpoints.glob(f"*/checkpoint-2/{first_too_large}"):
                resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size - 1, limits[1]))

    try:
        with pytest.raises(
            StageError, match=r"the checkpoint of step 4 cannot be written to .*; make room there"
        ) as said:
            project.run(train_student, context=Context(artefacts=project.artefacts, progress=FullDisk()))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(said.value)
    assert newest_checkpoint(project).name == "checkpoint-2"
    project.run(train_student)
    assert json.loads((project.artefacts.runs / "train.json").read_text())["steps"] == 4
