import numpy as np
import pytest
import torch
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

from stages.batches import Wanted, to_batch
from stages.cache_dataset import iterable_dataset
from storage import CachedSequences, CacheReader
from tests.storage.build import LAYOUTS, build_cache, make_description


def view(folder, layout, **settings):
    return CachedSequences(CacheReader(build_cache(folder, make_description(LAYOUTS[layout]))), **settings)


@pytest.mark.parametrize("layout", ["lossless", "tail", "attention", "draws", "answers", "score"])
def test_it_gives_the_sequences_of_the_cache_as_tensors_of_the_dtypes_that_it_describes(tmp_path, layout):
    sequences = view(tmp_path, layout)
    dataset = iterable_dataset(sequences).with_format("torch")
    for example, expected in zip(dataset, sequences, strict=True):
        assert example.keys() == expected.keys()
        for name, value in expected.items():
            assert example[name].dtype == getattr(torch, sequences.features[name].dtype)
            np.testing.assert_array_equal(example[name].numpy(), value)


def test_shuffling_and_sharing_out_go_by_the_shards_of_the_cache(tmp_path):
    dataset = iterable_dataset(view(tmp_path, "balanced", columns=["sequence_id"]))
    assert dataset.num_shards == 3
    shuffled = [example["sequence_id"] for example in dataset.shuffle(seed=0, buffer_size=8)]
    assert shuffled != sorted(shuffled) == list(range(15))
    ranks = [[e["sequence_id"] for e in split_dataset_by_node(dataset, rank, 3)] for rank in range(3)]
    assert ranks == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11, 12, 13, 14]]
    mapped = dataset.map(lambda example: {"double": 2 * example["sequence_id"]}).filter(lambda e: e["double"] > 24)
    assert [example["double"] for example in mapped] == [26, 28]


def test_workers_of_a_dataloader_read_for_themselves(tmp_path):
    sequences = view(tmp_path, "masked")
    loader = DataLoader(iterable_dataset(sequences).with_format("torch"), batch_size=None, num_workers=2)
    assert sorted(int(example["sequence_id"]) for example in loader) == list(range(15))

    def collated(places):
        return to_batch(sequences.arrays(places), pad_id=0, wanted=Wanted(hidden=True, logits=True))

    batches = list(DataLoader(range(15), batch_size=4, collate_fn=collated, num_workers=1))
    assert [len(batch["input_ids"]) for batch in batches] == [4, 4, 4, 3]
    assert sum(len(batch["row_index"]) for batch in batches) == sum(len(e["positions"]) for e in sequences)
    by_sequence = DataLoader(sequences, batch_size=5, collate_fn=list)
    assert [[example["sequence_id"] for example in batch] for batch in by_sequence][1] == [5, 6, 7, 8, 9]
