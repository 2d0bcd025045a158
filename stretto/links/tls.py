"""TLS between machines with certificates made on the spot: it hides what is said, the handshake proves who says it.

Every process makes a self-signed certificate that nobody verifies; instead, its hash is bound into the proof of the
shared secret (RFC 5929, *tls-server-end-point*), so a man in the middle without the secret is refused.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import socket
import ssl
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

FIRST_BYTE = b"\x16"
"""What every TLS connection begins with (a handshake record, RFC 8446 §5.1), and no plain one of ours."""

_NAME = "stretto"
_LIFETIME = datetime.timedelta(days=3650)


@dataclass(frozen=True, slots=True)
class Certificate:
    """This process's certificate as two TLS contexts, and its SHA-256 (of the DER)."""

    fingerprint: bytes
    server: ssl.SSLContext
    client: ssl.SSLContext

    def answer(self, sock: socket.socket, *, now: bool = True) -> ssl.SSLSocket:
        """The server's side over a connected socket; ``now=False`` leaves ``do_handshake`` to the caller's loop."""
        return self.server.wrap_socket(sock, server_side=True, do_handshake_on_connect=now)

    def dial(self, sock: socket.socket, *, now: bool = True) -> ssl.SSLSocket:
        """The client's side over a connected socket."""
        return self.client.wrap_socket(sock, do_handshake_on_connect=now)

    def binding(self, sock: socket.socket) -> bytes:
        """What names this channel in the proof: the hash of the server's certificate; empty without TLS."""
        if not isinstance(sock, ssl.SSLSocket):
            return b""
        if sock.server_side:
            return self.fingerprint
        shown = sock.getpeercert(binary_form=True)
        if not shown:
            raise ssl.SSLError("the server showed no certificate")
        return hashlib.sha256(shown).digest()


def make_certificate() -> Certificate:
    """A new key (EC P-256) and its certificate. The key is never written to a disk."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _NAME)])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + _LIFETIME)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + signed.public_bytes(serialization.Encoding.PEM)
    return Certificate(signed.fingerprint(hashes.SHA256()), _server_context(pem), _client_context())


def _server_context(pem: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    in_memory = os.memfd_create(_NAME, os.MFD_CLOEXEC)  # ssl reads certificates from files only
    try:
        os.write(in_memory, pem)
        context.load_cert_chain(f"/proc/self/fd/{in_memory}")
    finally:
        os.close(in_memory)
    return context


def _client_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
