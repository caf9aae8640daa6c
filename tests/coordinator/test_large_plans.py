"""Plans larger than one message may be, from an operator's own link to a node's, over real mTLS."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from threading import Event

import pytest

from deploy.operator_link import OperatorCallError, OperatorLink
from federation import plan_check
from federation.plan import MAX_BYTES, Column, Modality, Plan, digest
from federation.settings_files import Address
from institution_node.grpc_link import GrpcLink
from security.tls import TlsFiles
from tests.coordinator.serving import AUTHORITY, OPERATOR, Pass, Serving, institution
from tests.plans import example_plan

GENES = 20_531
"""Of the paper's mRNA table. Their names are made so long that the plan does not fit into one message."""


def of_twenty_thousand_columns() -> bytes:
    small = example_plan(5)
    names = (f"{i:06}-{'x' * 190}" for i in range(GENES))
    genes = tuple(Column(name=name, low=0.0, high=1e6, transform="log1p") for name in names)
    wide = Modality(name="mrna", columns=genes, hidden=(8,))
    return example_plan(5, modalities=(wide, *small.modalities[1:])).to_bytes()


def files(shown: Pass, folder: Path) -> TlsFiles:
    folder.mkdir()
    found = TlsFiles(folder / "certificate.pem", folder / "key.pem", folder / "ca.pem")
    found.key.touch(0o600)
    found.key.write_bytes(shown.key.to_pem())
    found.certificate.write_bytes(shown.certificate)
    found.authority.write_bytes(AUTHORITY[1])
    return found


@pytest.fixture
def operator(serving: Serving, tmp_path: Path) -> OperatorLink:
    return OperatorLink(f"localhost:{serving.port}", files(OPERATOR, tmp_path / "operator"), datetime.now(UTC))


def test_a_plan_of_twenty_thousand_columns_starts_and_is_fetched_and_accepted(
    serving: Serving, operator: OperatorLink, tmp_path: Path
) -> None:
    sent = of_twenty_thousand_columns()
    assert len(sent) > 4 << 20
    with operator:
        assert operator.start(sent) == digest(sent)
        assert [(run.rounds, run.data) for run in operator.runs()] == [(3, "synthetic")]
    node = files(institution("brca-1", 0), tmp_path / "node")
    link = GrpcLink(Address("localhost", serving.port), node, stop=Event(), attempts=1)
    fetched = link.invitation()
    assert fetched == sent
    assert link.invitation() is fetched  # not sent twice
    plan = Plan.from_bytes(fetched)
    plan_check.check(plan)
    assert len(plan.modalities[0].columns) == GENES
    assert link.enrol(digest(fetched), "") == ""
    link.close()


def test_a_plan_beyond_the_limit_is_refused_with_the_limit_and_starts_nothing(
    serving: Serving, operator: OperatorLink
) -> None:
    with operator, pytest.raises(OperatorCallError, match="more than 32 MiB"):
        operator.start(bytes(MAX_BYTES + 1))
    assert serving.refusals("plan") == 1
    assert serving.hub.store.runs() == ()
