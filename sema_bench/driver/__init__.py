"""Measure every cell: the schedule, worker processes, sampling, memory. Imports no torch."""
