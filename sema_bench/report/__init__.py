"""Records for people and programs: tables, CSV, plots. Imports no torch."""

import os

# matplotlib fails to import if this names an unknown backend. Our figures are files, so agg draws all of them. A
# notebook sets a module as backend: keep it, its own figures need it.
if not (os.environ.get("MPLBACKEND") or "module://").startswith("module://"):
    os.environ["MPLBACKEND"] = "agg"
