import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stages import cache_teacher, evaluate, init_student
from stages.errors import InputError
from stages.models import load_masked_lm
from storage import CacheReader
from tests.stages.tiny_models import tiny_bert


@pytest.fixture
def evaluated(make_project):
    project = make_project()
    project.run(cache_teacher)
    project.run(init_student, "half")
    shutil.copytree(project.artefacts.student_init("half"), project.artefacts.student)
    project.run(evaluate)
    return project


def test_the_figures_are_those_of_teacher_and_student_run_side_by_side(evaluated):
    found = json.loads((evaluated.artefacts.runs / "evaluation.json").read_text())
    teacher, student = load_masked_lm(evaluated.artefacts.teacher), load_masked_lm(evaluated.artefacts.student)
    reader = CacheReader(evaluated.artefacts.cache)
    kl, agree, mlm, correct, cosine = [], [], [], [], []
    for shard in reader.shards("test"):
        arrays = reader.load(shard)
        for start, stop in zip(arrays.sequence_offsets, arrays.sequence_offsets[1:], strict=False):
            ids = torch.from_numpy(arrays.input_ids[start:stop].astype(np.int64))[None]
            masked = torch.from_numpy(arrays.masked[start:stop] == 1)
            labels = torch.from_numpy(arrays.original_ids[start:stop].astype(np.int64))
            with torch.no_grad():
                ours, theirs = (model(input_ids=ids, output_hidden_states=True) for model in (student, teacher))
            p, q = theirs.logits[0].log_softmax(-1), ours.logits[0].log_softmax(-1)
            kl.append(F.kl_div(q, p, log_target=True, reduction="none").sum(-1)[masked])
            agree.append((p.argmax(-1) == q.argmax(-1))[masked])
            mlm.append(F.cross_entropy(q[masked], labels[masked], reduction="none"))
            correct.append((q.argmax(-1) == labels)[masked])
            cosine.append(F.cosine_similarity(ours.hidden_states[-1][0], theirs.hidden_states[-1][0], dim=-1))
    expected = {
        "kl_masked": kl,
        "agreement_masked": agree,
        "mlm_loss": mlm,
        "masked_accuracy": correct,
        "hidden_cosine": cosine,
    }
    for name, parts in expected.items():
        assert found[name] == pytest.approx(float(torch.cat(parts).float().mean()), abs=2e-3), name
    assert found["masked_tokens"] == len(torch.cat(kl))
    assert found["parameters"] == sum(parameter.numel() for parameter in student.parameters())


def test_the_parameters_used_lie_beside_the_figures(evaluated):
    resolved = json.loads((evaluated.artefacts.runs / "evaluation-config.json").read_text())
    assert resolved == {"evaluate": {"split": "test", "batch_size": 8}}


def test_a_student_of_another_vocabulary_is_refused(evaluated):
    shutil.rmtree(evaluated.artefacts.student)
    tiny_bert(vocabulary=40).save_pretrained(evaluated.artefacts.student)
    with pytest.raises(InputError, match="a vocabulary of 40 and the cache one of"):
        evaluated.run(evaluate)


def test_a_missing_student_names_the_command(evaluated):
    shutil.rmtree(evaluated.artefacts.student)
    with pytest.raises(InputError, match="run: pipeline train-student"):
        evaluated.run(evaluate)
