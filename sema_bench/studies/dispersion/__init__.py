"""How attention coefficients spread as the number of keys grows."""
