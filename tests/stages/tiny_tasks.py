"""Downstream tasks of generated text, and what tests of fine-tuning look at."""

from dataclasses import replace

import torch
from safetensors.torch import load_file
from transformers import DistilBertConfig, DistilBertForMaskedLM, set_seed

from stages.context import Silent
from stages.models import load_tokenizer
from tests.stages.tasks.files import squad_json, write_files

WHO, DOES = ("the teacher", "a student"), ("reads", "stores", "copies", "forgets")
TRAINING = {
    "epochs": 2,
    "learning_rate": 3e-3,
    "batch_size": 4,
    "max_tokens": 16,
    "warmup_fraction": 0.1,
    "weight_decay": 0.01,
}


def finetuning(tasks, **changes):
    return {
        "source": "files",
        "folder": "tasks",
        "seeds": [0],
        "training": {**TRAINING, "overlap_tokens": 2},
        "tasks": tasks,
        "checkpoint_steps": 3,
        "log_steps": 2,
        **changes,
    }


def write_tasks(folder):
    """SST-2: whether it is the teacher who does something. STS-B: how often it is in two sentences. SQuAD: who does it."""
    sentences = [f"{who} {does} a shard" for who in WHO for does in DOES]
    rows = "".join(f"{text}\t{int(text.startswith(WHO[0]))}\n" for text in sentences)
    write_files(folder / "SST-2", dict.fromkeys(("train.tsv", "dev.tsv"), f"sentence\tlabel\n{rows}"))
    some = sentences[::3]
    pairs = "".join(f"{one}\t{other}\t{(one + other).count('teacher')}.0\n" for one in some for other in some)
    write_files(folder / "STS-B", dict.fromkeys(("train.tsv", "dev.tsv"), f"sentence1\tsentence2\tscore\n{pairs}"))
    articles = {who: [(f"{who} {does} a letter", [("who", [who.split()[1]])]) for does in DOES] for who in WHO}
    write_files(folder / "SQuAD", dict.fromkeys(("train-v1.1.json", "dev-v1.1.json"), squad_json(articles)))


def write_student(artefacts):
    """A student, a DistilBERT of random weights, beside its teacher, whose tokenizer it has."""
    tokenizer = load_tokenizer(artefacts.teacher)
    set_seed(1)
    config = DistilBertConfig(
        vocab_size=len(tokenizer),
        dim=32,
        n_layers=1,
        n_heads=2,
        hidden_dim=64,
        max_position_embeddings=16,
        initializer_range=0.3,
    )
    DistilBertForMaskedLM(config).save_pretrained(artefacts.student)
    tokenizer.save_pretrained(artefacts.student)


class Counts(Silent):
    """Counts steps of trainings and batches of scoring, and notes what is begun."""

    def __init__(self):
        self.begun, self.done = [], 0

    def begin(self, task, total, unit, done=0):  # noqa: ARG002
        self.begun.append((task, total, done))

    def advance(self, amount=1, **figures):  # noqa: ARG002
        self.done += bool(amount) and not self.begun[-1][0].startswith(("tokenize", "read the cache"))


def stopping_after(project, steps):
    """A context that asks to stop after so many steps in all."""
    counts = Counts()
    return replace(project.context, progress=counts, should_stop=lambda: counts.done >= steps)


def kept_weights(project, model, task, seed=0):
    return load_file(project.artefacts.finetuned(model, task) / str(seed) / "model.safetensors")


def assert_same_tensors(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
