"""`consilium-node check`: everything that a node needs, tried one after the other, each with what to mend."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from federation import plan_check, subgroups
from federation.plan import Plan, digest
from institution_node.config import NodeConfig
from institution_node.encoder_kinds import kinds_of, load_encoders
from institution_node.grpc_channel import probe
from institution_node.grpc_link import GrpcLink
from institution_node.policy import NodeIdentity, Policy, PolicyRefusal, load_policy
from institution_node.service import identity_in, load_patients, node_randomness, tls_files
from security.certificates import Identity, identity_of
from security.errors import ConsiliumError
from security.tls import TlsMaterial, load

_SOON_DAYS: Final = 30


@dataclass(frozen=True)
class Finding:
    """One line of the check.

    Attributes:
        subject: what was tried.
        good: whether it will do; None: it could not be tried.
        text: what was found.
        remedy: what to do, where it is not good.
    """

    subject: str
    good: bool | None
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        word = {True: "OK", False: "WRONG", None: "NOT TRIED"}[self.good]
        line = f"{word:<10} {self.subject}: {self.text}"
        return f"{line}\n{'':<10} remedy: {self.remedy}" if self.remedy else line


def check_node(
    config: NodeConfig, plan: Plan | None = None, seen: Callable[[Plan], None] = lambda plan: None
) -> Iterator[Finding]:
    """Tries everything; what depends on something that failed is left out, and said so.

    Args:
        config: from node.toml.
        plan: the plan to check data and policy against; the one that the coordinator offers by default.
        seen: given the plan, whichever it is, before it is held against policy and data.

    Returns:
        Findings as they come. Counts of patients are in them: for this screen alone.
    """
    yield _state(config.state)
    now = datetime.now(UTC)
    material, own = None, None
    try:
        material = load(tls_files(config), now)
        own = identity_in(config, material.identity)
    except ConsiliumError as error:
        yield _wrong("certificate", error)
    else:
        yield _validity("certificate", material.identity, now)
    policy = None
    try:
        policy = load_policy(config.policy)
        policy.check_randomness(node_randomness(config.testing.seed, config.institution))
    except ConsiliumError as error:
        yield _wrong("policy", error)
    else:
        yield _policy(policy)
    offered: bytes | None = None
    if material is None or own is None:
        yield Finding("coordinator", None, "only a node with a certificate that is right may call.")
    else:
        try:
            offered = yield from _coordinator(config, material, now)
        except ConsiliumError as error:
            yield _wrong("coordinator", error)
    if plan is None and offered:
        try:
            plan = Plan.from_bytes(offered)
            plan_check.check(plan)
        except ConsiliumError as error:
            yield _wrong("plan", error)
            return
    if plan is None:
        why = "the coordinator was not reached" if offered is None else "the coordinator offers none now"
        yield Finding("plan", None, f"{why}; give the file of one with --plan.")
        yield Finding("data", None, "a plan says which columns are needed.")
        return
    seen(plan)
    if policy is not None and own is not None:
        yield from _plan(plan, policy, own)
        if own.institution in plan.roster and kinds_of(plan, own.institution):
            yield _encoders(plan, policy, own.institution)
    yield _data(config, plan)


def _state(folder: Path) -> Finding:
    if not folder.exists():
        parent = next(each for each in folder.absolute().parents if each.exists())
        if os.access(parent, os.W_OK | os.X_OK):
            return Finding("state", True, f"{folder} will be made at the first start.")
        return Finding("state", False, f"{folder} is not there.", f"Make it, writable for this user: {folder}")
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        return Finding("state", False, f"{folder} cannot be written.", "Give this user the folder.")
    if folder.stat().st_mode & 0o077:
        return Finding(
            "state",
            False,
            f"others may look into {folder}: private parts of models rest there.",
            f"Run `chmod 700 {folder}`.",
        )
    return Finding("state", True, f"{folder}")


def _validity(subject: str, identity: Identity, now: datetime) -> Finding:
    days = (identity.not_after - now).days
    text = f"{identity.uri}, until {identity.not_after:%Y-%m-%d} ({days} days)"
    if days < _SOON_DAYS:
        return Finding(subject, True, f"{text}; renew it soon with `consilium pki issue --renew`")
    return Finding(subject, True, text)


def _policy(policy: Policy) -> Finding:
    count = len(policy.accepted_plans)
    accepted = {0: "no plan accepted yet", 1: "1 plan accepted"}.get(count, f"{count} plans accepted")
    epsilon = f", largest ε {policy.epsilon_max:g}" if policy.epsilon_max is not None else ""
    public = "; the data is marked PUBLIC" if policy.data_is_public else ""
    return Finding(
        "policy", True, f"{accepted}; sums over at least {policy.smallest_sum} institutions{epsilon}{public}"
    )


def _coordinator(config: NodeConfig, material: TlsMaterial, now: datetime) -> Generator[Finding, None, bytes]:
    address = config.coordinator
    peer = identity_of(probe(address, tls_files(config), material, now))
    yield Finding("coordinator", True, f"{address} is {peer.uri}, over TLS 1.3, until {peer.not_after:%Y-%m-%d}")
    # Neither TLS 1.3 nor the protocol tells the other side's time; certificates do, roughly.
    yield Finding(
        "clock",
        True,
        f"{now:%Y-%m-%d %H:%M:%S} UTC lies within both certificates; no finer check can be made, compare with a watch",
    )
    link = GrpcLink(address, tls_files(config), attempts=1)
    try:
        plan = link.invitation()
    finally:
        link.close()
    yield Finding("calls", True, "the coordinator answers this institution")
    return plan


def _plan(plan: Plan, policy: Policy, own: NodeIdentity) -> Iterator[Finding]:
    run = digest(plan.to_bytes())
    broken = policy.refusals(plan, run, own)
    for refusal in broken:
        yield _refused(refusal, policy, run)
    if not broken:
        yield Finding("plan", True, f"{plan.run} ({run.hex()}), {plan.data} data, would be accepted")


def _refused(refusal: PolicyRefusal, policy: Policy, run: bytes) -> Finding:
    remedy = refusal.remedy
    if refusal.rule == "accepted_plans":
        listed = ", ".join(f'"{each}"' for each in (*policy.accepted_plans, run.hex()))
        remedy = (
            "Read it with `consilium-node check --describe`; to accept it, policy.toml must have this line:\n"
            f"accepted_plans = [{listed}]"
        )
    return Finding("plan", False, f"{refusal.message} (rule {refusal.rule})", remedy)


def _encoders(plan: Plan, policy: Policy, institution: str) -> Finding:
    """Of other kinds: whether what is installed and allowed is what the plan declares."""
    kinds = kinds_of(plan, institution)
    try:
        encoders = load_encoders(kinds, policy.allow_encoders)
        from institution_node.own_encoder import check_encoders  # torch

        check_encoders(plan, institution, encoders)
    except ConsiliumError as error:
        return _wrong("encoders", error)
    return Finding("encoders", True, f"{', '.join(kinds)}: installed, allowed, and as the plan declares")


def _data(config: NodeConfig, plan: Plan) -> Finding:
    try:
        data = load_patients(config, plan)
    except ConsiliumError as error:
        return _wrong("data", error)
    counts = Counter(data.labels.tolist())
    classes = ", ".join(f"{name} {counts[k]}" for k, name in enumerate(plan.class_names))
    having, groups = " + ".join(data.tables), ""
    if data.combinations:
        having = ", ".join(f"{c} {n}" for c, n in sorted(Counter(data.combinations).items()))
    for name, places in data.subgroups.items():
        named = subgroups.groups_of(subgroups.attribute_of(plan, name))
        sizes = ", ".join(f"{group} {int((places == k).sum())}" for k, group in enumerate(named))
        groups += f"; by {name}: {sizes}"
    return Finding("data", True, f"{len(data)} patients with {having} and a label (only shown here): {classes}{groups}")


def _wrong(subject: str, error: ConsiliumError) -> Finding:
    place = f"{error.place}: " if error.place else ""
    return Finding(subject, False, f"{place}{error.message}", error.remedy or "See the documentation of this file.")
