"""What a run's published model must be: the plaintext mean of the fixed-point vectors of whoever survived."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from federation.fixed_point import ModelEncoding, ModelWords, encode_weight, mean_trajectory
from federation.server_optimisers import apply, initial_value, state_slots
from federation.settings import model_encoding, optimiser_settings, thinning
from federation.thinning import BLOCK, RUN
from tests.small_federation import Encoded, SmallFederation


def alive(federation: SmallFederation, round_: int, sum_name: str) -> list[str]:
    """Survivors of a sum, by the coordinator's record."""
    record = next(r for r in map(json.loads, federation.run.records()) if r["round"] == round_)
    return list(record["sums"][sum_name]["alive"])


def plaintext_words(
    kept: Encoded, name: str, how: ModelEncoding, positions: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """α·δ in fixed point as it was masked, of the parameters that were sent; all but a stochastic rounding follows from
    δ and α."""
    sent = kept.words[name][: -how.weight_words].view(f"i{how.bits // 8}").astype(np.int64)
    update = np.append(kept.updates[name], np.zeros(RUN, np.float32))[positions]
    fine = np.rint(update.astype(np.float64) * (kept.alphas[name] * how.scale * how.fine))
    assert np.all(np.abs(sent * how.fine - fine) < how.fine)
    return sent


def plaintext(federation: SmallFederation, rounds: int) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """w and the server optimiser's state of every summed component, from the institutions' own δ and α."""
    plan, run = federation.plan, federation.run
    optimiser = optimiser_settings(plan)
    made = next(w._prepared for w in federation.works.values() if w._prepared is not None).layout
    assert made is not None
    owners = run.cohorts.summed(run.state.setup)
    weights = {name: made.components[name].initial(plan.seed) for name in owners}
    slots = {
        name: {s: np.full(len(w), initial_value(optimiser, s), np.float32) for s in state_slots(optimiser.kind)}
        for name, w in weights.items()
    }
    for number in range(1, rounds + 1):
        here = alive(federation, number, "updates")
        for name, cohort in owners.items():
            how = model_encoding(plan, len(cohort))
            survivors = [i for i in here if i in cohort]
            uploaded = [i for i in survivors if name in federation.recorded[i][number, "updates"].words]
            if len(uploaded) < plan.secure_sum.k_min:
                continue
            size = len(weights[name])
            chosen = thinning(plan, run.id, number, name, size)
            blocks = [block * BLOCK + chosen.positions(block) for block in range(-(-size // BLOCK))]
            positions = np.arange(size) if chosen.whole else np.concatenate(blocks)
            total, weight = np.zeros(len(positions), np.int64), 0
            for i in uploaded:
                kept = federation.recorded[i][number, "updates"]
                total += plaintext_words(kept, name, how, positions)
                weight += encode_weight(kept.alphas[name], how)
            ring: ModelWords = total.astype(how.word_type)  # type: ignore[assignment]  # of one type or the other
            mean = mean_trajectory(ring, weight, how, np.empty(len(positions), np.float32))
            inside = positions < size
            moved, states = weights[name][positions[inside]], {s: v[positions[inside]] for s, v in slots[name].items()}
            apply(optimiser, moved, mean[inside], states)
            weights[name][positions[inside]] = moved
            for slot, values in states.items():
                slots[name][slot][positions[inside]] = values
    return weights, slots


def check_model(federation: SmallFederation, rounds: int) -> None:
    weights, slots = plaintext(federation, rounds)
    components = federation.run.state.components
    assert set(components) == set(weights)
    for name, expected in weights.items():
        assert np.array_equal(federation.weights(name).view(np.uint32), expected.view(np.uint32)), name
        for slot, values in slots[name].items():
            published = federation.content(components[name].slots[slot], np.float32)
            assert np.array_equal(published.view(np.uint32), values.view(np.uint32)), (name, slot)
