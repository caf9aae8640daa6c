"""The ledger: spend first, release after, over crashes, tampering and two processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from security.errors import ConfigurationError, LocalMisuseError
from security.privacy.accountant import epsilon
from security.privacy.events import GaussianRelease, LaplaceRelease, PrivacyEvent, SampledGaussian
from security.privacy.ledger import (
    BudgetExceededError,
    PrivacyLedger,
    read_charges,
    release_key,
)
from security.privacy.ledger_files import LedgerLockedError, LedgerWriteError
from security.privacy.ledger_format import HEADER, TORN_PURPOSE, LedgerDamagedError

DELTA = 1e-5
EVENTS: tuple[PrivacyEvent, ...] = (
    LaplaceRelease(0.2),
    SampledGaussian(1.1, 0.02, 10),
    GaussianRelease(4.0, 2),
)


def open_ledger(folder: Path, limit: float = 100.0) -> PrivacyLedger:
    return PrivacyLedger(folder / "ledger", limit_epsilon=limit, delta=DELTA, clock=lambda: 1_700_000_000.0)


def put(folder: Path, ledger: bytes, anchor: bytes) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "ledger").write_bytes(ledger)
    (folder / "ledger.anchor").write_bytes(anchor)
    return folder


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[bytes, bytes]]:
    """(ledger, anchor) on disk after 0, 1, 2, 3 returned charges of `EVENTS`."""
    folder = tmp_path_factory.mktemp("history")
    states = []
    with open_ledger(folder) as ledger:
        for number in range(len(EVENTS) + 1):
            states.append(((folder / "ledger").read_bytes(), (folder / "ledger.anchor").read_bytes()))
            if number < len(EVENTS):
                ledger.reserve("update", "run-1", number, EVENTS[number], key=None)
    return states


def test_what_was_charged_is_still_charged_after_a_restart(tmp_path: Path) -> None:
    with open_ledger(tmp_path) as ledger:
        for number, event in enumerate(EVENTS):
            receipt = ledger.reserve("update", "run-1", number, event, key=None)
            assert receipt.epsilon == pytest.approx(epsilon(EVENTS[: number + 1], DELTA))
            assert (receipt.charge.sequence, receipt.repeated) == (number + 1, False)
    with open_ledger(tmp_path) as ledger:
        assert ledger.spent() == pytest.approx((epsilon(EVENTS, DELTA), DELTA))
        assert ledger.left() == pytest.approx(100.0 - epsilon(EVENTS, DELTA))
        assert [c.event for c in ledger.charges] == list(EVENTS)
    assert [c.at for c in read_charges(tmp_path / "ledger")] == [1_700_000_000] * 3


def test_all_files_are_for_the_owner_alone_even_if_somebody_opened_them_up(tmp_path: Path) -> None:
    open_ledger(tmp_path).close()
    (tmp_path / "ledger").chmod(0o644)
    with open_ledger(tmp_path) as ledger:
        ledger.reserve("count", "run-1", 0, LaplaceRelease(0.1), key=None)
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"ledger": 0o600, "ledger.anchor": 0o600, "ledger.lock": 0o600}


def test_a_release_past_the_limit_is_refused_and_leaves_no_trace(tmp_path: Path) -> None:
    with open_ledger(tmp_path, limit=0.5) as ledger:
        ledger.reserve("count", "run-1", 0, LaplaceRelease(0.3), key=None)
        before = (tmp_path / "ledger").read_bytes()
        with pytest.raises(BudgetExceededError) as caught:
            ledger.reserve("count", "run-1", 1, LaplaceRelease(0.3), key=None)
        assert (caught.value.code, caught.value.limit) == ("privacy-budget", 0.5)
        assert (caught.value.spent, caught.value.would_be) == pytest.approx((0.3, 0.6))
        assert (tmp_path / "ledger").read_bytes() == before
        assert ledger.spent()[0] == pytest.approx(0.3)
        ledger.reserve("count", "run-1", 1, LaplaceRelease(0.2), key=None)  # what fits still goes
        assert ledger.left() == pytest.approx(0.0)


def test_a_budget_made_for_a_number_of_releases_holds_exactly_that_many(tmp_path: Path) -> None:
    with open_ledger(tmp_path, limit=0.6) as ledger:
        for number in range(3):
            ledger.reserve("count", "run-1", number, LaplaceRelease(0.2), key=None)
        with pytest.raises(BudgetExceededError):
            ledger.reserve("count", "run-1", 3, LaplaceRelease(1e-6), key=None)


def test_the_limit_may_be_lowered_below_what_is_spent(tmp_path: Path) -> None:
    with open_ledger(tmp_path) as ledger:
        ledger.reserve("count", "run-1", 0, LaplaceRelease(0.3), key="stored")
    with open_ledger(tmp_path, limit=0.1) as ledger:
        assert ledger.spent()[0] == pytest.approx(0.3)
        assert ledger.left() == 0.0
        with pytest.raises(BudgetExceededError):
            ledger.reserve("count", "run-2", 0, LaplaceRelease(1e-6), key=None)
        assert ledger.reserve("count", "run-1", 0, LaplaceRelease(0.3), key="stored").repeated


def test_the_same_stored_release_is_charged_once_and_fresh_noise_every_time(tmp_path: Path) -> None:
    key = release_key(b"noised bytes")
    with open_ledger(tmp_path) as ledger:
        first = ledger.reserve("count", "run-1", 0, LaplaceRelease(0.2), key=key)
    with open_ledger(tmp_path) as ledger:  # the node restarts and sends the same bytes
        again = ledger.reserve("count", "run-1", 0, LaplaceRelease(0.2), key=key)
        assert (again.charge, again.repeated) == (first.charge, True)
        assert again.epsilon == pytest.approx(0.2)
        fresh = release_key(b"noised bytes, drawn anew")
        assert not ledger.reserve("count", "run-1", 0, LaplaceRelease(0.2), key=fresh).repeated
        assert not ledger.reserve("count", "run-1", 0, LaplaceRelease(0.2), key=None).repeated
        assert not ledger.reserve("count", "run-1", 0, LaplaceRelease(0.2), key=None).repeated
        assert ledger.spent()[0] == pytest.approx(0.8)


@pytest.mark.parametrize("other", [("count", "run-1", 1), ("count", "run-2", 0), ("losses", "run-1", 0)])
def test_a_key_stands_for_one_run_round_and_purpose(tmp_path: Path, other: tuple[str, str, int]) -> None:
    with open_ledger(tmp_path) as ledger:
        ledger.reserve("count", "run-1", 0, LaplaceRelease(0.2), key="k")
        assert not ledger.reserve(*other, LaplaceRelease(0.2), key="k").repeated


def test_a_key_cannot_buy_a_costlier_release(tmp_path: Path) -> None:
    with open_ledger(tmp_path) as ledger:
        ledger.reserve("count", "run-1", 0, LaplaceRelease(0.2), key="k")
        with pytest.raises(LocalMisuseError, match="another event"):
            ledger.reserve("count", "run-1", 0, LaplaceRelease(0.4), key="k")


def test_the_caller_must_choose_a_key(tmp_path: Path) -> None:
    with open_ledger(tmp_path) as ledger, pytest.raises(TypeError, match="key"):
        ledger.reserve("count", "run-1", 0, LaplaceRelease(0.2))  # type: ignore[call-arg]  # the point of the test


def test_killed_at_any_byte_of_a_write_it_goes_on_and_never_undercounts(
    tmp_path: Path, history: list[tuple[bytes, bytes]]
) -> None:
    salvaged = 0
    for returned in range(len(EVENTS)):
        (before, anchor), (after, _) = history[returned], history[returned + 1]
        for size in range(len(before), len(after) + 1):
            folder = put(tmp_path / "crashed", after[:size], anchor)
            with open_ledger(folder) as ledger:
                events = [c.event for c in ledger.charges]
                assert events[:returned] == list(EVENTS[:returned])
                assert events in (list(EVENTS[:returned]), list(EVENTS[: returned + 1]))
                salvaged += len(events) > returned
                if size == len(before):
                    assert len(events) == returned
                if size == len(after):
                    assert len(events) == returned + 1
                ledger.reserve("update", "run-1", 9, EVENTS[0], key=None)
            assert len(read_charges(folder / "ledger")) == len(events) + 1
    assert salvaged > 3 * 50  # most of a torn line's bytes come behind its event


def test_a_torn_charge_is_spent_once_its_event_can_be_read(tmp_path: Path, history: list[tuple[bytes, bytes]]) -> None:
    (before, anchor), (after, _) = history[0], history[1]
    event_ends = after.index(b"}", len(before)) + 1
    with open_ledger(put(tmp_path / "a", after[: event_ends - 1], anchor)) as ledger:
        assert ledger.charges == ()
    with open_ledger(put(tmp_path / "b", after[:event_ends], anchor)) as ledger:
        assert [(c.event, c.purpose) for c in ledger.charges] == [(EVENTS[0], TORN_PURPOSE)]
        assert ledger.spent()[0] == pytest.approx(0.2)


def test_a_ledger_cut_anywhere_below_what_was_returned_is_refused(
    tmp_path: Path, history: list[tuple[bytes, bytes]]
) -> None:
    data, anchor = history[-1]
    for size in range(len(data)):
        folder = put(tmp_path / "cut", data[:size], anchor)
        with pytest.raises(LedgerDamagedError) as caught:
            open_ledger(folder)
        assert caught.value.code == "privacy-ledger-damaged"
        assert "backup" in caught.value.remedy
        assert (folder / "ledger").read_bytes() == data[:size]  # nothing was touched


def test_any_changed_byte_is_refused(tmp_path: Path, history: list[tuple[bytes, bytes]]) -> None:
    data, anchor = history[-1]
    for place in range(len(data)):
        changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        with pytest.raises(LedgerDamagedError):
            open_ledger(put(tmp_path / "changed", changed, anchor))


def test_lost_doubled_moved_and_foreign_lines_are_refused(tmp_path: Path, history: list[tuple[bytes, bytes]]) -> None:
    data, anchor = history[-1]
    head, one, two, three = data.splitlines(keepends=True)
    assert head == HEADER
    for lines in ([head, two, three], [head, one, three], [head, one, one, two, three], [head, two, one, three], [one]):
        with pytest.raises(LedgerDamagedError):
            open_ledger(put(tmp_path / "lines", b"".join(lines), anchor))
    for same in (b" " + two, two.replace(b'{"event"', b'{"event": 0, "event"', 1)):  # reads the same, is not the same
        with pytest.raises(LedgerDamagedError, match="line 3"):
            open_ledger(put(tmp_path / "lines", b"".join([head, one, same, three]), anchor))
    cheaper = json.loads(two) | {"event": {"kind": "laplace", "epsilon": 0.001}}
    with pytest.raises(LedgerDamagedError, match="line 3"):
        open_ledger(put(tmp_path / "lines", b"".join([head, one, json.dumps(cheaper).encode() + b"\n", three]), anchor))


def test_an_older_copy_of_the_ledger_alone_is_refused(tmp_path: Path, history: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(LedgerDamagedError, match="confirmed"):
        open_ledger(put(tmp_path / "old", history[1][0], history[3][1]))
    with pytest.raises(LedgerDamagedError, match="confirmed"):  # an old anchor would let the next cut pass
        open_ledger(put(tmp_path / "old", history[3][0], history[1][1]))


@pytest.mark.parametrize("gone", ["ledger", "ledger.anchor"])
@pytest.mark.parametrize("charged", [1, 3])
def test_a_missing_file_is_not_an_empty_ledger(
    tmp_path: Path, history: list[tuple[bytes, bytes]], gone: str, charged: int
) -> None:
    folder = put(tmp_path / "gone", *history[charged])
    (folder / gone).unlink()
    with pytest.raises(LedgerDamagedError, match="gone"):
        open_ledger(folder)
    assert not (folder / gone).exists()


@pytest.mark.parametrize(
    "anchor", [b"", b"{}", b'{"sequence": "x", "checksum": ""}', b"[1]", b'{"sequence": -1, "checksum": ""}']
)
def test_a_broken_anchor_is_refused(tmp_path: Path, history: list[tuple[bytes, bytes]], anchor: bytes) -> None:
    with pytest.raises(LedgerDamagedError):
        open_ledger(put(tmp_path / "anchor", history[-1][0], anchor))


def test_a_second_opener_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    with open_ledger(tmp_path) as ledger:
        with pytest.raises(LedgerLockedError):
            open_ledger(tmp_path)
        ledger.reserve("count", "run-1", 0, LaplaceRelease(0.1), key=None)
        assert len(read_charges(tmp_path / "ledger")) == 1  # looking is allowed
    open_ledger(tmp_path).close()


CHILD = """
import sys
from pathlib import Path
from security.privacy.events import GaussianRelease
from security.privacy.ledger import PrivacyLedger
ledger = PrivacyLedger(Path(sys.argv[1]), limit_epsilon=1e6, delta=1e-5)
print("open", flush=True)
for number in range(100_000):
    ledger.reserve("update", "run-1", number, GaussianRelease(50.0), key=None)
    print(number, flush=True)
"""


@pytest.mark.processes
def test_another_process_is_refused_and_a_killed_one_has_spent_all_that_it_was_told(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "ledger")], cwd=root, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "open\n"
    with pytest.raises(LedgerLockedError):
        open_ledger(tmp_path)
    for _ in range(20):
        child.stdout.readline()
    os.kill(child.pid, signal.SIGKILL)
    told = 20 + len([line for line in child.stdout.read().splitlines() if line.isdigit()])
    child.wait()
    with open_ledger(tmp_path, limit=1e6) as ledger:
        assert told <= len(ledger.charges) <= told + 1


def test_after_a_failed_write_nothing_more_is_released_until_it_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = open_ledger(tmp_path)
    ledger.reserve("count", "run-1", 0, LaplaceRelease(0.1), key=None)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(LedgerWriteError, match="No space"):
            ledger.reserve("count", "run-1", 1, LaplaceRelease(0.1), key=None)
    with pytest.raises(LocalMisuseError):
        ledger.reserve("count", "run-1", 1, LaplaceRelease(0.1), key=None)
    ledger.close()
    with open_ledger(tmp_path) as again:
        assert len(again.charges) == 2  # it had reached the file: it counts as spent


def test_a_closed_ledger_and_malformed_arguments_are_refused(tmp_path: Path) -> None:
    with open_ledger(tmp_path) as ledger:
        for arguments in (("", "run-1", 0), ("count", "a\nb", 0), ("count", "run-1", -1), (TORN_PURPOSE, "run-1", 0)):
            with pytest.raises(LocalMisuseError):
                ledger.reserve(*arguments, LaplaceRelease(0.1), key=None)
        with pytest.raises(LocalMisuseError):
            ledger.reserve("count", "run-1", 0, LaplaceRelease(0.1), key="")
        assert ledger.charges == ()
    ledger.close()
    with pytest.raises(LocalMisuseError):
        ledger.reserve("count", "run-1", 0, LaplaceRelease(0.1), key=None)


@pytest.mark.parametrize(
    ("limit", "delta"), [(-1.0, DELTA), (float("nan"), DELTA), (float("inf"), DELTA), (1.0, 0.0), (1.0, 1.0)]
)
def test_a_policy_without_sense_is_refused(tmp_path: Path, limit: float, delta: float) -> None:
    with pytest.raises(ConfigurationError):
        PrivacyLedger(tmp_path / "ledger", limit_epsilon=limit, delta=delta)


def test_a_missing_folder_and_a_link_get_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(LedgerWriteError):
        open_ledger(tmp_path / "nowhere")
    (tmp_path / "elsewhere").write_bytes(HEADER)
    (tmp_path / "elsewhere").chmod(0o644)
    (tmp_path / "ledger").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LedgerWriteError):
        open_ledger(tmp_path)
    assert (tmp_path / "elsewhere").stat().st_mode & 0o777 == 0o644


charges = st.lists(
    st.tuples(
        st.sampled_from(["count", "update"]),
        st.integers(0, 2),
        st.sampled_from([LaplaceRelease(0.2), LaplaceRelease(0.5), GaussianRelease(5.0), GaussianRelease(2.0, 3)]),
        st.sampled_from([None, "a", "b"]),
        st.booleans(),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(charges, st.floats(0.0, 4.0))
def test_any_history_with_restarts_equals_a_plain_list(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[str, int, PrivacyEvent, str | None, bool]],
    limit: float,
) -> None:
    folder = tmp_path_factory.mktemp("history")
    model: list[tuple[str, int, PrivacyEvent, str | None]] = []
    ledger = open_ledger(folder, limit)
    for purpose, number, event, key, restart in steps:
        if restart:
            ledger.close()
            ledger = open_ledger(folder, limit)
        place = (purpose, number, key)
        same = [entry for entry in model if key is not None and (entry[0], entry[1], entry[3]) == place]
        too_much = epsilon([entry[2] for entry in model] + [event], DELTA) > limit * (1 + 1e-9)
        if same and same[0][2] != event:
            with pytest.raises(LocalMisuseError):
                ledger.reserve(purpose, "run-1", number, event, key=key)
        elif same:
            assert ledger.reserve(purpose, "run-1", number, event, key=key).repeated
        elif too_much:
            with pytest.raises(BudgetExceededError):
                ledger.reserve(purpose, "run-1", number, event, key=key)
        else:
            ledger.reserve(purpose, "run-1", number, event, key=key)
            model.append((purpose, number, event, key))
        assert [c.event for c in ledger.charges] == [entry[2] for entry in model]
        assert ledger.spent()[0] == pytest.approx(epsilon([entry[2] for entry in model], DELTA))
    ledger.close()
