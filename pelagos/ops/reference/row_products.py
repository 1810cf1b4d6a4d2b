"""Matrix products in which a row's result does not depend on the other rows.

Library GEMMs choose their code by the number of rows, and their edge code may sum in another order. So rows are taken
in tiles of one fixed height, padded with zeros; inner and outer sizes are padded to where the edge code agrees
(measured: MKL differs only for odd inner sizes with few columns). ``probe_row_tile`` checks on the running machine
that a row gives the same bits at every place in a tile; where it does not, tiles of one row are used, which is slower
and right by construction.

Shapes: T rows, I inner size, N outputs.
"""

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

_TILE_ROWS = 16
_INNER_MULTIPLE = 8
OUTER_MULTIPLE = 16
_PROBE_SHAPES = ((8, 16), (24, 16), (64, 48), (128, 256), (512, 64), (1000, 128), (1024, 16))


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What the row-invariance check found on this machine."""

    tile_rows: int
    reason: str


def matmul_rows(x: Tensor, w: Tensor) -> Tensor:
    """x [T, I] · w [N, I]ᵀ -> [T, N], all float32; each row's bits depend on that row and w alone."""
    num_rows, num_out = x.shape[0], w.shape[0]
    if num_rows == 0:
        return x.new_zeros(0, num_out)
    tile = probe_row_tile().tile_rows
    x, w = _padded(x, tile, _INNER_MULTIPLE), _padded(w, OUTER_MULTIPLE, _INNER_MULTIPLE)
    return _tiled(x, w, tile)[:num_rows, :num_out]


@cache
def probe_row_tile() -> Probe:
    """Choose the tile height for this machine, once per process."""
    for num_in, num_out in _PROBE_SHAPES:
        values = torch.arange(_TILE_ROWS * num_in + num_out * num_in, dtype=torch.float32)
        noise = torch.frac(torch.sin(values + 1.0) * 43758.547) - 0.5
        x, w = noise[: _TILE_ROWS * num_in].view(_TILE_ROWS, num_in), noise[_TILE_ROWS * num_in :].view(num_out, num_in)
        expected = _tiled(x, w, _TILE_ROWS)
        for shift in range(1, _TILE_ROWS):
            if not torch.equal(_tiled(x.roll(shift, 0), w, _TILE_ROWS).roll(-shift, 0), expected):
                return Probe(
                    tile_rows=1, reason=f"rows of a {num_in}x{num_out} product depend on their place in a tile"
                )
    return Probe(tile_rows=_TILE_ROWS, reason=f"rows agree at every place of a {_TILE_ROWS}-row tile")


def _tiled(x: Tensor, w: Tensor, tile: int) -> Tensor:
    tiles = [F.linear(x[i : i + tile], w) for i in range(0, x.shape[0], tile)]
    return tiles[0] if len(tiles) == 1 else torch.cat(tiles)


def _padded(x: Tensor, row_multiple: int, column_multiple: int) -> Tensor:
    rows, columns = -x.shape[0] % row_multiple, -x.shape[1] % column_multiple
    return F.pad(x, (0, columns, 0, rows)) if rows or columns else x.contiguous()
