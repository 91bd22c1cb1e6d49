"""Prove on a card that what this project measures there is right: one command, half an hour."""
