import json

import pytest

from stages.errors import InputError
from stages.training.checkpoints import Checkpoint, Checkpoints, LogState


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(folder=tmp_path, run="a" * 64, cache="b" * 64)


def write(checkpoints, step, best_step=None):
    name = f"checkpoint-{step}"
    draft = checkpoints.draft / name
    draft.mkdir(parents=True)
    (draft / "optimizer.pt").write_bytes(bytes(range(step)))
    (draft / "part").mkdir()
    (draft / "part" / "0").write_text("of several")
    log = LogState(since=step - 1, sums=[[0.1, 1 / 3]], seconds=2.5)
    checkpoint = Checkpoint(folder=checkpoints.folder / name, step=step, processes=1, log=log)
    checkpoints.publish(checkpoint, best_step=best_step)
    return checkpoint


def names(checkpoints):
    return {path.name for path in checkpoints.folder.glob("checkpoint-*")}


def test_a_checkpoint_comes_back_as_it_was_written(checkpoints):
    written = write(checkpoints, 100)
    assert checkpoints.newest(pytest.fail) == written
    assert not list(checkpoints.draft.iterdir())


def test_a_draft_and_a_folder_of_another_name_are_no_checkpoints(checkpoints):
    (checkpoints.draft / "checkpoint-9").mkdir(parents=True)
    (checkpoints.folder / "checkpoint-best").mkdir()
    assert checkpoints.newest(pytest.fail) is None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "0 has 9 bytes of 10"),
        (lambda file: file.write_text("of Several"), "0 has other bytes than were written"),
        (lambda file: file.unlink(), "0 cannot be read: No such file or directory"),
    ],
    ids=["truncated", "changed", "missing"],
)
def test_the_one_before_a_damaged_one_is_taken_and_the_damage_told(checkpoints, damage, message):
    before = write(checkpoints, 10)
    damage(write(checkpoints, 20).folder / "part" / "0")
    told = []
    assert checkpoints.newest(told.append) == before
    (text,) = told
    assert text == f"checkpoint-20 is damaged ({message}): taking the one before it"


def test_one_of_another_run_or_cache_is_refused(checkpoints):
    folder = write(checkpoints, 10).folder
    record = json.loads((folder / "run.json").read_text())
    for field, what in (("run", "run"), ("cache_root_digest", "cache")):
        (folder / "run.json").write_text(json.dumps({**record, field: "c" * 64}))
        with pytest.raises(
            InputError, match=rf"checkpoint-10 belongs to another {what} \(cccccccccccc.*remove it, and run"
        ):
            checkpoints.newest(pytest.fail)
    (folder / "run.json").write_text(json.dumps({**record, "fsdp": True}))
    with pytest.raises(InputError, match=r"was written with machine.fsdp: true; set it so"):
        checkpoints.newest(pytest.fail)


def test_the_newest_two_stay_and_the_best(checkpoints):
    for step in (10, 20, 30):
        write(checkpoints, step)
    assert names(checkpoints) == {"checkpoint-20", "checkpoint-30"}
    write(checkpoints, 40, best_step=20)
    assert names(checkpoints) == {"checkpoint-20", "checkpoint-30", "checkpoint-40"}


def test_a_damaged_one_with_a_higher_step_does_not_push_out_whole_ones(checkpoints):
    write(checkpoints, 10)
    (write(checkpoints, 20).folder / "optimizer.pt").unlink()
    write(checkpoints, 15)
    assert names(checkpoints) == {"checkpoint-10", "checkpoint-15"}
