"""What the machine did while a cell was timed: power, clocks, temperature, load, and who else was at work."""
