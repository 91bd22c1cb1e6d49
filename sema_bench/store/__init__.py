"""What is kept: run folders, baselines, tables of records, copies at a URL."""
