import numpy as np
import pytest

from stages.config import TaskTraining
from stages.finetuning.batches import Padded, training_batches

LENGTHS = np.random.default_rng(0).integers(4, 60, 1003)


def training(**changes):
    settings = {
        "epochs": 2,
        "learning_rate": 1e-3,
        "batch_size": 8,
        "max_tokens": 8,
        "warmup_fraction": 0.0,
        "weight_decay": 0.0,
    }
    return TaskTraining(**{**settings, **changes})


@pytest.mark.parametrize("grouped", [True, False])
def test_every_epoch_has_every_example_once_in_another_order(grouped):
    batches = training_batches(LENGTHS, training(group_by_length=grouped), seed=0)
    steps = -(-len(LENGTHS) // 8)
    assert len(batches) == 2 * steps
    epochs = [np.concatenate(batches[start : start + steps]) for start in (0, steps)]
    assert all(sorted(epoch) == list(range(len(LENGTHS))) for epoch in epochs)
    assert not np.array_equal(*epochs)


def test_the_order_is_a_function_of_the_seed():
    first, same, other = (training_batches(LENGTHS, training(), seed) for seed in (0, 0, 1))
    assert all(np.array_equal(one, two) for one, two in zip(first, same, strict=True))
    assert not all(np.array_equal(one, two) for one, two in zip(first, other, strict=True))


def test_grouping_leaves_little_padding():
    def padding(batches):
        return sum(len(batch) * LENGTHS[batch].max() for batch in batches) / (2 * LENGTHS.sum()) - 1

    grouped, mixed = (padding(training_batches(LENGTHS, training(group_by_length=g), 0)) for g in (True, False))
    assert grouped < 0.1 < 0.5 < mixed


def test_a_training_may_end_early():
    assert len(training_batches(LENGTHS, training(max_steps=5), 0)) == 5


def test_rows_are_padded_on_the_right():
    rows = [
        {
            "input_ids": np.array([5, 6, 7], np.uint32),
            "token_type_ids": np.array([0, 0, 1], np.uint8),
            "labels": np.asarray(1),
        },
        {"input_ids": np.array([8], np.uint32), "token_type_ids": np.array([1], np.uint8), "labels": np.asarray(0)},
    ]
    batch = {name: tensor.tolist() for name, tensor in Padded(pad_id=9)(rows).items()}
    assert batch == {
        "input_ids": [[5, 6, 7], [8, 9, 9]],
        "token_type_ids": [[0, 0, 1], [1, 0, 0]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "labels": [1, 0],
    }
