"""A reader that knows only storage/FORMAT.md: JSON, zarr or tensorstore, numpy. Nothing of ours reads the cache here."""

import hashlib
import json

import numpy as np
import pytest
import tensorstore
import torch
import zarr
from safetensors.numpy import load_file
from scipy.special import erf, logsumexp, softmax
from transformers import AutoModelForMaskedLM

from stages import cache_teacher


def open_with_zarr(shard, name):
    return zarr.open_group(shard, mode="r")[name][...]


def open_with_tensorstore(shard, name):
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{shard / name}/"}}
    return tensorstore.open(spec, read=True).result().read().result()


def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def head_logits(cache, x):
    tensors = {name: tensor.astype(np.float64) for name, tensor in load_file(cache / "head.safetensors").items()}
    for step in json.loads((cache / "head.json").read_text())["steps"]:
        if step["op"] in ("dense", "projection"):
            x = x @ tensors[step["weight"]].T + tensors[step["bias"]]
        elif step["op"] == "activation":
            assert step["name"] == "gelu"
            x = x * 0.5 * (1 + erf(x / np.sqrt(2)))
        elif step["op"] == "layer_norm":
            x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + step["eps"])
            x = x * tensors[step["weight"]] + tensors[step["bias"]]
    return x


@pytest.fixture(params=["exact", "balanced", "lossless"])
def project(request, make_project):
    project = make_project(cache={"preset": request.param, "top_k": 16})
    project.run(cache_teacher)
    return project


@pytest.mark.parametrize("read", [open_with_zarr, open_with_tensorstore])
def test_what_the_document_says_is_in_a_cache_is_what_the_teacher_says(project, read):
    cache = project.artefacts.cache
    description = json.loads((cache / "cache.json").read_text())
    assert description["format_version"] == 1
    identity = {"spec": description["spec"], "content": description["content"]}
    assert hashlib.sha256(canonical(identity)).hexdigest() == description["fingerprint"]
    teacher = AutoModelForMaskedLM.from_pretrained(project.artefacts.teacher).eval()
    layout = description["splits"]["train"]["layout"]
    for number, (start, count) in enumerate(description["splits"]["train"]["shards"][:2]):
        shard = cache / "shards" / f"train-v0-{number:06d}.zarr"
        attributes = json.loads((shard / "zarr.json").read_text())["attributes"]
        assert (attributes["sequence_start"], attributes["sequence_count"]) == (start, count)
        offsets, ids, stat = (read(shard, name) for name in ("sequence_offsets", "input_ids", "stat"))
        top_ids = read(shard, "top_ids").astype(np.int64)
        if layout["logits"] == "grid":
            top = stat[:, :1] - layout["grid_step"] * read(shard, "top_gap").astype(np.int64).cumsum(1)
            bound = layout["grid_step"] / 2 + 1e-4
        else:
            top = read(shard, "top_logits").astype(np.float64)
            bound = 1e-4 if layout["logits"] == "float32" else 2e-2
        hidden = read(shard, "hidden")[:, 0].astype(np.float64)
        hidden_bound = 1e-4
        if layout["hidden"] == "int8":
            scale = np.repeat(read(shard, "hidden_scale")[:, 0].astype(np.float64), layout["hidden_group"], -1)[
                :, : hidden.shape[1]
            ]
            hidden, hidden_bound = hidden * scale, scale / 2 + 1e-4
        elif layout["hidden"] == "float16":
            hidden_bound = 5e-3
        for s in range(count):
            rows = slice(offsets[s], offsets[s + 1])
            with torch.no_grad():
                output = teacher(
                    input_ids=torch.from_numpy(ids[rows].astype(np.int64))[None], output_hidden_states=True
                )
            logits, states = output.logits[0].double().numpy(), output.hidden_states[-1][0].double().numpy()
            np.testing.assert_allclose(stat[rows, 0], logits.max(-1), rtol=1e-5, atol=1e-4)
            for i, temperature in enumerate(description["temperatures"]):
                np.testing.assert_allclose(
                    stat[rows, 1 + 2 * i], logsumexp(logits / temperature, -1), rtol=1e-5, atol=1e-4
                )
                p = softmax(logits / temperature, -1)
                np.testing.assert_allclose(stat[rows, 2 + 2 * i], -(p * np.log(p)).sum(-1), rtol=1e-4, atol=1e-3)
            np.testing.assert_allclose(
                np.sort(logits, -1)[:, ::-1][:, : layout["top_k"]], top[rows], rtol=0, atol=bound
            )
            np.testing.assert_allclose(np.take_along_axis(logits, top_ids[rows], -1), top[rows], rtol=0, atol=bound)
            assert np.all(
                np.abs(states - hidden[rows]) <= (hidden_bound if np.isscalar(hidden_bound) else hidden_bound[rows])
            )
            divergence = (
                softmax(logits, -1)
                * (np.log(softmax(logits, -1)) - np.log(softmax(head_logits(cache, hidden[rows]), -1)))
            ).sum(-1)
            assert divergence.max() < 5e-2


def test_every_file_is_in_the_root_manifest_with_its_size_and_digest(project):
    cache = project.artefacts.cache
    manifest = json.loads((cache / "manifest.json").read_text())
    on_disk = {str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file()} - {"manifest.json"}
    assert on_disk == set(manifest["files"])
    for name, entry in manifest["files"].items():
        data = (cache / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["size"], entry["sha256"])
    assert hashlib.sha256(canonical(manifest["files"])).hexdigest() == manifest["root_digest"]


def test_no_file_of_the_cache_holds_a_path_of_the_machine_that_made_it(project):
    for path in project.artefacts.cache.rglob("*.json"):
        assert str(project.folder) not in path.read_text()
