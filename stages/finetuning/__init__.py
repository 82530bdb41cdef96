"""Fine-tuning a model on a downstream task: batches, Trainer, outputs, results and their summary."""
