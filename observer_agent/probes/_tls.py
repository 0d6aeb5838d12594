"""TLS for probes: contexts that are kept (a fresh one costs 20 ms), the handshake, and what its errors mean.

Contexts are shared by all probe threads and keyed by the setting they were made for; a changed file is a new setting.
Errors: with a client certificate the documented `mtls_server_*` codes (docs/probes.md), else `tls_verify_failed` and
`tls_handshake_failed`.
"""

from __future__ import annotations

import os
import ssl
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

from observer_agent.model import Fault
from observer_agent.probes._reasons import Failed, Reason, timed_out

if TYPE_CHECKING:
    from observer_agent.probes._net import Stream
    from observer_agent.probes._tools import Run

KEPT = 64
HTTP1: Final = "http/1.1"
_EXPIRED: Final = 10  # X509_V_ERR_CERT_HAS_EXPIRED

T = TypeVar("T")


class Tls(NamedTuple):
    """How to shake hands: the context, and whether it presents a client certificate."""

    context: ssl.SSLContext
    mtls: bool = False


class Kept(Generic[T]):
    """The last things made, by key; one thread makes at a time, the others wait for it until their deadline."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._items: OrderedDict[Hashable, T] = OrderedDict()
        self._lock = threading.Lock()
        self._making = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], T], run: Run) -> T:
        """The thing for `key`, made if need be; what `make` raises is passed on and nothing is kept."""
        found = self._find(key)
        if found is not None:
            return found
        if not self._making.acquire(timeout=run.left()):
            raise timed_out("another probe was loading certificates", Fault.AGENT)
        try:
            return self._find(key) or self._keep(key, make())
        finally:
            self._making.release()

    def _find(self, key: Hashable) -> T | None:
        with self._lock:
            found = self._items.get(key)
            if found is not None:
                self._items.move_to_end(key)
            return found

    def _keep(self, key: Hashable, item: T) -> T:
        with self._lock:
            self._items[key] = item
            while len(self._items) > self._most:
                self._items.popitem(last=False)
        return item


class Contexts:
    """The contexts without private material, and a place for those with it (`own`)."""

    def __init__(self) -> None:
        self._system: Kept[Tls] = Kept(8)
        self.own: Kept[Any] = Kept(KEPT)
        self._bundle = ssl.get_default_verify_paths().cafile

    def system(self, verify: bool, run: Run, alpn: str = HTTP1) -> Tls:
        """A context that trusts the system's authorities (SSL_CERT_FILE and SSL_CERT_DIR as OpenSSL reads them).

        With `verify` false it trusts everybody.
        """
        key = (verify, self._stamp() if verify else None, alpn)
        return self._system.get(key, lambda: Tls(new_context(verify, alpn=alpn)), run)

    def _stamp(self) -> tuple[int, int] | None:
        """Changes when the system's bundle is replaced, so that a new authority needs no restart."""
        try:
            facts = os.stat(self._bundle or "")
        except OSError:
            return None
        return facts.st_mtime_ns, facts.st_size


def new_context(verify: bool, authorities: str | None = None, alpn: str = HTTP1) -> ssl.SSLContext:
    """A client's context; `authorities` is PEM text that replaces the system's. Raises ssl.SSLError on bad PEM."""
    # Not create_default_context: that one writes session keys to the file that SSLKEYLOGFILE names.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols([alpn])
    if authorities is not None:
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(cadata=authorities)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif authorities is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    return context


def wrap(stream: Stream, tls: Tls, host: str) -> None:
    """Shakes hands on a connected stream; raises Failed. An IP literal sends no SNI but is matched all the same."""

    def explain(error: OSError) -> Failed:
        return _explain(error, stream.run, tls.mtls)

    stream.explain = explain
    name = host.partition("%")[0].removesuffix(".")
    try:
        stream.sock.settimeout(stream.run.left())
        sock = tls.context.wrap_socket(stream.sock, server_hostname=name, do_handshake_on_connect=False)
        stream.sock = sock
        sock.do_handshake()
    except OSError as error:
        if isinstance(error, ssl.SSLCertVerificationError):
            stream.run.evidence["certificate"] = _unbelieved(sock)
        raise explain(error) from None
    stream.run.evidence["tls"] = (sock.version(), (sock.cipher() or ("",))[0])
    stream.run.evidence["certificate"] = sock.getpeercert(binary_form=True)


def _unbelieved(sock: Any) -> bytes | None:
    """The certificate that a server has shown in vain; before Python 3.13 there is no public name for it."""
    chain: list[Any] = getattr(sock._sslobj, "get_unverified_chain", list)() or []
    return ssl.PEM_cert_to_DER_cert(chain[0].public_bytes()) if chain else None


def _explain(error: OSError, run: Run, mtls: bool) -> Failed:
    if isinstance(error, ssl.SSLCertVerificationError):
        return _unverified(error, mtls)
    if not isinstance(error, ssl.SSLError):
        return run.explain(error)
    name = (error.reason or type(error).__name__).lower().replace("_", " ")
    if mtls and ("ALERT" in (error.reason or "") or "HANDSHAKE" in (error.reason or "")):
        return Failed(Reason.MTLS_CLIENT_CERT_REJECTED, f"the server said: {name}")
    reason = Reason.MTLS_HANDSHAKE_FAILED if mtls else Reason.TLS_HANDSHAKE_FAILED
    return Failed(reason, f"TLS failed while {run.doing}: {name}")


def _unverified(error: ssl.SSLCertVerificationError, mtls: bool) -> Failed:
    text = f"the server's certificate is not trusted: {error.verify_message}"
    if not mtls:
        return Failed(Reason.TLS_VERIFY_FAILED, text, verify_code=error.verify_code)
    expired = error.verify_code == _EXPIRED
    reason = Reason.MTLS_SERVER_CERT_EXPIRED if expired else Reason.MTLS_SERVER_VERIFY_FAILED
    return Failed(reason, text, verify_code=error.verify_code)
