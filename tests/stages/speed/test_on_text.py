"""`pipeline evaluate --speed`: student and teacher side by side on sentences."""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoTokenizer

from pipeline.cli import cli
from stages.errors import InputError
from stages.models import count_parameters, folder_bytes, load_masked_lm
from stages.speed import on_text
from stages.speed.onnx_files import OnnxSession
from tests.stages.speed.onnx_packages import needs_onnx
from tests.stages.tiny_models import tiny_bert

TIMES = {"pass_seconds", "latency_ms", "latency_ms_p90"}
SPREAD = {"median", "low", "high"}
DIFFERENCES = {"hidden_max_difference", "logits_max_difference", "hidden_cosine", "agreement", "positions"}


@pytest.fixture
def project(copy_cached):
    """A cache, a teacher, and a student: its initial weights, which are as fast as trained ones."""
    project = copy_cached()
    shutil.copytree(project.artefacts.student_init("half"), project.artefacts.student)
    return project


def speed(project, **options):
    on_text.run(project.config, project.context, **options)
    return json.loads((project.artefacts.runs / "speed.json").read_text())


def assert_complete(found, engines, sizes):
    for who in ("student", "teacher"):
        assert set(found[who]["engines"]) == engines
        for figures in found[who]["engines"].values():
            assert figures.keys() >= {*TIMES, "bytes", "sentences_per_second"}
            assert all(figures[name] > 0 for name in TIMES)
            assert figures["sentences_per_second"].keys() == sizes
    assert set(found["ratio"]["engines"]) == engines
    for ratio in found["ratio"]["engines"].values():
        assert ratio["throughput"].keys() == sizes
        for spread in (ratio["latency"], *ratio["throughput"].values()):
            assert spread.keys() == SPREAD
            assert 0 < spread["low"] <= spread["median"] <= spread["high"]


def test_figures_are_complete_and_of_the_models_at_hand(project):
    found = speed(project)
    assert_complete(found, {"torch"}, {"8", "32"})
    for who, folder in (("student", project.artefacts.student), ("teacher", project.artefacts.teacher)):
        assert found[who]["parameters"] == count_parameters(load_masked_lm(folder))
        assert found[who]["engines"]["torch"]["bytes"] == folder_bytes(folder)
    assert found["ratio"]["parameters"] == pytest.approx(
        found["student"]["parameters"] / found["teacher"]["parameters"], abs=1e-4
    )
    assert found["sentences"]["count"] == project.config.cache.sequences.test
    assert found["threads"] == torch.get_num_threads()
    assert not project.artefacts.student_onnx.exists()


def test_sentences_of_a_file_are_measured_whole(project, tmp_path):
    file = tmp_path / "dev.tsv"
    file.write_text("sentence1\tsentence2\n" + "the teacher reads.\tevery writer stores the river.\n" * 5)
    found = speed(project, sentences_file=file, batch_sizes=(2,))
    assert_complete(found, {"torch"}, {"2"})
    assert (found["sentences"]["source"], found["sentences"]["count"]) == ("dev.tsv", 5)


def test_a_teacher_that_is_not_here_is_replaced_by_its_shape(project):
    before = speed(project)
    shutil.rmtree(project.artefacts.teacher)
    after = speed(project)
    assert after["teacher"]["weights"] == "random"
    assert after["teacher"]["engines"]["torch"]["bytes"] is None
    assert after["teacher"]["parameters"] == before["teacher"]["parameters"]


def test_without_a_student_the_command_that_makes_it_is_named(copy_cached):
    with pytest.raises(InputError, match="pipeline train-student"):
        speed(copy_cached())


def test_a_teacher_of_another_vocabulary_is_refused(project):
    tiny_bert(vocabulary=70, hidden=32, layers=2, positions=16).save_pretrained(project.artefacts.teacher)
    with pytest.raises(InputError, match="and the teacher one of 70; expected a student of this teacher"):
        speed(project)


@needs_onnx
def test_exported_models_are_compared_timed_and_the_students_kept(project):
    found = speed(project, batch_sizes=(2,), onnx=True)
    assert_complete(found, {"torch", "onnx", "onnx_int8"}, {"2"})
    assert found["versions"].keys() == {"torch", "onnx", "onnxruntime", "onnxscript"}
    for who in ("student", "teacher"):
        exact, int8 = (found[who]["engines"][engine]["against_torch"] for engine in ("onnx", "onnx_int8"))
        assert exact.keys() == int8.keys() == DIFFERENCES
        assert exact["hidden_max_difference"] < 1e-4 < int8["hidden_max_difference"]
        assert exact["agreement"] == 1
        assert int8["hidden_cosine"] > 0.99
    kept = project.artefacts.student_onnx
    encoded = AutoTokenizer.from_pretrained(kept)("the teacher reads", return_tensors="pt")
    hidden, logits = OnnxSession(kept / "model.onnx", threads=1)(encoded["input_ids"], encoded["attention_mask"])
    student = load_masked_lm(project.artefacts.student)
    with torch.no_grad():
        expected = student(encoded["input_ids"], encoded["attention_mask"]).logits
    assert torch.allclose(logits, expected, atol=1e-4)
    assert {file.name for file in kept.glob("*.onnx")} == {
        f"{part}{kind}.onnx" for part in ("model", "encoder") for kind in ("", "_int8")
    }
    assert hidden.shape[:2] == logits.shape[:2]


def test_the_command_prints_its_tables(project):
    done = CliRunner().invoke(cli, ["evaluate", "--speed", "--batch-sizes", "4", "--project", str(project.folder)])
    assert done.exit_code == 0, done.output
    for words in (
        "teacher, PyTorch",
        "student, PyTorch",
        "times as fast as the teacher",
        "in 4s",
        "62% of the teacher's",
    ):
        assert words in done.stdout


@pytest.mark.parametrize("options", [["--onnx"], ["--batch-sizes", "4"], ["--sentences", "params.yaml"]])
def test_what_is_for_speed_alone_is_refused_without_it(project, monkeypatch, options):
    monkeypatch.chdir(project.folder)
    done = CliRunner().invoke(cli, ["evaluate", *options])
    assert done.exit_code == 2
    assert "are for --speed: add it" in done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_is_measured_beside_the_cpu(project):
    from dataclasses import replace

    project.context = replace(project.context, device="cuda:0")
    assert_complete(speed(project), {"torch", "cuda"}, {"8", "32"})
