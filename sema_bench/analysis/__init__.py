"""What records say: scaling exponents, crossovers, comparisons. Reads records; imports no torch."""
