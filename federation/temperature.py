"""Calibration by secure sum: each institution sends its negative log-likelihood on a fixed grid of temperatures.

Temperature scaling (Guo et al. 2017) divides logits by T > 0. The federation's best T minimises the *sum* of the
institutions' losses, so a sum over a grid is all that anybody needs: no gradient, no second round, no patient shown.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from security.errors import LocalMisuseError

GRID: Final[npt.NDArray[np.float64]] = 2.0 ** (np.arange(-16, 25) / 8.0)
"""float64[41], 1/4 to 8 in steps of an eighth of an octave; index 16 is exactly 1."""
GRID.setflags(write=False)


def nll_grid(
    logits: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    grid: npt.NDArray[np.float64] = GRID,
    loss_max: float = float("inf"),
) -> npt.NDArray[np.float64]:
    """Summed negative log-likelihood of the patients at each temperature.

    Args:
        logits: float32[patients, classes], finite.
        labels: int64[patients], class indices.
        grid: float64[k], above 0.
        loss_max: each patient's loss is clipped here, so that one patient moves a sum by at most this much.

    Returns:
        float64[k]; zeros for no patients. In [0, patients · loss_max].
    """
    scaled = logits.astype(np.float64)[None, :, :] / grid[:, None, None]
    top = scaled.max(axis=2, keepdims=True)
    log_total = np.log(np.exp(scaled - top).sum(axis=2)) + top[:, :, 0]
    own = np.take_along_axis(scaled, np.broadcast_to(labels[None, :, None], (grid.size, labels.size, 1)), axis=2)
    losses = np.clip(log_total - own[:, :, 0], 0.0, loss_max)
    return np.asarray(losses.sum(axis=1))


def best_temperature(
    summed: npt.NDArray[np.float64], grid: npt.NDArray[np.float64] = GRID, floor: float = 0.0
) -> float:
    """The temperature with the smallest summed loss: the parabola through the best grid point and its neighbours.

    The loss is convex in 1/T, so there is one minimum; the parabola is drawn over log T, in which the grid is even.

    Args:
        summed: float64[k], the opened sum of `nll_grid`.
        grid: the same grid, ascending and even in its logarithm.
        floor: losses that differ by less say nothing (the sum's own rounding or noise): 1 is taken then.

    Returns:
        A temperature within the grid; 1.0 where the sum says nothing.

    Raises:
        LocalMisuseError: the sum does not fit the grid or is not finite.
    """
    if summed.shape != grid.shape or not np.isfinite(summed).all():
        raise LocalMisuseError("the summed losses do not fit the grid.", remedy="Use the grid of nll_grid.")
    if float(summed.max() - summed.min()) <= floor:
        return 1.0
    best = int(np.argmin(summed))
    if not 0 < best < grid.size - 1:
        return float(grid[best])
    left, middle, right = (float(summed[best + k]) for k in (-1, 0, 1))
    bend = left - 2.0 * middle + right
    shift = 0.5 * (left - right) / bend if bend > 0.0 else 0.0
    step = float(np.log(grid[best + 1] / grid[best]))
    return float(grid[best] * np.exp(min(0.5, max(-0.5, shift)) * step))
