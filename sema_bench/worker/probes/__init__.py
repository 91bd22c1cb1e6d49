"""Probes: each measures one family of metrics; ``spec.probes`` lists them."""
