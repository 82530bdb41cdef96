"""The command line and what runs the stages: parameters, signals, progress, exit codes. Knows no tensors."""
