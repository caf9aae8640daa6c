"""What a run of generating nodes must come to, computed in the clear: survivors from the records, all else again."""

from __future__ import annotations

import numpy as np

from federation.content_hash import content_digest
from federation.fixed_point import ModelEncoding, encode_update, encode_weight, mean_trajectory
from federation.layout import layout
from federation.plan import Plan
from federation.rounds import Cohorts
from federation.server_optimisers import apply
from federation.settings import optimiser_settings
from tests.processes.generating_node import generated_update
from tests.processes.local import Bench, alive, records_of, states_of


def check_sums(bench: Bench, run: bytes, plan: Plan) -> int:
    """Every opened sum of updates is the plaintext fixed-point sum of its survivors, bit for bit, and so is the model.

    The words of the last round are compared themselves; those of earlier rounds, which are not kept, by the digest of
    the model that follows from them.

    Returns:
        How many rounds were compared.
    """
    committed = bench.committed(run)
    records, states = records_of(committed), states_of(committed)
    setup = states[0].setup
    assert setup is not None
    cohorts, secure = Cohorts(plan), plan.secure_sum
    patients = {name: bench.noised_patients(run, name) for name in setup.institutions}
    owners = cohorts.summed(setup)
    content = bench.state / "content" / run.hex()
    made = layout(plan, {plan.modalities[0].name: len(plan.modalities[0].columns)})
    weights = {c: made.components[c].initial(plan.seed).copy() for c in owners}
    words_digests: set[str] = set()
    rounds = [r for r in sorted(records) if r > 0]
    for number in rounds:
        survivors = alive(records[number], "updates")
        words_digests.clear()
        for component, members in owners.items():
            w = weights[component]
            encoding = ModelEncoding(secure.clip, secure.headroom, len(members))
            cohort = cohorts.name_of(component, cohorts.shared[component].owners)
            assert cohort is not None
            total, weight = np.zeros(w.size + 1, np.uint32), np.empty(w.size, np.uint32)
            for name in sorted(survivors & members):
                alpha = patients[name] / setup.patients[cohort]
                delta = generated_update(name, component, w)
                encode_update(delta, alpha, encoding, weight)
                total[:-1] += weight
                total[-1] += np.uint32(encode_weight(alpha, encoding))
            words_digests.add(content_digest(total.tobytes()))
            mean = np.empty(w.size, np.float32)
            mean_trajectory(total[:-1].copy(), int(total[-1]), encoding, mean)
            apply(optimiser_settings(plan), w, mean, {})
            published = states[number].components[component].weights
            assert content_digest(w.tobytes()) == published, (number, component)
    for found in words_digests:
        assert (content / found).is_file()
    return len(rounds)
