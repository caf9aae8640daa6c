"""Rule 9 where an institution's value is a sum of pieces that other sums hold in part: its patients by combination."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from security.ckks.packing import packs
from security.secure_sum.cohorts import subtracts_below
from security.secure_sum.errors import DifferencingError
from security.secure_sum.spec import Part, Sum
from tests.security.secure_sum.adversary import Adversary
from tests.security.secure_sum.harness import make_attempt, part
from tests.security.secure_sum.lies import COLLUDER, SIX, reads_only_agreed, ready
from tests.security.secure_sum.refusals import refuses

pytestmark = pytest.mark.usefixtures("graph")


def counted(name: str, **pieces: tuple[str, ...]) -> Part:
    """Over all six; of those who are named, only these pieces."""
    named = frozenset(f"{who}/{piece}" for who, own in pieces.items() for piece in own)
    return replace(part(name, SIX, quantity="patients"), pieces=named)


def several(count: int, *own: str) -> dict[str, tuple[str, ...]]:
    return dict.fromkeys(SIX[:count], own)


def rank_falls(cohorts: list[frozenset[str]], k_min: int) -> bool:
    """By the definition, over the rationals: without some k_min − 1 institutions the matrix has a smaller rank."""
    pieces = sorted(frozenset().union(*cohorts))
    matrix = np.array([[piece in row for piece in pieces] for row in cohorts], np.float64)
    owners = np.array([piece.partition("/")[0] for piece in pieces])
    rank = np.linalg.matrix_rank(matrix)
    return any(
        np.linalg.matrix_rank(matrix[:, ~np.isin(owners, few)]) < rank
        for size in range(1, k_min)
        for few in combinations(sorted(set(owners)), size)
    )


class TestRule9PiecesOfOneInstitution:
    @pytest.mark.parametrize("how_many", [1, 2])
    def test_a_sum_less_the_same_sum_without_one_s_second_piece_stays_shut(self, how_many: int) -> None:
        """Patients with mrna, and patients with images, over the same six: of few alone the two numbers differ."""
        parts = (counted("mrna", **several(how_many, "both", "alone")), counted("image", **several(how_many, "both")))
        world = ready(make_attempt(SIX, sums=[Sum("A", parts)]))
        assert set(world.whole_sum("A")) == {"mrna"}
        reads_only_agreed(world, Adversary(world, {COLLUDER}).hear(world.openings["A"]), [("A", "mrna")])

    def test_where_enough_have_the_piece_both_open(self) -> None:
        parts = (counted("mrna", **several(3, "both", "alone")), counted("image", **several(3, "both")))
        assert set(ready(make_attempt(SIX, sums=[Sum("A", parts)])).whole_sum("A")) == {"mrna", "image"}

    def test_a_dropout_of_one_who_has_it_shuts_the_second(self) -> None:
        parts = (counted("mrna", **several(3, "both", "alone")), counted("image", **several(3, "both")))
        assert set(ready(make_attempt(SIX, sums=[Sum("A", parts)])).whole_sum("A", SIX[1:])) == {"mrna"}

    def test_two_sums_of_a_round_that_differ_by_one_s_piece_are_not_both_signed(self) -> None:
        one, other = counted("mrna", **several(1, "both", "alone")), counted("image", **several(1, "both"))
        world = ready(make_attempt(SIX, sums=[Sum("A", (one,)), Sum("B", (other,))]))
        world.whole_sum("A")
        payload = world.upload_all("B")
        for name in SIX:
            refuses(DifferencingError, world[name].sign, payload)

    def test_encrypted_parts_of_other_pieces_are_no_pack(self) -> None:
        """Those of one pack open together or not at all."""
        one, other = counted("mrna", **several(1, "both", "alone")), counted("image", **several(1, "both"))
        assert len(packs([one, other])) == 2
        assert len(packs([one, replace(one, name="again")])) == 1

    @settings(max_examples=200, deadline=None)
    @given(
        st.lists(
            st.frozensets(
                st.sampled_from([f"{who}{piece}" for who in "abcde" for piece in ("", "/x", "/y")]), min_size=1
            ),
            min_size=1,
            max_size=5,
        ),
        st.integers(2, 4),
    )
    def test_the_check_is_the_rank_of_the_pieces_without_any_few_institutions(
        self, cohorts: list[frozenset[str]], k_min: int
    ) -> None:
        found = subtracts_below(k_min, cohorts)
        # Modulo 2 more combinations vanish than over the rationals: the check is the stricter one.
        if rank_falls(cohorts, k_min):
            assert found is not None
        if found is None:
            assert not rank_falls(cohorts, k_min)
