"""DGB, distributed gradient blending: which subset of modalities should learn faster, from summed losses
only.

METHOD.md, "DGB"; the score `G / O²` is the optimum of Gradient Blending (Wang, Tran, Feiszli, CVPR 2020,
arXiv 1905.12681, Proposition 1). One function, `advance`, turns the opened sums of a round into scores;
another, `step_weights`, turns the published scores into the step sizes of one institution. HGB, blending
inside each institution alone, is the same two functions on `LossSums.contribution(1, …)` of its own losses.

Where METHOD.md leaves room, this is what is meant here:

- Under `delta-sums`, overfitting *and* generalisation come from the `ΔL` sums: a difference of two weighted
means over
  different survivors would invent a fall as readily as overfitting.
- Smoothing: `X̃(t) = Σ_k β^k X(t−k) / Σ_k β^k` over the last `window` rounds in which the subset had losses
  (k = 0 is now); `O` with its sign, `G` after its `max(0, ·)`. `window = 1` or `β = 0` switches it off.
- The score and DOGR use the smoothed `O` and `G`; scores are made anew each round, for the median moves even
when a
  subset's losses did not arrive.
- A subset is *known* from its second round of losses on. An unknown one gets `v = 1/|S_i|`, and the known
ones share
  what is left by their scores, so that `Σ v = 1` always.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, ClassVar, Final, Literal, get_args

from federation.losses import BlendingInputError, LossMeans, LossSums
from security.errors import ConfigurationError

Kappa = Literal["one", "subsets"]
Generalisation = Literal["fall", "absolute"]
Overfitting = Literal["delta-sums", "weighted-means"]

__all__ = [
    "BlendingSettings",
    "default_settings",
    "paper_settings",
    "paper_code_settings",
    "BlendingState",
    "SubsetHistory",
    "LossMeans",
    "LossSums",
    "advance",
    "BlendingFigures",
    "SubsetFigures",
    "blending_score",
    "blending_ratio",
    "step_weights",
    "BlendingInputError",
    "BlendingStateError",
]

STATE_VERSION: Final = 2
UNIFORM_ROUNDS: Final = 2
"""Rounds 0 and 1 use `v = 1/|S_i|`: the first `O` and `G` exist after round 1."""


class BlendingStateError(ConfigurationError):
    """A stored blending state that cannot be read back."""

    code: ClassVar[str] = "blending-state"


@dataclass(frozen=True, slots=True)
class BlendingSettings:
    """How DGB is computed; every field is a field of the plan.

    Args:
        enabled: False is conventional multi-modal FL: every step factor is 1.
        kappa: `one` (κ = 1) or `subsets` (κ = |S_i|, which keeps the mean step at η).
        smoothing: `β`, in [0, 1].
        window: rounds smoothed over, at least 1.
        v_min: lower clamp of `κ v`, at least 0.
        v_max: upper clamp of `κ v`, at least `v_min`.
        epsilon: `ε`, weight of the median `O²` in the score's denominator, and DOGR's; at least 0.
        epsilon_0: `ε_0`, absolute term of the denominator; above 0.
        generalisation: `fall` (`max(0, fall of the validation loss)`) or `absolute` (`|change|`).
        overfitting: `delta-sums`, or `weighted-means` (differences of the means of two rounds).
        clamp: whether `κ v` is clamped at all.
        weight_floor: `Σp` at or below this counts as zero, so that rounding cannot pass for a loss; at least
            0.

    Raises:
        ConfigurationError: a field is out of range.
    """

    enabled: bool = True
    kappa: Kappa = "one"
    smoothing: float = 0.5
    window: int = 3
    v_min: float = 0.2
    v_max: float = 3.0
    epsilon: float = 0.01
    epsilon_0: float = 1e-6
    generalisation: Generalisation = "fall"
    overfitting: Overfitting = "delta-sums"
    clamp: bool = True
    weight_floor: float = 1e-6
    encoder_times_combination: bool = False
    horizon: int = 1

    def __post_init__(self) -> None:
        for name, kind in (("kappa", Kappa), ("generalisation", Generalisation), ("overfitting", Overfitting)):
            if getattr(self, name) not in get_args(kind):
                raise ConfigurationError(
                    f"blending: {name} is {getattr(self, name)!r}.", remedy=f"Use one of: {', '.join(get_args(kind))}."
                )
        for name, legal, rule in (
            ("smoothing", 0 <= self.smoothing <= 1, "between 0 and 1"),
            ("window", self.window >= 1, "at least 1"),
            ("horizon", self.horizon >= 0, "0 or above"),
            ("v_min", 0 <= self.v_min < math.inf, "finite, 0 or above"),
            ("v_max", self.v_min <= self.v_max < math.inf, "finite, at least v_min"),
            ("epsilon", 0 <= self.epsilon < math.inf, "finite, 0 or above"),
            ("epsilon_0", 0 < self.epsilon_0 < math.inf, "finite, above 0"),
            ("weight_floor", 0 <= self.weight_floor < math.inf, "finite, 0 or above"),
        ):
            if not legal:
                raise ConfigurationError(f"blending: {name} is {getattr(self, name)!r}.", remedy=f"It must be {rule}.")


def default_settings() -> BlendingSettings:
    """METHOD.md's defaults."""
    return BlendingSettings()


def paper_settings() -> BlendingSettings:
    """The preset `paper`: no smoothing, no clamp, `|G|`, differences of weighted means (METHOD.md, "DGB")."""
    return BlendingSettings(
        smoothing=0.0, window=1, generalisation="absolute", overfitting="weighted-means", clamp=False
    )


def paper_code_settings() -> BlendingSettings:
    """The preset `paper-code`: as `paper`, and encoders take the product of two weights (METHOD.md, "Facts
    from the authors' own code"; its other facts are fields of the plan's training, not of blending)."""
    return replace(paper_settings(), encoder_times_combination=True)


@dataclass(frozen=True, slots=True)
class SubsetHistory:
    """What is remembered of one subset: its last mean losses, and the last `window` of `O` and `G`, oldest
    first."""

    training: float
    validation: float
    overfitting: tuple[float, ...] = ()
    generalisation: tuple[float, ...] = ()
    changes: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class BlendingState:
    """DGB's memory between rounds. Immutable; `to_json` and `from_json` keep every bit."""

    subsets: Mapping[str, SubsetHistory] = field(default_factory=lambda: MappingProxyType({}))

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary for `json.dumps`, whose float texts read back exactly."""
        return {
            "version": STATE_VERSION,
            "subsets": {
                name: {
                    "training": h.training,
                    "validation": h.validation,
                    "overfitting": list(h.overfitting),
                    "generalisation": list(h.generalisation),
                    "changes": [list(pair) for pair in h.changes],
                }
                for name, h in sorted(self.subsets.items())
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BlendingState:
        """The state that `to_json` wrote.

        Raises:
            BlendingStateError: another version, a missing or unknown field, or a number that is not finite.
        """
        try:
            if data["version"] != STATE_VERSION or set(data) != {"version", "subsets"}:
                raise ValueError("version or fields")
            subsets = {}
            for name, item in data["subsets"].items():
                if set(item) != {"training", "validation", "overfitting", "generalisation", "changes"}:
                    raise ValueError("fields of a subset")
                overfitting = tuple(float(x) for x in item["overfitting"])
                generalisation = tuple(float(x) for x in item["generalisation"])
                training, validation = float(item["training"]), float(item["validation"])
                changes = tuple((float(t), float(v)) for t, v in item["changes"])
                every = (training, validation, *overfitting, *generalisation, *(x for pair in changes for x in pair))
                finite = all(map(math.isfinite, every))
                if len(overfitting) != len(generalisation) or not finite:
                    raise ValueError("values of a subset")
                subsets[str(name)] = SubsetHistory(training, validation, overfitting, generalisation, changes)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BlendingStateError(
                f"a stored blending state cannot be read ({error}).",
                remedy=f"It must be of version {STATE_VERSION}, as this release writes it.",
            ) from error
        return cls(MappingProxyType(subsets))


@dataclass(frozen=True, slots=True)
class SubsetFigures:
    """What is published about one subset after a round.

    Args:
        known: whether the subset has had two rounds of losses; if not, everything from `overfitting` on is
            None.
        fresh: whether this round brought losses; if not, the last ones stand.
        training_loss, validation_loss: weighted means, per patient.
        overfitting, generalisation: smoothed `O` and `G`.
        score: `b_s`, at least 0.
        dogr: see `blending_ratio`.
    """

    known: bool
    fresh: bool
    training_loss: float
    validation_loss: float
    overfitting: float | None = None
    generalisation: float | None = None
    score: float | None = None
    dogr: float | None = None


@dataclass(frozen=True, slots=True)
class BlendingFigures:
    """Figures by subset, and the median of the smoothed `O²` over the known subsets (None while none is
    known)."""

    subsets: Mapping[str, SubsetFigures]
    median_squared_overfitting: float | None

    def scores(self) -> dict[str, float | None]:
        """`b_s` by subset, None where unknown: the argument of `step_weights`."""
        return {name: figures.score for name, figures in self.subsets.items()}


def blending_score(
    overfitting: float, generalisation: float, median_squared_overfitting: float, settings: BlendingSettings
) -> float:
    """`b = G / (O² + ε · median O² + ε_0)` (METHOD.md, "DGB")."""
    return generalisation / (
        overfitting * overfitting + settings.epsilon * median_squared_overfitting + settings.epsilon_0
    )


def blending_ratio(overfitting: float, generalisation: float, settings: BlendingSettings) -> float:
    """DOGR, `|O| / (|G| + ε)` (METHOD.md, "DGB"), at least 0; an `ε` below `ε_0` counts as `ε_0`, so it is
    finite."""
    return abs(overfitting) / (abs(generalisation) + max(settings.epsilon, settings.epsilon_0))


def advance(
    state: BlendingState,
    losses: Mapping[str, LossSums],
    settings: BlendingSettings,
    median_squared_overfitting: float | None = None,
) -> tuple[BlendingState, BlendingFigures]:
    """One round of DGB on opened sums.

    Args:
        state: the state after the round before; `BlendingState()` at the start.
        losses: opened sums by subset. A subset that is missing, or whose `Σp` is zero, keeps its last losses.
        settings: the plan's.
        median_squared_overfitting: use this median in the scores: the coordinator's published one, where an
            institution scores its private combination on the federation's scale. None takes that of this
            state.

    Returns:
        The new state, and the figures of every subset that ever had losses.

    Raises:
        BlendingInputError: the median is NaN, infinite or negative.
    """
    published = median_squared_overfitting
    if published is not None and not (math.isfinite(published) and published >= 0):
        raise BlendingInputError(
            "the published median of squared overfitting is no such median.",
            remedy="The coordinator's blending figures are damaged: report the round.",
        )
    subsets = dict(state.subsets)
    fresh = set()
    for name, sums in losses.items():
        means = sums.means(settings.weight_floor)
        if means is not None:
            fresh.add(name)
            subsets[name] = _remember(subsets.get(name), means, settings)
    smoothed = {
        name: (_smooth(h.overfitting, settings), _smooth(h.generalisation, settings))
        for name, h in subsets.items()
        if h.overfitting
    }
    median = statistics.median(o * o for o, _ in smoothed.values()) if smoothed else None
    reference = median if published is None else published
    figures = {}
    for name, history in sorted(subsets.items()):
        known, last = name in smoothed, (history.training, history.validation)
        if not known or reference is None:
            figures[name] = SubsetFigures(False, name in fresh, *last)
            continue
        o, g = smoothed[name]
        score = blending_score(o, g, reference, settings)
        figures[name] = SubsetFigures(True, name in fresh, *last, o, g, score, blending_ratio(o, g, settings))
    return BlendingState(MappingProxyType(subsets)), BlendingFigures(MappingProxyType(figures), median)


def _remember(history: SubsetHistory | None, means: LossMeans, settings: BlendingSettings) -> SubsetHistory:
    from_sums = settings.overfitting == "delta-sums"
    if history is None:
        # Counted from the start, the first round's changes are against w(0), which everybody has evaluated.
        if settings.horizon > 0 or not from_sums:
            return SubsetHistory(means.training, means.validation)
        history = SubsetHistory(means.training, means.validation)
    if from_sums:
        change = means.training_delta, means.validation_delta
    else:
        change = means.training - history.training, means.validation - history.validation
    changes = (*history.changes, change)
    training, validation = (math.fsum(parts) for parts in zip(*changes[-settings.horizon :], strict=True))
    changes = changes[1 - settings.horizon :] if settings.horizon > 1 else ()
    if settings.horizon == 0:
        changes = ((training, validation),)
    overfitting = validation - training
    generalisation = abs(validation) if settings.generalisation == "absolute" else max(0.0, -validation)
    keep = settings.window
    return SubsetHistory(
        means.training,
        means.validation,
        (*history.overfitting, overfitting)[-keep:],
        (*history.generalisation, generalisation)[-keep:],
        changes,
    )


def _smooth(values: Sequence[float], settings: BlendingSettings) -> float:
    """Newest last; weights `β^k` from the newest back (0^0 = 1)."""
    latest_first = list(reversed(values[-settings.window :]))
    weights = [settings.smoothing**k for k in range(len(latest_first))]
    return math.fsum(w * x for w, x in zip(weights, latest_first, strict=True)) / math.fsum(weights)


def step_weights(
    scores: Mapping[str, float | None], subsets: Sequence[str], settings: BlendingSettings, round_index: int
) -> dict[str, float]:
    """The step factors `κ v_s` of one institution (METHOD.md, "DGB"); `encoder/m` takes that of `m`,
    `classifier/C` that of `C`.

    Args:
        scores: published `b_s`, finite and at least 0; None or missing where unknown. An institution whose
            combination is below the privacy floor puts its own local score in.
        subsets: `S_i`, its modalities and its combination; one element for a uni-modal institution.
        settings: the plan's.
        round_index: rounds count from 0; before `UNIFORM_ROUNDS`, `v` is uniform.

    Returns:
        The factor of each subset, in the order of `subsets`; 1 each where DGB is off or the institution
        uni-modal.

    Raises:
        BlendingInputError: a score is NaN, infinite or negative.
        ConfigurationError: `subsets` is empty or holds one twice, or the round is negative.
    """
    if not subsets or len(set(subsets)) != len(subsets) or round_index < 0:
        raise ConfigurationError(
            f"step sizes for subsets {list(subsets)} in round {round_index}.",
            remedy="Name each subset of the institution once; rounds count from 0.",
        )
    for name in subsets:
        score = scores.get(name)
        if score is not None and not (math.isfinite(score) and score >= 0):
            raise BlendingInputError(
                f"the published blending score of {name!r} is {score!r}.", remedy="A score is finite and 0 or above."
            )
    if not settings.enabled or len(subsets) == 1:
        return dict.fromkeys(subsets, 1.0)
    count = len(subsets)
    known = {name: b for name in subsets if round_index >= UNIFORM_ROUNDS and (b := scores.get(name)) is not None}
    largest = max(known.values(), default=0.0)
    # Divided by the largest first: a sum of huge scores must not overflow.
    relative = {name: b / largest for name, b in known.items()} if largest > 0 else {}
    total = math.fsum(relative.values())
    kappa = float(count) if settings.kappa == "subsets" else 1.0
    factors = {
        name: kappa * (len(known) / count * relative[name] / total if name in relative else 1.0 / count)
        for name in subsets
    }
    if settings.encoder_times_combination:
        combined = math.prod(factor for name, factor in factors.items() if "+" in name)
        factors = {name: factor if "+" in name else factor * combined for name, factor in factors.items()}
    if settings.clamp:
        factors = {name: min(max(factor, settings.v_min), settings.v_max) for name, factor in factors.items()}
    return factors
