"""Mutual proof of a shared secret: who has it comes through, whoever has not learns nothing and holds nobody up."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stretto.errors import NetworkError, PeerLost, Refused, UsageError
from stretto.links import addresses, handshake, tls
from stretto.links.handshake import ANYONE, Claim, Handshake, Purpose, prove

SECRET = "a long and random secret"
DIALER = Claim(Purpose.LINK, 7, 2, 1)
LISTENER = Claim(Purpose.LINK, 7, 1, ANYONE)
CERTIFICATE = tls.make_certificate()


def pair(
    secrets: tuple[str, str] = (SECRET, SECRET),
    dialer: Claim = DIALER,
    listener: Claim = LISTENER,
    bindings: tuple[bytes, bytes] = (b"", b""),
) -> tuple[Handshake, Handshake]:
    return (
        Handshake(secrets[0], dialer, dials=True, binding=bindings[0], who="the listener"),
        Handshake(secrets[1], listener, dials=False, binding=bindings[1], who="the dialer"),
    )


def take(side: Handshake, data: bytes) -> tuple[bytes, str]:
    """What a side sends in answer, and its refusal in words."""
    try:
        return side.receive(data), ""
    except Refused as e:
        return side.farewell, str(e)


def converse(dials: Handshake, answers: Handshake) -> tuple[str, str]:
    """Carry bytes to and fro until nobody has anything to say; the refusals of both."""
    refusals = ["", ""]
    sides = [answers, dials]
    data, to = dials.opening(), 0
    while data:
        data, refusal = take(sides[to], data)
        refusals[to] = refusals[to] or refusal
        to = 1 - to
    return refusals[1], refusals[0]


def test_two_that_share_the_secret_learn_who_the_other_is() -> None:
    dials, answers = pair()
    assert converse(dials, answers) == ("", "")
    assert dials.done and answers.done
    assert (answers.peer, dials.peer) == (DIALER, Claim(Purpose.LINK, 7, 1, 2))


def test_another_secret_is_refused_and_both_are_told() -> None:
    dials, answers = pair((SECRET, "another long secret"))
    for told in converse(dials, answers):
        assert "has another secret" in told and "STRETTO_SECRET" in told
    assert not dials.done and not answers.done


def test_another_channel_is_refused_as_if_the_secret_were_another() -> None:
    dials, answers = pair(bindings=(b"certificate of the man in the middle", b"our certificate"))
    assert all("another secret" in told for told in converse(dials, answers))


@pytest.mark.parametrize(
    ("dialer", "word"),
    [
        (Claim(Purpose.LINK, 8, 2, 1), "epoch 8"),
        (Claim(Purpose.LINK, 7, 2, 3), "agent 3"),
        (Claim(Purpose.LINK, 7, 2, ANYONE), "anyone"),
        (Claim(Purpose.RENDEZVOUS, 7, 2, 1), "RENDEZVOUS"),
    ],
)
def test_another_epoch_rank_or_purpose_is_refused_and_both_are_told(dialer: Claim, word: str) -> None:
    told_dialer, told_listener = converse(*pair(dialer=dialer))
    assert word in told_listener and word in told_dialer
    assert "the listener" in told_dialer and "the dialer" in told_listener


def test_a_listener_that_expects_one_agent_refuses_the_others() -> None:
    told = converse(*pair(listener=Claim(Purpose.LINK, 7, 1, 3)))
    assert all("means agent" in words for words in told)


def test_without_the_secret_a_wrong_epoch_looks_like_a_wrong_secret() -> None:
    """A stranger learns nothing about ranks and epochs."""
    told, _ = converse(*pair(("guess", SECRET), dialer=Claim(Purpose.LINK, 8, 2, 3)))
    assert "another secret" in told and "epoch" not in told


def test_two_versions_name_both_versions_to_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = pair()[1]
    monkeypatch.setattr(handshake, "VERSION", 2)
    dials = pair()[0]
    hello = dials.opening()
    monkeypatch.setattr(handshake, "VERSION", 1)
    reply, told_listener = take(answers, hello)
    monkeypatch.setattr(handshake, "VERSION", 2)
    _, told_dialer = take(dials, reply)
    assert "speaks version 2" in told_listener and "this agent version 1" in told_listener
    assert "speaks version 1" in told_dialer and "this agent version 2" in told_dialer


def test_a_version_whose_hello_is_shorter_is_told_apart_all_the_same() -> None:
    _, told = take(pair()[1], handshake.MAGIC + struct.pack("!H", 9))
    assert "speaks version 9" in told


def test_a_proof_cannot_be_replayed() -> None:
    dials, answers = pair()
    first = dials.opening()
    proof = dials.receive(answers.receive(first))
    later = pair()[1]
    later.receive(first)
    assert "another secret" in take(later, proof)[1]


def test_a_proof_cannot_be_reflected() -> None:
    """A stranger that listens and sends back what it gets is refused."""
    dials, _ = pair()
    assert "not a Stretto peer" in take(dials, dials.opening())[1]


def test_no_byte_of_the_conversation_can_be_altered() -> None:
    lengths = 60, 60, 32, 33
    for message, length in enumerate(lengths):
        for at in range(0, length, 7):
            dials, answers = pair()
            sides, data, sent, refused = [answers, dials], dials.opening(), 0, False
            while data and not refused:
                if sent == message:
                    data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
                data, words = take(sides[sent % 2], data)
                refused, sent = bool(words), sent + 1
            assert refused, f"byte {at} of message {message} was altered and nobody noticed"


def test_an_empty_secret_is_refused() -> None:
    with pytest.raises(UsageError, match="empty"):
        Handshake("", DIALER, dials=True)


@given(
    dials=st.booleans(),
    chunks=st.lists(st.binary(max_size=80), max_size=30),
    start=st.sampled_from([b"", handshake.MAGIC, handshake.MAGIC + b"\0\1", handshake.MAGIC + b"\0\1\1\2"]),
)
@settings(max_examples=300, deadline=None)
def test_no_bytes_do_more_than_be_refused(dials: bool, chunks: list[bytes], start: bytes) -> None:
    side = Handshake(SECRET, DIALER if dials else LISTENER, dials=dials)
    try:
        for chunk in (start, *chunks):
            rest = chunk
            while rest and side.wants:
                some, rest = rest[: side.wants], rest[side.wants :]
                assert len(side.receive(some)) <= 60
    except Refused:
        assert side.wants == 0 and len(side.farewell) <= 60
    assert not side.done


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_the_bytes_may_come_in_any_pieces(data: st.DataObject) -> None:
    dials, answers = pair()
    to_listener, to_dialer = bytearray(dials.opening()), bytearray()
    while not (dials.done and answers.done):
        for side, inbox, outbox in ((answers, to_listener, to_dialer), (dials, to_dialer, to_listener)):
            if inbox and side.wants:
                some = bytes(inbox[: data.draw(st.integers(1, min(len(inbox), side.wants)))])
                del inbox[: len(some)]
                outbox.extend(side.receive(some))


# Over real sockets.


@contextlib.contextmanager
def meeting(server: Callable[[socket.socket], None]) -> Iterator[socket.socket]:
    """A connection on loopback whose other end ``server`` serves in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            sock, _ = listener.accept()
            with sock, contextlib.suppress(OSError, NetworkError):
                server(sock)

        thread = threading.Thread(target=serve)
        thread.start()
        with socket.create_connection(listener.getsockname()) as sock:
            yield sock
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        thread.join()


def listener_over(secret: str, told: list[object], deadline: float = 5.0) -> Callable[[socket.socket], None]:
    def serve(sock: socket.socket) -> None:
        try:
            told.append(prove(sock, pair((SECRET, secret))[1], deadline))
            sock.sendall(b"what follows")
        except NetworkError as e:
            told.append(e)

    return serve


def test_over_a_socket_what_follows_the_proof_is_left_in_it() -> None:
    told: list[object] = []
    with meeting(listener_over(SECRET, told)) as sock:
        assert prove(sock, pair()[0]) == Claim(Purpose.LINK, 7, 1, 2)
        assert sock.gettimeout() is None
        assert sock.recv(100) == b"what follows"
    assert told == [DIALER]


def test_over_a_socket_another_secret_is_told_to_both() -> None:
    told: list[object] = []
    with meeting(listener_over("another", told)) as sock, pytest.raises(Refused, match="another secret"):
        prove(sock, pair()[0])
    assert isinstance(told[0], Refused)


def test_over_a_unix_socket_too() -> None:
    left, right = socket.socketpair()
    told: list[object] = []
    thread = threading.Thread(target=listener_over(SECRET, told), args=(right,))
    thread.start()
    assert prove(left, pair()[0]).rank == 1
    thread.join()
    left.close()
    right.close()


def test_a_stranger_that_speaks_http_is_refused_at_once() -> None:
    told: list[object] = []
    with meeting(listener_over(SECRET, told)) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(100) == b""
    assert "not a Stretto peer" in str(told[0])


def test_a_stranger_that_says_nothing_is_given_up() -> None:
    told: list[object] = []
    with meeting(listener_over(SECRET, told, 0.1)) as sock, contextlib.suppress(ConnectionResetError):
        assert sock.recv(100) == b""
    assert "did not prove the secret within 0.1 s" in str(told[0])


def test_a_stranger_that_drips_is_given_up_over_the_whole_of_it() -> None:
    """Every byte comes in time, and all of them too late."""
    told: list[object] = []
    with meeting(listener_over(SECRET, told, 0.3)) as sock, contextlib.suppress(OSError):
        for byte in pair()[0].opening():
            sock.sendall(bytes([byte]))
            time.sleep(0.02)
    assert "did not prove the secret" in str(told[0])


def test_a_stranger_that_sends_garbage_forever_is_refused() -> None:
    told: list[object] = []
    with meeting(listener_over(SECRET, told)) as sock, contextlib.suppress(OSError):
        while True:
            sock.sendall(b"\x99" * 65536)
    assert isinstance(told[0], Refused)


def test_a_version_is_told_over_a_socket_though_bytes_are_left_unread() -> None:
    told: list[object] = []
    with meeting(listener_over(SECRET, told)) as sock:
        sock.sendall(handshake.MAGIC + struct.pack("!H", 2) + b"\0" * 5000)
        assert sock.recv(1000).startswith(handshake.MAGIC + struct.pack("!H", 1))
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(100) == b""
    assert "speaks version 2" in str(told[0])


def test_one_that_hangs_up_in_the_middle_is_lost_and_not_refused() -> None:
    with meeting(lambda sock: None) as sock, pytest.raises(PeerLost, match="the listener"):
        prove(sock, pair()[0])


def tls_listener(told: list[object]) -> Callable[[socket.socket], None]:
    def serve(sock: socket.socket) -> None:
        with CERTIFICATE.answer(sock) as secure:
            try:
                told.append(prove(secure, pair(bindings=(b"", CERTIFICATE.binding(secure)))[1]))
            except NetworkError as e:
                told.append(e)

    return serve


def prove_over_tls(sock: socket.socket) -> tuple[Claim, ssl.SSLSocket]:
    secure = CERTIFICATE.dial(sock)
    return prove(secure, pair(bindings=(CERTIFICATE.binding(secure), b""))[0]), secure


def test_tls_hides_the_conversation_and_the_proof_binds_its_certificate() -> None:
    told: list[object] = []
    with meeting(tls_listener(told)) as sock:
        peer, secure = prove_over_tls(sock)
        with secure:
            assert peer.rank == 1 and secure.version() == "TLSv1.3"
            shown = secure.getpeercert(binary_form=True)
            assert shown is not None and hashlib.sha256(shown).digest() == CERTIFICATE.fingerprint
    assert told == [DIALER]


def test_a_man_in_the_middle_without_the_secret_is_refused_by_both() -> None:
    """It ends TLS on both sides with a certificate of its own, and relays every byte faithfully."""
    told: list[object] = []
    with meeting(tls_listener(told)) as to_listener:

        def relay(sock: socket.socket) -> None:
            outside = tls.make_certificate().answer(sock)
            inside = CERTIFICATE.dial(to_listener)
            with outside, inside:
                for source, target, length in (
                    (outside, inside, 60),
                    (inside, outside, 60),
                    (outside, inside, 32),
                    (inside, outside, 33),
                ):
                    target.sendall(source.recv(length))

        with meeting(relay) as sock, pytest.raises(Refused, match="another secret"):
            prove_over_tls(sock)
    assert isinstance(told[0], Refused)


def test_without_tls_there_is_nothing_to_bind() -> None:
    with socket.socket() as sock:
        assert CERTIFICATE.binding(sock) == b""


# Addresses.


def test_an_address_is_a_host_and_a_port_both_ways() -> None:
    for address, parts in {"10.0.0.1:80": ("10.0.0.1", 80), "[fe80::1]:0": ("fe80::1", 0), "a.b:9": ("a.b", 9)}.items():
        assert addresses.split(address) == parts
        assert addresses.join(*parts) == address
    for wrong in ("", "host", "host:", "fe80::1:80", "host:99999", "host:-1", "[::1:80", "host:²"):
        with pytest.raises(UsageError, match="is not an address"):
            addresses.split(wrong)


def test_loopback_comes_last_and_the_way_to_the_coordinator_first() -> None:
    found = addresses.candidates()
    assert found and "127.0.0.1" in found
    local = [ip in ("127.0.0.1", "::1") for ip in found]
    assert local == sorted(local)
    assert addresses.candidates("127.0.0.1:9")[0] == "127.0.0.1"


def test_an_unknown_interface_is_answered_with_the_known_ones() -> None:
    assert "127.0.0.1" in addresses.candidates(interface="lo")
    with pytest.raises(UsageError, match="no network interface is named 'loo'; did you mean lo"):
        addresses.candidates(interface="loo")


def test_our_own_addresses_are_here_and_others_are_not() -> None:
    assert all(addresses.is_here(ip) for ip in ("", "localhost", "127.0.0.53", "::1", "::ffff:127.0.0.1"))
    assert all(addresses.is_here(ip) for ip in addresses.candidates())
    assert not addresses.is_here("203.0.113.7") and not addresses.is_here("no such host")


def test_a_machine_keeps_its_identity() -> None:
    assert addresses.machine_id() == addresses.machine_id()
    assert len(addresses.machine_id()) == 16
