"""Hold the costs of modules from three sources, and find where the sources differ.

Paths are dotted names of submodules; "" is the model. A module's figures include its submodules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

#: Largest relative difference between two sources.
TOLERANCE = 0.005


@dataclass(frozen=True)
class Costs:
    """Costs of one module by kind: MACs, and FLOPs of other arithmetic.

    Attributes:
        attention: MACs of products of two activations.
        projection: MACs of products with weights.
        convolution: MACs of convolutions.
        normalisation_flops: normalisations and softmaxes, except those inside fused attention.
        elementwise_flops: activations, sums, reductions: one per element of the largest operand; Fourier transforms.
        scan_flops: selective scans.
    """

    attention: int = 0
    projection: int = 0
    convolution: int = 0
    normalisation_flops: int = 0
    elementwise_flops: int = 0
    scan_flops: int = 0

    @property
    def macs(self) -> int:
        """All multiply-accumulates, and nothing else."""
        return self.attention + self.projection + self.convolution

    def __add__(self, other: Costs) -> Costs:
        return Costs(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Entry:
    """One module of the ledger; ``kind`` is its class.

    Attributes:
        params: trainable parameters; ``params_total`` includes frozen ones.
        formula: MACs by the module's own formula.
        fvcore: MACs by fvcore with our handlers; None if the model could not be traced.
        costs: torch's counts by kind; None if the model could not run.
    """

    path: str
    kind: str
    params: int
    params_total: int
    formula: int | None
    fvcore: int | None
    costs: Costs | None

    @property
    def sources(self) -> dict[str, int]:
        """MACs from each source that has a figure."""
        figures = {
            "analytic": self.formula,
            "fvcore": self.fvcore,
            "FlopCounterMode / 2": None if self.costs is None else self.costs.macs,
        }
        return {name: value for name, value in figures.items() if value is not None}

    @property
    def agrees(self) -> bool:
        """True if the sources agree within ``TOLERANCE``."""
        figures = self.sources.values()
        return not figures or max(figures) <= (1 + TOLERANCE) * min(figures)


@dataclass(frozen=True)
class Ledger:
    """The costs of one image, by module.

    Attributes:
        entries: path → module, parents before children, in the order of definition.
        uncovered: operators in no table and no formula.
        untraced: source → why it has no figures.
        notes: further remarks.
        stated_scan_flops: FLOPs of scans by the model's formula, skip terms and gates included.
    """

    entries: Mapping[str, Entry]
    uncovered: tuple[str, ...] = ()
    untraced: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    stated_scan_flops: int | None = None

    @property
    def total(self) -> Entry:
        return self.entries[""]

    @property
    def scan_flops(self) -> int | None:
        """FLOPs of scans, by the formula if there is one."""
        if self.stated_scan_flops is not None:
            return self.stated_scan_flops
        return None if self.total.costs is None else self.total.costs.scan_flops

    def children(self, path: str) -> Iterator[Entry]:
        """Yield the direct submodules of ``path``."""
        for name, entry in self.entries.items():
            if name and name.rpartition(".")[0] == path:
                yield entry

    def first_parting(self) -> Entry | None:
        """Find the first module whose sources differ while those of its submodules agree; None if all agree."""
        if self.total.agrees:
            return None
        first = self.total
        for entry in self.entries.values():
            inside = not first.path or entry.path.startswith(f"{first.path}.")
            if inside and not entry.agrees:
                first = entry
        return first
