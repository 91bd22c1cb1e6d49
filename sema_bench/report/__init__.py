"""Records for people and programs: tables, CSV, plots. Imports no torch."""

import os

# matplotlib fails to import if this names an unknown backend. Figures are files, so agg draws all of them. A notebook
# names a module, which its figures need.
if not (os.environ.get("MPLBACKEND") or "module://").startswith("module://"):
    os.environ["MPLBACKEND"] = "agg"
