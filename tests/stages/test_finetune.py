"""Fine-tuning as a whole: tiny models, tasks of generated text."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
)

from stages import finetune
from stages.bilstm import BiLstmConfig, BiLstmForMaskedLM
from stages.config import ConfigError
from stages.context import Silent
from stages.errors import InputError, Interrupted, StageError
from stages.models import load_tokenizer
from storage import LockedError
from storage.locking import lock
from tests.stages.real_data import DATA
from tests.stages.tasks.files import write_files, write_glue
from tests.stages.tiny_models import tiny_bert, tiny_model
from tests.stages.tiny_tasks import (
    DOES,
    WHO,
    Counts,
    assert_same_tensors,
    finetuning,
    kept_weights,
    stopping_after,
    write_student,
    write_tasks,
)
from tests.stages.tiny_tokenizers import trained_byte_level


@pytest.fixture
def project(make_project):
    """A project with a teacher (a BERT), a student (a DistilBERT) and tasks; `run(...)` fine-tunes."""
    made = make_project(finetune=finetuning({"SST-2": {}}))
    write_tasks(made.folder / "tasks")
    write_student(made.artefacts)
    made.said = []

    class Says(Silent):
        def message(self, text):
            made.said.append(text)

    made.context = replace(made.context, progress=Says())

    def run(*tasks, context=None, **settings):
        finetune.run(made.config, context or made.context, tasks=tasks, **settings)

    def result(model, task, seed=0):
        return json.loads((made.artefacts.finetuning / model / task / f"{seed}.json").read_text(encoding="utf-8"))

    made.finetune, made.result = run, result
    return made


def test_teacher_and_student_learn_all_kinds_of_tasks_and_stand_side_by_side(project):
    training = {"epochs": 20, "learning_rate": 3e-3}
    tasks = {
        "SST-2": {"training": training},
        "STS-B": {"training": training},
        "SQuAD": {"training": {**training, "epochs": 60}},
    }
    project.set(finetune=finetuning(tasks, checkpoint_steps=1000))
    project.finetune(model="teacher")
    project.finetune("SST-2", "STS-B")
    for model in ("teacher", "student"):
        assert project.result(model, "SST-2")["figures"]["accuracy"] == 1.0
        assert project.result(model, "STS-B")["score"] > 0.5
    assert project.result("teacher", "SQuAD")["figures"]["f1"] > 0.8
    summary = json.loads((project.artefacts.finetuning / "summary.json").read_text(encoding="utf-8"))
    assert summary["retention"]["student"]["SST-2"] == 1.0
    assert summary["models"]["student"]["path"] == "models/student"
    assert not list(project.artefacts.checkpoints.glob("*/"))


def test_a_result_says_what_it_is_of(project):
    project.finetune()
    result = project.result("student", "SST-2")
    assert result["examples"] == {"train": 8, "evaluation": 8}
    assert (result["steps"], result["precision"], result["device"]) == (4, "float32", "cpu") or result[
        "precision"
    ] == "bfloat16"
    assert result["identity"]["training"]["epochs"] == 2
    assert (
        result["packages"]["torch"] == torch.__version__.split("+")[0]
        or result["packages"]["torch"] == torch.__version__
    )
    assert result["seconds"] > 0


def test_a_finished_seed_is_not_run_again_and_a_new_one_joins_it(project):
    project.finetune()
    file = project.artefacts.finetuning / "student" / "SST-2" / "0.json"
    before = file.stat().st_mtime_ns
    project.set(finetune=finetuning({"SST-2": {}}, seeds=[0, 1]))
    project.finetune()
    assert file.stat().st_mtime_ns == before
    assert "SST-2: 1 of 2 seeds are done" in project.said
    assert project.result("student", "SST-2", 1)["loss"] != project.result("student", "SST-2", 0)["loss"]


def test_what_several_tasks_have_is_known_again_whichever_was_tokenized_before(project):
    project.set(finetune=finetuning({"SST-2": {}, "STS-B": {}}))
    project.finetune()
    project.finetune()
    assert "STS-B: 1 of 1 seeds are done" in project.said
    project.finetune("STS-B", "SST-2")


def test_a_training_that_was_stopped_or_killed_comes_out_as_an_uninterrupted_one(project):
    project.finetune(name="whole")
    with pytest.raises(
        Interrupted, match=r"stopped as asked at step 1 of 4 on SST-2, seed 0; the checkpoint is in .*finetune-"
    ):
        project.finetune(context=stopping_after(project, 1))
    assert not (project.artefacts.finetuning / "student" / "SST-2" / "0.json").exists()

    class Dies(Counts):
        def advance(self, amount=1, **figures):
            super().advance(amount, **figures)
            if self.done == 3:  # the fourth step, after the checkpoint of the third
                raise MemoryError

    with pytest.raises(MemoryError):
        project.finetune(context=replace(project.context, progress=Dies()))
    counts = Counts()
    project.finetune(context=replace(project.context, progress=counts))
    assert ("fine-tune on SST-2, seed 0", 4, 3) in counts.begun
    assert_same_tensors(kept_weights(project, "whole", "SST-2"), kept_weights(project, "student", "SST-2"))
    assert project.result("student", "SST-2")["figures"] == project.result("whole", "SST-2")["figures"]


def test_one_that_was_stopped_while_it_was_scored_is_not_trained_again(project):
    project.finetune(name="whole")
    with pytest.raises(Interrupted, match="the training is kept in its last checkpoint"):
        project.finetune(context=stopping_after(project, 4))
    counts = Counts()
    project.finetune(context=replace(project.context, progress=counts))
    assert ("fine-tune on SST-2, seed 0", 4, 4) in counts.begun
    assert_same_tensors(kept_weights(project, "whole", "SST-2"), kept_weights(project, "student", "SST-2"))


def test_a_damaged_checkpoint_is_said_and_the_training_begins_anew(project):
    with pytest.raises(Interrupted):
        project.finetune(context=stopping_after(project, 2))
    (weights,) = project.artefacts.checkpoints.glob("finetune-*/checkpoint-2/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    project.finetune()
    assert any("checkpoint-2 is damaged" in text for text in project.said)
    assert project.result("student", "SST-2")["steps"] == 4


def test_a_seed_that_another_process_does_is_left_to_it(project):
    with pytest.raises(Interrupted):
        project.finetune(context=stopping_after(project, 2))
    (folder,) = project.artefacts.checkpoints.glob("finetune-*/")
    with lock(project.artefacts.checkpoints, folder.name), pytest.raises(LockedError, match="this fine-tuning"):
        project.finetune()


def test_the_fine_tuned_model_of_the_best_seed_stays_and_needs_nothing_of_this_project(project):
    project.set(finetune=finetuning({"SST-2": {}}, seeds=[0, 1, 2]))
    project.finetune()
    scores = [project.result("student", "SST-2", seed)["score"] for seed in (0, 1, 2)]
    (kept,) = project.artefacts.finetuned("student", "SST-2").iterdir()
    assert kept.name == str(scores.index(max(scores)))
    assert not {file.suffix for file in kept.iterdir()} & {".pt", ".pth", ".bin"}
    assert AutoModelForSequenceClassification.from_pretrained(kept).config.id2label == {0: "0", 1: "1"}
    load_tokenizer(kept)


def test_the_best_seed_is_chosen_on_the_validation_and_other_tasks_are_answered_untrained(project):
    write_glue(project.folder / "tasks" / "MRPC", "MRPC")
    rows = "".join(f"{who} {does} shard {n}\t{(len(who) + n) % 2}\n" for who in WHO for does in DOES for n in range(5))
    write_files(project.folder / "tasks" / "mine", {"all.tsv": f"sentence\tlabel\n{rows}"})
    task = {"kind": "SST-2", "train": ["all.tsv"], "held_out": 0.3, "validation": 0.2, "zero_shot": ["MRPC"]}
    project.set(finetune=finetuning({"mine": task}, seeds=[0, 1, 2]))
    project.finetune("mine", model="teacher")
    results = {seed: project.result("teacher", "mine", seed) for seed in (0, 1, 2)}
    assert results[0]["examples"] == {"train": 20, "evaluation": 12, "validation": 8, "zero_shot MRPC": 1}
    best = max(results, key=lambda seed: (results[seed]["validation"]["score"], -seed))
    (kept,) = project.artefacts.finetuned("teacher", "mine").iterdir()
    assert kept.name == str(best)
    answered = results[0]["zero_shot"]["MRPC"]
    assert (answered["kind"], answered["majority"]) == ("MRPC", {"f1": 0.0, "accuracy": 1.0})
    assert answered["figures"]["accuracy"] in {0.0, 1.0}
    assert (project.artefacts.finetuning / "teacher").joinpath("MRPC").exists() is False


def test_results_with_other_parameters_are_refused_or_replaced_and_may_have_another_name(project):
    project.finetune()
    project.set(finetune=finetuning({"SST-2": {"training": {"epochs": 1}}}))
    with pytest.raises(
        InputError, match=r"runs/finetune/student/SST-2/0\.json is of other parameters.*training\.epochs.*--replace"
    ):
        project.finetune()
    assert project.result("student", "SST-2")["steps"] == 4
    project.finetune(name="shorter")
    assert project.result("shorter", "SST-2")["steps"] == 2
    project.finetune(replace_others=True)
    assert project.result("student", "SST-2")["steps"] == 2
    assert "SST-2: removed 1 results of other parameters, weights or data" in project.said


def test_results_stay_until_those_that_replace_them_can_begin(project):
    project.finetune()
    shorter = {"SST-2": {"training": {"epochs": 1}}}
    project.set(finetune=finetuning({**shorter, "RTE": {}}))
    with pytest.raises(InputError, match="RTE is no folder"):
        project.finetune(replace_others=True)
    assert project.result("student", "SST-2")["steps"] == 4
    project.set(finetune=finetuning(shorter))
    write_files(project.folder / "tasks" / "SST-2", {"train.tsv": "sentence\tlabel\nthe teacher reads\tperhaps\n"})
    with pytest.raises(InputError, match="the label is 'perhaps'"):
        project.finetune(replace_others=True)
    assert project.result("student", "SST-2")["steps"] == 4


def test_results_on_other_data_are_refused(project):
    project.finetune()
    write_files(project.folder / "tasks" / "SST-2", {"dev.tsv": "sentence\tlabel\nthe teacher reads\t1\n"})
    with pytest.raises(InputError, match=r"data\.evaluation"):
        project.finetune()


def test_results_of_a_student_that_was_trained_anew_are_refused(project):
    project.finetune()
    model = tiny_bert(vocabulary=len(load_tokenizer(project.artefacts.student)), hidden=32, positions=16, seed=5)
    model.save_pretrained(project.artefacts.student)
    with pytest.raises(InputError, match="weights"):
        project.finetune()
    project.finetune(replace_others=True)
    assert project.result("student", "SST-2")["identity"]["weights"]


def test_only_the_tasks_that_are_named_are_done(project):
    project.set(finetune=finetuning({"SST-2": {}, "STS-B": {}}))
    project.finetune("STS-B")
    assert [path.name for path in (project.artefacts.finetuning / "student").iterdir() if path.is_dir()] == ["STS-B"]


def test_all_tasks_are_looked_at_before_the_first_one_is_done(project):
    project.set(finetune=finetuning({"SST-2": {}, "RTE": {}}))
    with pytest.raises(InputError, match="RTE is no folder"):
        project.finetune()
    assert not project.artefacts.finetuning.exists()


def test_inputs_are_cut_to_the_positions_that_the_model_has(project):
    project.set(finetune=finetuning({"SST-2": {"training": {"max_tokens": 128}}}))
    project.finetune()
    assert any("SST-2: inputs are cut to 16 tokens" in text for text in project.said)
    assert project.result("student", "SST-2")["identity"]["training"]["max_tokens"] == 16


def test_any_model_folder_may_be_fine_tuned_and_its_results_are_called_after_it(project):
    source = project.folder / "models" / "student-init" / "half"
    tiny_bert(vocabulary=len(load_tokenizer(project.artefacts.teacher)), positions=16).save_pretrained(source)
    load_tokenizer(project.artefacts.teacher).save_pretrained(source)
    project.finetune(model="models/student-init/half")
    assert project.result("student-init-half", "SST-2")["steps"] == 4


def test_a_bert_tells_two_texts_apart_by_their_token_types_and_has_a_pooler_of_its_own(project):
    project.set(finetune=finetuning({"STS-B": {}}))
    project.finetune(model="teacher")
    weights = kept_weights(project, "teacher", "STS-B")
    before = load_file(project.artefacts.teacher / "model.safetensors")
    name = "bert.embeddings.token_type_embeddings.weight"
    assert not torch.equal(weights[name][1], before[name][1])  # it was learned from, which it is only where it is used
    assert "bert.pooler.dense.weight" in weights


@pytest.mark.parametrize(("kind", "tasks"), [("gpt2", ("SST-2", "SQuAD")), ("llama", ("SST-2",))])
def test_a_causal_student_classifies_by_its_last_token_and_answers_questions(project, kind, tasks):
    tokenizer = trained_byte_level()
    assert tokenizer.pad_token is None
    tiny_model(kind, vocabulary=len(tokenizer), pad_token_id=None).save_pretrained(project.artefacts.student)
    tokenizer.save_pretrained(project.artefacts.student)
    project.set(finetune=finetuning({"SST-2": {}, "SQuAD": {"training": {"max_tokens": 24}}}))
    project.finetune(*tasks)
    for task in tasks:
        assert 0 <= project.result("student", task)["score"] <= 1
    if "SQuAD" in tasks:
        assert AutoModelForQuestionAnswering.from_pretrained(project.artefacts.finetuned("student", "SQuAD") / "0")


def test_a_head_whose_class_cannot_take_the_models_weights_is_refused(project):
    """LlamaForQuestionAnswering has another name for the base model than the language model has: it would be random."""
    tokenizer = trained_byte_level()
    tiny_model("llama", vocabulary=len(tokenizer), pad_token_id=None).save_pretrained(project.artefacts.student)
    tokenizer.save_pretrained(project.artefacts.student)
    project.set(finetune=finetuning({"SQuAD": {"training": {"max_tokens": 24}}}))
    with pytest.raises(InputError, match=r"tensors of LlamaForQuestionAnswering .* expected a whole model"):
        project.finetune()


def test_a_model_of_a_family_without_a_head_is_refused(project):
    tokenizer = load_tokenizer(project.artefacts.student)
    config = BiLstmConfig(vocab_size=len(tokenizer), hidden_size=16, lstm_size=5)
    BiLstmForMaskedLM(config).save_pretrained(project.artefacts.student)
    with pytest.raises(
        InputError, match=r"models of type 'bilstm' .* transformers knows no sequence classifier of that family"
    ):
        project.finetune()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"tasks": ("SST2",)}, ConfigError, r"task 'SST2' is not in finetune\.tasks; did you mean SST-2\?"),
        (
            {"model": "models/nothing"},
            InputError,
            "nothing holds no model; expected student, teacher, or a Hugging Face model folder",
        ),
    ],
)
def test_a_task_or_model_that_is_not_there_is_refused(project, settings, error, message):
    with pytest.raises(error, match=message):
        finetune.run(project.config, project.context, **settings)


def test_a_student_that_was_not_trained_yet_is_asked_for(make_project):
    project = make_project(finetune=finetuning({"SST-2": {}}))
    with pytest.raises(InputError, match="the trained student; run: pipeline train-student"):
        finetune.run(project.config, project.context)
    project.set()
    with pytest.raises(ConfigError, match=r"finetune is missing in params\.yaml"):
        finetune.run(project.config, project.context)


def test_a_folder_elsewhere_does_not_take_the_name_of_the_student(project, tmp_path):
    project.artefacts.student.rename(tmp_path / "student")
    with pytest.raises(InputError, match="give it a name with --name"):
        project.finetune(model=str(tmp_path / "student"))
    project.finetune(model=str(tmp_path / "student"), name="mine")
    assert project.result("mine", "SST-2")["steps"] == 4


def test_a_loss_that_is_not_finite_ends_the_training(project):
    weights = project.artefacts.student / "model.safetensors"
    save_file(
        {name: tensor * float("nan") for name, tensor in load_file(weights).items()}, weights, metadata={"format": "pt"}
    )
    with pytest.raises(StageError, match=r"the loss is nan at step 2; expected a finite number"):
        project.finetune()


def test_weights_that_lack_a_part_of_the_model_are_refused(project):
    weights = project.artefacts.student / "model.safetensors"
    tensors = load_file(weights)
    del tensors["distilbert.transformer.layer.0.ffn.lin1.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lack 1 tensors of DistilBert.*lin1\.weight.*expected a whole model"):
        project.finetune()


REAL = {
    "MRPC": {"folder": str(DATA / "glue" / "MRPC")},
    "STS-B": {"folder": str(DATA / "glue" / "STS-B")},
    "SST-2": {"folder": str(DATA / "glue" / "SST-2")},
    "IMDb": {"folder": str(DATA / "imdb")},
    "SQuAD": {"folder": str(DATA / "squad"), "train": ["dev-v1.1.json"], "held_out": 0.5},
}


@pytest.mark.skipif(
    not all((DATA / name).is_dir() for name in ("glue", "imdb", "squad")),
    reason=f"{DATA} is not there: GLUE's, IMDb's and SQuAD's files (TEACHER_CACHE_DATA names the folder)",
)
def test_the_real_files_of_five_tasks_go_all_the_way(project):
    some = {"train_examples": 40, "evaluation_examples": 20, "training": {"max_steps": 2}}
    project.set(finetune=finetuning({name: {**task, **some} for name, task in REAL.items()}))
    project.finetune()
    for name in REAL:
        result = project.result("student", name)
        assert result["examples"] == {"train": 40, "evaluation": 20}
        assert all(-1 <= value <= 1 for value in result["figures"].values())
