"""How every command line here shows a user's mistake: two lines and exit code 2, never a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import typer

from security.errors import ConsiliumError

EXIT_CODE: Final = 2


@contextmanager
def user_errors() -> Iterator[None]:
    """Prints a `ConsiliumError`, or a file that cannot be used, to standard error and exits with code 2.

    Use it as `with user_errors():` or as a decorator, `@user_errors()`, under typer's `@app.command()`. Anything else
    is a fault of ours and keeps its traceback.

    Raises:
        SystemExit: code 2, after an error was printed.
    """
    try:
        yield
    except ConsiliumError as error:
        place = f"{error.place}: " if error.place else ""
        fail(f"{place}{error.message}", error.remedy)
    except OSError as error:
        if error.filename is None:  # no file of the user's: a fault of ours
            raise
        fail(f"{error.filename}: {error.strerror}.", "Check the path, and that you may read and write there.")


def fail(message: str, remedy: str = "") -> None:
    """Prints `error:` and `remedy:` lines and leaves with code 2."""
    typer.echo(f"error: {message}", err=True)
    if remedy:
        typer.echo(f"remedy: {remedy}", err=True)
    raise SystemExit(EXIT_CODE)
