"""Inference forms: the same functions of the same weights, optimized for inference; see ``optimize.py``."""
