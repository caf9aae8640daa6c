"""Names of combinations, components and subsets: the only place that joins or splits them.

A *combination* is the set of modalities that patients have, written in the plan's modality order and joined by `+`. A
*component* is a part of the model: `encoder/mrna` or `classifier/mrna+image`. A *subset* is what DGB scores: a
single modality or a combination (METHOD.md, "Objects").
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from security.errors import ConfigurationError

NAME_PATTERN: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


def check_name(name: str, what: str) -> str:
    """Returns `name` if it is a legal institution, modality or run name.

    Raises:
        ConfigurationError: the name has characters that a file name, a certificate or a metric label cannot carry.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise ConfigurationError(
            f"{what} {name!r} is not a legal name.",
            remedy="Use 1 to 63 lower-case letters, digits, '-' and '_', beginning with a letter or digit.",
        )
    return name


def combination(modalities: Iterable[str], order: Sequence[str]) -> str:
    """The canonical name of a set of modalities: the plan's `order`, joined by `+`.

    Raises:
        ConfigurationError: a modality is not in `order`, or the set is empty.
    """
    wanted = set(modalities)
    unknown = sorted(wanted - set(order))
    if unknown or not wanted:
        raise ConfigurationError(
            f"unknown modality {unknown[0]!r}." if unknown else "an empty set of modalities has no name.",
            remedy=f"Use one or more of: {', '.join(order)}.",
        )
    return "+".join(m for m in order if m in wanted)


def modalities_of(name: str) -> tuple[str, ...]:
    """The modalities of a combination or subset, in order: `"mrna+image"` gives `("mrna", "image")`."""
    return tuple(name.split("+"))


def largest_within(held: Collection[str], combinations: Iterable[str]) -> str | None:
    """The largest of some combinations whose modalities are all in `held`, of equal ones the first; None: there is
    none. What a patient with these modalities counts as, at an institution with these combinations.
    """
    fitting = [c for c in combinations if set(modalities_of(c)) <= set(held)]
    return max(fitting, key=lambda c: len(modalities_of(c)), default=None)


def encoder(modality: str) -> str:
    """The component that encodes one modality."""
    return f"encoder/{modality}"


def classifier(subset: str) -> str:
    """The component that classifies one combination (or, for a single modality, its head)."""
    return f"classifier/{subset}"


def component_kind(component: str) -> str:
    """`"encoder"` or `"classifier"`."""
    return component.partition("/")[0]


def component_subset(component: str) -> str:
    """The subset whose DGB weight scales this component: `encoder/mrna` gives `mrna`."""
    return component.partition("/")[2]
