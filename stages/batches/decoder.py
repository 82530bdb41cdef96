"""What the targets of a batch mean, computed where the batch lies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stages.batches.collate import Batch, layer_key
from stages.divergences import DrawnTargets, TopKTargets
from stages.errors import ConfigError
from stages.figures import Objective
from storage import CacheDescription, Layout, PartName, Split, VectorName


@dataclass(frozen=True)
class TargetDecoder:
    """Decodes the targets of a batch where it lies; the same values as storage's numpy codecs give."""

    layout: Layout
    temperatures: tuple[float, ...]
    objective: Objective = "masked"

    def hidden(self, batch: Batch, layer: int | None = None) -> Tensor:
        """The teacher's hidden state of one cached layer, by its number there, f4 (R, H); None: of the last cached one.

        The batch was made with `Wanted.layers` for it. Raises `ConfigError` for a layer that is not cached.
        """
        if layer is not None:
            self._require_cached("hidden", layer)
            layer = None if layer == self.layout.hidden_layers[-1] else layer
        return self._vectors(batch, "hidden", layer)

    def attention(self, batch: Batch, part: PartName, block: int) -> Tensor:
        """The queries, keys or values of one block of the teacher, counted from 1, f4 (R, W): all heads side by side.

        The batch was made with `Wanted.attention` for it. Raises `ConfigError` for a part or block that is not cached.
        """
        self._require_cached(part, block)
        return self._vectors(batch, part, block)

    def _require_cached(self, name: VectorName, layer: int) -> None:
        layers, key = self.layout.layers(name), "hidden_layers" if name == "hidden" else "attention_layers"
        if layer not in layers:
            what = "hidden state" if name == "hidden" else name
            cached = ", ".join(map(str, layers)) or "none"
            raise ConfigError(f"the {what} of layer {layer} is not cached; layers that are: {cached} (cache.{key})")

    def _vectors(self, batch: Batch, name: VectorName, layer: int | None) -> Tensor:
        vectors, coding = batch[layer_key(name, layer)][:, -1], self.layout.coding(name)
        if coding == "bfloat16":
            return vectors.view(torch.bfloat16).float()
        vectors = vectors.float()
        if coding == "int8":
            scale = batch[layer_key(f"{name}_scale", layer)][:, -1].float()
            vectors = vectors * scale.repeat_interleave(self.layout.hidden_group, dim=-1)[:, : vectors.shape[-1]]
        return vectors

    def logits(self, batch: Batch) -> Tensor:
        """The cached logits, f4 (R, k), descending along each row; places after a shorter row's last mean nothing."""
        if self.layout.logits != "grid":
            return batch["top_logits"].float()
        steps = batch["top_gap"].cumsum(-1, dtype=torch.int32)
        # In float64 as storage does: a step that is no power of two is rounded once.
        step = float(np.float32(self.layout.grid_step))
        return (batch["stat"][:, :1].double() - step * steps.double()).float()

    def top_k(self, batch: Batch, temperature: float, *, renormalise: bool = False) -> TopKTargets:
        """The cached ids (R, k) with their log-probabilities at a declared temperature.

        Raises `ConfigError` for another one: its logsumexp over the whole vocabulary is not in the cache.
        """
        if temperature not in self.temperatures:
            declared = ", ".join(map(str, self.temperatures))
            raise ConfigError(
                f"train.temperature is {temperature}; allowed: the temperatures that the cache declares ({declared})"
            )
        logsumexp = batch["stat"][:, 1 + 2 * self.temperatures.index(temperature), None]
        # The largest logit is in `stat` unrounded: as float16 it would move more mass than a sure teacher leaves to the rest.
        logits = torch.cat([batch["stat"][:, :1], self.logits(batch)[:, 1:]], -1)
        log_p = logits / temperature - logsumexp
        if "top_count" in batch:
            places = torch.arange(log_p.shape[1], device=log_p.device)
            log_p = log_p.masked_fill(places >= batch["top_count"][:, None], float("-inf"))
        return TopKTargets(batch["top_ids"], log_p, renormalise)

    def draws(self, batch: Batch, temperature: float) -> DrawnTargets:
        """The cached draws (R, n).

        Drawn from the full distribution they stand for it alone; drawn from the tail, for what the cached logits leave
        out, and the logits come before them.

        Raises `ConfigError` for another temperature than that of the distribution which they were drawn from.
        """
        if temperature != self.layout.draw_temperature:
            raise ConfigError(
                f"train.temperature is {temperature}; allowed: {self.layout.draw_temperature}, "
                "the temperature that the cache's ids were drawn at (cache.draw_temperature)"
            )
        entropy = batch["stat"][:, 2 + 2 * self.temperatures.index(temperature)]
        ids, shares = batch["draw_ids"], batch["draw_weight"].float() / self.layout.draws
        if self.layout.draw_from == "tail":
            head = self.top_k(batch, temperature)
            p = head.log_probabilities.exp()
            outside = (1.0 - p.sum(-1, keepdim=True)).clamp_min(0.0)
            ids, shares = torch.cat([head.ids, ids], -1), torch.cat([p, outside * shares], -1)
        return DrawnTargets(ids, shares, entropy)

    def row_weights(self, batch: Batch) -> Tensor | None:
        """How many positions each row stands for, f4 (R,); None where each stands for itself. For batches of `labelled_first`."""
        if self.layout.positions != "sampled":
            return None
        rows = batch["row_index"]
        weights = torch.full(rows.shape, 1.0 / self.layout.position_fraction, device=rows.device)
        if self.objective == "masked":  # every masked token is cached
            weights[: len(batch["labels"])] = 1.0
        return weights

    def positions(self, batch: Batch) -> int:
        """How many positions the rows stand for: all tokens where some were sampled, else the rows themselves."""
        return int(batch["attention_mask"].sum()) if self.layout.positions == "sampled" else batch["row_index"].numel()


def decoder_for(description: CacheDescription, split: Split) -> TargetDecoder:
    """The decoder of a split's targets."""
    return TargetDecoder(description.splits[split].layout, description.temperatures, description.objective)
