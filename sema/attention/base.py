"""The contract of an attention.

Legend: B batch, H W token grid, N = H·W, C channels, h heads, d = C / h head dim.

An attention mixes tokens: (B, H, W, C) → (B, H, W, C) at any H×W. It owns its query, key and value
projections. The block around it owns the *output* projection, so one block serves every mechanism,
and a swap changes only the mechanism.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from sema.kernels.scan_backends import auto_scan, load_scan
from sema.kernels.scan_native import selective_scan_native
from sema.layers.state_space import step_sizes
from sema.layers.tokens import merge_heads, split_parts
from sema.macs import Grid, Macs, linear_macs


class Attention(nn.Module):
    """Base class of every attention; subclasses implement ``forward``, ``reference`` and ``macs``.

    Args:
        dim: channels C.
        num_heads: heads h; must divide ``dim``.
    """

    #: True if the constructor takes ``token_grid``, the (H, W) at which parameters tied to positions are stored.
    uses_token_grid: ClassVar[bool] = False

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim < 1 or num_heads < 1 or dim % num_heads:
            raise ValueError(f"dim must be a positive multiple of num_heads; got dim={dim}, num_heads={num_heads}")
        self.dim = dim
        self.num_heads = num_heads
        self.head_dim = dim // num_heads

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens of ``x`` (B, H, W, C); return the same shape."""
        raise NotImplementedError

    def reference(self, x: Tensor) -> Tensor:
        """Compute the equation naively: same input and output as ``forward``, with no regard for speed or memory."""
        raise NotImplementedError

    def macs(self, grid: Grid) -> Macs:
        """Count the multiply-accumulates of ``forward`` on one image of ``grid`` (H, W) tokens, by the equation.

        The formula does not read the layers' sizes. Counters do, so the two are independent.
        """
        raise NotImplementedError

    @property
    def has_coefficients(self) -> bool:
        """True if the output is a matrix, which ``coefficients`` returns, times the values."""
        return type(self).coefficients is not Attention.coefficients

    def coefficients(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Compute the matrix (B, h, N, N) whose row i weights ``values(x)`` to make output token i.

        Positional terms added to the mixing (LePE) are not part of it. With ``rows``, token indices, the result is
        (B, h, len(rows), N), and nothing of size N×N is made.

        Raises:
            TypeError: the mechanism has no such matrix.
        """
        raise TypeError(f"{type(self).__name__} has no coefficient matrix")

    def values(self, x: Tensor) -> Tensor:
        """Compute the values (B, h, N, d) that ``coefficients`` weights; TypeError if there are no coefficients."""
        raise TypeError(f"{type(self).__name__} has no coefficient matrix")


class QkvAttention(Attention):
    """Base class of attentions with one projection to q, k and v; their ``coefficients``, if any, weight v.

    ``qkv_bias`` adds a bias to the projection.
    """

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool = True) -> None:
        super().__init__(dim, num_heads)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """Project ``x`` (B, H, W, C) to q, k and v, each (B, h, N, d)."""
        return split_parts(self.qkv(x), 3, self.num_heads)

    def projection_macs(self, grid: Grid) -> Macs:
        """Count the MACs of the projection on ``grid`` tokens."""
        return linear_macs(grid[0] * grid[1], self.dim, 3 * self.dim)

    def values(self, x: Tensor) -> Tensor:
        return self.heads(x)[2] if self.has_coefficients else super().values(x)

    def reference(self, x: Tensor) -> Tensor:
        """Multiply the values by the explicit N×N matrix."""
        return merge_heads(self.coefficients(x) @ self.values(x), (x.shape[1], x.shape[2]))


class ScanAttention(Attention):
    """Base class of selective scans; each channel is scanned separately, so ``num_heads`` changes nothing.

    Args:
        dim: channels C.
        num_heads: must divide ``dim``, as for every attention.
        state_dim: states N per channel.
        dt_rank: rank R of the step sizes; None: ⌈C/16⌉.
        sizes: further sizes that the mechanism's constructor takes.
        scan: kernel of the scan: ``torch`` runs everywhere, ``native`` on CPUs (a C++ compiler builds it),
            ``triton`` and ``mamba_ssm`` on CUDA. ``auto`` is ``triton`` on CUDA if it is installed and fits, else
            ``torch``; ``scan_kernel`` says which.

    Raises:
        ValueError: a size that is not positive, or an unknown ``scan``.
        ImportError: the package that ``scan`` needs is not installed.
    """

    def __init__(
        self, dim: int, num_heads: int, *, state_dim: int, dt_rank: int | None, scan: str, **sizes: int
    ) -> None:
        super().__init__(dim, num_heads)
        self.state_dim, self.dt_rank = state_dim, -(-dim // 16) if dt_rank is None else dt_rank
        self.sizes = {"state_dim": state_dim, "dt_rank": self.dt_rank, **sizes}
        if min(self.sizes.values()) < 1:
            raise ValueError(f"the sizes of a scan must be positive; got {self.sizes}")
        self.scan = scan
        self._scan = load_scan(scan)

    def scan_steps(self, u: Tensor, steps: Tensor, bias: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """Scan with the step sizes softplus(steps + bias); the shapes are those of ``selective_scan``.

        Args:
            u, a: float32 or float64.
            steps: in the place of delta.
            bias: (G, D).
            b, c: like ``steps``, of any dtype.
        """
        if self.scan == "native":
            return selective_scan_native(u, steps, a, b, c, bias=bias)
        return self._scan(u, step_sizes(steps, bias), a, b.to(u.dtype), c.to(u.dtype))

    @property
    def scan_kernel(self) -> str:
        """The kernel that computes the scan on this device; on CUDA with the reason if ``auto`` is not Triton's."""
        if self.scan != "auto":
            return self.scan
        name, reason = auto_scan(next(self.parameters()).device, self.state_dim)
        return f"{name} ({reason})" if reason else name

    def with_scan(self, scan: str) -> ScanAttention:
        """Build the bare mechanism, without the layers a subclass adds, on the same parameters and another scan."""
        mechanism = next(parent for parent in type(self).__mro__ if ScanAttention in parent.__bases__)
        with torch.device("meta"):
            alone: ScanAttention = mechanism(self.dim, self.num_heads, **self.sizes, scan=scan)
        alone.load_state_dict(self.state_dict(), strict=False, assign=True)
        return alone.train(self.training)

    def extra_repr(self) -> str:
        return f"state_dim={self.state_dim}, dt_rank={self.dt_rank}, scan={self.scan}"
