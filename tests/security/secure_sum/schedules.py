"""Whole attempts with a schedule of absences: how they end, and how they must end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from security.errors import ConsiliumError
from tests.security.secure_sum.harness import Absences, World


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: what opened, by sum and part, and the error that stopped it."""

    opened: dict[str, dict[str, bytes]]
    error: ConsiliumError | None
    stopped_at: str


def run(world: World, absent: Absences = (), threads: int = 2) -> Outcome:
    """Drives an attempt to its end with institutions that miss steps; whoever can still take part comes back.

    The first error that the aggregator raises ends the attempt and is returned, never swallowed.
    """
    missing = set(absent)

    def here(step: str, names: Iterable[str]) -> list[str]:
        return [n for n in names if (n, step) not in missing]

    opened: dict[str, dict[str, bytes]] = {}
    step = "keys"
    try:
        relayed = world.send_keys(here("keys", world.members))
        step = "reveals"
        world.reveal(relayed, here("reveals", world.aggregator.keys))
        step = "shares"
        world.deal(relayed, here("shares", world.aggregator.members))
        step = "accept"
        accepted = here("accept", sorted(world.aggregator.cohort))
        world.accept(accepted)
        for s in world.attempt.sums:
            step = f"{s.name}/upload"
            world.enter(s.name, accepted)
            for name in world.deliveries(n for n in accepted if world[n].uploads):
                if (name, step) in missing:  # cut off in the middle: announced, never complete
                    world.aggregator.take_header(world.mask(s.name, name).header)
                else:
                    world.upload(s.name, name)
            world.lists[s.name] = world.aggregator.close_uploads()
            step = f"{s.name}/sign"
            signers = here(step, accepted)
            openers = here(f"{s.name}/open", signers)
            world.sign_and_open(s.name, signers, openers)
            step = f"{s.name}/open"
            opened[s.name] = world.finish_sum(s.name, threads)
    except ConsiliumError as error:
        return Outcome(opened, error, step)
    return Outcome(opened, None, "done")


def predicted(world: World, absent: Absences) -> tuple[dict[str, frozenset[str]], str]:
    """Who survives each sum that opens, and the step at which the attempt ends, from the rules alone."""
    missing, attempt = set(absent), world.attempt
    t, k = attempt.threshold, attempt.k_min
    keyed = {n for n in attempt.roster if (n, "keys") not in missing}
    if len(keyed) < t:
        return {}, "keys"
    if attempt.sparse is not None:
        keyed = {n for n in keyed if (n, "reveals") not in missing}
        if len(keyed) < t:
            return {}, "reveals"
    cohort = {n for n in keyed if (n, "shares") not in missing}
    if len(cohort) < t:
        return {}, "shares"
    there = {n for n in cohort if (n, "accept") not in missing}
    alive: dict[str, frozenset[str]] = {}
    for s in attempt.sums:
        uploading = [p for p in s.parts if len(p.contributors & cohort) >= k]
        lives = frozenset(
            n for n in there if (n, f"{s.name}/upload") not in missing and any(n in p.contributors for p in uploading)
        )
        here = [(p, p.contributors & cohort, p.contributors & lives) for p in uploading]
        opened = [p for p, masked, left in here if len(left) >= k and world.tied(masked, left)]
        if not opened:
            return alive, f"{s.name}/upload"
        signers = {n for n in there if (n, f"{s.name}/sign") not in missing}
        if len(signers) < t:
            return alive, f"{s.name}/sign"
        openers = {n for n in signers if (n, f"{s.name}/open") not in missing}
        if attempt.sparse is None:
            enough = len(openers) >= t
        else:
            graph = world.aggregator.graph
            assert graph is not None
            enough = all(
                len(openers & set(graph.shareholders(victim))) >= attempt.share_threshold
                for p in opened
                for victim in p.contributors & cohort
            )
        if not enough:
            return alive, f"{s.name}/open"
        alive[s.name] = lives
    return alive, "done"
