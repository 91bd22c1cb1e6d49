"""Escape text, read JSON, print to consoles."""
