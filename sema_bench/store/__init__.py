"""Store runs on disk: run folders, baselines, history, tables of records, copies at a URL."""
