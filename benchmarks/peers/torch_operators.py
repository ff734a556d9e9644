"""MgNO and the latent spectral model in torch: the same layers as ours, of the same sizes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as nnf


def _conv(before: int, after: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride, 1, bias=False)


class _Smoothing(nn.Module):
    def __init__(self, sources: int, width: int) -> None:
        super().__init__()
        self.operator, self.smoother = _conv(width, sources), _conv(sources, width)

    def forward(self, u: Any, f: Any) -> Any:
        return u + self.smoother(f - self.operator(u))


class _VCycle(nn.Module):
    def __init__(self, sources: int, width: int, pre: tuple[int, ...]) -> None:
        super().__init__()
        self.first = _conv(sources, width)
        counts = (pre[0] - 1, *pre[1:])
        self.pre = nn.ModuleList(
            nn.ModuleList(_Smoothing(sources, width) for _ in range(count)) for count in counts
        )
        coarser = range(len(pre) - 1)
        self.projections = nn.ModuleList(_conv(width, width, 2) for _ in coarser)
        self.restrictions = nn.ModuleList(_conv(sources, sources, 2) for _ in coarser)
        self.prolongations = nn.ModuleList(
            nn.ConvTranspose2d(width, width, 4, 2, 1, bias=False) for _ in coarser
        )

    def forward(self, f: Any) -> Any:
        u = self._smoothed(self.first(f), f, 0)
        finer: list[Any] = []
        for level, (project, restrict) in enumerate(
            zip(self.projections, self.restrictions, strict=True), 1
        ):
            finer.append(u)
            u, f = project(u), restrict(f)
            u = self._smoothed(u, f, level)
        for prolong in reversed(self.prolongations):
            u = finer.pop() + prolong(u)
        return u

    def _smoothed(self, u: Any, f: Any, level: int) -> Any:
        for step in self.pre[level]:  # pyright: ignore[reportGeneralTypeIssues]
            u = step(u, f)
        return u


class MgNO(nn.Module):
    """One channel to one channel, Dirichlet boundaries, even grids."""

    def __init__(self, width: int, layers: int, pre: tuple[int, ...]) -> None:
        super().__init__()
        sources = [1] + [width] * (layers - 1)
        self.cycles = nn.ModuleList(_VCycle(source, width, pre) for source in sources)
        self.pointwise = nn.ModuleList(nn.Conv2d(source, width, 1) for source in sources)
        self.head = nn.Conv2d(width, 1, 1, bias=False)

    def forward(self, x: Any) -> Any:
        for cycle, pointwise in zip(self.cycles, self.pointwise, strict=True):
            x = nnf.gelu(cycle(x) + pointwise(x), approximate="tanh")
        return self.head(x)


class _SpectralBlock(nn.Module):
    def __init__(self, width: int, patch: int, tokens: int, heads: int, basis: int) -> None:
        super().__init__()
        features = width // heads
        self.patch, self.heads = patch, heads
        self.tokens = nn.Parameter(torch.rand(heads, tokens, features) / width)
        self.cosines = nn.Parameter(torch.rand(heads, features, basis) / width)
        self.sines = nn.Parameter(torch.rand(heads, features, basis - 1) / width)
        self.encode, self.decode = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(width, width, 1)

    def _patches(self, x: Any) -> Any:
        """`[b, heads, features, patches, points]`."""
        b, c, n, m = x.shape
        p = self.patch
        cut = x.reshape(b, c, n // p, p, m // p, p).permute(0, 1, 2, 4, 3, 5)
        return cut.reshape(b, self.heads, c // self.heads, (n // p) * (m // p), p * p)

    def forward(self, x: Any) -> Any:
        keys, values = (self._patches(part) for part in self.encode(x).chunk(2, 1))
        queries = self._patches(self.decode(x))
        heard = torch.einsum("htc,bhcps->bhpts", self.tokens, keys).softmax(-1)
        latent = torch.einsum("bhpts,bhcps->bhptc", heard, values) + self.tokens[:, None]
        latent = latent + self._series(latent)
        told = torch.einsum("bhcps,bhptc->bhpst", queries, latent).softmax(-1)
        spread = torch.einsum("bhpst,bhptc->bhcps", told, latent)
        b, c, n, m = x.shape
        p = self.patch
        whole = spread.reshape(b, c, n // p, m // p, p, p).permute(0, 1, 2, 4, 3, 5)
        return x + whole.reshape(b, c, n, m)

    def _series(self, latent: Any) -> Any:
        count = self.cosines.shape[2]
        angles = latent[..., None] * torch.arange(count) * (math.pi / count)
        cosines = torch.einsum("bhptck,hck->bhptc", angles.cos(), self.cosines)
        return cosines + torch.einsum("bhptck,hck->bhptc", angles[..., 1:].sin(), self.sines)


def _double(before: int, between: int, after: int) -> nn.Sequential:
    def norm(channels: int) -> nn.GroupNorm:
        return nn.GroupNorm(math.gcd(max(channels // 4, 1), channels), channels)

    return nn.Sequential(
        _conv(before, between),
        norm(between),
        nn.ReLU(),
        _conv(between, after),
        norm(after),
        nn.ReLU(),
    )


class LatentSpectralModel(nn.Module):
    """One channel to one channel, on grids that divide into patches at all scales."""

    def __init__(
        self,
        width: int,
        scales: int,
        patch: int,
        tokens: int,
        heads: int,
        basis: int,
        projection: int,
    ) -> None:
        super().__init__()
        widths = [width * 2**scale for scale in range(max(scales - 1, 1))]
        widths = [*widths, widths[-1]][:scales]
        self.lift = nn.Conv2d(3, width, 1)
        self.down = nn.ModuleList(
            _double(b, a, a) for b, a in zip([width, *widths], widths, strict=False)
        )
        self.blocks = nn.ModuleList(_SpectralBlock(w, patch, tokens, heads, basis) for w in widths)
        self.up = nn.ModuleList(
            _double(2 * w, w, max(w // 2, width)) for w in reversed(widths[:-1])
        )
        self.mix = nn.Conv2d(width, width, 1)
        self.hidden, self.head = nn.Conv2d(width, projection, 1), nn.Conv2d(projection, 1, 1)

    def forward(self, x: Any) -> Any:
        axes = [(torch.arange(n) + 0.5) / n for n in x.shape[2:]]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij")).expand(len(x), -1, -1, -1)
        x = self.lift(torch.cat([x, places], 1))
        scales: list[Any] = []
        for convolve in self.down:
            scales.append(convolve(nnf.max_pool2d(scales[-1], 2) if scales else x))
        scales = [block(scale) for block, scale in zip(self.blocks, scales, strict=True)]
        x = scales.pop()
        for convolve in self.up:
            doubled = nnf.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = convolve(torch.cat([scales.pop(), doubled], 1))
        return self.head(nnf.gelu(self.hidden(self.mix(x)), approximate="tanh"))
