"""A student of two teachers, from caches that the stages made."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from stages import cache_teacher, corpus, evaluate, init_student, teacher, tokenize_corpus, train_student
from stages.batch_plan import BatchPlan
from stages.batches import PlannedBatches, decoder_for
from stages.batches.joined import JoinedBatches
from stages.config import ConfigError
from stages.context import Context
from stages.errors import InputError, Interrupted
from stages.heads import Head
from stages.models import load_masked_lm, load_tokenizer
from stages.training.caches import further_caches
from stages.training.distiller import PARTS, Distiller, wanted_by
from stages.training.teachers import Teacher
from storage import CacheReader, MismatchError, canonical_json, fingerprint
from storage.manifest import CACHE_FILE, MANIFEST_FILE, FileRecord, RootManifest
from tests.stages.conftest import Project
from tests.stages.ensembles import SHARES, cache_second, forget_training, give_second, prepare, with_second
from tests.stages.test_train_student import stopping_after
from tests.stages.tiny_models import tiny_model
from tests.stages.training.launch import Launch

LOSSLESS = {"preset": "lossless", "top_k": 8, "sequences": {"train": 16, "validation": 4, "test": 4}}


def copied(prepared, folder, **overrides) -> Project:
    return Project(shutil.copytree(prepared.folder, folder), **with_second(**overrides))


@pytest.fixture(scope="module")
def prepared(tokenized, tmp_path_factory):
    project = Project(shutil.copytree(tokenized, tmp_path_factory.mktemp("two") / "project"), **with_second())
    prepare(project)
    return project


@pytest.fixture
def project(prepared, tmp_path):
    return copied(prepared, tmp_path / "project")


def weights(project):
    return load_file(project.artefacts.student / "model.safetensors")


def same_weights(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Messages:
    """A progress that keeps what it is told."""

    def __init__(self):
        self.lines = []

    def __getattr__(self, name):
        return lambda *arguments, **_: self.lines.append(arguments[0]) if name == "message" else None


def gradient_of(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.fixture(scope="module")
def lossless(tokenized, tmp_path_factory):
    folder = shutil.copytree(tokenized, tmp_path_factory.mktemp("lossless") / "project")
    project = Project(folder, **with_second(cache=LOSSLESS))
    prepare(project)
    return project


def from_the_caches(project, **train):
    """Loss, parts and gradient of the first step from both caches."""
    project.set(**with_second(cache=LOSSLESS, train=train))
    config, reader = project.config.train, CacheReader(project.artefacts.cache)
    further = further_caches(project.config, project.context, reader)
    plan = BatchPlan(tuple(n for _, n in reader.description.splits["train"].shards), 8, 0, 1)

    def planned(cache):
        return PlannedBatches(cache, plan, wanted=wanted_by(config), micro_batch_size=8, first_step=0, last_step=1)

    (batch,) = list(JoinedBatches(planned(reader), {cache.name: planned(cache.reader) for cache in further}))
    student = load_masked_lm(project.artefacts.student_init("half"))
    distiller = Distiller(
        student,
        config,
        decoder_for(reader.description, "train"),
        Head.load(reader.folder),
        further=[Teacher.of(cache, config) for cache in further],
    )
    counts = torch.tensor([distiller.positions(batch), len(batch["labels"])]).float()
    total, parts = distiller(batch, counts)
    total.backward()
    return batch, total.detach(), dict(zip(PARTS, parts.tolist(), strict=True)), gradient_of(student)


def in_the_loop(project, batch):
    """The same with both teachers beside the student: dense losses by hand."""
    config, t = project.config.train, project.config.train.temperature
    student = load_masked_lm(project.artefacts.student_init("half"))
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    real = batch["attention_mask"] == 1
    ours = student(**inputs, output_hidden_states=True)
    total = config.weights.mlm * F.cross_entropy(
        ours.logits.flatten(0, 1)[batch["row_index"][: len(batch["labels"])]], batch["labels"]
    )
    for name, share in config.ensemble.items():
        artefacts = project.artefacts if name == "teacher" else project.artefacts.of_teacher(name)
        with torch.no_grad():
            theirs = load_masked_lm(artefacts.teacher)(**inputs, output_hidden_states=True)
        z, z_teacher = ours.logits[real], theirs.logits[real]
        kd = F.kl_div(F.log_softmax(z / t, -1), F.softmax(z_teacher / t, -1), reduction="batchmean")
        cos = 1 - F.cosine_similarity(ours.hidden_states[-1][real], theirs.hidden_states[-1][real], dim=-1).mean()
        total = total + share * (config.weights.kd * t**2 * kd + config.weights.cos * cos)
    total.backward()
    return total.detach(), gradient_of(student)


@pytest.mark.parametrize("shares", [SHARES, {"teacher": 0.0, "second": 1.0}])
def test_lossless_caches_give_the_loss_and_gradient_of_both_teachers_in_the_loop(lossless, shares):
    batch, loss, _, gradient = from_the_caches(lossless, ensemble=shares)
    expected, wanted = in_the_loop(lossless, batch)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    assert float((gradient - wanted).norm() / wanted.norm()) <= 1e-5


@pytest.mark.parametrize("kd_source", ["hidden", "top_k"])
def test_the_parts_in_the_log_are_the_weighted_sums_of_each_teachers(lossless, kd_source):
    def parts(**shares):
        return from_the_caches(lossless, kd_source=kd_source, ensemble=shares)[2]

    both, first, second = parts(**SHARES), parts(teacher=1.0, second=0.0), parts(teacher=0.0, second=1.0)
    for name in ("kd", "cos"):
        assert both[name] == pytest.approx(0.7 * first[name] + 0.3 * second[name], rel=1e-5)
        assert first[name] != pytest.approx(second[name], rel=1e-2)
    assert both["mlm"] == first["mlm"] == second["mlm"]


def test_a_student_of_two_teachers_is_trained_evaluated_and_says_whose_it_is(project):
    messages = Messages()
    project.run(train_student)
    project.run(evaluate, context=Context(artefacts=project.artefacts, progress=messages))
    digests = {
        name: CacheReader(artefacts.cache).root_digest
        for name, artefacts in (("teacher", project.artefacts), ("second", project.artefacts.of_teacher("second")))
    }
    assert len(set(digests.values())) == 2
    provenance = json.loads((project.artefacts.runs / "provenance.json").read_text())
    assert provenance["cache"]["root_digest"] == digests["teacher"]
    assert provenance["further_caches"]["second"]["root_digest"] == digests["second"]
    trained = json.loads((project.artefacts.runs / "train.json").read_text())
    assert trained["further_cache_root_digests"] == {"second": digests["second"]}
    card = (project.artefacts.student / "README.md").read_text()
    assert "from several teachers at once" in card
    assert "(share 0.7); a small BERT that was trained from scratch on the same corpus (share 0.3)" in card
    assert digests["second"] in card
    assert any("the main one" in line for line in messages.lines)
    assert json.loads((project.artefacts.runs / "evaluation.json").read_text())["kl_masked"] > 0


def test_the_second_teacher_changes_the_student_and_no_share_of_it_leaves_him_as_he_is_without(project):
    project.run(train_student)
    of_both = weights(project)
    of_one = {}
    for shares in (None, {"teacher": 1.0, "second": 0.0}):
        forget_training(project)
        project.set(**with_second(shares))
        project.run(train_student)
        of_one[shares is None] = weights(project)
    assert same_weights(of_one[True], of_one[False])
    assert not same_weights(of_both, of_one[True])


def test_a_stopped_training_goes_on_from_both_caches_and_ends_with_the_same_weights(project):
    project.run(train_student)
    expected, log = weights(project), (project.artefacts.runs / "train.csv").read_text()
    forget_training(project)
    with pytest.raises(Interrupted, match="at step 5 of 8"):
        project.run(train_student, context=stopping_after(project, 5))
    (record,) = project.artefacts.checkpoints.glob("*/checkpoint-5/run.json")
    assert json.loads(record.read_text())["further_cache_root_digests"].keys() == {"second"}
    project.run(train_student)
    assert same_weights(weights(project), expected)
    assert (project.artefacts.runs / "train.csv").read_text() == log


def test_two_processes_that_share_the_loaders_of_both_caches_give_the_student_of_one(project):
    project.set(**with_second(train={"micro_batch_size": 4}))
    project.run(train_student)
    expected = weights(project)
    forget_training(project)
    with Launch(project.folder, "train-student", processes=2) as launch:
        assert launch.codes() == [0, 0], launch.output.read_text()
    for name, tensor in weights(project).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4)


def test_a_checkpoint_is_refused_where_one_of_the_caches_is_another(project):
    with pytest.raises(Interrupted):
        project.run(train_student, context=stopping_after(project, 5))
    (record,) = project.artefacts.checkpoints.glob("*/checkpoint-5/run.json")
    content = json.loads(record.read_text())
    content["further_cache_root_digests"]["second"] = "0" * 64
    record.write_text(json.dumps(content))
    with pytest.raises(InputError, match="belongs to another cache of second"):
        project.run(train_student)


def test_another_second_teacher_makes_another_run(project):
    project.run(train_student)
    give_second(project, seed=8)
    with pytest.raises(
        MismatchError, match=r"cache/teachers/second/current was made from other files .*--teacher second"
    ):
        project.run(train_student)
    cache_second(project)
    project.run(train_student)
    assert len(list(project.artefacts.checkpoints.glob("*/"))) == 2


def test_a_student_machine_needs_the_caches_and_no_teacher(project):
    shutil.rmtree(project.artefacts.project / "models" / "teachers")
    shutil.rmtree(project.artefacts.teacher)
    shutil.rmtree(project.artefacts.tokens)
    project.run(train_student)
    assert (project.artefacts.student / "model.safetensors").is_file()


def test_a_cache_that_is_not_there_is_named_with_the_command_that_makes_it(project):
    shutil.rmtree(project.artefacts.of_teacher("second").cache)
    with pytest.raises(InputError, match=r"second/current is missing.*pipeline cache-teacher --teacher second"):
        project.run(train_student)


def test_a_cache_of_other_parameters_is_refused_by_its_name_and_field(project):
    project.set(**with_second(teachers={"second": {"train": {"seed": 6}}}))
    with pytest.raises(
        MismatchError, match=r"cache/teachers/second/current .*teacher.train.seed: 6 expected, 5 in the"
    ):
        project.run(train_student)


@pytest.mark.parametrize("field", ["masks", "tokens"])
def test_caches_of_other_tokens_or_masks_are_not_taken_together(project, field):
    """As only a cache brought from elsewhere can be: with the parameters here, and made of something else."""
    artefacts = project.artefacts.of_teacher("second")
    description = json.loads((artefacts.cache / "cache.json").read_text())
    shutil.rmtree(artefacts.cache)
    if field == "tokens":
        project.set(corpus={"seed": 1})
        project.run(corpus)
        project.run(tokenize_corpus)
        give_second(project)
    project.set(**with_second(**({"masking": {"seed": 3}} if field == "masks" else {"corpus": {"seed": 1}})))
    cache_second(project)
    _pretend(artefacts.cache, description["spec"])
    project.set(**with_second())
    for gone in (project.artefacts.documents, project.artefacts.tokens):
        shutil.rmtree(gone)
    expected = "shard train-v0-000000: other tokens or masks" if field == "masks" else "content.tokens"
    with pytest.raises(
        InputError, match=f"not of the same tokens, masks and vocabulary: .*{expected}.*--teacher second"
    ):
        project.run(train_student)


def _pretend(cache, spec):
    """Give a cache the parameters of another one, consistently."""
    value = json.loads((cache / CACHE_FILE).read_text())
    value["spec"] = spec
    value["fingerprint"] = fingerprint(spec, value["content"])
    data = canonical_json(value) + b"\n"
    (cache / CACHE_FILE).write_bytes(data)
    manifest = RootManifest.from_bytes((cache / MANIFEST_FILE).read_bytes())
    changed = RootManifest(
        fingerprint=value["fingerprint"],
        counts=manifest.counts,
        files={**manifest.files, CACHE_FILE: FileRecord.of_bytes(data)},
    )
    (cache / MANIFEST_FILE).write_bytes(changed.to_bytes())


@pytest.fixture(scope="module")
def narrow(tokenized, tmp_path_factory):
    """A project whose second teacher is half as wide."""
    project = Project(shutil.copytree(tokenized, tmp_path_factory.mktemp("narrow") / "project"), **with_second())
    prepare(project, hidden=16)
    return project


def test_a_teacher_of_another_width_has_no_part_in_the_cosine_and_that_is_said(narrow, tmp_path):
    project, messages = copied(narrow, tmp_path / "project"), Messages()
    project.run(train_student, context=Context(artefacts=project.artefacts, progress=messages))
    assert "no cosine loss from second (16): the student's hidden states have 32 values" in messages.lines


def test_a_cosine_loss_is_refused_where_no_teacher_has_the_students_width(narrow, tmp_path):
    student = {"half": {"initialise": "random", "layer_map": None, "hidden_size": 8}}
    project = copied(narrow, tmp_path / "project", students=student)
    project.run(init_student, "half")
    with pytest.raises(ConfigError, match=r"have 8 values and those .* others \(teacher 32, second 16\)"):
        project.run(train_student)
    project.set(**with_second(students=student, train={"weights": {"cos": 0.0}}))
    project.run(train_student)


def test_all_caches_share_the_memory_for_shards_and_too_little_is_refused_with_what_is_enough(project):
    project.set(**with_second(machine={"shard_memory_gb": 1e-5}))
    with pytest.raises(ConfigError, match=r"2 caches of train.ensemble") as caught:
        project.run(train_student)
    least = float(str(caught.value).split("allowed: ")[1].split(" ")[0])
    project.set(**with_second(machine={"shard_memory_gb": least}))
    project.run(train_student)


def test_a_second_teacher_is_cached_with_the_masks_of_the_first(prepared):
    caches = [CacheReader(a.cache) for a in (prepared.artefacts, prepared.artefacts.of_teacher("second"))]
    shards = caches[0].description.shard_ids()
    assert shards == caches[1].description.shard_ids()
    assert all(caches[0].teacher_saw(shard) == caches[1].teacher_saw(shard) for shard in shards)
    assert caches[0].description.spec["teacher"]["train"]["layers"] == 2
    assert caches[1].description.spec["teacher"]["train"]["layers"] == 3
    beside = {path.name for path in prepared.artefacts.of_teacher("second").cache.parent.iterdir()}
    assert beside >= {"run.json", "figures.json", "distributions.csv", "resolved-config.json"}


def test_a_second_teacher_that_is_missing_is_named_with_the_command_that_makes_it(project):
    shutil.rmtree(project.artefacts.of_teacher("second").teacher)
    with pytest.raises(InputError, match="run: pipeline teacher second"):
        cache_teacher.run(project.config.of_teacher("second"), project.context.of_teacher("second"))


def test_a_cached_layer_that_is_not_the_last_of_a_further_teacher_does_not_go_through_its_head(tokenized, tmp_path):
    loaded = {
        "teachers": {"second": {"source": "load", "train": None, "load": {"path": "given"}}},
        "cache": {"hidden_layers": [0, 2]},  # the last of two, and not of three
    }
    train = {"weights": {"cos": 0.0}}
    project = Project(
        shutil.copytree(tokenized, tmp_path / "loaded"), **with_second(**loaded, train={**train, "kd_source": "top_k"})
    )
    prepare(project)
    project.run(train_student)
    project.set(**with_second(**loaded, train={**train, "kd_source": "hidden"}))
    with pytest.raises(
        ConfigError, match=r"teachers.second: cache.hidden_layers is \[0, 2\]; allowed: a list that ends in 3"
    ):
        project.run(train_student)


def test_two_causal_teachers_teach_the_next_token(tokenized, tmp_path):
    causal = {"source": "load", "objective": "causal", "train": None}
    project = Project(
        shutil.copytree(tokenized, tmp_path / "causal"),
        **with_second(
            teacher={**causal, "load": {"path": "given/teacher"}},
            teachers={"second": {**causal, "load": {"path": "given/second"}}},
            students={"half": {"architecture": "same", "layer_map": [0]}},
            train={"weights": {"kd": 5.0, "mlm": 0.0, "clm": 2.0, "cos": 1.0}, "validation": {"metric": "kl_all"}},
            evaluate={"split": "test"},
        ),
    )
    tokenizer = load_tokenizer(project.artefacts.tokens / "tokenizer")
    for seed, name in enumerate(("teacher", "second")):
        tiny_model("gpt2", vocabulary=len(tokenizer), seed=seed).save_pretrained(project.folder / "given" / name)
        tokenizer.save_pretrained(project.folder / "given" / name)
    config, there = project.config.of_teacher("second"), project.context.of_teacher("second")
    for stage in (teacher, cache_teacher):
        project.run(stage)
        stage.run(config, there)
    project.run(init_student, "half")
    project.run(train_student)
    project.run(evaluate)
    last = json.loads((project.artefacts.runs / "train.json").read_text())["last"]
    assert all(last[name] > 0 for name in ("kd", "clm", "cos"))
