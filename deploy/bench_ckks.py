"""What an encrypted sum costs: processor seconds and bytes of each party, its machines driven in one process."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

import numpy as np

from federation.layout import layout
from federation.rounds import STATISTICS, Cohorts, Setup
from security.ckks.aggregator import make_aggregator
from security.ckks.encoding import ciphertext_bytes
from security.ckks.keys import holders
from security.ckks.member import make_member
from security.ckks.messages import content_hash
from security.ckks.packing import encrypted
from security.privacy.randomness import SystemRandomness
from security.secure_sum.fold import fold
from security.secure_sum.spec import Attempt, Context, Part, Sum
from security.secure_sum.upload import ArrayWords
from security.signing import IdentityKey, public_key_text
from studies.paper_plan import INSTITUTIONS, paper_plan

_SUM = "updates"


@dataclass(frozen=True)
class CkksRow:
    """One encrypted sum of one part of 32-bit words, nobody dropping out.

    Attributes:
        institutions: who contribute.
        parameters: words of the part.
        wall_seconds: keys to opened sum, one party after the other.
        cpu_key: processor seconds of who makes the key, for its pair and its seals.
        cpu_institution: of one institution, from its vector to its upload's last byte.
        cpu_decryptor: of each of the two who decrypt: hashes, fold, decryption, decoding.
        bytes_up_per_parameter: of one institution's upload.
        bytes_down_per_parameter: of what each of the two fetches.
        key_bytes: of the message that brings the key, to each institution.
    """

    institutions: int
    parameters: int
    wall_seconds: float
    cpu_key: float
    cpu_institution: float
    cpu_decryptor: float
    bytes_up_per_parameter: float
    bytes_down_per_parameter: float
    key_bytes: int


def ckks_row(institutions: int, parameters: int) -> CkksRow:
    """Measures one encrypted sum, and holds it against the plain one.

    Args:
        institutions: 3 to 100.
        parameters: 1 to 1,000,000; every upload is held in memory.
    """
    names = [f"institution-{k}" for k in range(institutions)]
    identities = {name: IdentityKey.generate() for name in names}
    part = Part("encoder/bench", 32, parameters, frozenset(names))
    attempt = Attempt(
        Context("bench", b"\0" * 32, 1, 1, b"\0" * 32),
        {name: key.public for name, key in identities.items()},
        threshold=(institutions + 3) // 2,
        max_colluders=1,
        k_min=3,
        sums=(encrypted(Sum(_SUM, (part,))),),
    )
    randomness = SystemRandomness()
    members = {name: make_member(attempt, name, identities[name], randomness) for name in names}
    machine = make_aggregator(attempt)
    vectors = {k: np.random.default_rng(k).integers(0, 2**32, parameters, dtype=np.uint32) for k in range(institutions)}
    began = time.perf_counter()
    for member in members.values():
        machine.take_keys(member.make_keys())
    machine.close_keys()
    relayed = list(machine.keys.values())
    spent: dict[str, float] = {}
    for name, member in members.items():
        start = time.process_time()
        dealt = member.deal(relayed)
        spent[name] = time.process_time() - start
        machine.take_shares(name, dealt.values(), member.encryption_key)
    machine.close_shares()
    machine.begin_sum(b"")
    uploads: dict[str, bytes] = {}
    cpu_institution = 0.0
    for k, (name, member) in enumerate(members.items()):
        member.accept(sorted(machine.cohort), machine.shares_for(name), machine.encryption_key)
        member.enter(_SUM, b"")
        start = time.process_time()
        upload = member.mask({part.name: ArrayWords(vectors[k])})
        data = b"".join(upload.chunks())
        cpu_institution += (time.process_time() - start) / institutions
        machine.take_header(upload.header)
        machine.complete_upload(name)
        uploads[content_hash(data).hex()] = data
    listed = machine.close_uploads()
    for member in members.values():
        machine.take_signature(member.sign(listed))
    machine.decide()
    maker, asked, cpu_decryptor = holders(attempt, names)[0], machine.asked(), 0.0
    for name in asked:
        start = time.process_time()
        opening = members[name].open(list(machine.current.signatures.values()), lambda digest, _: uploads[digest])
        cpu_decryptor += (time.process_time() - start) / len(asked)
        machine.take_opening(opening)
    opened: list[bytes] = []
    (found,) = machine.unmask()
    fold(found, {}, lambda chunk: opened.append(bytes(chunk)))
    wall = time.perf_counter() - began
    if b"".join(opened) != np.sum(list(vectors.values()), axis=0, dtype=np.uint32).tobytes():
        raise AssertionError("the encrypted sum is not the plain one")
    assert machine.encryption_key is not None
    others = [seconds for name, seconds in spent.items() if name != maker]
    sent = sum(map(len, uploads.values()))
    return CkksRow(
        institutions,
        parameters,
        wall,
        spent[maker] - sum(others) / len(others),
        cpu_institution,
        cpu_decryptor,
        sent / institutions / parameters,
        sent / parameters,
        len(machine.encryption_key.payload),
    )


@dataclass(frozen=True)
class PackedSum:
    """An encrypted sum of the paper's nine institutions, by what its plan fixes.

    Attributes:
        name: of the sum.
        parts: of it.
        bytes_each: of the upload of whoever uploads most, if no two parts shared a ciphertext.
        bytes_packed: of that upload as it is.
        fetched_each: of all uploads, which each of the two who decrypt fetches, if no two parts shared a ciphertext.
        fetched_packed: of all uploads as they are.
    """

    name: str
    parts: int
    bytes_each: int
    bytes_packed: int
    fetched_each: int
    fetched_packed: int


def packed_sum(name: str) -> PackedSum:
    """The bytes of one sum of a training round, all of it encrypted.

    Args:
        name: `updates` or `statistics`.
    """
    keys = {i: public_key_text(IdentityKey.generate().public) for i in INSTITUTIONS}
    plan = paper_plan(keys, 1)
    cohorts = Cohorts(plan)
    made = layout(plan, {m.name: m.widest_input for m in plan.modalities})
    setup = Setup("", dict.fromkeys(cohorts.patients, 0), frozenset(plan.roster))
    sizes = {component: made.components[component].size for component in cohorts.summed(setup)}
    which = encrypted(next(s for s in cohorts.training_sums(sizes, setup, 1) if s.name == name))
    each, packed = Counter[str](), Counter[str]()
    for part in which.parts:
        each.update(dict.fromkeys(part.contributors, ciphertext_bytes(part)))
        packed.update(dict.fromkeys(part.contributors, part.sent_bytes))
    return PackedSum(name, len(which.parts), max(each.values()), max(packed.values()), each.total(), packed.total())


if __name__ == "__main__":
    print(packed_sum(STATISTICS))  # noqa: T201 - a script's output
    for size in (10_000, 100_000, 1_000_000):
        print(ckks_row(9, size))  # noqa: T201 - a script's output
