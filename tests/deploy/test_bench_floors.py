"""The bench's floors: bytes of a round by hand, and against what a real run of the machines moves."""

from __future__ import annotations

import pytest

from deploy.bench import default_cases, many_cases
from deploy.bench_floors import (
    ComponentLoad,
    Rates,
    RoundBytes,
    component_bytes,
    floors,
    keystream_bytes,
    largest_floor,
    loads_of,
    owned_parameters,
    ratio_to_floor,
    round_bytes,
)
from deploy.bench_plan import COLUMNS, MODALITY, bench_plan
from deploy.bench_rows import Case
from federation.plan_check import find_problems
from security.signing import public_key_text
from tests.plans import example_identity

RATES = Rates(keystream=10.0, tls=2.0, hash=4.0, write=1.0, read=20.0)


def test_bytes_of_a_round_by_hand() -> None:
    load = ComponentLoad(parameters=9, owners=3)  # 40 bytes a vector, 36 a model
    assert component_bytes(load) == RoundBytes(
        keystream=3 * 3 * 40 + 3 * 40,  # each masks with two others and itself; the coordinator takes three off
        sent=3 * 40 + 3 * 40,
        hashed=2 * 3 * 40 + 40 + 3 * 40 + 4 * 36,
        written=3 * 40 + 40 + 36,
        read=3 * 40 + 40 + 36 + 3 * 40,
    )


def test_a_dropout_takes_an_upload_and_gives_the_coordinator_its_pairwise_masks() -> None:
    load = ComponentLoad(parameters=9, owners=3, gone=1)
    assert keystream_bytes(load) == (2 * 3 + 2 + 2) * 40
    assert component_bytes(load).sent == 2 * 40 + 3 * 40


def test_a_sparse_graph_expands_a_keystream_a_neighbour() -> None:
    load = ComponentLoad(parameters=9, owners=101, gone=30, neighbours=20)
    assert keystream_bytes(load) == round(71 * 21 * 40 + 71 * 40 + 30 * 20 * 71 / 100 * 40)


def test_without_masks_nothing_is_expanded_and_all_else_stays() -> None:
    masked, plain = (component_bytes(ComponentLoad(9, 3, masked=m)) for m in (True, False))
    assert plain.keystream == 0
    assert (plain.sent, plain.hashed, plain.written, plain.read) == (
        masked.sent,
        masked.hashed,
        masked.written,
        masked.read,
    )


def test_half_words_halve_what_travels_and_optimiser_state_rests_in_full() -> None:
    load = ComponentLoad(parameters=9, owners=3, word_bytes=2, slots=2)
    assert (load.vector, load.model) == (20, 3 * 36)


def test_in_memory_nothing_is_sent_or_stored() -> None:
    made = component_bytes(ComponentLoad(9, 3), "memory")
    assert (made.sent, made.written, made.read) == (0, 0, 0)
    assert made.hashed == component_bytes(ComponentLoad(9, 3)).hashed


def test_a_model_that_rests_in_files_is_read_and_written_by_every_owner() -> None:
    small, large = (component_bytes(ComponentLoad(9, 3, filed=f)) for f in (False, True))
    assert (large.written - small.written, large.read - small.read) == (3 * 36, 3 * 36)


def test_state_that_passes_by_is_sent_and_hashed_and_neither_read_nor_written_at_a_node() -> None:
    resting, passing = (component_bytes(ComponentLoad(9, 3, slots=2, filed=True, passing=p)) for p in (0, 1))
    assert passing.sent - resting.sent == passing.hashed - resting.hashed == 3 * 36
    assert resting.written - passing.written == 3 * 36
    assert passing.read == resting.read  # by the coordinator instead
    assert component_bytes(ComponentLoad(9, 3, slots=2, passing=1)) == component_bytes(ComponentLoad(9, 3, slots=2))


def test_the_loads_of_a_plan_are_its_summed_components() -> None:
    keys = {f"node-{k + 1}": public_key_text(example_identity(k).public) for k in range(4)}
    for backend in ("masks", "none"):
        plan = bench_plan(keys, Case(4, 20_000_000, backend), 2, "bench")
        encoder, classifier = loads_of(plan, {MODALITY: COLUMNS}, ["node-1"])
        assert (encoder.owners, encoder.gone, encoder.masked) == (4, 1, backend == "masks")
        assert encoder.parameters == pytest.approx(20_000_000, rel=0.01)
        assert (encoder.filed, classifier.filed) == (True, False)
        assert owned_parameters([encoder, classifier]) == 4 * (encoder.parameters + classifier.parameters)


@pytest.mark.parametrize("case", [Case(9, 10_000_000, fraction=0.1), *default_cases(), *many_cases()], ids=str)
def test_the_plan_of_every_case_may_run(case: Case) -> None:
    keys = {f"node-{k + 1}": public_key_text(example_identity(k).public) for k in range(case.institutions)}
    assert find_problems(bench_plan(keys, case, 2, "bench")) == ()


def test_of_a_thinned_component_only_what_is_sent_travels() -> None:
    keys = {f"node-{k + 1}": public_key_text(example_identity(k).public) for k in range(4)}
    whole, tenth, half = (
        loads_of(bench_plan(keys, case, 2, "bench"), {MODALITY: COLUMNS})[0]
        for case in (Case(4, 1_000_000), Case(4, 1_000_000, fraction=0.1), Case(4, 1_000_000, word_bits=16))
    )
    assert tenth.vector == pytest.approx(whole.vector / 10, rel=0.01)
    assert half.vector == pytest.approx(whole.vector / 2, rel=0.01)
    assert tenth.model == half.model == whole.model
    assert owned_parameters([tenth]) == owned_parameters([whole])


def test_ciphertexts_take_the_place_of_masks_and_go_on_to_whoever_decrypts() -> None:
    load = ComponentLoad(9, 3, gone=1, ciphertext=61_952)
    made = component_bytes(load)
    assert made.keystream == 0
    assert made.sent == 2 * 61_952 + 2 * 61_952 + 3 * 40
    assert made.hashed == 3 * 2 * 61_952 + 40 + 3 * 40 + 4 * 36
    keys = {f"node-{k + 1}": public_key_text(example_identity(k).public) for k in range(4)}
    encoder, _ = loads_of(bench_plan(keys, Case(4, 100_000, "ckks"), 2, "bench"), {MODALITY: COLUMNS})
    assert encoder.ciphertext == pytest.approx(30.4 * encoder.parameters, rel=0.01)


def test_components_add_up() -> None:
    one, two = ComponentLoad(9, 3), ComponentLoad(99, 6)
    assert round_bytes([one, two]) == component_bytes(one) + component_bytes(two)


def test_floors_and_the_largest_of_them() -> None:
    work = RoundBytes(keystream=100, sent=30, hashed=40, written=8, read=100)
    assert floors(work, RATES) == {"keystream": 10.0, "tls": 15.0, "hash": 10.0, "disk": 13.0}
    assert largest_floor(work, RATES) == ("tls", 15.0)
    assert ratio_to_floor(45.0, work, RATES) == 3.0


def test_no_bytes_no_floor() -> None:
    with pytest.raises(ValueError, match="no floor"):
        ratio_to_floor(1.0, RoundBytes(), RATES)
