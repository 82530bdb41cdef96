"""Models as ONNX files, in float32 and int8, and their forward passes in ONNX Runtime.

The packages are those of the extra `onnx`; nothing else in this project needs them, and they are imported where they are used.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stages.errors import InputError
from stages.forward_pass import encoder_hidden
from stages.heads import Head
from stages.models import count_parameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
INPUTS = ["input_ids", "attention_mask"]
HIDDEN, LOGITS = "last_hidden_state", "logits"

MODEL, ENCODER = "model.onnx", "encoder.onnx"
MODEL_INT8, ENCODER_INT8 = "model_int8.onnx", "encoder_int8.onnx"

MAX_BYTES = 2_000_000_000
"""Of one file: Protocol Buffers, which ONNX files are, end at 2 GiB."""

TOLERANCE = 1e-3
"""Largest difference of an exported model's outputs, as a share of the largest value: rounding is hundreds of times below it."""


def require_onnx() -> None:
    """Raise `InputError`, naming the extra, where packages are missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"the package{'s' if len(missing) > 1 else ''} {', '.join(missing)} that ONNX files need {'are' if len(missing) > 1 else 'is'} "
            'not installed; run: pip install "teacher-cache[onnx]"'
        )


class WithHidden(nn.Module):
    """A language model that gives what its head reads, (batch, tokens, H), and its logits, (batch, tokens, V)."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        hidden = encoder_hidden(self.model, input_ids, attention_mask)
        # Taken here, among the module's own parameters: the exporter would write a tied output matrix a second time.
        return hidden, Head.of(self.model).logits(hidden)


def export_onnx(model: PreTrainedModel, folder: Path, what: str) -> None:
    """Write a float32 model on the CPU, in eval mode, into `folder` as four files, batch and length free in each.

    `model.onnx` gives `last_hidden_state` and `logits`, `encoder.onnx` the first alone, for what is built upon it;
    `model_int8.onnx` and `encoder_int8.onnx` are the same with weights in int8, one scale per output channel, and activations quantised
    as they come (dynamic quantisation). Raises `InputError`, with `what` the model is, where its family cannot be exported, where the
    exported model does not do what the model does, and where it is too large.
    """
    require_onnx()
    size = 4 * count_parameters(model)
    if size > MAX_BYTES:
        raise InputError(
            f"{what} takes {size / 1e9:.1f} GB in float32 and an ONNX file ends at 2 GB; measure without --onnx, or a smaller model"
        )
    with _quietly():
        _check(model, _export(model, folder / MODEL, what), what)
        _quantise(folder, what)


def _export(model: PreTrainedModel, file: Path, what: str) -> OnnxSession:
    ids, attention_mask = _example(model, (2, 8))
    sizes = {0: "batch", 1: "tokens"}
    try:
        program = torch.onnx.export(
            WithHidden(model).eval(),
            (ids, attention_mask),
            dynamo=True,
            input_names=INPUTS,
            output_names=[HIDDEN, LOGITS],
            dynamic_shapes=dict.fromkeys(INPUTS, sizes),
            verbose=False,
        )
        assert program is not None, "an exporter that returns nothing was not asked for"
        program.save(file, external_data=False)
        return OnnxSession(file, threads=torch.get_num_threads())
    except Exception as error:
        # torch.export, its translation, transformers' own code and ONNX Runtime each raise errors of their own.
        raise InputError(
            f"{what} ({type(model).__name__}) cannot be exported to ONNX by this version of torch and transformers "
            f"({_reason(error)}); measure without --onnx"
        ) from error


@torch.inference_mode()
def _check(model: PreTrainedModel, session: OnnxSession, what: str) -> None:
    """Other sizes than those that the export has seen, one sequence shorter than the others."""
    ids, attention_mask = _example(model, (3, 5))
    attention_mask[1, 3:] = 0
    real = attention_mask.bool()
    for name, ours, theirs in zip(
        (HIDDEN, LOGITS), WithHidden(model)(ids, attention_mask), session(ids, attention_mask), strict=True
    ):
        expected, found = ours[real], theirs[real]
        difference, largest = (expected - found).abs().max().item(), expected.abs().max().item()
        if not difference <= TOLERANCE * largest:
            raise InputError(
                f"{what} ({type(model).__name__}) gives other outputs as an ONNX file: {name} differs by {difference:.2g} where the "
                f"largest value is {largest:.2g}; measure without --onnx"
            )


def _quantise(folder: Path, what: str) -> None:
    from onnx.utils import extract_model
    from onnxruntime.quantization import QuantType, quantize_dynamic

    try:
        # One scale per output channel: with one per matrix the hidden states of a real encoder were twice as far off.
        quantize_dynamic(folder / MODEL, folder / MODEL_INT8, per_channel=True, weight_type=QuantType.QInt8)
        for whole, part in ((MODEL, ENCODER), (MODEL_INT8, ENCODER_INT8)):
            extract_model(str(folder / whole), str(folder / part), INPUTS, [HIDDEN])
    except Exception as error:
        # onnx and onnxruntime have no common class for what they refuse.
        raise InputError(
            f"{what} was exported to ONNX and could not be quantised by this version of onnxruntime "
            f"({_reason(error)}); measure without --onnx"
        ) from error


def _example(model: PreTrainedModel, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    ids = torch.randint(model.config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    return ids, torch.ones_like(ids)


class OnnxSession:
    """An ONNX file in ONNX Runtime, on the CPU."""

    def __init__(self, file: Path, *, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors; below are hints to developers
        self._session: Any = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> list[Tensor]:
        """The file's outputs, for int64 (batch, tokens)."""
        inputs = {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()}
        return [torch.from_numpy(output) for output in self._session.run(None, inputs)]


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what the exporter and the quantiser tell their own developers, by warnings and by the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _reason(error: Exception) -> str:
    """What is at the bottom of it, on one line: exporters wrap errors in advice for their developers."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}"
