import csv
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, BertConfig, BertModel, pipeline

from stages import cache_teacher, teacher
from stages.config import AdaptTeacherConfig, ConfigError, MaskingConfig, cache_spec
from stages.context import Context, Silent
from stages.errors import InputError, Interrupted, StageError
from stages.losses import IGNORED
from stages.masking import Masker
from stages.models import load_masked_lm, load_tokenizer
from stages.sequences import TokenStore
from stages.teacher_training import (
    Collator,
    MaskedPositions,
    MaskedSequences,
)
from tests.stages.tiny_models import tiny_bert

ADAPT = {
    "learning_rate": 0.003,
    "warmup_steps": 2,
    "steps": 6,
    "float32_steps": 6,
    "batch_size": 16,
    "weight_decay": 0.01,
    "precision": "float32",
    "seed": 0,
}
LOADED = {"source": "load", "load": {"path": "given", "hub_id": None, "revision": None}}


@pytest.fixture(scope="module")
def tokens(tokenized):
    return TokenStore.open(tokenized / "data" / "tokens")


def masker(tokens, variants=1):
    config = MaskingConfig(
        probability=0.3, evaluation_probability=0.15, mask=0.8, random=0.1, smoothing=0.7, variants=variants, seed=0
    )
    return Masker(
        config,
        split="train",
        token_counts=tokens.token_counts,
        special_ids=tokens.special_ids,
        mask_id=tokens.special_tokens["mask"],
        vocabulary_size=tokens.vocabulary_size,
    )


def give(project, model, tokenizer_folder=None):
    """Put a model, with the tokenizer of the tokens unless another is given, where `teacher.load.path` says."""
    model.save_pretrained(project.folder / "given")
    load_tokenizer(tokenizer_folder or project.artefacts.tokens / "tokenizer").save_pretrained(project.folder / "given")


def weights(project):
    return load_file(project.artefacts.teacher / "model.safetensors")


def figures(project):
    return json.loads((project.artefacts.runs / "teacher.json").read_text())


def assert_nothing_published(project):
    assert not (project.artefacts.runs / "teacher.json").exists()
    assert [path.name for path in project.artefacts.teacher.parent.iterdir()] == ["teacher"]


class StopAfter(Silent):
    """Asks to stop once so many steps are done."""

    def __init__(self, steps):
        self.left = steps

    def advance(self, amount=1, **_):
        self.left -= amount

    def context(self, project):
        return Context(artefacts=project.artefacts, progress=self, should_stop=lambda: self.left <= 0)


def test_a_trained_teacher_predicts_held_out_words_better_than_chance(make_project):
    project = make_project(masking={"smoothing": 0.0}, teacher={"train": {"float32_steps": 60, "learning_rate": 0.01}})
    project.run(teacher)
    found = figures(project)
    uniform = math.log(TokenStore.open(project.artefacts.tokens).vocabulary_size)
    assert found["mlm_loss"] < uniform - 0.5
    assert 0 < found["masked_accuracy"] < 1
    assert (found["steps"], found["precision"], found["source"]) == (60, "float32", "train")
    assert found["bytes"] == (project.artefacts.teacher / "model.safetensors").stat().st_size


def test_the_learning_curve_is_a_csv_of_steps(make_project):
    project = make_project(teacher={"train": {"float32_steps": 50}})
    project.run(teacher)
    rows = list(csv.DictReader((project.artefacts.runs / "teacher.csv").read_text().splitlines()))
    assert [int(row["step"]) for row in rows] == [25, 50]
    assert float(rows[1]["loss"]) < float(rows[0]["loss"])
    assert float(rows[1]["learning_rate"]) < float(rows[0]["learning_rate"])


def test_the_teacher_is_an_ordinary_hugging_face_folder(make_project):
    project = make_project()
    project.run(teacher)
    folder = project.artefacts.teacher
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
    assert type(AutoModelForMaskedLM.from_pretrained(folder)).__name__ == "BertForMaskedLM"
    assert len(pipeline("fill-mask", model=str(folder))("the teacher [MASK] a shard.")) == 5
    resolved = json.loads((folder / "resolved-config.json").read_text())
    assert resolved["teacher"]["train"]["learning_rate"] == 0.003
    assert sorted(resolved) == ["masking", "teacher"]


def test_the_stage_after_it_accepts_the_teacher(make_project):
    project = make_project()
    project.run(teacher)
    project.run(cache_teacher)
    assert (project.artefacts.cache / "manifest.json").is_file()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_seed_gives_the_same_weights(make_project, precision):
    train = {"precision": precision, "dropout": 0.1}
    one, other = make_project(teacher={"train": train}), make_project(teacher={"train": train})
    one.run(teacher)
    torch.rand(3)  # a state of the global generator that must not matter
    other.run(teacher)
    expected = weights(one)
    for name, tensor in weights(other).items():
        assert torch.equal(tensor, expected[name]), name


def test_another_seed_gives_other_weights(make_project):
    one, other = make_project(), make_project(teacher={"train": {"seed": 1}})
    one.run(teacher)
    other.run(teacher)
    name = "bert.embeddings.word_embeddings.weight"
    assert not torch.equal(weights(one)[name], weights(other)[name])


def test_the_number_of_steps_follows_the_precision(make_project):
    project = make_project(teacher={"train": {"precision": "bfloat16", "steps": 3, "float32_steps": 2}})
    project.run(teacher)
    assert (figures(project)["steps"], figures(project)["precision"]) == (3, "bfloat16")


def test_a_request_to_stop_ends_the_training_and_leaves_what_was_there(make_project):
    project = make_project(teacher={"train": {"float32_steps": 40}})
    before = weights(project)
    with pytest.raises(Interrupted, match="at step 3 of 40 of the teacher's training; nothing was published"):
        project.run(teacher, context=StopAfter(3).context(project))
    assert_nothing_published(project)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(project).items())


def test_a_request_to_stop_during_the_evaluation_publishes_nothing(make_project):
    project = make_project(teacher={"train": {"float32_steps": 2}})
    with pytest.raises(Interrupted, match="nothing was published"):
        project.run(teacher, context=StopAfter(3).context(project))
    assert_nothing_published(project)


def test_a_loss_that_is_not_finite_stops_the_training(make_project):
    project = make_project(teacher={"train": {"learning_rate": 1e30, "warmup_steps": 0}})
    with pytest.raises(
        StageError, match=r"the teacher's loss is nan at step 8; .* lower teacher\.train\.learning_rate"
    ):
        project.run(teacher)
    assert_nothing_published(project)


def test_a_batch_larger_than_the_corpus_is_refused(make_project):
    project = make_project(teacher={"train": {"batch_size": 100_000}})
    with pytest.raises(ConfigError, match=r"teacher\.train\.batch_size is 100000; allowed: at most the \d+ training"):
        project.run(teacher)


def test_missing_tokens_name_the_command_that_makes_them(make_project):
    project = make_project()
    (project.artefacts.tokens / "tokens.json").unlink()
    with pytest.raises(InputError, match="run: pipeline tokenize"):
        project.run(teacher)


def test_a_local_folder_becomes_the_teacher(make_project, tokens):
    project = make_project(teacher=LOADED)
    given = tiny_bert(vocabulary=tokens.vocabulary_size, positions=16, seed=5)
    give(project, given)
    project.run(teacher)
    expected = load_file(project.folder / "given" / "model.safetensors")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(project).items())
    assert load_tokenizer(project.artefacts.teacher).get_vocab() == load_tokenizer(tokens.tokenizer_folder).get_vocab()
    assert (figures(project)["source"], figures(project)["parameters"]) == ("given", given.num_parameters())
    assert (project.artefacts.runs / "teacher.csv").read_text() == "step,loss,learning_rate\n"


def test_the_held_out_figures_are_those_of_the_whole_model_on_the_masked_words(make_project, tokens):
    project = make_project(teacher=LOADED)
    give(project, tiny_bert(vocabulary=tokens.vocabulary_size, positions=16, seed=5))
    project.run(teacher)
    model = load_masked_lm(project.artefacts.teacher)
    split = tokens.split("validation")
    seen_by = Masker(
        project.config.masking,
        split="validation",
        token_counts=tokens.token_counts,
        special_ids=tokens.special_ids,
        mask_id=tokens.special_tokens["mask"],
        vocabulary_size=tokens.vocabulary_size,
    )
    losses, hits = [], []
    for sequence in range(len(split)):
        _, original = split.read(sequence, 1)
        input_ids, masked = seen_by.mask(sequence, 0, original)
        with torch.inference_mode():
            logits = model(input_ids=torch.from_numpy(input_ids.astype(np.int64))[None]).logits[0]
        targets = torch.from_numpy(original.astype(np.int64))
        chosen = torch.from_numpy(masked == 1)
        losses.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none")[chosen])
        hits.append((logits.argmax(-1) == targets)[chosen])
    assert figures(project)["mlm_loss"] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-4)
    assert figures(project)["masked_accuracy"] == pytest.approx(float(torch.cat(hits).float().mean()), abs=1e-5)
    assert figures(project)["masked_tokens"] == len(torch.cat(hits))


def test_a_vocabulary_padded_beyond_the_tokenizer_is_accepted(make_project, tokens):
    project = make_project(teacher=LOADED)
    give(project, tiny_bert(vocabulary=tokens.vocabulary_size + 8, positions=16))
    project.run(teacher)
    assert load_masked_lm(project.artefacts.teacher).config.vocab_size == tokens.vocabulary_size + 8


def test_a_teacher_with_a_smaller_vocabulary_is_refused_with_both_figures(make_project, tokens):
    project = make_project(teacher=LOADED)
    give(project, tiny_bert(vocabulary=tokens.vocabulary_size - 1, positions=16))
    expected = rf"has {tokens.vocabulary_size} entries and the teacher's vocabulary {tokens.vocabulary_size - 1} "
    with pytest.raises(InputError, match=expected):
        project.run(teacher)
    assert_nothing_published_but_given(project)


def assert_nothing_published_but_given(project):
    assert not (project.artefacts.runs / "teacher.json").exists()
    assert not (project.artefacts.teacher / "resolved-config.json").exists()


def test_a_teacher_of_another_tokenizer_is_refused_even_at_equal_size(make_project, tokens, tmp_path):
    project = make_project(teacher=LOADED)
    other = json.loads((tokens.tokenizer_folder / "tokenizer.json").read_text())
    vocabulary = other["model"]["vocab"]
    one, two = sorted(vocabulary)[-2:]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    changed = tmp_path / "changed"
    load_tokenizer(tokens.tokenizer_folder).save_pretrained(changed)
    (changed / "tokenizer.json").write_text(json.dumps(other))
    give(project, tiny_bert(vocabulary=tokens.vocabulary_size, positions=16), changed)
    with pytest.raises(InputError, match="differ in 4 entries: the same id would mean different words"):
        project.run(teacher)


def test_a_teacher_with_too_few_positions_is_refused_with_both_figures(make_project, tokens):
    project = make_project(teacher=LOADED)
    give(project, tiny_bert(vocabulary=tokens.vocabulary_size, positions=12))
    with pytest.raises(InputError, match=rf"has {tokens.longest} tokens and the teacher 12 positions .*; set"):
        project.run(teacher)


def test_tokens_longer_than_the_positions_to_be_trained_are_refused(make_project, tokens):
    project = make_project(tokenize={"sequence_tokens": 8}, teacher={"train": {"max_positions": 8}})
    with pytest.raises(
        InputError, match=rf"has {tokens.longest} tokens and teacher\.train\.max_positions .* 8 positions"
    ):
        project.run(teacher)


def test_a_bare_encoder_is_refused(make_project, tokens):
    project = make_project(teacher=LOADED)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    give(project, BertModel(BertConfig(vocab_size=tokens.vocabulary_size, **sizes)))
    with pytest.raises(InputError, match="expected a model with its masked-LM head"):
        project.run(teacher)


def test_a_folder_that_is_not_there_is_named(make_project):
    project = make_project(teacher=LOADED)
    with pytest.raises(InputError, match="given is no folder"):
        project.run(teacher)


def test_each_epoch_visits_every_sequence_once_in_its_own_order_and_with_its_own_masks(tokens):
    split = tokens.split("train")
    count = len(split)
    training = AdaptTeacherConfig(**{**ADAPT, "batch_size": 1, "seed": 3})
    examples = MaskedSequences(split, masker(tokens), training, steps=2 * count)

    def originals(index):
        input_ids, labels = examples[index]
        return tuple(np.where(labels == IGNORED, input_ids, labels).tolist())

    epochs = [[originals(index) for index in range(epoch * count, (epoch + 1) * count)] for epoch in (0, 1)]
    stored = [tuple(split.read(i, 1)[1].tolist()) for i in range(count)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(stored)
    assert epochs[0] != epochs[1]
    seen = [
        {originals(index): examples[index][0].tolist() for index in range(e * count, (e + 1) * count)} for e in (0, 1)
    ]
    assert sum(seen[0][text] != seen[1][text] for text in seen[0]) > 0.9 * len(seen[0])


def test_a_batch_is_padded_and_points_at_its_masked_positions_filled_up_to_a_round_number():
    one = np.array([2, 4, 9]), np.array([IGNORED, 7, IGNORED])
    two = np.array([2, 5]), np.array([IGNORED, 5])
    batch = Collator(pad_id=0)([one, two])
    assert batch["input_ids"].tolist() == [[2, 4, 9], [2, 5, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["rows"].tolist() == [1, 4] + 62 * [0]
    assert batch["targets"].tolist() == [7, 5] + 62 * [IGNORED]


def test_the_head_at_masked_positions_gives_the_loss_and_gradients_of_the_whole_model():
    whole, partial = tiny_bert(), tiny_bert()
    examples = [(np.arange(5, 13), np.where(np.arange(8) % 3 == 0, np.arange(20, 28), IGNORED)) for _ in range(3)]
    batch = Collator(pad_id=0)(examples)
    labels = torch.from_numpy(np.stack([wanted for _, wanted in examples]))
    expected = whole(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
    found = MaskedPositions(partial)(**batch)[0]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    expected.backward()
    found.backward()
    for (name, one), other in zip(whole.named_parameters(), partial.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_a_batch_without_masked_positions_has_no_loss():
    batch = Collator(pad_id=0)([(np.array([2, 3]), np.array([IGNORED, IGNORED]))])
    with torch.inference_mode():
        assert MaskedPositions(tiny_bert())(**batch)[0].item() == 0


ADAPTED = {"source": "adapt", "load": {"path": "given"}, "adapt": ADAPT}


def test_an_encoder_without_head_is_adapted_and_becomes_a_teacher(make_project, tokens):
    project = make_project(teacher=ADAPTED)
    given = tiny_bert(vocabulary=tokens.vocabulary_size, hidden=32, layers=2, positions=16)
    give(project, given.bert)
    project.run(teacher)
    found = figures(project)
    assert found["source"] == "given"
    assert found["steps"] == 6
    adapted = load_masked_lm(project.artefacts.teacher)
    assert not torch.equal(
        adapted.base_model.encoder.layer[0].output.dense.weight, given.bert.encoder.layer[0].output.dense.weight
    )
    project.run(cache_teacher)


def test_the_head_that_an_encoder_brings_is_kept_and_trained_further(make_project, tokens):
    start = {**ADAPT, "learning_rate": 1e-9}
    project = make_project(teacher={**ADAPTED, "adapt": start})
    given = tiny_bert(vocabulary=tokens.vocabulary_size, hidden=32, layers=2, positions=16)
    give(project, given)
    project.run(teacher)
    head = load_masked_lm(project.artefacts.teacher).cls.predictions.transform.dense.weight
    torch.testing.assert_close(head, given.cls.predictions.transform.dense.weight, atol=1e-6, rtol=0)


def test_an_encoder_that_lacks_weights_of_its_own_is_refused(make_project, tokens):
    project = make_project(teacher=ADAPTED)
    given = tiny_bert(vocabulary=tokens.vocabulary_size, hidden=32, layers=2, positions=16)
    give(project, given.bert)
    file = project.folder / "given" / "model.safetensors"
    state = {name: tensor for name, tensor in load_file(file).items() if "layer.1." not in name}
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"tensors of the encoder .*; expected a whole encoder"):
        project.run(teacher)


def test_a_part_of_a_head_is_refused_and_not_replaced(make_project, tokens):
    project = make_project(teacher=ADAPTED)
    give(project, tiny_bert(vocabulary=tokens.vocabulary_size, hidden=32, layers=2, positions=16))
    file = project.folder / "given" / "model.safetensors"
    state = {name: tensor for name, tensor in load_file(file).items() if name != "cls.predictions.bias"}
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lack \d tensors of the masked-LM head .*; expected a whole head, or none"):
        project.run(teacher)


def test_adapting_is_part_of_the_caches_identity_and_the_path_of_the_encoder_is_not(make_project):
    spec = cache_spec(make_project(teacher=ADAPTED).config)
    assert spec["teacher"]["adapt"]["steps"] == 6
    assert "path" not in spec["teacher"]["load"]
    assert "train" not in spec["teacher"]
