import dataclasses
import json

import pytest

from storage import CacheDescription, CorruptError, FormatError, ShardId
from tests.storage.build import (
    ATTENTION,
    ATTENTION_ONLY,
    BALANCED,
    CLASSES,
    EXACT,
    LAYOUTS,
    MASKED,
    TAIL,
    THRESHOLD,
    make_description,
)


def changed(description, **values):
    return {**json.loads(json.dumps(description.to_json())), **values}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_description_comes_back_equal_through_json(layout):
    description = make_description(layout, variants=2)
    assert CacheDescription.from_json(changed(description)) == description


def test_shards_are_listed_by_split_variant_and_number():
    names = [str(shard) for shard in make_description(variants=2, shards=2).shard_ids()]
    assert names == [
        "train-v0-000000",
        "train-v0-000001",
        "train-v1-000000",
        "train-v1-000001",
        "validation-v0-000000",
    ]


def test_the_shards_of_a_variant_cover_every_sequence_once():
    description = make_description(variants=2, shards=4, sequences_per_shard=3)
    spans = [description.span(shard) for shard in description.shard_ids() if shard.variant == 1]
    assert [sequence for start, count in spans for sequence in range(start, start + count)] == list(range(12))


@pytest.mark.parametrize(
    "shard", [ShardId("train", 0, 3), ShardId("train", 1, 0), ShardId("test", 0, 0)], ids=["number", "variant", "split"]
)
def test_a_shard_that_is_not_planned_has_no_span(shard):
    with pytest.raises(KeyError, match=str(shard)):
        make_description().span(shard)


def test_features_are_those_of_the_layouts():
    assert make_description(EXACT).required_features == ()
    assert make_description(BALANCED).required_features == ("int8-groups", "logit-grid")
    assert make_description(MASKED).required_features == ("int8-groups", "logit-grid", "row-token")
    assert make_description(THRESHOLD).required_features == ("bfloat16-bits", "logit-grid", "threshold")
    assert make_description(ATTENTION).required_features == ("attention-vectors", "int8-groups", "logit-grid")
    assert make_description(ATTENTION_ONLY).required_features == ("attention-vectors", "bfloat16-bits")
    assert make_description(TAIL).required_features == ("draws", "int8-groups", "row-sample", "row-token", "threshold")


def test_the_fingerprint_changes_with_spec_and_content_only():
    description = make_description()
    same = dataclasses.replace(description, teacher_config={})
    assert same.fingerprint == description.fingerprint
    assert dataclasses.replace(description, spec={}).fingerprint != description.fingerprint
    assert dataclasses.replace(description, content={}).fingerprint != description.fingerprint


def test_an_unknown_version_is_refused_by_number():
    with pytest.raises(FormatError, match=r"format_version 2; this reader knows 1; update teacher-cache"):
        CacheDescription.from_json(changed(make_description(), format_version=2))


def test_an_unknown_feature_is_refused_by_name():
    with pytest.raises(FormatError, match=r"requires the feature entropy-coding; this reader knows .*int8-groups"):
        CacheDescription.from_json(changed(make_description(), required_features=["entropy-coding", "int8-groups"]))


def test_a_spec_changed_by_hand_is_noticed():
    with pytest.raises(CorruptError, match="fingerprint"):
        CacheDescription.from_json(changed(make_description(), spec={"cache": {}}))


@pytest.mark.parametrize("key", ["spec", "temperatures", "vocabulary_size", "splits", "fingerprint"])
def test_a_missing_key_is_corruption(key):
    value = changed(make_description())
    del value[key]
    with pytest.raises(CorruptError, match=r"cache.json"):
        CacheDescription.from_json(value)


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b'{"format_version": 1, "layout": {}}'])
def test_bytes_that_are_no_description_are_corruption(data):
    with pytest.raises(CorruptError, match=r"cache.json"):
        CacheDescription.from_bytes(data)


@pytest.mark.parametrize("shards", [((0, 5), (6, 5)), ((0, 5), (4, 6)), ((0, 0), (0, 10)), ((0, 5),)])
def test_a_plan_with_gaps_overlaps_or_empty_shards_is_refused(shards):
    split = dataclasses.replace(make_description(shards=2).splits["train"])
    with pytest.raises(ValueError, match="sequences"):
        dataclasses.replace(split, shards=shards)


@pytest.mark.parametrize("temperatures", [(2.0,), (2.0, 1.0), (1.0, 1.0)])
def test_temperatures_ascend_and_include_one(temperatures):
    with pytest.raises(ValueError, match="temperatures"):
        dataclasses.replace(make_description(), temperatures=temperatures)


def test_more_logits_than_the_vocabulary_are_refused():
    with pytest.raises(ValueError, match="top_k of train is 8; expected at most the vocabulary, 7"):
        dataclasses.replace(make_description(), vocabulary_size=7)


def test_draws_from_the_tail_need_a_tail():
    with pytest.raises(ValueError, match="top_k of train is 6; expected at most 5, which leaves a tail to draw from"):
        dataclasses.replace(make_description(TAIL), vocabulary_size=6)


@pytest.mark.parametrize(("layout", "name"), [(THRESHOLD, "threshold_temperature"), (TAIL, "draw_temperature")])
def test_targets_are_taken_at_declared_temperatures(layout, name):
    with pytest.raises(ValueError, match=rf"{name} of train is 2.0; expected one of \(1.0, 4.0\)"):
        dataclasses.replace(make_description(layout), temperatures=(1.0, 4.0))


def test_a_cache_with_splits_left_out_is_a_part_of_the_whole():
    whole = make_description(BALANCED)
    part = dataclasses.replace(whole, splits={"train": whole.splits["train"]})
    assert part.is_part_of(whole)
    assert not whole.is_part_of(part)
    assert not whole.is_part_of(whole)
    assert not dataclasses.replace(part, hidden_size=7).is_part_of(whole)
    other = make_description(BALANCED, shards=2)
    assert not dataclasses.replace(other, splits={"train": other.splits["train"]}).is_part_of(whole)


def test_a_task_is_a_feature_and_its_layouts_are_of_its_head():
    assert "task" not in make_description(EXACT).to_json()
    classes = make_description(CLASSES)
    assert classes.required_features == ("task",)
    assert CacheDescription.from_json(changed(classes)).task == classes.task
    for task, match in ((None, "expected none, the head"), ({"head": "answers"}, "expected answers, the head")):
        with pytest.raises(ValueError, match=f"task of train is classification; {match}"):
            dataclasses.replace(classes, task=task)


def test_a_causal_teacher_is_a_feature_and_a_masked_one_leaves_no_trace():
    assert "objective" not in make_description(EXACT).to_json()
    causal = dataclasses.replace(make_description(EXACT), objective="causal")
    assert causal.required_features == ("causal",)
    assert CacheDescription.from_json(changed(causal)) == causal
    with pytest.raises(CorruptError, match="objective is 'sideways'; expected masked or causal"):
        CacheDescription.from_json(changed(causal, objective="sideways"))
