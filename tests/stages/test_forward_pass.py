import pytest
import torch

from stages.forward_pass import encoder_hidden, encoder_states
from stages.model_config import ModelShape
from tests.stages.families import batch, every_family
from tests.stages.tiny_models import tiny_model


@every_family
@torch.no_grad()
def test_a_sequence_beside_a_longer_one_gives_what_it_gives_alone(kind, objective):
    model = tiny_model(kind, objective=objective)
    ids, mask = batch(model, 9, 14)
    layers = range(ModelShape.of(model.config.to_dict()).layers)
    last, below = encoder_states(model, ids, mask, layers)
    alone, below_alone = encoder_states(model, ids[:1, :9], mask[:1, :9], layers)
    torch.testing.assert_close(last[:1, :9], alone, rtol=1e-4, atol=1e-5)
    for layer in layers:
        torch.testing.assert_close(below[layer][:1, :9], below_alone[layer], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "blocks", "norm"),
    [("gpt2", "transformer.h", "transformer.ln_f"), ("llama", "model.layers", "model.norm"), ("bert", "bert.encoder.layer", None)],
)  # fmt: skip
@torch.no_grad()
def test_layer_n_is_what_the_nth_block_writes_and_the_last_one_what_the_head_reads(kind, blocks, norm):
    model = tiny_model(kind)
    seen = {}

    def keep(number):
        def hook(_module, inputs, output):
            seen.setdefault("embeddings", inputs[0])
            seen[number] = output[0] if isinstance(output, tuple) else output

        return hook

    for number, block in enumerate(model.get_submodule(blocks), start=1):
        block.register_forward_hook(keep(number))
    last, below = encoder_states(model, *batch(model, 9), range(3))
    torch.testing.assert_close(below, {0: seen["embeddings"], 1: seen[1], 2: seen[2]}, rtol=0, atol=0)
    expected = seen[3] if norm is None else model.get_submodule(norm)(seen[3])
    torch.testing.assert_close(last, expected, rtol=0, atol=0)


def test_no_keys_and_values_are_kept_for_a_generation_that_never_comes():
    model = tiny_model("llama")
    kept = []
    model.model.register_forward_hook(lambda _module, _inputs, output: kept.append(output.past_key_values))
    encoder_hidden(model, *batch(model, 9))
    assert kept == [None]
