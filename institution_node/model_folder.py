"""Model folders on the institution's disk: the thin shell around `federation.model_archive`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from federation.model_archive import MANIFEST, PLAN, SCHEMA, WEIGHTS, Model, ModelArchiveError, unpack
from federation.tensor_file import TensorFile

_WRITING: Final = ".writing-"


def read_model(folder: Path, expected: str = "") -> Model:
    """The model in a folder.

    Args:
        folder: as `consilium export` or `write_model` made it.
        expected: the manifest's digest, if it is known from elsewhere.

    Raises:
        ModelArchiveError: not such a folder, a file cannot be read, or as `model_archive.unpack`.
    """
    files: dict[str, bytes] = {}
    for name in (MANIFEST, PLAN, SCHEMA, WEIGHTS):
        try:
            files[name] = (folder / name).read_bytes()
        except OSError as error:
            raise ModelArchiveError(
                f"{name} cannot be read: {error.strerror}.",
                remedy="Give the whole folder that was exported, readable by this user.",
                place=str(folder / name),
            ) from error
    return unpack(files, expected)


def write_model(folder: Path, files: Mapping[str, bytes | TensorFile]) -> None:
    """Writes a packed model, the manifest last: a folder with a manifest is whole. Existing files are replaced.

    Args:
        folder: made if it is not there, readable by its owner only (private components may be inside).
        files: from `model_archive.pack` or `pack_files`.

    Raises:
        OSError: the disk's.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    (folder / MANIFEST).unlink(missing_ok=True)
    for name in sorted(files, key=lambda n: (n == MANIFEST, n)):
        # In the same folder, so that the rename stays within one file system.
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=_WRITING)
        try:
            with os.fdopen(handle, "wb") as file:
                data = files[name]
                for piece in (data,) if isinstance(data, bytes) else data:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, folder / name)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def sweep_models(models: Path) -> None:
    """Deletes what a killed process left half written. Only while nobody else writes there.

    Args:
        models: folder of model folders; need not be there.

    Raises:
        OSError: the disk's.
    """
    for left in models.glob(f"*/{_WRITING}*"):
        left.unlink(missing_ok=True)
