"""Compare parameters and MACs with published figures."""
