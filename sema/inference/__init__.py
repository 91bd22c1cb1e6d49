"""Inference forms: the same functions of the same weights, arranged for speed; see ``sema.optimize_for_inference``."""
