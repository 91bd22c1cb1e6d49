"""The gate: whether a change of code made a model slower, decided so that a busy neighbour is never the reason."""
