import shutil

from tests.pipeline.dry_run.looking import dry, pipeline


def test_of_a_cache_it_says_which_shards_are_there(make_project):
    project = make_project()
    assert dry(project.folder, "cache-teacher")["shards there"].startswith("0 of about ")
    pipeline(project, "cache-teacher", "--shards", "1/2")
    half = dry(project.folder, "cache-teacher")
    there, total = map(int, half["shards there"].split(" of "))
    assert (there, half["shards missing"]) == (-(-total // 2), total - -(-total // 2))
    pipeline(project, "cache-teacher")
    assert dry(project.folder, "cache-teacher")["would compute"] == "nothing; it is verified"
    assert "of other parameters: cache.top_k" in str(dry(project.folder, "cache-teacher", "-S", "cache.top_k=8"))


def test_without_a_teacher_a_finished_cache_is_still_seen(copy_cached):
    project = copy_cached()
    for folder in (project.artefacts.teacher, project.artefacts.tokens):
        shutil.rmtree(folder)
    said = dry(project.folder, "cache-teacher")
    assert (said["reads models/teacher"], said["shards missing"]) == ("missing; run: pipeline teacher", 0)
