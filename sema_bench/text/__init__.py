"""Text in and out: escaping, JSON from anyone, consoles."""
