"""Training: recipes, the loop, checkpoints; every run can be gone on with after kill -9."""
