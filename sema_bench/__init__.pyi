from sema_bench.report.notebook import LoadedRun as LoadedRun
from sema_bench.report.notebook import read_run as read_run
from sema_bench.run import Run as Run
from sema_bench.run import run_suite as run_suite

__version__: str
