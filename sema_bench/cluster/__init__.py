"""Measure cells on several GPUs, on Ray and on Slurm."""
