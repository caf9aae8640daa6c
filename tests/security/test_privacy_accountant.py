"""Events and what they add up to."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from security.privacy.accountant import Accountant, epsilon, would_spend
from security.privacy.events import (
    GaussianRelease,
    LaplaceRelease,
    PrivacyEvent,
    PrivacyEventError,
    SampledGaussian,
    event_from_json,
    event_to_json,
)

DELTA = 1e-5

events = st.one_of(
    st.builds(GaussianRelease, st.sampled_from([0.5, 1.0, 4.0, 100.0]), st.integers(1, 50)),
    st.builds(
        SampledGaussian, st.sampled_from([0.7, 1.1, 3.0]), st.sampled_from([0.001, 0.05, 1.0]), st.integers(1, 5000)
    ),
    st.builds(LaplaceRelease, st.sampled_from([1e-4, 0.02, 0.2, 1.0, 8.0])),
)


def test_gaussian_releases_agree_with_the_closed_form_of_renyi_accounting() -> None:
    # alpha / (2 sigma²) per release, converted by proposition 12 of Canonne, Kamath, Steinke 2020, minimised finely.
    sigma, count = 4.0, 7
    alpha = np.linspace(1.01, 300, 200_000)
    rho = alpha * count / (2 * sigma**2)
    best = np.min(rho + np.log1p(-1 / alpha) - (np.log(DELTA) + np.log(alpha)) / (alpha - 1))
    ours = epsilon([GaussianRelease(sigma, count)], DELTA)
    assert best <= ours <= best * 1.001
    assert ours == epsilon([GaussianRelease(sigma)] * count, DELTA)


def test_sampled_training_agrees_with_dp_accounting_and_is_no_less_than_the_tight_figure() -> None:
    step = dp_accounting.PoissonSampledDpEvent(0.02, dp_accounting.GaussianDpEvent(1.1))
    whole = dp_accounting.SelfComposedDpEvent(step, 400)
    ours = epsilon([SampledGaussian(1.1, 0.02, 400)], DELTA)
    assert ours == pytest.approx(RdpAccountant().compose(whole).get_epsilon(DELTA))
    tight = PLDAccountant().compose(whole).get_epsilon(DELTA)
    assert tight <= ours <= 1.2 * tight


def test_an_order_that_the_library_leaves_out_alarms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    assert epsilon([SampledGaussian(1.1, 0.0801, 400)], DELTA) > 10  # at this rate it leaves out three orders
    assert caplog.records == []


def test_a_batch_of_everybody_is_no_sampling() -> None:
    assert epsilon([SampledGaussian(2.0, 1.0, 3)], DELTA) == epsilon([GaussianRelease(2.0, 3)], DELTA)


def test_one_pure_release_costs_its_epsilon() -> None:
    assert epsilon([LaplaceRelease(0.2)], DELTA) == pytest.approx(0.2)
    assert epsilon([LaplaceRelease(0.2)] * 3, 1e-12) == pytest.approx(0.6)


@pytest.mark.parametrize("count", [50, 400, 3000])
def test_many_discrete_laplace_counts_are_not_cheaper_than_they_really_are(count: int) -> None:
    # The loss of a discrete Laplace count is +e or -e: a binomial, so delta at any epsilon is an exact sum.
    each = 0.1
    ours = epsilon([LaplaceRelease(each)] * count, DELTA)
    assert ours < count * each
    up = 1 / (1 + math.exp(-each))
    k = np.arange(count + 1)
    loss = (2 * k - count) * each
    log_chance = (
        np.array([math.lgamma(count + 1) - math.lgamma(i + 1) - math.lgamma(count - i + 1) for i in k])
        + k * math.log(up)
        + (count - k) * math.log1p(-up)
    )

    def exact_delta(at: float) -> float:
        return float(np.sum(np.exp(log_chance) * np.maximum(0.0, -np.expm1(np.minimum(at - loss, 700.0)))))

    assert exact_delta(ours) <= DELTA
    assert exact_delta(ours * 0.8) > DELTA  # and not absurdly dearer


def test_the_pure_curve_is_that_of_randomised_response_and_above_continuous_laplace() -> None:
    from security.privacy.accountant import _orders, _pure_curve

    orders = np.asarray(_orders())
    for each in (0.02, 0.5, 3.0):
        p, q = 1 / (1 + math.exp(-each)), 1 / (1 + math.exp(each))
        some = [1.5, 2.0, 5.0, 16.0]
        for alpha in some:
            exact = math.log(p**alpha * q ** (1 - alpha) + q**alpha * p ** (1 - alpha)) / (alpha - 1)
            assert _pure_curve(each)[list(orders).index(alpha)] == pytest.approx(exact, rel=1e-9)
        continuous = RdpAccountant(list(orders)).compose(dp_accounting.LaplaceDpEvent(1 / each)).rdp
        assert np.all(_pure_curve(each) >= continuous)


def test_a_mixture_takes_the_better_of_the_two_bounds() -> None:
    counts: list[PrivacyEvent] = [LaplaceRelease(0.02)]
    noise: list[PrivacyEvent] = [SampledGaussian(1.0, 0.05, 1000)]
    mixed = epsilon(counts + noise, DELTA)
    assert epsilon(noise, DELTA) < mixed <= epsilon(noise, DELTA) + 0.02
    assert epsilon(counts * 2000 + noise, DELTA) < epsilon(noise, DELTA) + 2000 * 0.02 * 0.5


def test_nothing_costs_nothing() -> None:
    assert epsilon([], DELTA) == 0.0


@settings(max_examples=60, deadline=None)
@given(st.lists(events, max_size=6), events, st.sampled_from([1e-3, 1e-5, 1e-9]))
def test_another_release_never_makes_it_less_and_order_does_not_matter(
    before: list[PrivacyEvent], new: PrivacyEvent, delta: float
) -> None:
    start, end = epsilon(before, delta), would_spend(before, new, delta)
    assert 0.0 <= start <= end
    assert end <= start + epsilon([new], delta / 2) + epsilon(before, delta / 2)
    assert epsilon([new, *reversed(before)], delta) == pytest.approx(end)
    assert epsilon([*before, new], delta / 10) >= end


def test_a_copy_goes_its_own_way() -> None:
    first = Accountant([GaussianRelease(2.0), LaplaceRelease(0.1)])
    second = first.copy()
    second.add(GaussianRelease(1.0))
    second.add(LaplaceRelease(0.1))
    assert first.epsilon(DELTA) == epsilon([GaussianRelease(2.0), LaplaceRelease(0.1)], DELTA)
    assert second.epsilon(DELTA) > first.epsilon(DELTA)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0, math.nan])
def test_a_delta_out_of_range_is_refused(delta: float) -> None:
    with pytest.raises(ValueError, match="delta"):
        epsilon([LaplaceRelease(1.0)], delta)


@given(events)
def test_events_survive_json_exactly(event: PrivacyEvent) -> None:
    assert event_from_json(json.loads(json.dumps(event_to_json(event)))) == event


@pytest.mark.parametrize(
    "record",
    [
        None,
        [],
        {},
        {"kind": "poisson"},
        {"kind": ["gaussian"]},
        {"kind": "gaussian", "noise_multiplier": 1.0},
        {"kind": "gaussian", "noise_multiplier": 1.0, "count": 1, "more": 0},
        {"kind": "gaussian", "noise_multiplier": "1", "count": 1},
        {"kind": "laplace", "epsilon": -0.1},
    ],
)
def test_a_foreign_record_is_refused(record: object) -> None:
    with pytest.raises(PrivacyEventError) as caught:
        event_from_json(record)
    assert caught.value.code == "privacy-event"
    assert caught.value.remedy


@pytest.mark.parametrize("noise", [0.0, -1.0, 1e-4, 1e7, math.nan, math.inf, True, "1"])
def test_noise_out_of_range_is_refused(noise: float) -> None:
    with pytest.raises(PrivacyEventError, match="noise_multiplier"):
        GaussianRelease(noise)
    with pytest.raises(PrivacyEventError, match="noise_multiplier"):
        SampledGaussian(noise, 0.1, 1)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, math.nan])
def test_a_sampling_rate_out_of_range_is_refused(rate: float) -> None:
    with pytest.raises(PrivacyEventError, match="sampling_rate"):
        SampledGaussian(1.0, rate, 1)


@pytest.mark.parametrize("count", [0, -1, 1.5, True, 10**10])
def test_a_count_out_of_range_is_refused(count: int) -> None:
    with pytest.raises(PrivacyEventError, match="count"):
        GaussianRelease(1.0, count)
    with pytest.raises(PrivacyEventError, match="steps"):
        SampledGaussian(1.0, 0.1, count)


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan, 1e7])
def test_a_pure_epsilon_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(PrivacyEventError, match="epsilon"):
        LaplaceRelease(value)


def test_events_read_as_sentences() -> None:
    assert "3 values" in GaussianRelease(2.0, 3).sentence()
    assert "1 training step on random batches of 2.000%" in SampledGaussian(1.1, 0.02, 1).sentence()
    assert "epsilon 0.2" in LaplaceRelease(0.2).sentence()


def test_the_slow_accounting_library_is_imported_only_when_something_is_counted() -> None:
    code = (
        "import sys, security.privacy.ledger as ledger, security.privacy.mechanisms\n"
        "assert not {'dp_accounting', 'scipy', 'torch'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
