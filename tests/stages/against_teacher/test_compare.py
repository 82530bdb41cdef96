import numpy as np
import pytest
import zarr

from stages import cache_teacher
from stages.against_teacher.agreement import Agreement, Measured, spread
from stages.against_teacher.compare import compare_with_teacher
from storage import CacheReader
from tests.storage.build import make_description
from tests.storage.damage import GROUP, vouch_for_what_is_there


@pytest.mark.parametrize("sequences", [1, 3, 7, 20, 10_000])
def test_sequences_are_a_fixed_choice_spread_over_all_shards(sequences):
    description = make_description(shards=3, variants=2, sequences_per_shard=5)  # 6 shards of train, 1 of validation
    chosen = spread(description, sequences)
    assert chosen == spread(description, sequences)
    assert sum(map(len, chosen.values())) == min(sequences, 35)
    assert len(chosen) == min(sequences, 7)
    for shard, places in chosen.items():
        assert len(set(places)) == len(places)
        assert all(0 <= place < description.span(shard)[1] for place in places)


def test_one_figure_outside_its_limit_is_enough():
    def figure(found, limit, *, at_least=False):
        return Measured(split="train", name="x", found=found, limit=limit, at_least=at_least)

    def within(*figures):
        return Agreement(sequences=1, positions=1, same_hardware=True, measured=figures).within

    assert within(figure(1.0, 1.0), figure(0.9, 0.8, at_least=True))
    assert not within(figure(1.0, 1.0), figure(0.7, 0.8, at_least=True))
    assert not within(figure(float("nan"), 1.0))


def agreement_of(project):
    reader = CacheReader(project.artefacts.cache)
    computed_with = {shard: {"device": "cpu"} for shard in reader.description.shard_ids()}
    return compare_with_teacher(reader, project.context, 24, computed_with)


def test_every_cached_layer_and_block_is_compared_each_by_a_limit_of_its_own(make_project):
    project = make_project(
        cache={"preset": "balanced", "hidden_layers": [0, 1, 2], "attention_layers": [1, 2],
               "attention_vectors": ["queries", "keys", "values"]}
    )  # fmt: skip
    project.run(cache_teacher)
    found = agreement_of(project)
    assert found.within, [figure for figure in found.measured if not figure.within]
    turned = {figure.name.removeprefix("1 - cosine of ") for figure in found.measured if "cosine" in figure.name}
    assert turned == {
        "hidden states of layer 0", "hidden states of layer 1", "hidden states",
        *(f"{part} of block {block}" for part in ("queries", "keys", "values") for block in (1, 2)),
    }  # fmt: skip
    keys = zarr.open_group(project.artefacts.cache / GROUP, mode="r+")["keys"]
    changed = keys[...]
    changed[:, 1] = np.roll(changed[:, 1], 1, axis=0)
    keys[...] = changed
    vouch_for_what_is_there(project.artefacts.cache)
    outside = [figure for figure in agreement_of(project).measured if not figure.within]
    assert [(figure.split, figure.name) for figure in outside] == [("train", "1 - cosine of keys of block 2")]
