"""Where we are: environment, devices, memory, processes, telemetry."""
