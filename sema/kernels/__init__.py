"""Kernels written a second time for speed, in C++ and Triton, and the choice of one; torch's are in ``layers``."""
