"""Parameters and MACs beside published figures."""
