"""Numbers from records: scaling exponents, crossovers, comparisons, rooflines. Imports no torch."""
