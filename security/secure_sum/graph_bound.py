"""How many neighbours the circle needs (rule 10): from the wanted certainty and the dropouts to be stood.

Privacy does not hang on this bound: institutions check the graph that they got, and a part that would fall apart stays
shut. The bound says how rarely that happens. All of it is exact arithmetic; the only slack is the union over events.

Let m institutions sit in a circle in an order that nobody chose, d of them vanish without regard to the order, and
k = 2w. Any k places hold `H(m, d, k)` survivors, hypergeometric.

- The survivors fall apart, whichever c of them collude, only if two separate windows of w places hold at most c
  survivors together (`graph.Circle.holds`). There are m(m − k − 1)/2 such pairs of windows, of k places each pair.
- A secret is lost only if fewer than s of its owner's k shareholders survive; there are m owners, and where the owner
  itself survives, the d who vanish are among the m − 1 others.

Bell et al. 2020, "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead", take the same union over the
isolated sets of a random Harary graph; here it is over windows, which is all that can isolate a set of a circle.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from math import ceil, comb
from typing import Final

from security.errors import ConfigurationError
from security.secure_sum.graph import MAX_COMPLETE_GRAPH, SparseGraph

DROPOUT: Final = Fraction(1, 3)
"""Part of the cohort that may vanish."""
SECURITY_BITS: Final = 40
"""σ: a graph fails with probability at most 2^−σ."""


@lru_cache(maxsize=64)
def neighbours_for(
    institutions: int,
    max_colluders: int,
    dropout: Fraction = DROPOUT,
    security_bits: int = SECURITY_BITS,
    complete_up_to: int = MAX_COMPLETE_GRAPH,
) -> SparseGraph:
    """The smallest graph that, with `dropout` of the institutions gone, opens with probability 1 − 2^−σ.

    Half of 2^−σ goes to the masks, half to the shares. The share threshold is the largest that the shares' half allows.

    Args:
        institutions: of the roster, from `complete_up_to` + 1 on. The dropouts are rounded up: an attempt
            of m fewer of them, whose ⌊m · dropout⌋ are never a larger part, is within the bound too (`TestBound`).
        max_colluders: institutions that may collude with the coordinator.
        dropout: part that may vanish, from 0 to below 1.
        security_bits: σ.
        complete_up_to: parts with at most so many contributors are masked over their complete graph.

    Raises:
        ConfigurationError: no number of neighbours does.
    """
    gone = ceil(institutions * dropout)
    for neighbours in range(2 * (max_colluders // 2 + 1), institutions - 1, 2):
        if torn_probability(institutions, gone, neighbours, max_colluders) * 2 ** (security_bits + 1) > 1:
            continue
        threshold = _largest_threshold(institutions, gone, neighbours, security_bits + 1)
        if threshold > max(1, max_colluders):
            return SparseGraph(neighbours, threshold, complete_up_to)
    raise ConfigurationError(
        f"no mask graph of {institutions} institutions stands {gone} dropouts and {max_colluders} colluders.",
        remedy="Lower max_colluders or graph_dropout, or leave the graph complete.",
    )


def torn_probability(institutions: int, gone: int, neighbours: int, max_colluders: int) -> Fraction:
    """At most how likely the survivors' mask graph can be torn by `max_colluders` of them."""
    pairs = Fraction(institutions * max(0, institutions - neighbours - 1), 2)
    return min(Fraction(1), pairs * at_most(max_colluders, institutions, gone, neighbours))


def lost_probability(institutions: int, gone: int, neighbours: int, share_threshold: int) -> Fraction:
    """At most how likely some institution has fewer than `share_threshold` living shareholders."""
    return min(Fraction(1), institutions * at_most(share_threshold - 1, institutions - 1, gone, neighbours))


def at_most(survivors: int, institutions: int, gone: int, places: int) -> Fraction:
    """The probability that `places` given places of `institutions` hold at most `survivors` who are not `gone`."""
    alive = institutions - gone
    ways = sum(
        comb(alive, there) * comb(gone, places - there) for there in range(min(survivors, places) + 1) if survivors >= 0
    )
    return Fraction(ways, comb(institutions, places))


def _largest_threshold(institutions: int, gone: int, neighbours: int, bits: int) -> int:
    threshold = 0
    while threshold < neighbours and lost_probability(institutions, gone, neighbours, threshold + 1) * 2**bits <= 1:
        threshold += 1
    return threshold
