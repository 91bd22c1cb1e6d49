"""Describe where cells run: the options of a command, and the GPU. Nothing here contacts a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sema_bench.errors import UsageError

EXECUTORS = ("local", "ray", "slurm")


@dataclass(frozen=True)
class Card:
    """Capabilities of a GPU; None if they are unknown, or if there is no GPU."""

    name: str = ""
    capability: tuple[int, int] | None = None
    compute_mode: str | None = None  # DEFAULT, or a mode that admits fewer processes

    @property
    def is_before_ampere(self) -> bool:
        """True if it lacks TF32 and bfloat16 products."""
        return self.capability is not None and self.capability < (8, 0)


@dataclass(frozen=True)
class RunTarget:
    """Where cells run; refuses options that the executor would ignore."""

    executor: str = "local"  # one of ``EXECUTORS``
    devices: tuple[int, ...] = ()  # numbers of this machine's GPUs to use at once; none: the one that the suite names
    ray_address: str | None = None  # see ``RayCluster``
    slurm: Mapping[str, str] = field(default_factory=dict)  # options of sbatch
    jobs: int | None = None  # tasks of Slurm at once

    def __post_init__(self) -> None:
        for option, given, belongs_to in (
            ("--devices", self.devices, "local"),
            ("--ray-address", self.ray_address, "ray"),
            ("--slurm", self.slurm, "slurm"),
            ("--jobs", self.jobs, "slurm"),
        ):
            if given and self.executor != belongs_to:
                raise UsageError(f"{option} is for --executor {belongs_to}, and this is {self.executor}; drop one")
        if self.jobs is not None and self.jobs < 1:
            raise UsageError(f"--jobs must be at least 1; got {self.jobs}")
        if len(set(self.devices)) != len(self.devices):
            raise UsageError("--devices names a GPU twice")
