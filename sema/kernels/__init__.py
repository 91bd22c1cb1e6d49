"""C++ and Triton kernels, written for speed, and the choice between them; torch's versions are in ``layers``."""
