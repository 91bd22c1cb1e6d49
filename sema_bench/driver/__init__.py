"""Getting every cell measured: the schedule, worker processes, sampling, memory. No torch."""
