"""Rule 9: nothing below the floor, neither directly nor as a combination of sums."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from security.errors import ConfigurationError
from security.secure_sum.cohorts import CohortHistory, check_no_differencing, subtracts_below
from security.secure_sum.errors import (
    BelowFloorError,
    DifferencingError,
    TooFewMembersError,
)
from security.secure_sum.spec import Part, Sum
from tests.security.secure_sum.adversary import Adversary
from tests.security.secure_sum.harness import NAMES, World, make_attempt, part
from tests.security.secure_sum.lies import (
    COLLUDER,
    HONEST,
    SIX,
    reads_only_agreed,
    ready,
)
from tests.security.secure_sum.refusals import refuses

pytestmark = pytest.mark.usefixtures("graph")


class TestRule9FloorsAndDifferencing:
    def test_a_list_below_the_floor_is_not_signed(self) -> None:
        world = ready()
        world.upload_all("A")
        for alive in ((), ("north",), ("north", COLLUDER)):
            payload = world.list_of("A", alive, [n for n in SIX if n not in alive])
            for name in HONEST:
                refuses(BelowFloorError, world[name].sign, payload)

    def test_the_coordinator_s_machine_does_not_go_on_below_the_floor(self) -> None:
        world = ready()
        world.enter("A", SIX)
        for name in SIX[:2]:
            world.upload("A", name)
        refuses(TooFewMembersError, world.aggregator.close_uploads)

    @pytest.mark.parametrize(("k_min", "colluders"), [(2, 1), (3, 2), (1, 1), (0, 0), (0, 1)])
    def test_floors_that_colluders_can_look_under_are_refused(self, k_min: int, colluders: int) -> None:
        with pytest.raises(ConfigurationError):
            make_attempt(NAMES, k_min=k_min, max_colluders=colluders, threshold=7)

    def test_sums_of_one_round_that_subtract_below_the_floor_are_not_signed(self) -> None:
        """The same quantity over {1…5} in A and over {1…4} in B: their difference is institution 5."""
        sums = [Sum("A", (part("x", SIX, quantity="q"),)), Sum("B", (part("y", SIX[:4], quantity="q"),))]
        world = ready(make_attempt(SIX, sums=sums))
        world.whole_sum("A")
        payload = world.upload_all("B")
        for name in SIX:
            refuses(DifferencingError, world[name].sign, payload)
        other = ready(make_attempt(SIX, sums=[sums[0], Sum("B", (part("y", SIX[:4], quantity="other"),))]))
        other.whole_sum("A")
        assert other.whole_sum("B")

    def test_a_part_that_subtracts_below_the_floor_stays_shut(self) -> None:
        sums = [Sum("A", (part("all", SIX, quantity="q"), part("most", SIX[:4], quantity="q")))]
        world = ready(make_attempt(SIX, sums=sums))
        assert set(world.whole_sum("A")) == {"all"}
        reads_only_agreed(world, Adversary(world, {COLLUDER}).hear(world.openings["A"]), [("A", "all")])

    def test_a_dropout_that_makes_two_cohorts_subtract_shuts_the_second(self) -> None:
        """{1…9} and {1…6} differ by three; with 9 gone by two, below the floor."""
        sums = [Sum("A", (part("all", NAMES, quantity="q"), part("six", NAMES[:6], quantity="q")))]
        assert set(ready(make_attempt(NAMES, sums=sums)).whole_sum("A")) == {"all", "six"}
        assert set(ready(make_attempt(NAMES, sums=sums)).whole_sum("A", NAMES[:8])) == {"all"}

    @pytest.mark.parametrize("vanishes", ["before the upload", "before the list"])
    def test_a_part_that_is_summed_together_opens_for_all_or_nobody(self, vanishes: str) -> None:
        """The same counts over {1…5} in one round and {1…4} in the next: their difference is institution 5."""
        counts = Part("counts", 64, 3, frozenset(SIX), together=True)
        attempt = make_attempt(SIX, sums=[Sum("A", (part("x", SIX), counts))])
        assert set(ready(attempt).whole_sum("A")) == {"x", "counts"}
        if vanishes == "before the list":
            world = ready(attempt)
            assert set(world.whole_sum("A", SIX[:4])) == {"x"}
            reads_only_agreed(world, Adversary(world, {COLLUDER}).hear(world.openings["A"]), [("A", "x")])
            return
        world = World(attempt)
        world.deal(world.send_keys(), SIX[:4])
        world.accept()
        world.enter("A", SIX[:4])
        assert [p.name for p in world["north"].uploads] == ["x"]

    @pytest.mark.parametrize(
        "cohorts",
        [
            ["abcde", "abcd"],  # a total less a part
            ["abcdef", "abc", "de"],
            ["abcdefg", "abc", "def"],  # a total less a disjoint union
            ["abcd", "bcde"],  # overlapping: a − e, and e colludes
            ["abc", "ade", "bcde"],  # the first two less the third are twice a
            ["abcd", "cdef", "efgh", "abghi"],  # a ring, alternating
            ["ab", "cde"],  # one that is below the floor by itself
        ],
    )
    def test_every_combination_below_the_floor_is_found(self, cohorts: list[str]) -> None:
        with pytest.raises(DifferencingError):
            check_no_differencing("q", [frozenset(c) for c in cohorts], 3)

    @pytest.mark.parametrize("cohorts", [["abc"], ["abc", "abc"], ["abcdef", "abc", "def"], ["abcdef", "defghi"], []])
    def test_cohorts_that_combine_to_the_floor_or_more_pass(self, cohorts: list[str]) -> None:
        check_no_differencing("q", [frozenset(c) for c in cohorts], 3)

    def test_more_cohorts_than_can_be_checked_are_refused(self) -> None:
        with pytest.raises(DifferencingError):
            check_no_differencing("q", [frozenset(f"{x}{y}" for y in range(5)) for x in range(13)], 3)

    @settings(max_examples=80, deadline=None)
    @given(
        st.lists(st.frozensets(st.sampled_from("abcdefg"), min_size=2), min_size=1, max_size=4),
        st.integers(2, 4),
    )
    def test_the_check_finds_what_small_coefficients_find(self, cohorts: list[frozenset[str]], k_min: int) -> None:
        """Against the plain meaning: whatever coefficients −2…2 of the sums weigh fewer than `k_min`, is refused."""
        members = sorted(frozenset().union(*cohorts))
        matrix = np.array([[int(m in c) for m in members] for c in cohorts])
        grids = np.stack(np.meshgrid(*[np.arange(-2, 3)] * len(cohorts)), axis=-1).reshape(-1, len(cohorts))
        weights = np.count_nonzero(grids @ matrix, axis=1)
        small = [int(w) for w in weights if 0 < w < k_min]
        found = subtracts_below(k_min, cohorts)
        if small:
            assert found is not None
            assert found <= min(small)

    def test_cohorts_like_a_recent_one_are_noticed(self) -> None:
        history = CohortHistory({}, keep=2).with_opened({"x": frozenset(SIX)})
        assert history.similar({"x": frozenset(SIX)}, 1) == ()
        assert history.similar({"x": frozenset(SIX[:4])}, 1) == ("x",)
        assert history.similar({"x": frozenset((*SIX[:4], "lower"))}, 1) == ("x",)
        assert history.similar({"x": frozenset(SIX[:2])}, 1) == ()
        assert history.similar({"y": frozenset(SIX[:4])}, 1) == ()
        later = history.with_opened({"x": frozenset("abc")}).with_opened({"x": frozenset("def")})
        assert later.similar({"x": frozenset(SIX[:4])}, 1) == ()

    def test_a_cohort_that_is_repeated_does_not_push_another_out_of_memory(self) -> None:
        """With the model held still, five rounds over others would make an institution forget what it opened."""
        history = CohortHistory({}, keep=2).with_opened({"x": frozenset(NAMES)})
        for _ in range(10):
            history = history.with_opened({"x": frozenset(NAMES[:5])})
        assert history.similar({"x": frozenset(NAMES[:-1])}, 1) == ("x",)
        assert history.similar({"x": frozenset(NAMES)}, 1) == ()
        both = history.with_opened({"x": frozenset(NAMES[:-1])}).with_opened({"x": frozenset(NAMES)})
        assert both.similar({"x": frozenset(NAMES[:-1])}, 1) == ()  # said once: it is known by then
