import copy

import pytest
import torch
from torch import nn

from stages.attention_vectors import AttentionTaps, attention_widths, projections
from stages.errors import InputError
from stages.training.prepare_student import checkpoint_activations
from tests.stages.tiny_models import CAUSAL_FAMILIES, MASKED_FAMILIES, tiny_bert, tiny_model

PARTS = ("queries", "keys", "values")
OWN = {
    "bert": "attention.self.{query,key,value}",
    "roberta": "attention.self.{query,key,value}",
    "electra": "attention.self.{query,key,value}",
    "distilbert": "attention.{q_lin,k_lin,v_lin}",
    "mpnet": "attention.attn.{q,k,v}",
    "deberta-v2": "attention.self.{query_proj,key_proj,value_proj}",
    "llama": "self_attn.{q_proj,k_proj,v_proj}",
    "mistral": "self_attn.{q_proj,k_proj,v_proj}",
    "qwen2": "self_attn.{q_proj,k_proj,v_proj}",
    "gemma2": "self_attn.{q_proj,k_proj,v_proj}",
    "cohere": "self_attn.{q_proj,k_proj,v_proj}",
    "granite": "self_attn.{q_proj,k_proj,v_proj}",
    "opt": "self_attn.{q_proj,k_proj,v_proj}",
}
"""By family, where in a block the projections are."""
FUSED = {"gpt2": "attn.c_attn", "modernbert": "attn.Wqkv"}


def blocks(model):
    (found,) = [
        module for module in model.base_model.modules() if isinstance(module, nn.ModuleList) and len(module) == 3
    ]
    return found


def inputs(seed=0):
    """Two sequences, the second one padded."""
    ids = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def inputs_of_the_projections(model, block, path):
    """What the modules at `path` of a block read in a forward pass, by their own forward."""
    module = blocks(model)[block - 1].get_submodule(path)
    read = []
    handle = module.register_forward_pre_hook(lambda _module, arguments: read.append(arguments[0].detach().clone()))
    with torch.no_grad():
        model.base_model(**inputs())
    handle.remove()
    return module, read[0]


@pytest.mark.parametrize("kind", OWN)
def test_the_vectors_are_what_the_weights_of_a_familys_projections_make_of_their_inputs(kind):
    model = tiny_model(kind)
    with AttentionTaps(model, (1, 3), PARTS) as taps, torch.no_grad():
        model.base_model(**inputs())
    where, names = OWN[kind].rsplit(".", 1)
    for block in (1, 3):
        for part, name in zip(PARTS, names[1:-1].split(","), strict=True):
            module, read = inputs_of_the_projections(model, block, f"{where}.{name}")
            bias = 0 if module.bias is None else module.bias
            torch.testing.assert_close(taps[part, block], read @ module.weight.T + bias)
            assert taps[part, block].shape[:2] == (2, 7)


@pytest.mark.parametrize("kind", FUSED)
def test_the_vectors_of_a_fused_projection_are_its_thirds(kind):
    model = tiny_model(kind)
    with AttentionTaps(model, (2,), PARTS) as taps, torch.no_grad():
        model.base_model(**inputs())
    module, read = inputs_of_the_projections(model, 2, FUSED[kind])
    weight = module.weight if kind == "gpt2" else module.weight.T  # GPT-2's Conv1D has (in, out)
    bias = torch.zeros(weight.shape[1]) if module.bias is None else module.bias
    for part, columns, some in zip(PARTS, weight.chunk(3, 1), bias.chunk(3), strict=True):
        torch.testing.assert_close(taps[part, 2], read @ columns + some)


def heads_of(vectors, heads):
    """(S, heads, L, d) of (S, L, W)."""
    return vectors.unflatten(-1, (heads, -1)).transpose(1, 2)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "gpt2"])
def test_queries_and_keys_give_back_the_attention_maps_of_the_model(kind):
    """So the order is that of the heads, and nothing is mixed up between queries and keys."""
    model = tiny_model(kind, attn_implementation="eager")
    with AttentionTaps(model, (1, 2, 3), ("queries", "keys")) as taps, torch.no_grad():
        maps = model.base_model(input_ids=inputs()["input_ids"], output_attentions=True).attentions
    for block in (1, 2, 3):
        queries, keys = (heads_of(taps[part, block], 2) for part in ("queries", "keys"))
        scores = queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5
        if kind == "gpt2":
            scores = scores.masked_fill(torch.ones_like(scores).triu(1) == 1, float("-inf"))
        torch.testing.assert_close(scores.softmax(-1), maps[block - 1], rtol=1e-4, atol=1e-5)


def test_grouped_query_attention_has_narrower_keys_and_values():
    model = tiny_model("llama", num_attention_heads=4, num_key_value_heads=2)
    assert attention_widths(model, (1, 3), PARTS) == (16, 8, 8)
    fused = tiny_model("phi3", num_attention_heads=4, num_key_value_heads=2, objective="causal")
    assert attention_widths(fused, (1, 3), ("keys", "queries")) == (8, 16)
    with AttentionTaps(fused, (3,), PARTS) as taps, torch.no_grad():
        fused.base_model(**inputs())
    module, read = inputs_of_the_projections(fused, 3, "self_attn.qkv_proj")
    expected = (read @ module.weight.T).split([16, 8, 8], -1)
    for part, vectors in zip(PARTS, expected, strict=True):
        torch.testing.assert_close(taps[part, 3], vectors)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_loss_on_the_vectors_has_the_gradient_that_autograd_gives_without_taps(checkpointing):
    model = tiny_bert()
    by_hand, read = copy.deepcopy(model), []
    query = by_hand.bert.encoder.layer[1].attention.self.query
    handle = query.register_forward_pre_hook(lambda _module, arguments: read.append(arguments[0]))
    by_hand.bert(**inputs())
    handle.remove()
    (read[0] @ query.weight.T + query.bias).square().sum().backward()
    if checkpointing:
        checkpoint_activations(model)
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    with AttentionTaps(model, (2,), ("queries",)) as taps:
        output = model.bert(**inputs())
        (taps["queries", 2].square().sum() + 0 * output.last_hidden_state.sum()).backward()
    expected = dict(by_hand.named_parameters())
    for name, parameter in model.named_parameters():
        if expected[name].grad is not None:
            torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-4, atol=1e-5)


def test_one_tap_serves_many_passes_and_leaves_no_hook_behind():
    model = tiny_bert()
    query = model.bert.encoder.layer[0].attention.self.query
    with AttentionTaps(model, (1,), ("queries",)) as taps, torch.no_grad():
        seen = []
        for seed in range(2):
            model.bert(**inputs(seed))
            seen.append(taps["queries", 1])
        assert query._forward_hooks
    assert not torch.equal(*seen)
    assert taps["queries", 1] is seen[1]
    assert not query._forward_hooks


def test_a_compiled_model_is_tapped_where_the_taps_are_there_before_its_first_pass():
    model, compiled = tiny_bert(), tiny_bert()
    compiled.base_model.compile(backend="eager", dynamic=True)
    with (
        AttentionTaps(model, (2,), PARTS) as expected,
        AttentionTaps(compiled, (2,), PARTS) as taps,
        torch.no_grad(),
    ):
        for seed in range(3):
            model.bert(**inputs(seed))
            compiled.bert(**inputs(seed))
            for part in PARTS:
                torch.testing.assert_close(taps[part, 2], expected[part, 2])


@pytest.mark.parametrize("kind", ["gpt_neox", "bloom"])
def test_a_family_that_interleaves_the_heads_of_its_projections_is_refused_by_name(kind):
    assert kind in CAUSAL_FAMILIES
    with pytest.raises(
        InputError, match=rf"of models of type '{kind}' cannot be taken: block 1 has 0 projections to queries"
    ):
        AttentionTaps(tiny_model(kind), (1,), ("queries",))


def test_every_other_family_of_the_tests_is_tapped():
    tapped = {*OWN, *FUSED, "gpt_neox", "bloom"}
    assert {*MASKED_FAMILIES, *CAUSAL_FAMILIES} - tapped == {
        "albert"
    }  # one block for all layers: stages.blocks refuses it


def test_projections_that_the_heads_do_not_explain_are_refused():
    model = tiny_bert()
    model.bert.encoder.layer[1].attention.self.query = nn.Linear(16, 32)
    with pytest.raises(InputError, match=r"block 2 .* queries of 32 values and keys of 16, which its 2 and 2 heads"):
        projections(model, 2)


def test_blocks_that_differ_or_are_not_there_are_refused():
    model = tiny_bert()
    with pytest.raises(InputError, match=r"block 4 of a model of type 'bert' is asked for; expected 1 to 3"):
        AttentionTaps(model, (4,), ("keys",))
    for name in ("query", "key"):
        setattr(model.bert.encoder.layer[1].attention.self, name, nn.Linear(16, 32))
    with pytest.raises(InputError, match=r"blocks 1, 2 of a model of type 'bert' have queries of different widths"):
        attention_widths(model, (1, 2), ("queries",))
