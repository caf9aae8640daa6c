"""From the plan's tables to the settings of the mathematics that takes them."""

from __future__ import annotations

from fractions import Fraction
from typing import Final

from federation.blending import BlendingSettings
from federation.fixed_point import ModelEncoding
from federation.plan import Plan
from federation.proximity import ProximitySettings
from federation.server_optimisers import ServerOptimiserSettings
from federation.thinning import Thinning, thinning_key
from security.secure_sum.graph import SparseGraph
from security.secure_sum.graph_bound import neighbours_for

_LARGEST_DENOMINATOR: Final = 1000


def blending_settings(plan: Plan) -> BlendingSettings:
    """DGB as the plan has it; enabled for the institution-local kind too, which uses the same figures."""
    b = plan.blending
    return BlendingSettings(
        enabled=b.kind != "off",
        kappa=b.kappa,
        smoothing=b.smoothing,
        window=b.window,
        v_min=b.v_min,
        v_max=b.v_max,
        epsilon=b.epsilon,
        epsilon_0=b.epsilon_0,
        generalisation=b.generalisation,
        overfitting=b.overfitting,
        clamp=b.clamp,
        encoder_times_combination=b.encoder_times_combination,
        horizon=b.horizon,
    )


def proximity_settings(plan: Plan) -> ProximitySettings:
    """PCW as the plan has it."""
    return ProximitySettings(plan.proximity.kind, plan.proximity.floor, plan.proximity.bound)


def model_encoding(plan: Plan, contributors: int) -> ModelEncoding:
    """How trajectories of a component become words, as the plan has it.

    Args:
        plan: the plan.
        contributors: the most institutions whose words are added.
    """
    s = plan.secure_sum
    return ModelEncoding(s.clip, s.headroom, contributors, 16 if s.half_words else 32)


def mask_graph(plan: Plan) -> SparseGraph | None:
    """The size of the graph that is drawn for every attempt of the plan; None: it is complete.

    Raises:
        ConfigurationError: no number of neighbours stands the dropouts and colluders that the plan wants stood.
    """
    s, n = plan.secure_sum, len(plan.institutions)
    if n <= s.complete_graph_up_to:
        return None
    return neighbours_for(n, s.max_colluders, graph_dropout(plan), s.graph_failure_bits, s.complete_graph_up_to)


def graph_dropout(plan: Plan) -> Fraction:
    """Part of the institutions that may vanish where the graph is drawn: what is written as 0.1 is a tenth."""
    return Fraction(plan.secure_sum.graph_dropout).limit_denominator(_LARGEST_DENOMINATOR)


def thinning(plan: Plan, run: bytes, round_: int, component: str, size: int) -> Thinning:
    """What is sent of a component in a round.

    Args:
        plan: the plan.
        run: its digest, 32 bytes.
        round_: the round's number.
        component: its name.
        size: parameters of the component.
    """
    return Thinning(size, plan.component(component).fraction, thinning_key(run, round_, component))


def optimiser_settings(plan: Plan) -> ServerOptimiserSettings:
    """The server optimiser as the plan has it."""
    s = plan.server_optimiser
    return ServerOptimiserSettings(s.kind, s.learning_rate, s.momentum, s.beta1, s.beta2, s.tau)
