"""A bidirectional LSTM as a masked language model: the student of Tang et al. (2019, arXiv 1903.12136), for this project's losses.

transformers has none, so the classes are defined here and entered into its registers: once this module is imported,
`AutoModelForMaskedLM.from_pretrained` loads such a student as it does any other. Embeddings, blocks of two LSTMs (one per direction)
whose outputs are projected back to the hidden size, and BERT's head, whose output matrix is that of the embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel
from transformers.activations import get_activation
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput

from stages.config import StudentConfig
from stages.errors import InputError
from stages.figures import Objective
from stages.head_parts import head_parts
from stages.model_config import ModelShape

KIND = "bilstm"
"""`model_type` of its configuration, and its name in `students.NAME.architecture`."""

HOW_TO_LOAD = "import stages.bilstm"
"""What a program says before `AutoModelForMaskedLM.from_pretrained`, where teacher-cache is installed."""


@strict
class BiLstmConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    """Its shape. `lstm_size` is the state of one direction."""

    model_type = KIND

    vocab_size: int = 30522
    hidden_size: int = 768
    lstm_size: int = 384
    num_hidden_layers: int = 1
    hidden_act: str = "gelu"
    dropout: float | int = 0.0
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    max_position_embeddings: int = 512
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = True


class BiLstmBlock(nn.Module):
    """Two LSTMs over a sequence, one from each end, and the projection of both outputs to the hidden size."""

    def __init__(self, config: BiLstmConfig) -> None:
        super().__init__()
        self.ahead = nn.LSTM(config.hidden_size, config.lstm_size, batch_first=True)
        self.back = nn.LSTM(config.hidden_size, config.lstm_size, batch_first=True)
        self.output = nn.Linear(2 * config.lstm_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, states: Tensor, ahead: Tensor, back: Tensor) -> Tensor:
        """States (S, L, H) to states (S, L, H). `ahead` and `back` i8 (S, L) are the places in which each direction reads them."""
        both = torch.cat([_read(self.ahead, states, ahead), _read(self.back, states, back)], dim=-1)
        output: Tensor = self.output(self.dropout(both))
        return output


def _read(lstm: nn.LSTM, states: Tensor, order: Tensor) -> Tensor:
    """What an LSTM gives that reads the states in the given order, back at the places that they are of.

    In float32 whatever autocast says: its state adds up over the sequence.
    """
    with torch.autocast(states.device.type, enabled=False):
        places = order[..., None].expand_as(states)
        read, _ = lstm(states.to(next(lstm.parameters()).dtype).gather(1, places))
    inverse = order.argsort(dim=1)[..., None].expand_as(read)
    output: Tensor = read.gather(1, inverse)
    return output


def reading_orders(real: Tensor) -> tuple[Tensor, Tensor]:
    """The places (S, L) of a sequence from its first token to its last, and from its last to its first; padding comes after both.

    So no LSTM sees padding before a token, on whatever side it is, and nothing asks a device how long a sequence is.
    `real` (S, L) is not 0 where there is a token.
    """
    length = real.shape[1]
    places = torch.arange(length, device=real.device).expand(real.shape)
    padding = (real == 0) * length
    return (places + padding).argsort(dim=1), (length - 1 - places + padding).argsort(dim=1)


class BiLstmPreTrainedModel(PreTrainedModel):  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    """What transformers asks of a model: its configuration, and what its parts are called."""

    config_class = BiLstmConfig
    base_model_prefix = "lstm"
    _supports_sdpa = True  # there is no attention: any kernel will do
    _no_split_modules = ["BiLstmBlock"]  # noqa: RUF012  as transformers has it


class BiLstmModel(BiLstmPreTrainedModel):  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    """Embeddings and blocks."""

    def __init__(self, config: BiLstmConfig) -> None:
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(BiLstmBlock(config) for _ in range(config.num_hidden_layers))
        self.post_init()  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> nn.Module:
        """The table of words."""
        return self.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Another table of words."""
        self.word_embeddings = cast("nn.Embedding", value)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> BaseModelOutput:
        """`last_hidden_state` (S, L, H) of `input_ids` i8 (S, L); `attention_mask` is 0 at padding, None where there is none.

        `hidden_states`, where asked for, are the embeddings and the output of every block.
        """
        orders = reading_orders(torch.ones_like(input_ids) if attention_mask is None else attention_mask)
        states = [self.dropout(self.layer_norm(self.word_embeddings(input_ids)))]
        for block in self.layers:
            states.append(block(states[-1], *orders))
        return BaseModelOutput(
            last_hidden_state=states[-1], hidden_states=tuple(states) if output_hidden_states else None
        )


class BiLstmForMaskedLM(BiLstmPreTrainedModel):  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    """With BERT's head: dense, activation, layer norm, and the embeddings as output matrix."""

    _tied_weights_keys = {"projection.weight": "lstm.word_embeddings.weight"}  # noqa: RUF012  as transformers has it

    def __init__(self, config: BiLstmConfig) -> None:
        super().__init__(config)
        self.lstm = BiLstmModel(config)
        self.transform = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = get_activation(config.hidden_act)  # type: ignore[no-untyped-call]
        self.transform_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.projection = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()  # type: ignore[no-untyped-call]

    def get_output_embeddings(self) -> nn.Module:
        """The output matrix."""
        return self.projection

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Another output matrix."""
        self.projection = cast("nn.Linear", new_embeddings)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> MaskedLMOutput:
        """`logits` (S, L, V), and with `labels` i8 (S, L), -100 where none is, the mean cross-entropy with them."""
        output = self.lstm(input_ids, attention_mask, output_hidden_states)
        features = self.transform_norm(self.activation(self.transform(output.last_hidden_state)))
        logits = self.projection(features)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return MaskedLMOutput(loss=loss, logits=logits, hidden_states=output.hidden_states)


AutoConfig.register(KIND, BiLstmConfig)
AutoModel.register(BiLstmConfig, BiLstmModel)
AutoModelForMaskedLM.register(BiLstmConfig, BiLstmForMaskedLM)


def build(
    student: StudentConfig, name: str, teacher_config: Mapping[str, Any], objective: Objective
) -> PreTrainedModel:
    """A BiLSTM of the student's shape with random weights, for a teacher with this configuration.

    Raises `InputError` for a causal teacher, whose student must not read ahead.
    """
    if objective == "causal":
        raise InputError(
            f"a bilstm student (students.{name}) reads a text from both ends, and the teacher is causal; expected a masked one, "
            "or another architecture"
        )
    shape = ModelShape.of(teacher_config)
    width = student.hidden_size or shape.hidden_size
    return BiLstmForMaskedLM(
        BiLstmConfig(
            vocab_size=shape.vocabulary_size,
            hidden_size=width,
            lstm_size=student.lstm_size or max(1, width // 2),
            num_hidden_layers=student.layers,
            hidden_act=teacher_config.get("hidden_act") or teacher_config.get("activation") or "gelu",
            dropout=student.dropout,
            max_position_embeddings=shape.positions or BiLstmConfig.max_position_embeddings,
            pad_token_id=teacher_config["pad_token_id"],
        )
    )


@torch.no_grad()
def copy(student: PreTrainedModel, teacher: PreTrainedModel, blocks: tuple[int, ...] = ()) -> None:
    """Copy a teacher's embeddings and what its head has in common with the student's; its blocks have no place in an LSTM.

    Embeddings of another size than the student's stay random.
    """
    del blocks
    (_, ours), (_, theirs) = head_parts(student), head_parts(teacher)
    pairs = [(tensor, theirs[name]) for name, tensor in ours.items() if name in theirs]
    pairs.append((_words(student), _words(teacher)))
    for to, source in pairs:
        if to.shape == source.shape:
            to.copy_(source)


def _words(model: PreTrainedModel) -> Tensor:
    return cast("nn.Embedding", model.get_input_embeddings()).weight
