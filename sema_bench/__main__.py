"""``python -m sema_bench`` is the same as the ``sema-bench`` command."""

from sema_bench.cli import main

main()
