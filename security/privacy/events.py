"""What is charged: one frozen value for each kind of noised release.

Neighbouring tables differ by one patient added or removed (docs/privacy-accounting.md). Every figure here
describes noise relative to how much that one patient can move the released value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import ClassVar, Final

from security.errors import ConsiliumError


class PrivacyEventError(ConsiliumError):
    """A release is described by figures that make no sense, or by a record that cannot be read."""

    code = "privacy-event"


@dataclass(frozen=True)
class GaussianRelease:
    """`count` releases, each with Gaussian noise of standard deviation `noise_multiplier` times its L2
    sensitivity.

    Also stands for the discrete Gaussian: its Rényi divergence is at most the Gaussian's at every order
    (Canonne, Kamath, Steinke 2020, theorem 14 for vectors), for the integer vector that was rounded: see
    `mechanisms.rounded_sensitivity`.
    """

    kind: ClassVar[str] = "gaussian"
    noise_multiplier: float
    count: int = 1

    def __post_init__(self) -> None:
        _check_noise(self.noise_multiplier)
        _check_count(self.count, "count")

    def sentence(self) -> str:
        """One line for a person."""
        times = "one value" if self.count == 1 else f"{self.count} values"
        noise = f"Gaussian noise of {self.noise_multiplier:g} times one patient's largest influence"
        return f"{times} with {noise}"


@dataclass(frozen=True)
class SampledGaussian:
    """`steps` steps of DP-SGD on Poisson batches: each patient joins a batch with `sampling_rate`,
    independently.

    Noise per step is continuous Gaussian of `noise_multiplier` times the clipping norm. The batch must be
    secret and really drawn that way (`randomness.poisson_sample`); a shuffled epoch is another mechanism.
    """

    kind: ClassVar[str] = "sampled-gaussian"
    noise_multiplier: float
    sampling_rate: float
    steps: int

    def __post_init__(self) -> None:
        _check_noise(self.noise_multiplier)
        _check_number(self.sampling_rate, "sampling_rate")
        if not 0.0 < self.sampling_rate <= 1.0:
            raise _wrong("sampling_rate", self.sampling_rate, "a share of the patients in (0, 1]")
        _check_count(self.steps, "steps")

    def sentence(self) -> str:
        """One line for a person."""
        steps = "1 training step" if self.steps == 1 else f"{self.steps} training steps"
        return (
            f"{steps} on random batches of {self.sampling_rate:.3%} of the patients "
            f"with Gaussian noise of {self.noise_multiplier:g} times the clipping norm"
        )


@dataclass(frozen=True)
class LaplaceRelease:
    """A release that is `epsilon`-differentially private outright (delta 0), as a discrete Laplace count is.

    For a count, `epsilon = 1 / scale`; `mechanisms.count_event` makes it.
    """

    kind: ClassVar[str] = "laplace"
    epsilon: float

    def __post_init__(self) -> None:
        _check_number(self.epsilon, "epsilon")
        if not 0.0 < self.epsilon <= 1e6:
            raise _wrong("epsilon", self.epsilon, "a number in (0, 1e6]")

    def sentence(self) -> str:
        """One line for a person."""
        return f"one value with Laplace noise, epsilon {self.epsilon:g} by itself"


PrivacyEvent = GaussianRelease | SampledGaussian | LaplaceRelease

_KINDS: Final[dict[str, type[GaussianRelease] | type[SampledGaussian] | type[LaplaceRelease]]] = {
    cls.kind: cls for cls in (GaussianRelease, SampledGaussian, LaplaceRelease)
}


def event_to_json(event: PrivacyEvent) -> dict[str, str | int | float]:
    """The event as a flat JSON object: `kind` and its figures. Floats survive `json` exactly."""
    return {"kind": event.kind, **asdict(event)}


def event_from_json(record: object) -> PrivacyEvent:
    """The event of `event_to_json`.

    Raises:
        PrivacyEventError: not such an object: unknown kind, a missing or foreign key, or a figure out of
        range.
    """
    if not isinstance(record, Mapping):
        raise PrivacyEventError("a privacy event must be a JSON object.", remedy='Write {"kind": …, …}.')
    kind = record.get("kind")
    cls = _KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise PrivacyEventError(
            f"unknown kind of privacy event {kind!r}.",
            remedy=f"Known kinds: {', '.join(_KINDS)}; is this version too old?",
        )
    names = {field.name for field in fields(cls)}
    given = {name for name in record if name != "kind"}
    if given != names:
        raise PrivacyEventError(
            f"a privacy event of kind {kind} has keys {sorted(map(str, given))}.",
            remedy=f"It needs exactly {sorted(names)}.",
        )
    return cls(**{name: record[name] for name in names})


def _check_noise(value: float) -> None:
    _check_number(value, "noise_multiplier")
    # Below the bound nothing is protected and the accountant's arithmetic overflows; above it, it underflows.
    if not 1e-3 <= value <= 1e6:
        raise _wrong("noise_multiplier", value, "a number in [0.001, 1e6]")


def _check_number(value: float, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _wrong(name, value, "a finite number")


def _check_count(value: int, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10**9:
        raise _wrong(name, value, "a whole number in [1, 1e9]")


def _wrong(name: str, value: object, wanted: str) -> PrivacyEventError:
    return PrivacyEventError(f"{name} is {value!r}.", remedy=f"Give {wanted}.", place=name)
