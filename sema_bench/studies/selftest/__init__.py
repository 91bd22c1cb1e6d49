"""Test the harness."""
