"""This machine: environment, devices, memory, processes, telemetry."""
