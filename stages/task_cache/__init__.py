"""Caches of a downstream task: what a teacher that was fine-tuned on it says of its inputs, and of texts without labels.

DistilBERT's second distillation (Sanh et al. 2019, section 3; `run_squad_w_distillation`) without the teacher in the loop.
"""
