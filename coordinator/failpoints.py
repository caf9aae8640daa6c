"""Named places where a test kills the coordinator, as `kill -9` would, to see it come back.

`CONSILIUM_FAILPOINT=name`, `name/round` or `name/round/sum` arms one, only where `CONSILIUM_TESTING=1`. Everywhere else
a failpoint costs a look at the environment and does nothing.
"""

from __future__ import annotations

import os
import signal
from typing import Final

from security.errors import ConfigurationError

VARIABLE: Final = "CONSILIUM_FAILPOINT"
TESTING: Final = "CONSILIUM_TESTING"

POINTS: Final = (
    "after-attempt-begun",  # durable, and nobody has heard of it
    "after-keys",
    "after-shares",
    "in-upload",  # the first chunk of an upload is spooled
    "before-list-shown",  # round 0 only
    "after-list-shown",
    "after-uploads",  # the survivor list is about to be shown
    "before-list-signed",
    "after-list-signed",  # first durable point
    "after-openings",  # enough shares are here, nothing is unmasked
    "after-fold",  # the sum is content, and no point says so
    "before-sum-folded",  # updates only
    "after-sum-folded",  # the uploads are about to be deleted, the next model is to be made
    "before-sum-opened",
    "after-sum-opened",  # second durable point
    "before-commit",
    "after-commit",  # third durable point
)


class FailpointError(ConfigurationError):
    """The armed failpoint does not exist."""

    code = "failpoint"


def armed() -> tuple[str, ...]:
    """The armed point with its round and sum, as far as they are named; empty: none.

    Raises:
        FailpointError: it is not one of `POINTS`.
    """
    if os.environ.get(TESTING) != "1" or not os.environ.get(VARIABLE):
        return ()
    parts = tuple(os.environ[VARIABLE].split("/"))
    if parts[0] not in POINTS or len(parts) > 3:
        raise FailpointError(
            f"there is no failpoint {os.environ[VARIABLE]!r}.",
            remedy=f"Write name, name/round or name/round/sum, with one of: {', '.join(POINTS)}.",
            place=VARIABLE,
        )
    return parts


def hit(point: str, round_number: int, sum_name: str = "") -> None:
    """Ends this process at once if `point` is armed for this round and sum."""
    wanted = armed()
    if wanted and wanted == (point, str(round_number), sum_name)[: len(wanted)]:
        os.kill(os.getpid(), signal.SIGKILL)
