"""How the Trainer is driven."""

import json

from stages import train_student
from tests.stages.training.conftest import ReadNumbers


def test_numbers_are_read_from_the_device_for_a_line_of_the_log_and_not_for_a_step(without_dropout):
    counts = []
    for steps in (2, 12):
        project = without_dropout(train={"steps": steps, "log_steps": steps, "checkpoint_steps": 100})
        with ReadNumbers() as read:
            project.run(train_student)
        counts.append(read.count)
    assert counts[0] == counts[1] > 0


def test_the_share_of_the_time_that_was_waited_for_data_is_logged_and_in_the_figures(without_dropout):
    project = without_dropout()
    project.run(train_student)
    history = json.loads((project.checkpoints()[-1] / "trainer_state.json").read_text())["log_history"]
    shares = [entry["data_wait"] for entry in history]
    assert len(shares) == 4
    assert all(0 <= share <= 1 for share in shares)
    figures = json.loads((project.artefacts.runs / "train.json").read_text())
    assert min(shares) <= figures["data_wait"] <= max(shares)
