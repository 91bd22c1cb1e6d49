"""Records for people and programs: tables, CSV, plots. Imports no torch."""

import os

os.environ["MPLBACKEND"] = "agg"  # figures are files; matplotlib fails to import with a backend that is not installed
