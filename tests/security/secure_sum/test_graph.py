"""The circle, what tears it apart, and how many neighbours it needs: each against the plain meaning on small cases."""

from __future__ import annotations

from collections.abc import Collection
from fractions import Fraction
from itertools import combinations
from math import ceil, floor, log2

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from security.errors import ConfigurationError
from security.secure_sum.graph import MAX_COMPLETE_GRAPH, MAX_ROSTER, Circle, Graph, SparseGraph
from security.secure_sum.graph_bound import (
    SECURITY_BITS,
    at_most,
    lost_probability,
    neighbours_for,
    torn_probability,
)

CASES = [(13, 5, 4, 0), (13, 3, 4, 1), (13, 5, 6, 1), (14, 4, 6, 2)]
"""Institutions, gone, neighbours, colluders: small enough to try every set, with bounds that say something."""


def names(n: int) -> list[str]:
    return [f"clinic {x:04}" for x in range(n)]


def connected(circle: Circle, alive: Collection[str]) -> bool:
    """Whether a walk along the ties reaches everybody."""
    rest = set(alive)
    walk = [rest.pop()] if rest else []
    while walk:
        near = rest.intersection(circle.neighbours(walk.pop()))
        rest -= near
        walk += near
    return not rest


def holds_by_trying(circle: Circle, alive: Collection[str], missing: int) -> bool:
    """Every way to take out up to `missing`, walked through."""
    return all(
        connected(circle, set(alive) - set(out))
        for size in range(min(missing, len(alive)) + 1)
        for out in combinations(sorted(alive), size)
    )


class TestCircle:
    @given(size=st.integers(1, 30), reach=st.integers(1, 12))
    def test_ties_are_mutual_and_as_many_as_the_reach_says(self, size: int, reach: int) -> None:
        circle = Circle(names(size), reach)
        for name in circle.order:
            tied = circle.neighbours(name)
            assert len(set(tied)) == len(tied) == min(size - 1, 2 * reach)
            assert name not in tied
            assert all(name in circle.neighbours(other) for other in tied)

    @settings(max_examples=200, deadline=None)
    @given(data=st.data())
    def test_it_is_known_exactly_what_tears_a_circle(self, data: st.DataObject) -> None:
        size, reach = data.draw(st.integers(1, 16)), data.draw(st.integers(1, 3))
        circle = Circle(names(size), reach)
        alive = data.draw(st.sets(st.sampled_from(circle.order)))
        missing = data.draw(st.integers(0, 2))
        assert circle.holds(alive, missing) == holds_by_trying(circle, alive, missing)

    def test_nobody_outside_the_ring_counts(self) -> None:
        circle = Circle(names(12), 1)
        assert not circle.holds([*circle.order[:3], *circle.order[6:9], "stranger"], 0)

    def test_a_ring_that_is_not_larger_than_its_reach_is_complete(self) -> None:
        assert Circle(names(5), 2).reach is None
        assert Circle(names(6), 2).reach == 2


class TestGraph:
    def test_up_to_the_limit_the_whole_roster_holds_shares_and_everybody_masks_with_everybody(self) -> None:
        roster = names(7)
        graph = Graph(roster, roster[1:], None)
        assert graph.shares == 7
        assert graph.shareholders(roster[2]) == {name: x for x, name in enumerate(roster, start=1) if x > 1}
        assert set(graph.circle(frozenset(roster[1:5])).neighbours(roster[1])) == set(roster[2:5])

    def test_beyond_it_neighbours_do(self) -> None:
        roster = names(20)
        order = roster[::-1]
        graph = Graph(roster, roster, SparseGraph(6, 3, complete_up_to=8), order)
        assert graph.shares == 6
        holders = graph.shareholders(order[0])
        assert set(holders) == {*order[1:4], *order[-3:]}
        assert sorted(holders.values()) == [1, 2, 3, 4, 5, 6]
        assert graph.circle(frozenset(roster[:8])).reach is None
        nine = graph.circle(frozenset(roster[:9]))
        assert nine.order == tuple(name for name in order if name in roster[:9])
        assert nine.reach == 3

    @pytest.mark.parametrize(("neighbours", "threshold"), [(5, 3), (0, 2), (4, 5), (4, 1)])
    def test_sizes_that_cannot_be_are_refused(self, neighbours: int, threshold: int) -> None:
        with pytest.raises(ConfigurationError):
            SparseGraph(neighbours, threshold)


class TestBound:
    @pytest.mark.parametrize(
        ("institutions", "colluders", "neighbours", "share_threshold"),
        [(101, 5, 36, 7), (300, 5, 48, 8), (1000, 5, 54, 8), (101, 1, 28, 2), (300, 1, 36, 3), (1000, 1, 42, 4)],
    )
    def test_the_table_of_the_documentation(
        self, institutions: int, colluders: int, neighbours: int, share_threshold: int
    ) -> None:
        assert neighbours_for(institutions, colluders) == SparseGraph(neighbours, share_threshold)

    @settings(max_examples=40, deadline=None)
    @given(
        institutions=st.integers(MAX_COMPLETE_GRAPH + 1, MAX_ROSTER),
        colluders=st.integers(0, 12),
        bits=st.integers(10, 60),
        tenths=st.integers(0, 4),
    )
    def test_the_graph_is_the_smallest_that_keeps_the_promise(
        self, institutions: int, colluders: int, bits: int, tenths: int
    ) -> None:
        dropout = Fraction(tenths, 10)
        graph, gone = neighbours_for(institutions, colluders, dropout, bits), ceil(institutions * dropout)
        half, threshold = Fraction(1, 2 ** (bits + 1)), graph.share_threshold
        assert threshold > colluders
        assert torn_probability(institutions, gone, graph.neighbours, colluders) <= half
        assert lost_probability(institutions, gone, graph.neighbours, threshold) <= half
        assert (
            threshold == graph.neighbours
            or lost_probability(institutions, gone, graph.neighbours, threshold + 1) > half
        )
        fewer = graph.neighbours - 2
        assert fewer < max(2, colluders) or (
            torn_probability(institutions, gone, fewer, colluders) > half
            or lost_probability(institutions, gone, fewer, max(2, colluders + 1)) > half
        )

    @pytest.mark.parametrize("colluders", [1, 5])
    @pytest.mark.parametrize("institutions", [110, 200, 300, 301])
    def test_an_attempt_of_fewer_institutions_keeps_the_promise(self, institutions: int, colluders: int) -> None:
        graph, half = neighbours_for(institutions, colluders), Fraction(1, 2 ** (SECURITY_BITS + 1))
        for fewer in range((institutions + colluders + 2) // 2, institutions + 1):
            gone = fewer // 3
            assert torn_probability(fewer, gone, graph.neighbours, colluders) <= half
            assert lost_probability(fewer, gone, graph.neighbours, graph.share_threshold) <= half

    @settings(max_examples=60, deadline=None)
    @given(institutions=st.integers(6, 150), colluders=st.integers(0, 3), twentieths=st.integers(1, 10), data=st.data())
    def test_so_it_does_for_every_choice_of_a_plan(
        self, institutions: int, colluders: int, twentieths: int, data: st.DataObject
    ) -> None:
        dropout, bits = Fraction(twentieths, 20), data.draw(st.sampled_from((10, 20, 40, 80)))
        try:
            graph = neighbours_for(institutions, colluders, dropout, bits, complete_up_to=5)
        except ConfigurationError:
            return
        assert graph.complete_up_to == 5
        assert colluders < graph.share_threshold <= graph.neighbours < institutions - 1
        fewer = data.draw(st.integers((institutions + colluders + 2) // 2, institutions))
        gone, half = floor(fewer * dropout), Fraction(1, 2 ** (bits + 1))
        if graph.neighbours < fewer - 1:  # a smaller circle is complete
            assert torn_probability(fewer, gone, graph.neighbours, colluders) <= half
            assert lost_probability(fewer, gone, graph.neighbours, graph.share_threshold) <= half

    @pytest.mark.parametrize(("size", "gone", "neighbours", "colluders"), CASES)
    def test_every_set_of_dropouts_tried_fails_no_more_often_than_the_bound_says(
        self, size: int, gone: int, neighbours: int, colluders: int
    ) -> None:
        circle = Circle(names(size), neighbours // 2)
        torn = lost = tried = 0
        for out in combinations(circle.order, gone):
            alive = set(circle.order) - set(out)
            tried += 1
            torn += not circle.holds(alive, colluders)
            lost += any(len(alive & set(circle.neighbours(name))) < colluders + 1 for name in circle.order)
        assert 0 < Fraction(torn, tried) <= torn_probability(size, gone, neighbours, colluders) < 1
        assert 0 < Fraction(lost, tried) <= lost_probability(size, gone, neighbours, colluders + 1) < 1

    def test_the_bound_is_a_distribution(self) -> None:
        assert at_most(10, 30, 10, 10) == 1
        assert at_most(-1, 30, 10, 10) == 0
        assert log2(at_most(0, 30, 10, 10)) < -20  # all ten places among the ten that are gone

    def test_more_than_can_be_stood_is_refused(self) -> None:
        with pytest.raises(ConfigurationError, match="dropouts"):
            neighbours_for(101, 49, Fraction(1, 2))
