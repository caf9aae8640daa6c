"""A run's way to the ledger: neither the plan's epsilon nor the institution's limit is passed."""

from __future__ import annotations

from pathlib import Path

import pytest

from institution_node.noise import Charges
from security.privacy.events import LaplaceRelease
from security.privacy.ledger import BudgetExceededError, PrivacyLedger

HALF = LaplaceRelease(0.5)


def test_a_run_spends_no_more_than_its_plan_says_though_the_institution_would_allow_it(tmp_path: Path) -> None:
    with PrivacyLedger(tmp_path / "ledger", limit_epsilon=100.0, delta=1e-5, clock=lambda: 0.0) as ledger:
        charges = Charges(ledger, "one", 1.0)
        charges.spend("counts", 0, HALF)
        charges.spend("losses", 1, HALF)
        with pytest.raises(BudgetExceededError, match="past the limit 1"):
            charges.spend("losses", 2, HALF)
        assert len(ledger.charges) == 2  # nothing was charged
        with pytest.raises(BudgetExceededError):
            Charges(ledger, "one", 1.0).spend("losses", 2, HALF)  # nor does a restart forget
        Charges(ledger, "two", 1.0).spend("counts", 0, HALF)  # another run has its own plan


def test_the_institutions_limit_holds_over_all_runs(tmp_path: Path) -> None:
    with PrivacyLedger(tmp_path / "ledger", limit_epsilon=0.8, delta=1e-5, clock=lambda: 0.0) as ledger:
        Charges(ledger, "one", 5.0).spend("counts", 0, HALF)
        with pytest.raises(BudgetExceededError, match=r"limit 0\.8"):
            Charges(ledger, "two", 5.0).spend("counts", 0, HALF)
        assert len(ledger.charges) == 1
