"""What every encoding checks of its arrays and numbers."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from security.errors import ConfigurationError


class RingOverflowError(ConfigurationError):
    """A sum under this encoding could wrap around its ring."""

    code: ClassVar[str] = "ring-overflow"


def check_array(array: npt.NDArray[Any], dtype: npt.DTypeLike, size: int | None, what: str) -> None:
    """Passes a vector of that type and size; None: any size."""
    if array.dtype != np.dtype(dtype) or array.ndim != 1 or (size is not None and array.size != size):
        expected = f"{np.dtype(dtype).name}[{'n' if size is None else size}]"
        raise ConfigurationError(
            f"{what} must be {expected}, and is {array.dtype.name}{list(array.shape)}.",
            remedy="Flatten the tensor and convert it before it is encoded or decoded.",
        )


def check_positive(value: float, what: str) -> None:
    """Passes a number above 0."""
    # The limits keep every scale and quotient of two of them a normal float64. NaN fails both comparisons.
    if not 1e-100 <= value <= 1e100:
        raise ConfigurationError(f"{what} is {value!r}.", remedy=f"Set {what} to a number above 0, up to 1e100.")


def check_contributors(contributors: int, largest: int) -> None:
    """Passes a number of contributors."""
    if not 1 <= contributors <= largest:
        raise ConfigurationError(
            f"{contributors} contributors.", remedy=f"A secure sum has between 1 and {largest} contributors."
        )
