"""The ``sema-bench`` command; ``python -m sema_bench`` is the same."""

import os
import sys

from sema_bench.errors import UsageError


def main() -> None:
    """Run the command; a broken installation is reported in one line."""
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # cuda:1 is the same card in every command, and in NVML
    try:
        import sema_bench.spec  # checks first that ``sema`` is ours  # noqa: F401
        from sema_bench.cli import main as run
    except UsageError as problem:
        print(f"sema-bench: {problem}", file=sys.stderr)
        sys.exit(problem.exit_code)
    run()


if __name__ == "__main__":
    main()
