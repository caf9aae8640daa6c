"""A coordinator of a few lines that speaks the wire contract over mTLS, and breaks off wherever a test says."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from consilium.v1 import service_pb2 as pb
from consilium.v1.service_pb2_grpc import InstitutionServiceServicer, add_InstitutionServiceServicer_to_server
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from federation.content_hash import content_digest
from security.certificates import Role, has_one_encoding
from security.pki import create_authority, create_request, sign_request
from security.secure_sum.masks import Masker, SignedKey
from security.secure_sum.messages import Signed, UploadHeader
from security.secure_sum.spec import Context, Part
from security.secure_sum.upload import ArrayWords, MaskedUpload, Segment, WordSource
from security.signing import IdentityKey
from security.tls import TlsFiles

NOW = datetime.now(UTC)
RUN = hashlib.sha256(b"plan").digest()


@dataclass
class Authority:
    """An authority and its files in a folder of the test's."""

    folder: Path
    federation: str = "example"
    key: bytes = b""
    certificate: bytes = b""

    def __post_init__(self) -> None:
        self.key, self.certificate = create_authority(self.federation, NOW, 100)

    def files(self, role: Role, name: str, *, key: IdentityKey | None = None, days: int = 30) -> TlsFiles:
        """A party's files; given again, they are replaced as `consilium pki` does."""
        key = key or IdentityKey.generate()
        where = (("localhost",), ("127.0.0.1",)) if role is Role.COORDINATOR else ((), ())
        request = create_request(key, self.federation, role, name, *where)
        certificate = sign_request(self.key, self.certificate, request, NOW, days, role=role, name=name)
        return self.write(name, key, certificate)

    def write(self, name: str, key: IdentityKey, certificate: bytes) -> TlsFiles:
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in (
            ("key.pem", key.to_pem()),
            ("certificate.pem", certificate),
            ("ca.pem", self.certificate),
            ("revoked.txt", b""),
        ):
            new = folder / f"{file}.new"
            new.write_bytes(content)
            new.chmod(0o600)
            new.replace(folder / file)
        return TlsFiles(*(folder / each for each in ("certificate.pem", "key.pem", "ca.pem", "revoked.txt")))

    def forged_server(self, role: Role, name: str) -> TlsFiles:
        """What the real authority never makes: another role's name, with a server's usage and address."""
        key = IdentityKey.generate()
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(f"consilium://example/{role.value}/{name}")]
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(x509.load_pem_x509_certificate(self.certificate).subject)
            .public_key(key.private_key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - timedelta(days=1))
            .not_valid_after(NOW + timedelta(days=9))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([*names, x509.DNSName("localhost")]), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        )
        secret = IdentityKey.from_pem(self.key).private_key
        certificate = builder.sign(secret, hashes.SHA256())
        while not has_one_encoding(certificate):
            certificate = builder.sign(secret, hashes.SHA256())
        return self.write(name, key, certificate.public_bytes(serialization.Encoding.PEM))


@dataclass
class TinyCoordinator(InstitutionServiceServicer):
    """Keeps everything in memory.

    Attributes:
        cuts: byte positions at which an upload or a download breaks off, first to last.
        callers: fingerprint of the certificate of every call.
    """

    plan: bytes = b"plan"
    contents: dict[str, bytes] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    refuse: str = ""
    directives: list[pb.Directive] = field(default_factory=list)
    received: bytearray = field(default_factory=bytearray)
    starts: list[int] = field(default_factory=list)
    spooled: bool = False
    counted: bool = False
    forget_once: bool = False
    submitted: list[pb.SubmitRequest] = field(default_factory=list)
    heard: Callable[[], object] = lambda: None
    enrolments: list[pb.EnrolRequest] = field(default_factory=list)
    callers: list[str] = field(default_factory=list)
    known: list[bytes] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)  # of the plan, where they are not to be all of it

    def GetInvitation(self, request: pb.GetInvitationRequest, context: Any) -> Iterator[pb.GetInvitationResponse]:
        (pem,) = context.auth_context()["x509_pem_cert"]
        self.callers.append(x509.load_pem_x509_certificate(pem).fingerprint(hashes.SHA256()).hex())
        if self.refuse:
            self._abort(context, self.refuse)
        self.known.append(request.known)
        if not self.pieces and request.known == hashlib.sha256(self.plan).digest():
            yield pb.GetInvitationResponse(unchanged=True)
            return
        for piece in self.pieces or [self.plan]:
            yield pb.GetInvitationResponse(plan=piece)

    def Enrol(self, request: pb.EnrolRequest, context: Any) -> pb.EnrolResponse:
        self.enrolments.append(request)
        return pb.EnrolResponse(reason="")

    def NextDirective(self, request: pb.NextDirectiveRequest, context: Any) -> pb.NextDirectiveResponse:
        if not self.directives:
            self._hold(request.wait_seconds, context)
            return pb.NextDirectiveResponse()
        return pb.NextDirectiveResponse(directive=self.directives[0])

    def Submit(self, request: pb.SubmitRequest, context: Any) -> pb.SubmitResponse:
        self.submitted.append(request)
        self.heard()
        if not request.wait_seconds:
            return pb.SubmitResponse()
        if not self.directives:
            self._hold(request.wait_seconds, context)
            return pb.SubmitResponse()
        return pb.SubmitResponse(directive=self.directives[0])

    def GetUpload(self, request: pb.GetUploadRequest, context: Any) -> pb.GetUploadResponse:
        return pb.GetUploadResponse(offset=len(self.received), complete=self.spooled)

    def Upload(self, request_iterator: Iterator[pb.UploadRequest], context: Any) -> pb.UploadResponse:
        start = next(request_iterator).start
        self.starts.append(start.offset)
        context.send_initial_metadata(())
        if not self.spooled:
            if start.offset != len(self.received):
                self._abort(context, "upload-offset", grpc.StatusCode.OUT_OF_RANGE)
            for message in request_iterator:
                if message.HasField("trailer"):
                    if message.trailer.hash.hex() != content_digest(self.received):
                        self.received.clear()
                        self._abort(context, "upload-mismatch", grpc.StatusCode.DATA_LOSS)
                    self.spooled = True
                    if self.forget_once:
                        self.forget_once = False
                        context.abort(grpc.StatusCode.UNAVAILABLE, "killed at the last byte")
                    break
                assert len(message.chunk) <= 1 << 20
                self.received += message.chunk
                if self.cuts and len(self.received) >= self.cuts[0]:
                    del self.received[self.cuts.pop(0) :]
                    context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
        self.counted = self.spooled
        return pb.UploadResponse(offset=len(self.received), complete=self.counted)

    def Download(self, request: pb.DownloadRequest, context: Any) -> Iterator[pb.DownloadResponse]:
        content = self.contents.get(request.digest)
        if content is None:
            self._abort(context, "unknown-content", grpc.StatusCode.NOT_FOUND)
            return
        self.starts.append(request.offset)
        yield pb.DownloadResponse(length=len(content))
        stop = self.cuts.pop(0) if self.cuts else len(content)
        for at in range(request.offset, max(stop, request.offset), 1000):
            yield pb.DownloadResponse(chunk=content[at : min(at + 1000, stop)])
        if stop < len(content):
            context.abort(grpc.StatusCode.UNAVAILABLE, "cut")

    def publish(self, content: bytes, digest: str | None = None) -> str:
        digest = digest or content_digest(content)
        self.contents[digest] = content
        return digest

    @staticmethod
    def _hold(seconds: float, context: Any) -> None:
        ended = threading.Event()
        context.add_callback(ended.set)
        ended.wait(min(seconds, 10.0))

    @staticmethod
    def _abort(context: Any, code: str, status: grpc.StatusCode = grpc.StatusCode.FAILED_PRECONDITION) -> None:
        context.set_trailing_metadata((("consilium-error-code", code),))
        context.abort(status, code)


class Serving:
    """The coordinator on a port of loopback, until `close`."""

    def __init__(self, coordinator: TinyCoordinator, files: TlsFiles, port: int = 0) -> None:
        self._server = grpc.server(ThreadPoolExecutor(4), options=(("grpc.so_reuseport", 0),))
        add_InstitutionServiceServicer_to_server(coordinator, self._server)
        credentials = grpc.ssl_server_credentials(
            [(files.key.read_bytes(), files.certificate.read_bytes())], files.authority.read_bytes(), True
        )
        self.port = self._server.add_secure_port(f"127.0.0.1:{port}", credentials)
        self._server.start()

    def close(self) -> None:
        self._server.stop(None).wait()

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def masked_upload(words: int, source: WordSource | None = None) -> MaskedUpload:
    """An upload of two parts of random words under two masks; `source` replaces the second part's."""
    key = IdentityKey.generate()
    parts = (Part("a", 32, words, frozenset({"brca-1"})), Part("b", 64, 5, frozenset({"brca-1"})))
    sources = (
        ArrayWords(np.frombuffer(os.urandom(4 * words), "<u4").copy()),
        source or ArrayWords(np.frombuffer(os.urandom(40), "<u8").copy()),
    )
    masker = Masker([SignedKey(1, os.urandom(32)), SignedKey(-1, os.urandom(32))])
    header = UploadHeader(Context("example", RUN, 1, 1, bytes(32)), "updates", "brca-1", bytes(32), 4 * words + 40)
    payload = header.encode()
    signed = Signed("brca-1", payload, key.sign("upload", payload))
    return MaskedUpload(signed, [Segment(p, s, masker) for p, s in zip(parts, sources, strict=True)])
