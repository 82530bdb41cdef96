"""What a process of the teacher's pass does with single shards."""

import dataclasses
import pickle

import pytest
import torch

from stages.config import load_config
from stages.errors import ShardError
from stages.models import weights_digest
from stages.sharing import Place
from stages.teacher_job import OF_ONE_SHARD, TeacherJob, why_not
from storage import CacheReader, CacheWork, InvalidTargetsError, ShardId
from tests.stages.tiny_models import tiny_bert
from tests.tiny import tiny_params

SHARD = ShardId("train", 0, 0)


def test_targets_are_compared_with_tokens_that_were_read_from_the_disk_once_more(make_project, cached):
    project = make_project()
    description = CacheReader(cached.artefacts.cache).description
    job = TeacherJob(artefacts=project.artefacts, description=description, config=project.config)
    with CacheWork.open(project.artefacts.cache_work, description) as work, job.begin(Place()) as do:
        do(SHARD)
        split = do.tokens.split("train")
        number, offsets, ids = split._held
        changed = ids.copy()
        changed[9] = 5 if changed[9] != 5 else 6
        split._held = number, offsets, changed  # memory that went bad
        work.reject(SHARD)
        with pytest.raises(InvalidTargetsError, match=r"shard train-v0-000000 has original_ids .*as in the tokens"):
            do(SHARD)
        assert work.find(SHARD) is None


def test_what_torch_cannot_compute_is_the_shards_failure_with_its_error_behind_it(make_project, cached):
    project = make_project()
    vocabulary = CacheReader(cached.artefacts.cache).description.vocabulary_size
    tiny_bert(vocabulary=vocabulary, hidden=32, layers=2, positions=12).save_pretrained(project.artefacts.teacher)
    description = CacheReader(cached.artefacts.cache).description
    content = {**description.content, "teacher": weights_digest(project.artefacts.teacher)}
    description = dataclasses.replace(description, content=content)
    job = TeacherJob(artefacts=project.artefacts, description=description, config=project.config)
    with (
        CacheWork.open(project.artefacts.cache_work, description),
        job.begin(Place()) as do,
        pytest.raises(OF_ONE_SHARD, match=r"shard train-v0-000000 cannot be computed: .*--debug") as failed,
    ):
        do(SHARD)
    assert isinstance(failed.value, ShardError)
    assert isinstance(failed.value.__cause__, RuntimeError)
    assert str(pickle.loads(pickle.dumps(failed.value))) == str(failed.value)


def no_memory():
    with pytest.raises(RuntimeError) as failed:
        torch.empty(1 << 60)
    return failed.value


@pytest.mark.parametrize(
    "error", [no_memory, lambda: torch.OutOfMemoryError("CUDA out of memory.\nSee ..."), MemoryError]
)
def test_where_no_memory_is_left_the_parameters_that_need_less_are_named(error):
    for compiled, step in ((False, "to less than 640"), (True, "to less than 640 or set cache.compile to false")):
        config = load_config(tiny_params(cache={"batch_tokens": 640, "compile": compiled})).cache
        found = why_not(SHARD, error(), config, "cuda:1")
        assert found.startswith("shard train-v0-000000 cannot be computed: no memory is left on cuda:1 (")
        assert "\n" not in found
        assert found.endswith(step)
