from stages.batches import Wanted, split_batches


def test_all_sequences_of_a_split_come_once_and_in_order(reader):
    batches = list(split_batches(reader, "test", batch_size=3, wanted=Wanted(hidden=False, logits=False)))
    assert sum(len(batch["input_ids"]) for batch in batches) == reader.description.splits["test"].sequences
    assert sum(int(batch["attention_mask"].sum()) for batch in batches) == reader.description.splits["test"].tokens
