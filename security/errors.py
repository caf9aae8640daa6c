"""The one root of every error that Consilium raises on purpose.

An error says three things: what is wrong (`message`), where (`place`), and what to do (`remedy`). Only `code` and the
names in `culprits` may travel over the wire (DESIGN.md, "What a node shows"): messages can carry values.
"""

from __future__ import annotations

from typing import ClassVar


class ConsiliumError(Exception):
    """Something that a user, a peer or the environment did wrong, told with its remedy.

    Args:
        message: what is wrong, one sentence.
        remedy: what the reader can do about it, one sentence.
        place: file, line, field or message where it was found; empty when it is plain from the message.
        culprits: names of the institutions that provably caused it; empty when nobody can be named.
    """

    code: ClassVar[str] = "consilium"

    def __init__(self, message: str, *, remedy: str = "", place: str = "", culprits: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.place = place
        self.culprits = culprits

    def __str__(self) -> str:
        text = f"{self.place}: {self.message}" if self.place else self.message
        return f"{text} Remedy: {self.remedy}" if self.remedy else text


class ConfigurationError(ConsiliumError):
    """A configuration, argument or file of the reader's own is wrong."""

    code = "configuration"


class ProtocolError(ConsiliumError):
    """A peer sent something that the protocol forbids. Nothing changed here."""

    code = "protocol"


class LocalMisuseError(ConsiliumError):
    """Our own caller asked for a step that the state machine does not allow now. Nothing changed."""

    code = "local-misuse"
