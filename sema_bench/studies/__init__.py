"""Studies besides the sweep, each with its report."""
