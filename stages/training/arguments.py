"""The parameters of a training as transformers.Trainer takes them."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import TrainingArguments

from stages.config import Config
from stages.context import Context
from stages.training.run import TrainingRun

_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
"""Names that transformers has for them."""


def training_arguments(config: Config, context: Context, run: TrainingRun, folder: Path) -> TrainingArguments:
    """`folder` is that of the run's checkpoints."""
    train = config.train
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=run.steps,
        per_device_train_batch_size=train.micro_batch_size,
        gradient_accumulation_steps=run.accumulation,
        learning_rate=train.learning_rate,
        lr_scheduler_type=_SCHEDULES[train.schedule],
        warmup_steps=run.warmup_steps,
        weight_decay=train.weight_decay,
        adam_beta1=train.adam_betas[0],
        adam_beta2=train.adam_betas[1],
        adam_epsilon=train.adam_epsilon,
        max_grad_norm=train.max_grad_norm,
        bf16=run.precision == "bfloat16",
        fp16=run.precision == "float16",
        use_cpu=context.device == "cpu",
        seed=train.seed,
        logging_steps=train.log_steps,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=train.checkpoint_steps,
        ignore_data_skip=True,  # the batch plan starts at the right step by itself
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        report_to="none",  # what it is to report to is opened in trackers.py
        run_name=run.name,
        disable_tqdm=True,
    )
    keep_to(arguments, context.device)
    return arguments


def keep_to(arguments: TrainingArguments, device: str) -> None:
    """Have Trainer use this device and no other."""
    if torch.device(device).type == "cuda":
        # It sets up a device of its own choice when it is first asked, which in one process is the first GPU.
        _ = arguments.device
        torch.cuda.set_device(device)
        arguments.__dict__["_setup_devices"] = torch.device(device)
    # Trainer would split a batch over all GPUs of the machine with DataParallel; there is no public way to forbid it.
    arguments._n_gpu = min(1, arguments.n_gpu)  # noqa: SLF001
