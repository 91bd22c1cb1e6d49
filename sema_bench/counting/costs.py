"""What a module costs, as three sources see it, and where they part.

Paths are dotted names of submodules, "" is the model itself; every figure of a module includes its submodules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

#: Largest relative difference between two sources.
TOLERANCE = 0.005


@dataclass(frozen=True)
class Costs:
    """Costs of one module, split by kind: MACs, and FLOPs of what is no multiply-accumulate.

    Attributes:
        attention: MACs of products of two activations.
        projection: MACs of products with weights.
        convolution: MACs of convolutions.
        normalisation_flops: normalisations and softmaxes (those inside fused attention are not seen).
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
        """Multiply-accumulates; nothing else is in this sum."""
        return self.attention + self.projection + self.convolution

    def __add__(self, other: Costs) -> Costs:
        return Costs(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Entry:
    """One module of the ledger.

    Attributes:
        path: dotted name.
        kind: class name.
        params: trainable parameters.
        params_total: parameters, frozen ones included.
        formula: MACs by the module's own formula; None where it has none.
        fvcore: MACs by fvcore with our handlers; None where the model could not be traced.
        costs: what torch's counter saw, split by kind; None where the model could not be run.
    """

    path: str
    kind: str
    params: int
    params_total: int
    formula: int | None
    fvcore: int | None
    costs: Costs | None

    @property
    def prefix(self) -> str:
        """How the paths of its submodules begin."""
        return f"{self.path}." if self.path else ""

    @property
    def sources(self) -> dict[str, int]:
        """MACs by the sources that have a figure."""
        figures = {
            "analytic": self.formula,
            "fvcore": self.fvcore,
            "FlopCounterMode / 2": None if self.costs is None else self.costs.macs,
        }
        return {name: value for name, value in figures.items() if value is not None}

    @property
    def agrees(self) -> bool:
        """Whether the sources are within ``TOLERANCE`` of one another."""
        figures = self.sources.values()
        return not figures or max(figures) <= (1 + TOLERANCE) * min(figures)


@dataclass(frozen=True)
class Ledger:
    """The costs of one image, by module.

    Attributes:
        entries: path → module, parents before children, in the order of definition.
        uncovered: operators that no table and no formula knows.
        untraced: source → why it has no figures.
        notes: what else a reader must know.
        stated_scan_flops: FLOPs of scans by the model's formula, skip terms and gates included; None without one.
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
        """FLOPs of scans, by the formula where there is one."""
        if self.stated_scan_flops is not None:
            return self.stated_scan_flops
        return None if self.total.costs is None else self.total.costs.scan_flops

    def children(self, path: str) -> Iterator[Entry]:
        """The direct submodules of ``path`` that cost anything or have parameters."""
        for name, entry in self.entries.items():
            if name and name.rpartition(".")[0] == path:
                yield entry

    def first_parting(self) -> Entry | None:
        """The first module whose sources disagree though those of all its submodules agree; None if all is well."""
        parted = [entry for entry in self.entries.values() if not entry.agrees]
        if self.total.agrees or not parted:
            return None
        found = parted[0]
        while below := [entry for entry in parted if entry is not found and entry.path.startswith(found.prefix)]:
            found = below[0]
        return found
