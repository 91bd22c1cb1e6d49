"""Where cells run: one small protocol, and one module per engine."""
