"""Real processes of this machine: started with a log each, waited for, and ended by whoever started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from security.errors import ConsiliumError

POLL_SECONDS = 0.05


class ProcessFailedError(ConsiliumError):
    """A process of the local federation ended, or did not get ready in time. `place` is its log."""

    code = "process-failed"


class LocalProcess:
    """One process.

    Args:
        name: for messages.
        arguments: of `python -m`.
        log: file that takes what it prints, appended.
        environment: added to ours.
    """

    def __init__(
        self, name: str, arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name, self.log = name, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            # The arguments are this program's own modules and files it just wrote.
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,  # a Ctrl-C on the terminal ends the demo, which then ends them in order
            )

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def wait(self, seconds: float) -> int:
        """Waits for the end; returns the exit code.

        Raises:
            ProcessFailedError: it goes on.
        """
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise ProcessFailedError(f"{self.name} has not ended in {seconds:.0f} s.", place=str(self.log)) from None

    def wait_for(self, ready: Path, seconds: float) -> None:
        """Waits until the process has written `ready`.

        Raises:
            ProcessFailedError: it ended first, or the time is over.
        """
        end = time.monotonic() + seconds
        while not ready.exists():
            if not self.running or time.monotonic() > end:
                what = "ended" if not self.running else f"is not ready after {seconds:.0f} s"
                raise ProcessFailedError(
                    f"{self.name} {what}:\n{self.tail()}", remedy="Read its log.", place=str(self.log)
                )
            time.sleep(POLL_SECONDS)

    def tail(self, lines: int = 12) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def kill(self) -> None:
        """Ends it at once, as a power cut would; waits until it is gone."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self, seconds: float = 10.0) -> None:
        """Asks it to end, and makes it end if it does not."""
        if self.running:
            self._process.terminate()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
