"""FSDP (`machine.fsdp`): parameters, gradients and the optimizer's state lie spread over the processes, gathered block by block for use.

By torch's own `fully_shard`: accelerate's way to it knows GPUs only, and would leave the language-model head, which the loss reads
as tensors, to hooks of modules that are never called.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from stages.training.checkpoints import save_beside, split_state
from stages.training.distiller import Distiller
from stages.training.trainer import DistillationTrainer

_OPTIMIZER, _SCHEDULER = "optimizer.pt", "scheduler.pt"
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
"""All of a state, in the first process."""


def shard(distiller: Distiller, device: str, processes: int) -> None:
    """Spread the student: each of its blocks on its own, the rest (embeddings, head) for as long as `Distiller.forward` runs."""
    mesh = init_device_mesh(device, (processes,))
    student = distiller.student
    for blocks in [module for module in student.base_model.modules() if isinstance(module, nn.ModuleList)]:
        if len(blocks) == student.config.num_hidden_layers:
            for block in blocks:
                fully_shard(block, mesh=mesh)
    fully_shard(distiller, mesh=mesh)


class _Prepared(nn.Module):
    """A sharded distiller as Trainer takes one that is ready for several processes, and is not to be wrapped once more."""

    def __init__(self, distiller: Distiller, trainer: ShardedTrainer) -> None:
        super().__init__()
        self.module = distiller
        self._autocast = trainer.accelerator.autocast

    def forward(self, *arguments: Any) -> Any:
        """As the distiller does."""
        with self._autocast():
            return self.module(*arguments)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Gradients of these micro-batches stay where they are until the last one of the step."""
        sharded = cast("FSDPModule", self.module)
        sharded.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            sharded.set_requires_gradient_sync(True)


class ShardedTrainer(DistillationTrainer):
    """A `DistillationTrainer` whose student is sharded; its checkpoints hold whole tensors, for any number of processes."""

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Shard, then make the optimizer: it is to hold the parameters that the shards are."""
        shard(self._distiller, self.args.device.type, self._processes.size)
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        return optimizer

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        del model, training, dataloader
        return _Prepared(self._distiller, self)

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        norm: Tensor = super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]  # it has no annotations
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The student, whole: all processes gather it, the first one writes it. Trainer before 5.23 would ask that one alone."""
        folder = Path(output_dir or self._checkpoints.folder)
        state = cast("dict[str, Tensor]", get_model_state_dict(self._distiller, options=_WHOLE))
        if self.args.should_save:
            student = self._distiller.student
            tied = set(student.all_tied_weights_keys)  # stored under their other name
            named, beside = split_state(state)
            student.config.save_pretrained(folder)
            weights = {name: tensor.contiguous() for name, tensor in named.items() if name not in tied}
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
            save_beside(beside, folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        optimizer, scheduler = self._optimizer_and_scheduler()
        state = get_optimizer_state_dict(self._distiller, optimizer, options=_WHOLE)
        if self.args.should_save:
            torch.save(state, Path(output_dir, _OPTIMIZER))
            torch.save(scheduler.state_dict(), Path(output_dir, _SCHEDULER))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        # Only the first process reads it; the others are sent their shards.
        file = Path(checkpoint, _OPTIMIZER)
        state = torch.load(file, map_location="cpu", weights_only=True) if self._processes.rank == 0 else {}
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        optimizer, scheduler = self._optimizer_and_scheduler()
        set_optimizer_state_dict(self._distiller, optimizer, state, options=options)
        scheduler.load_state_dict(torch.load(Path(checkpoint, _SCHEDULER), weights_only=True))

    def _optimizer_and_scheduler(self) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        """Both as torch has them: accelerate wraps the first."""
        wrapped: Any = self.optimizer
        scheduler: Any = self.lr_scheduler
        return wrapped.optimizer, scheduler
