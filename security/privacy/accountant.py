"""What a list of releases adds up to: epsilon at a given delta, for one patient added or removed.

Rényi differential privacy (Mironov 2017), composed over all releases and converted by Canonne, Kamath and
Steinke 2020, proposition 12, both by Google's `dp_accounting`; its import takes most of a second and happens
on first use.

Two bounds hold for the same releases, and the smaller is the answer:

1. everything composed at the Rényi orders;
2. only the Gaussian releases composed and converted, plus the plain sum of the pure epsilons. (A pure release
   moves the privacy loss by at most its epsilon whatever happened before, so the total loss is at most the
   Gaussian part's plus that sum; the Gaussian part's moments are bounded step by step, given any history.)

Both only grow with another release, so the answer does too.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from security.privacy.events import GaussianRelease, LaplaceRelease, PrivacyEvent, SampledGaussian

_Curve = npt.NDArray[np.float64]


class Accountant:
    """Adds up releases one at a time; asking for epsilon costs no more with many than with few."""

    def __init__(self, events: Iterable[PrivacyEvent] = ()) -> None:
        self._gaussian: _Curve = np.zeros(len(_orders()))
        self._pure: Counter[float] = Counter()
        for event in events:
            self.add(event)

    def add(self, event: PrivacyEvent) -> None:
        """Charges one release."""
        if isinstance(event, LaplaceRelease):
            self._pure[event.epsilon] += 1
        else:
            self._gaussian = self._gaussian + _gaussian_curve(event)

    def epsilon(self, delta: float) -> float:
        """The epsilon of everything added so far, at `delta` in (0, 1); 0.0 for nothing, never negative.

        Raises:
            ValueError: `delta` out of range (the ledger checks what comes from outside).
        """
        if not 0.0 < delta < 1.0:
            raise ValueError(f"delta must lie in (0, 1), not {delta}")
        pure = math.fsum(epsilon * count for epsilon, count in self._pure.items())
        apart = _convert(self._gaussian, delta) + pure
        if not self._pure:
            return apart
        together = self._gaussian.copy()
        for epsilon, count in self._pure.items():
            together += count * _pure_curve(epsilon)
        return min(apart, _convert(together, delta))

    def copy(self) -> Accountant:
        """An accountant with the same releases, free to go another way."""
        other = Accountant()
        other._gaussian, other._pure = self._gaussian, self._pure.copy()
        return other


def epsilon(events: Iterable[PrivacyEvent], delta: float) -> float:
    """The epsilon of all `events` together at `delta`; see `Accountant`."""
    return Accountant(events).epsilon(delta)


def would_spend(events: Iterable[PrivacyEvent], new: PrivacyEvent, delta: float) -> float:
    """The epsilon of `events` and then `new`, at `delta`."""
    return epsilon((*events, new), delta)


@lru_cache(maxsize=1)
def _orders() -> tuple[float, ...]:
    from dp_accounting.rdp import rdp_privacy_accountant

    return tuple(float(order) for order in rdp_privacy_accountant.DEFAULT_RDP_ORDERS)


def _gaussian_curve(event: GaussianRelease | SampledGaussian) -> _Curve:
    if isinstance(event, GaussianRelease):
        return event.count * _one_step(event.noise_multiplier, 1.0)
    return event.steps * _one_step(event.noise_multiplier, event.sampling_rate)


@lru_cache(maxsize=1024)
def _one_step(noise_multiplier: float, sampling_rate: float) -> _Curve:
    """Rényi divergence by order of one (Poisson-sampled) Gaussian release, shape `(len(_orders()),)`."""
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    event: dp_accounting.DpEvent = dp_accounting.GaussianDpEvent(noise_multiplier)
    if sampling_rate < 1.0:
        event = dp_accounting.PoissonSampledDpEvent(sampling_rate, event)
    with _quiet():
        curve = RdpAccountant(list(_orders())).compose(event).rdp
    # Rounding can leave -1e-17 where the truth is a hair above 0.
    return _frozen(np.maximum(np.asarray(curve, dtype=np.float64), 0.0))


@lru_cache(maxsize=1024)
def _pure_curve(epsilon: float) -> _Curve:
    """The largest Rényi divergence that an `epsilon`-DP release can have, by order: that of randomised
    response.

    Not the (smaller) curve of the continuous Laplace distribution: the privacy loss of a discrete Laplace
    count is exactly ±epsilon, with randomised response's chances, so this bound is met with equality.
    """
    orders = np.asarray(_orders())
    curve = np.minimum(epsilon, orders * epsilon**2 / 2)  # Bun and Steinke 2016, proposition 3.3
    if epsilon > 1e-2:  # below, the next line cancels and the one above is as good
        log_p, log_q = -math.log1p(math.exp(-epsilon)), -epsilon - math.log1p(math.exp(-epsilon))
        exact = np.logaddexp(log_q + orders * epsilon, log_p - orders * epsilon) / (orders - 1.0)
        curve = np.minimum(curve, exact)
    return _frozen(curve)


def _convert(curve: _Curve, delta: float) -> float:
    from dp_accounting.rdp import compute_epsilon

    if not curve.any():
        return 0.0
    value, _ = compute_epsilon(list(_orders()), list(curve), delta)
    return max(0.0, float(value))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's warnings that it leaves out an order, which can only make epsilon larger."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _frozen(curve: _Curve) -> _Curve:
    curve.setflags(write=False)  # it is shared by the cache
    return curve
