"""The gate decides whether a change of code made a model slower; a busy neighbour is never the reason."""
