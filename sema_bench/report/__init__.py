"""Records for people and programs: tables, CSV, plots. Imports no torch."""
