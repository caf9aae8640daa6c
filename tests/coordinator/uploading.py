"""Uploads as the tests of spools make them."""

from __future__ import annotations

from federation.content_hash import content_digest
from federation.vectors import Spool, UploadKey, VectorReader

RUN = "ab" * 32


def key(institution: str = "north", attempt: int = 0, sum_name: str = "A", round_number: int = 1) -> UploadKey:
    return UploadKey(RUN, round_number, attempt, sum_name, institution)


def sha(data: bytes) -> str:
    return content_digest(data)


def read(reader: VectorReader) -> bytes:
    out = bytearray(reader.length)
    reader.read_into(0, memoryview(out))
    return bytes(out)


def upload(spool: Spool, where: UploadKey, data: bytes) -> None:
    spool.begin(where, len(data))
    spool.append(where, 0, data)
    spool.complete(where, sha(data), len(data))
