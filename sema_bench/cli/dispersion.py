"""``sema-bench dispersion``: do attention coefficients vanish as the image grows?"""

from __future__ import annotations

import io
import math
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from sema.attention import ATTENTIONS
from sema_bench.cli.option_values import checkpoints, model_names
from sema_bench.cli.output import put_out
from sema_bench.cli.results import LocalOut
from sema_bench.errors import EXIT_OK, UsageError
from sema_bench.machine.interrupts import stop_on_signals
from sema_bench.spec.data_source import DataSpec, parse_data
from sema_bench.spec.resolution import parse_resolutions

_FEWEST, _MOST = 4, 2**20
_REPORT_WIDTH = 120
_SIDES = "64,96,128,192,256"


def dispersion(
    models: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="Models whose attention is looked at; default: sema_micro with every attention."
        ),
    ] = None,
    keys: Annotated[str, typer.Option(metavar="RANGE", help="Numbers of keys, squares: A..B or a list.")] = "16..65536",
    checkpoint: Annotated[
        list[str] | None,
        typer.Option("--checkpoint", metavar="MODEL=FILE", help="Also with these weights, on scenes; may be repeated."),
    ] = None,
    data: Annotated[str, typer.Option(metavar="DATA", help="Scenes for trained weights.")] = "digits:field",
    res: Annotated[str | None, typer.Option(metavar="SIZES", help=f"Sizes of the scenes; default: {_SIDES}.")] = None,
    samples: Annotated[int, typer.Option(metavar="N", min=2, max=1000, help="Draws of features, and scenes.")] = 8,
    seed: Annotated[int, typer.Option(metavar="N", min=0, max=2**31 - 1, help="Of features and weights.")] = 0,
    out: LocalOut = Path("results"),
    run: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the run's folder.")] = None,
) -> None:
    """Measure how attention coefficients spread over more and more keys: largest one, entropy, effective support.

    On bounded random features, and with --checkpoint on the features that trained weights get from scenes.
    """
    weights = checkpoints(checkpoint) or {}
    names = model_names(models) if models is not None else list(weights)
    counts = _keys(keys)
    spec = parse_data(data)
    if not spec.drawn:
        raise UsageError("dispersion follows one scene to larger canvases, so it needs drawn ones; give digits:…")
    from sema_bench.store.run_folder import check_free

    check_free(out, run)
    if res is not None and not weights:
        raise UsageError("--res sets the sizes of scenes for trained weights; add --checkpoint, or drop it")
    sides = _sides(res or _SIDES, spec) if weights else []
    with stop_on_signals():
        _measure(names or _every_attention(), counts, weights, spec, sides, samples, seed, out, run)
    raise typer.Exit(EXIT_OK)


def _every_attention() -> list[str]:
    return [f"sema_micro[{name}]" for name in ATTENTIONS if name not in ("vmi", "xca", "vmamba", "vim")]


def _sides(res: str, spec: DataSpec) -> list[int]:
    """Return the sides in pixels of the scenes that ``res`` names."""
    sizes = parse_resolutions(res)
    for size in sizes:
        spec.check_size(size)
        if size.height != size.width:
            raise UsageError(f"--res: scenes of dispersion are square; got {size.label}")
    if len(sizes) < 3:
        raise UsageError(f"--res: an exponent needs three sizes; got {len(sizes)}")
    return [size.height for size in sizes]


def _keys(text: str) -> list[int]:
    """Return the squares that ``text`` names; a range holds every side that is a power of two between its ends."""
    try:
        if ".." in text:
            low, high = (int(part) for part in text.split(".."))
            found = [low, *(4**k for k in range(1, 11) if low < 4**k < high), high]
        else:
            found = [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--keys takes A..B or a list of whole numbers; got {text!r}") from None
    found = sorted(set(found))
    bad = [n for n in found if not _FEWEST <= n <= _MOST or math.isqrt(n) ** 2 != n]
    if bad:
        raise UsageError(f"--keys: {bad[0]} is no square between {_FEWEST} and {_MOST}; tokens lie on a square grid")
    if len(found) < 3:
        raise UsageError(f"--keys: an exponent needs three numbers of keys; got {len(found)}")
    return found


def _measure(
    names: list[str],
    counts: list[int],
    weights: dict[str, str],
    spec: DataSpec,
    sides: list[int],
    samples: int,
    seed: int,
    out: Path,
    run: str | None,
) -> None:
    from sema_bench import __version__
    from sema_bench.machine.environment import capture, environment_json
    from sema_bench.report.figure_style import render
    from sema_bench.report.progress import ProgressDisplay
    from sema_bench.spec.record import SCHEMA_VERSION
    from sema_bench.spec.weights_source import digest_of
    from sema_bench.store.files import utc_now, write_own
    from sema_bench.store.run_folder import RunFolder
    from sema_bench.studies.dispersion.coefficients import Spread, growth, random_spreads
    from sema_bench.studies.dispersion.report import dispersion_figure, print_growths, spreads_csv
    from sema_bench.studies.dispersion.runs import first_attention, spreads_of_trained, trained_network
    from sema_bench.text.console import SafeConsole

    # All before any is measured: a name or a file may not suit.
    attentions = {name: first_attention(name, seed=seed) for name in names}
    networks = {name: trained_network(name, Path(path), sides[0]) for name, path in weights.items()}
    metadata = {
        "schema_version": SCHEMA_VERSION,
        "sema_bench": __version__,
        "command": shlex.join(["sema-bench", *sys.argv[1:]]),
        "created_at": utc_now(),
        "environment": environment_json(capture()),
        "checkpoints": {name: f"{path}@{digest_of(Path(path))}" for name, path in weights.items()},
    }
    with ProgressDisplay(timed=False) as progress:
        trained: list[Spread] = []
        for name, network in networks.items():  # first: weights may be no numbers
            progress.say(f"{name}: {weights[name]}")
            trained += spreads_of_trained(name, network, spec, sides, samples=samples)
        spreads: list[Spread] = []
        for name, attention in attentions.items():
            progress.say(f"{name}: random features")
            spreads += random_spreads(name, attention, counts, samples=samples, seed=seed)
        spreads += trained
        folder = RunFolder.create(out, "dispersion", run, metadata=metadata)
        write_own(folder.path / "dispersion.csv", spreads_csv(spreads))
        for setting in ("random", "trained"):
            if figure := dispersion_figure(spreads, setting):
                for kind in ("svg", "png"):
                    write_own(folder.path / "plots" / f"dispersion-{setting}.{kind}", render(figure, kind))
        grown, report = growth(spreads), io.StringIO()
        print_growths(grown, SafeConsole(file=report, width=_REPORT_WIDTH))
        write_own(folder.path / "report.txt", report.getvalue())
        progress.say(f"written to {folder.path}")
    put_out(lambda console: print_growths(grown, console))
