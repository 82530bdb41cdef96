from tests.pipeline.dry_run.looking import dry, pipeline


def test_of_a_training_it_says_how_many_steps_are_there(copy_cached):
    project = copy_cached()
    before = dry(project.folder, "train-student")
    assert (before["steps there"], before["newest checkpoint"]) == ("0 of 8", "none")
    pipeline(project, "train-student")
    after = dry(project.folder, "train-student")
    assert (after["steps missing"], after["models/student is of this run"]) == (0, True)
    assert after["writes models/student"] == "there, of these parameters"
    other = dry(project.folder, "train-student", "-S", "train.temperature=4")
    assert (other["steps there"], other["models/student is of this run"]) == ("0 of 8", False)
