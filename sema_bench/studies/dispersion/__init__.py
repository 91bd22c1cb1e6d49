"""Measure how attention coefficients spread as the number of keys grows."""
