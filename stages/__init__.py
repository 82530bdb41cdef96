"""The stages of the distillation road, one module each, and what they share. Know no click, dask or DVC."""
