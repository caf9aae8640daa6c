"""Between a pydantic model and the protobuf message with the same field names."""

from __future__ import annotations

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet
from pydantic import BaseModel

from federation.plan_problems import SAME_RELEASE, Path, Problem


def fill(message: Message, table: BaseModel) -> None:
    """Copies a model into a message whose fields have the same names; a table is written even if all zero."""
    for field in message.DESCRIPTOR.fields:
        value = getattr(table, field.name)
        if field.message_type is None:
            if field.is_repeated:
                getattr(message, field.name).extend(value)
            else:
                setattr(message, field.name, value)
        elif field.is_repeated:
            for item in value:
                fill(getattr(message, field.name).add(), item)
        else:
            part = getattr(message, field.name)
            part.SetInParent()  # always present, so that an absent table is an error and never a default
            fill(part, value)


def plain(message: Message, path: Path, problems: list[Problem]) -> dict[str, object]:
    """A message as nested dicts and tuples; absent tables and unknown fields are appended to `problems`."""
    unknown = UnknownFieldSet(message)
    for i in range(len(unknown)):
        problems.append(Problem(path, f"unknown field number {unknown[i].field_number}.", SAME_RELEASE))
    values: dict[str, object] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        here = (*path, field.name)
        if field.message_type is None:
            values[field.name] = tuple(value) if field.is_repeated else value
        elif field.is_repeated:
            values[field.name] = tuple(plain(item, (*here, i), problems) for i, item in enumerate(value))
        elif message.HasField(field.name):
            values[field.name] = plain(value, here, problems)
        else:
            problems.append(Problem(here, "this table is missing.", SAME_RELEASE))
    return values
