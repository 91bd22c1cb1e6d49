"""What is asked: axes, cells, records, suites, plans, and the names of models, data and weights. No torch."""
