"""Cells on several GPUs, on Ray and on Slurm."""
