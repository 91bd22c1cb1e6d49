"""Kernels in C++ for CPUs, built on the machine that runs them; where that is not possible, torch's operators serve."""
