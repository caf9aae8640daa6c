"""What `consilium` asks of a coordinator, over real mTLS: all of it, however much."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deploy.operator_link import OperatorLink
from federation.plan import digest
from security.tls import TlsFiles
from tests.coordinator.serving import AUTHORITY, OPERATOR, Serving
from tests.plans import example_plan

PLAN = example_plan(5)
RUN = digest(PLAN.to_bytes())


@pytest.fixture
def link(serving: Serving, tmp_path: Path) -> Iterator[OperatorLink]:
    own = tmp_path / "operator"
    own.mkdir()
    files = TlsFiles(own / "certificate.pem", own / "key.pem", own / "ca.pem")
    files.key.touch(0o600)
    files.key.write_bytes(OPERATOR.key.to_pem())
    files.certificate.write_bytes(OPERATOR.certificate)
    files.authority.write_bytes(AUTHORITY[1])
    with OperatorLink(f"localhost:{serving.port}", files, datetime.now(UTC)) as made:
        yield made


@pytest.mark.parametrize("rounds", [0, 1, 120])
def test_all_records_come_while_the_run_goes_on(serving: Serving, link: OperatorLink, rounds: int) -> None:
    assert link.start(PLAN.to_bytes()) == RUN
    records = [json.dumps({"round": number}) for number in range(rounds)]
    live = serving.do(serving.hub.live(RUN))
    live.records.extend(records)
    assert len(link.status(RUN).records) == min(rounds, 50)  # one message has no more
    assert link.records(RUN) == records
