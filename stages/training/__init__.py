"""Training a student from a cache: the module with its loss, what drives it, checkpoints and validation."""
