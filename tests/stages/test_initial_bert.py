import pytest
import torch

from stages.config import TrainTeacherConfig
from stages.initial_bert import initial_bert, sinusoids

SMALL = {
    "layers": 3,
    "hidden_size": 128,
    "attention_heads": 4,
    "feed_forward_size": 64,
    "max_positions": 40,
    "dropout": 0.0,
    "learning_rate": 1e-3,
    "warmup_steps": 0,
    "steps": 1,
    "float32_steps": 1,
    "batch_size": 1,
    "weight_decay": 0.0,
    "precision": "float32",
    "seed": 0,
}


def small(**changes):
    return initial_bert(TrainTeacherConfig(**{**SMALL, **changes}), vocabulary_size=500, pad_id=0)


def attention_of(model, input_ids, layer):
    with torch.inference_mode():
        return model(input_ids=input_ids, output_attentions=True).attentions[layer][0]  # (heads, L, L)


def test_sinusoids_make_a_shift_look_the_same_everywhere():
    table = sinusoids(40, 16)
    similarity = table @ table.T
    torch.testing.assert_close(similarity.diagonal(3), similarity.diagonal(3)[:1].expand(37))
    assert similarity[20].argmax() == 20
    assert sinusoids(40, 15).shape == (40, 15)


def test_positions_start_at_four_times_the_scale_of_the_word_embeddings():
    embeddings = small().bert.embeddings
    words, positions = embeddings.word_embeddings.weight[1:], embeddings.position_embeddings.weight
    assert positions.square().mean().sqrt().item() == pytest.approx(0.08, rel=1e-3)
    assert words.square().mean().sqrt().item() == pytest.approx(0.02, rel=0.05)


def test_the_heads_of_the_first_blocks_start_at_one_neighbour_each():
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(5, 500, (1, 40), generator=generator)
    for layer in (0, 1):
        attention = attention_of(small(), input_ids, layer)
        for head, offset in enumerate((-1, 1, -2, 2)):
            mean = torch.stack([attention[head].diagonal(d).mean() for d in range(-6, 7)])
            assert mean.argmax().item() - 6 == offset


def test_later_blocks_start_without_a_direction():
    attention = attention_of(small(), torch.randint(5, 500, (1, 40)), 2)
    assert attention.max().item() < 2 / 40


def test_the_head_starts_with_the_identity():
    assert torch.equal(small().cls.predictions.transform.dense.weight, torch.eye(128))


def test_heads_of_odd_width_and_a_single_block_are_possible():
    model = small(layers=1, hidden_size=15, attention_heads=3)
    with torch.inference_mode():
        assert torch.isfinite(model(input_ids=torch.tensor([[5, 6, 7]])).logits).all()


def test_the_seed_decides_the_weights():
    one, same, other = (small(seed=seed).bert.embeddings.word_embeddings.weight for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
