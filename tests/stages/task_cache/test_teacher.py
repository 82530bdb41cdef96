from dataclasses import replace

import pytest

from stages.config import TaskConfig
from stages.context import Artefacts, Context, Silent
from stages.errors import InputError
from stages.task_cache.teacher import require_unseen
from tests.stages.finetuning.scored import write_results

HELD_OUT, OF_ITS_OWN = TaskConfig(held_out=0.1), TaskConfig()


class Says(Silent):
    def __init__(self):
        self.said = []

    def message(self, text):
        self.said.append(text)


@pytest.fixture
def context(tmp_path):
    """Of the task SST-2, whose teacher of seed 1 is chosen."""
    artefacts = replace(Artefacts(project=tmp_path).of_task("SST-2"), task_seed=1)
    return Context(artefacts=artefacts, progress=Says())


def test_a_teacher_that_learned_what_is_cached_or_kept_out_what_is_scored_is_taken(context):
    write_results(context.artefacts.finetuning, "teacher", "SST-2", {1: 0.5}, data="scored")
    for digests in ({"train": "t", "evaluation": "others"}, {"train": "others", "evaluation": "scored"}):
        require_unseen(digests, HELD_OUT, context)
    assert context.progress.said == []


@pytest.mark.parametrize("settings", [HELD_OUT, TaskConfig(validation=0.1)])
@pytest.mark.parametrize(
    "scored", [{"evaluation": "others"}, {"evaluation": "scored", "validation": "not kept out by the teacher"}]
)
def test_a_teacher_that_may_have_learned_what_is_scored_is_refused_with_the_command_for_another(
    context, settings, scored
):
    write_results(context.artefacts.finetuning, "teacher", "SST-2", {1: 0.5}, data="scored")
    with pytest.raises(
        InputError,
        match=r"the fine-tuned teacher in models/finetuned/teacher/SST-2/1 learned from other examples \(t\) than those that are "
        r"cached \(fewer\), and .*held_out, validation.*; run: pipeline finetune SST-2 --model teacher --replace",
    ):
        require_unseen({"train": "fewer", **scored}, settings, context)


def test_where_the_scored_examples_are_files_of_their_own_it_is_said(context):
    write_results(context.artefacts.finetuning, "teacher", "SST-2", {1: 0.5}, data="scored")
    require_unseen({"train": "fewer", "evaluation": "others"}, OF_ITS_OWN, context)
    [said] = context.progress.said
    assert "learned from other examples (t) than those that are cached (fewer)" in said


def test_where_it_is_not_known_what_the_teacher_learned_from_it_is_said_if_that_matters(context):
    digests = {"train": "t", "evaluation": "e"}
    require_unseen(digests, OF_ITS_OWN, context)
    assert context.progress.said == []
    require_unseen(digests, HELD_OUT, context)
    [said] = context.progress.said
    assert said.startswith("runs/finetune/teacher/SST-2/1.json does not say which examples the fine-tuned teacher")
