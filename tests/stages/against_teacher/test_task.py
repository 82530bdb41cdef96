import numpy as np
import pytest
import zarr

from stages import cache_teacher
from stages.against_teacher.compare import compare_with_teacher
from stages.errors import InputError
from stages.task_models import BaseModel
from stages.tasks import TASKS
from storage import CacheReader
from tests.stages.tiny_tasks import finetuning, write_tasks
from tests.storage.damage import GROUP, vouch_for_what_is_there

WHAT = {
    "SST-2": "largest difference of class logits",
    "STS-B": "largest difference of score",
    "SQuAD": "largest difference of logits of where the answer begins and ends",
}


@pytest.fixture
def cached(make_project):
    """A function that gives the cache of a task, and the context: its teacher has the task's head with random weights."""

    def cache(name):
        settings = finetuning({name: {}})
        made = make_project(cache={"shard_tokens": 48, "hidden": "int8", "hidden_layers": [0, 2]}, finetune=settings)
        write_tasks(made.folder / "tasks")
        task, folder = TASKS[name], made.artefacts.finetuned("teacher", name) / "0"
        base = BaseModel.of(made.artefacts.teacher, {task.head})
        base.with_head(task.head, task.labels, seed=0, attention=None).save_pretrained(folder)
        base.save_tokenizer(folder)
        cache_teacher.run(made.config, made.context.of_task(name))
        return made.artefacts.of_task(name).cache, made.context

    return cache


def agreement_of(cache, context):
    reader = CacheReader(cache)
    computed_with = {shard: {"device": "cpu"} for shard in reader.description.shard_ids()}
    return compare_with_teacher(reader, context, 6, computed_with)


@pytest.mark.parametrize("task", list(WHAT))
def test_answers_and_hidden_states_are_compared_and_what_is_not_the_teachers_is_found(cached, task):
    cache, context = cached(task)
    found = agreement_of(cache, context)
    assert found.within, [figure for figure in found.measured if not figure.within]
    assert found.sequences == 6
    names = {figure.name for figure in found.measured}
    assert {WHAT[task], "1 - cosine of hidden states", "1 - cosine of hidden states of layer 0"} <= names
    assert ("top-1 agreement" in names) == (task != "STS-B")
    stored = zarr.open_group(cache / GROUP, mode="r+")
    stored["task_logits"][...] = stored["task_logits"][...] + np.float32(0.01)
    vouch_for_what_is_there(cache)
    outside = [figure.name for figure in agreement_of(cache, context).measured if not figure.within]
    assert outside == [WHAT[task]]  # the distribution is the same


def test_another_fine_tuned_teacher_is_refused(cached):
    cache, context = cached("SST-2")
    file = context.artefacts.finetuned("teacher", "SST-2") / "0" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(InputError, match=r"SST-2 does not hold the fine-tuned teacher of this cache"):
        agreement_of(cache, context)
