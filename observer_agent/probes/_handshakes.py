"""The certificates that a server shows, and whether the system, or an authority of one's own, trusts them.

One handshake as every careful client does it; where that one fails over trust or strength, a second one to the same
address that accepts everything. No ALPN is offered: the server may speak anything. Runs on the probe's thread.
"""

from __future__ import annotations

import os
import ssl
from typing import Any, Final, NamedTuple

from observer_agent.probes import _direct
from observer_agent.probes._mtls import Identity
from observer_agent.probes._net import Stream, connect
from observer_agent.probes._reasons import Failed, Reason
from observer_agent.probes._tls import Tls, new_context, wrap
from observer_agent.probes._tools import Run
from observer_agent.resolver import Address

MOST: Final = 10  # certificates of a chain that are looked at
_LEGACY_SERVER: Final = 0x4  # OP_LEGACY_SERVER_CONNECT, which the ssl module names since 3.12
_WORTH_ANOTHER: Final = (Reason.TLS_VERIFY_FAILED, Reason.TLS_HANDSHAKE_FAILED)


class Peer(NamedTuple):
    """What a handshake showed. `doubt` is why the careful handshake failed, None where it did not."""

    address: str
    chain: tuple[bytes, ...]
    protocol: str | None
    cipher: str | None
    doubt: Failed | None


def shake(host: str, port: int, name: str, run: Run, *, trust: Identity | None) -> Peer:
    """Connects to `host`, shakes hands as for `name`; raises Failed.

    `trust` says whom the first handshake trusts; without it there is one only, and it accepts everything.
    """
    stream = connect(host, port, run)
    family, at = stream.sock.family, stream.sock.getpeername()
    try:
        run.enter("tls")
        wrap(stream, _context(trust, run), name)
        return _peer(stream, at[0], None)
    except Failed as failure:
        if trust is None or failure.reason not in _WORTH_ANOTHER:
            raise
        doubt = failure
    finally:
        stream.close()
    run.enter("connect")
    # Straight to the address that the policy has admitted: it is the same look, and another server may be elsewhere.
    stream = _direct.tcp(Address(family, at[0], at[3] if len(at) == 4 else 0), port, run)
    try:
        run.enter("tls")
        wrap(stream, _context(None, run), name)
        return _peer(stream, at[0], doubt)
    finally:
        stream.close()


def _peer(stream: Stream, address: str, doubt: Failed | None) -> Peer:
    sock = stream.sock
    assert isinstance(sock, ssl.SSLSocket)
    leaf = sock.getpeercert(binary_form=True)
    cipher = sock.cipher()
    chain = (leaf, *_rest(sock)) if leaf else ()
    return Peer(address, chain[:MOST], sock.version(), cipher[0] if cipher else None, doubt)


def _rest(sock: Any) -> list[bytes]:
    """What the server sent behind its own certificate."""
    if hasattr(sock, "get_unverified_chain"):  # since Python 3.13
        return list(sock.get_unverified_chain()[1:])
    # Before that the same function exists, without a public name.
    chain: list[Any] = getattr(sock._sslobj, "get_unverified_chain", list)() or []
    return [ssl.PEM_cert_to_DER_cert(cert.public_bytes()) for cert in chain[1:]]


def _context(trust: Identity | None, run: Run) -> Tls:
    whom = (trust.authorities_mark or _stamp()) if trust else None
    found: Tls = run.tools.contexts.own.get(("tls_cert", trust is not None, whom), lambda: _build(trust), run)
    return found


def _build(trust: Identity | None) -> Tls:
    context = new_context(trust is not None, trust.authorities if trust else None)
    context.set_alpn_protocols([])
    if trust is None:
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.options |= _LEGACY_SERVER
    return Tls(context)


def _stamp() -> tuple[int, int] | None:
    """Changes when the system's bundle is replaced, so that a new authority needs no restart."""
    try:
        facts = os.stat(ssl.get_default_verify_paths().cafile or "")
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_size
