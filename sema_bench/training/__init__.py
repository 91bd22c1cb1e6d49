"""Train models: recipes, the loop, checkpoints; every run can be resumed, even after kill -9."""
