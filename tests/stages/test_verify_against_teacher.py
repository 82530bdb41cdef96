import pytest

from stages.verify_against_teacher import Agreement, Measured, spread
from tests.storage.build import make_description


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
