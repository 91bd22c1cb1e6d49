"""Studies beside the sweep, each with its report."""
