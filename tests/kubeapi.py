"""A Kubernetes API server for tests: TLS and HTTP/1.1 on a real socket, and as much of the API as a watcher meets.

Lists with `limit` and `continue` at one resourceVersion, watches that replay from a resourceVersion, bookmarks, 410 for
places that are gone (as a status or as an ERROR event), RBAC by verb, kind and namespace, service-account tokens that
are replaced, kinds that are absent, discovery documents enough for kubectl. Everything that was asked is in `requests`.
"""

from __future__ import annotations

import base64
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import trustme

GROUPS = {
    "ingresses": ("networking.k8s.io", "Ingress"),
    "services": ("", "Service"),
    "httproutes": ("gateway.networking.k8s.io", "HTTPRoute"),
}
USER = "system:serviceaccount:watch:observer-agent"


def prefix(resource: str) -> str:
    group = GROUPS[resource][0]
    return f"/apis/{group}/v1" if group else "/api/v1"


class Refusal(Exception):
    """A Status that is answered instead of what was asked for."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "code": code,
        }  # fmt: skip
        self.code = code


@dataclass
class Asked:
    """One request."""

    resource: str
    namespace: str
    query: dict[str, str]
    token: str

    @property
    def watch(self) -> bool:
        return self.query.get("watch") == "true"


@dataclass
class Rules:
    """What tests turn: everything may change while requests run."""

    tokens: set[str]
    absent: set[str] = field(default_factory=set)  # resources whose API is not there
    denied: set[tuple[str, str, str]] = field(default_factory=set)  # (verb, resource, namespace), `*` matches all
    broken: dict[str, int] = field(default_factory=dict)  # resource to the status that it answers
    held: set[str] = field(default_factory=set)  # resources that take a request and never answer
    bookmark_seconds: float = 0.2
    gone_as_event: bool = True  # a watch from a place that is gone: 200 and an ERROR event, else a plain 410
    expire_pages: int = 0  # so many pages that go on are answered with 410
    oldest: int = 0  # the first resourceVersion from which a watch can still go on


class KubeApi:
    """See the module. `folder` holds what a pod finds as its service account."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rules = Rules(tokens={"token-one"})
        self.requests: list[Asked] = []
        self.agents: set[str] = set()
        self.changed = threading.Condition()
        self.closing = False
        self.cuts = 0  # each makes the watches in progress end
        self._objects: dict[str, dict[tuple[str, str], dict[str, Any]]] = {name: {} for name in GROUPS}
        self._history: list[tuple[int, str, str, dict[str, Any]]] = []
        self._version = 100
        authority = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        folder.mkdir(parents=True, exist_ok=True)
        authority.cert_pem.write_to_path(str(folder / "ca.crt"))
        (folder / "token").write_text("token-one")
        self._server = _Server(self, context)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def env(self) -> dict[str, str]:
        """What a pod's environment says of the API server."""
        return {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(self.port)}

    def put(self, resource: str, thing: dict[str, Any]) -> None:
        """Creates or changes an object."""
        with self.changed:
            self._version += 1
            key = (thing["metadata"]["namespace"], thing["metadata"]["name"])
            made = {**thing, "metadata": {**thing["metadata"], "resourceVersion": str(self._version)}}
            kind = "MODIFIED" if key in self._objects[resource] else "ADDED"
            self._objects[resource][key] = made
            self._history.append((self._version, resource, kind, made))
            self.changed.notify_all()

    def delete(self, resource: str, namespace: str, name: str) -> None:
        """Deletes an object."""
        with self.changed:
            self._version += 1
            thing = self._objects[resource].pop((namespace, name))
            thing = {**thing, "metadata": {**thing["metadata"], "resourceVersion": str(self._version)}}
            self._history.append((self._version, resource, "DELETED", thing))
            self.changed.notify_all()

    def forget(self) -> None:
        """Compaction: no list or watch can go on from before now."""
        with self.changed:
            self._version += 1
            self.rules.oldest = self._version

    def cut_watches(self) -> None:
        """Ends the watches in progress, as a server does that restarts in good order."""
        with self.changed:
            self.cuts += 1
            self.changed.notify_all()

    def cut_connections(self) -> None:
        """Resets every connection."""
        self._server.cut()

    def lists(self, resource: str, namespace: str = "") -> list[Asked]:
        """The lists that were asked for."""
        return [a for a in self.requests if (a.resource, a.namespace, a.watch) == (resource, namespace, False)]

    def watches(self, resource: str, namespace: str = "") -> list[Asked]:
        """The watches that were asked for."""
        return [a for a in self.requests if (a.resource, a.namespace, a.watch) == (resource, namespace, True)]

    def close(self) -> None:
        with self.changed:
            self.closing = True
            self.changed.notify_all()
        self._server.shutdown()
        self._server.cut()
        self._server.server_close()
        self._thread.join(10)

    def page(self, asked: Asked) -> dict[str, Any]:
        """A list's answer, in etcd's order of keys."""
        with self.changed:
            version, after = self._version, ("", "")
            if asked.query.get("continue"):
                found = json.loads(base64.urlsafe_b64decode(asked.query["continue"]))
                version, after = found["rv"], tuple(found["start"])
                if version < self.rules.oldest or self.rules.expire_pages:
                    self.rules.expire_pages = max(self.rules.expire_pages - 1, 0)
                    raise Refusal(410, "Expired", "The provided continue parameter is too old to display a consistent")
            every = self._at(version, asked.resource).items()
            rows = sorted((k, v) for k, v in every if k > after and asked.namespace in ("", k[0]))
        limit = int(asked.query.get("limit", 0)) or len(rows)
        meta: dict[str, Any] = {"resourceVersion": str(version)}
        if len(rows) > limit:
            token = json.dumps({"rv": version, "start": rows[limit - 1][0]})
            meta["continue"] = base64.urlsafe_b64encode(token.encode()).decode()
            meta["remainingItemCount"] = len(rows) - limit
        group, kind = GROUPS[asked.resource]
        api = f"{group}/v1" if group else "v1"
        return {"kind": f"{kind}List", "apiVersion": api, "metadata": meta, "items": [v for _, v in rows[:limit]]}

    def _at(self, version: int, resource: str) -> dict[tuple[str, str], dict[str, Any]]:
        """The objects as they were at a resourceVersion: all pages of a list are of one moment."""
        if version >= self._version:
            return self._objects[resource]
        found = {}
        for _, _, kind, thing in (row for row in self._history if row[0] <= version and row[1] == resource):
            key = (thing["metadata"]["namespace"], thing["metadata"]["name"])
            found.pop(key, None)
            if kind != "DELETED":
                found[key] = thing
        return found

    def gone(self, asked: Asked) -> Refusal | None:
        """Why a watch cannot go on from the place that it names."""
        place = int(asked.query.get("resourceVersion") or self._version)
        if place >= self.rules.oldest:
            return None
        return Refusal(410, "Expired", f"too old resource version: {place} ({self.rules.oldest})")

    def events(self, asked: Asked) -> Iterator[dict[str, Any]]:
        """A watch's events until it ends; a bookmark from time to time, for who has asked for bookmarks."""
        place, cuts = int(asked.query.get("resourceVersion") or self._version), self.cuts
        end = time.monotonic() + float(asked.query.get("timeoutSeconds", 1800))
        while time.monotonic() < end:
            with self.changed:
                if self.closing or cuts != self.cuts:
                    return
                news = [row for row in self._history if row[0] > place]
                if not news:
                    self.changed.wait(min(self.rules.bookmark_seconds, max(end - time.monotonic(), 0.01)))
                    news = [row for row in self._history if row[0] > place]
                version = self._version
            for number, resource, kind, thing in news:
                place = number
                if resource == asked.resource and asked.namespace in ("", thing["metadata"]["namespace"]):
                    yield {"type": kind, "object": thing}
            if not news and asked.query.get("allowWatchBookmarks") == "true":
                place = version
                group, kind = GROUPS[asked.resource]
                api = f"{group}/v1" if group else "v1"
                bookmark = {"kind": kind, "apiVersion": api, "metadata": {"resourceVersion": str(version)}}
                yield {"type": "BOOKMARK", "object": bookmark}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, api: KubeApi, context: ssl.SSLContext) -> None:
        self.api, self.context = api, context
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            request.settimeout(10)
            secured = self.context.wrap_socket(request, server_side=True)
        except OSError:
            request.close()
            return
        secured.settimeout(60)
        self._open.add(secured)
        try:
            super().process_request_thread(secured, client_address)
        finally:
            self._open.discard(secured)
            secured.close()

    def cut(self) -> None:
        for sock in list(self._open):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        try:
            self._answer()
        except Refusal as refusal:
            self._json(refusal.code, refusal.status)
        except OSError:
            self.close_connection = True

    def _answer(self) -> None:
        api, parts = self.server.api, urlsplit(self.path)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        api.agents.add(self.headers.get("User-Agent", ""))
        if token not in api.rules.tokens:
            raise Refusal(401, "Unauthorized", "Unauthorized")
        asked = self._asked(parts.path, {k: v[0] for k, v in parse_qs(parts.query).items()}, token)
        if not asked:
            return self._document(parts.path)
        api.requests.append(asked)
        self._admit(asked)
        if asked.watch:
            return self._watch(asked)
        return self._json(200, api.page(asked))

    def _asked(self, path: str, query: dict[str, str], token: str) -> Asked | None:
        for resource in GROUPS:
            words = path.removeprefix(prefix(resource)).strip("/").split("/")
            if path.startswith(prefix(resource) + "/") and words[-1] == resource:
                namespace = words[1] if words[0] == "namespaces" and len(words) == 3 else ""
                query["watch"] = {"1": "true"}.get(query.get("watch", ""), query.get("watch", ""))
                return Asked(resource, namespace, query, token)
        return None

    def _admit(self, asked: Asked) -> None:
        api, verb = self.server.api, "watch" if asked.watch else "list"
        while asked.resource in api.rules.held and not api.closing:
            with api.changed:
                api.changed.wait(0.05)
        if asked.resource in api.rules.absent:
            raise Refusal(404, "NotFound", "the server could not find the requested resource")
        if code := api.rules.broken.get(asked.resource):
            raise Refusal(code, "InternalError", "etcdserver: request timed out")
        scopes = [asked.namespace, "*"] if asked.namespace else ["", "*"]
        if any((v, r, n) in api.rules.denied for v in (verb, "*") for r in (asked.resource, "*") for n in scopes):
            where = f'in the namespace "{asked.namespace}"' if asked.namespace else "at the cluster scope"
            group = GROUPS[asked.resource][0]
            what = f'cannot {verb} resource "{asked.resource}" in API group "{group}" {where}'
            name = f"{asked.resource}.{group}".strip(".")
            raise Refusal(403, "Forbidden", f'{name} is forbidden: User "{USER}" {what}')

    def _watch(self, asked: Asked) -> None:
        api = self.server.api
        gone = api.gone(asked)
        if gone and not api.rules.gone_as_event:
            raise gone
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in [{"type": "ERROR", "object": gone.status}] if gone else api.events(asked):
            data = json.dumps(event).encode() + b"\n"
            half = len(data) // 2  # an event may come in two pieces
            for piece in (data[:half], data[half:]):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def _document(self, path: str) -> None:
        """What a client like kubectl asks first: which kinds there are."""
        api = self.server.api
        if path == "/api":
            return self._json(200, {"kind": "APIVersions", "versions": ["v1"]})
        if path == "/apis":
            names = [group for group, _ in GROUPS.values() if group]
            one = [{"groupVersion": f"{name}/v1", "version": "v1"} for name in names]
            groups = [{"name": n, "versions": [v], "preferredVersion": v} for n, v in zip(names, one, strict=True)]
            return self._json(200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        for resource, (group, kind) in GROUPS.items():
            if path == prefix(resource) and resource not in api.rules.absent:
                verbs = ["get", "list", "watch"]
                found = {"name": resource, "singularName": "", "namespaced": True, "kind": kind, "verbs": verbs}
                version = f"{group}/v1".strip("/")
                return self._json(200, {"kind": "APIResourceList", "groupVersion": version, "resources": [found]})
        body = b"404 page not found\n"
        self.send_response(404)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _json(self, code: int, found: Any) -> None:
        body = json.dumps(found).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def kube_api(folder: Path) -> Iterator[KubeApi]:
    """An API server for the time of a `with`."""
    api = KubeApi(folder)
    try:
        yield api
    finally:
        api.close()


def ingress(namespace: str, name: str, *hosts: str, tls: tuple[str, ...] = (), path: str = "/") -> dict[str, Any]:
    """An Ingress with one path for each host."""
    backend = {"service": {"name": name, "port": {"number": 80}}}
    paths = [{"path": path, "pathType": "Prefix", "backend": backend}]
    rules = [{"host": host, "http": {"paths": paths}} for host in hosts]
    spec: dict[str, Any] = {"rules": rules}
    if tls:
        spec["tls"] = [{"hosts": list(tls), "secretName": "cert"}]
    return {"metadata": {"namespace": namespace, "name": name}, "spec": spec}


def service(namespace: str, name: str, *ports: tuple[str, int, str], kind: str = "NodePort") -> dict[str, Any]:
    """A Service with (name, port, protocol)."""
    rows = [{"name": n, "port": p, "protocol": proto} for n, p, proto in ports]
    spec = {"type": kind, "clusterIP": "10.0.0.7", "ports": rows}
    return {"metadata": {"namespace": namespace, "name": name}, "spec": spec}


def httproute(namespace: str, name: str, host: str, *paths: str) -> dict[str, Any]:
    """An HTTPRoute with one match for each path."""
    rules = [{"matches": [{"path": {"type": "PathPrefix", "value": path}}]} for path in paths]
    return {"metadata": {"namespace": namespace, "name": name}, "spec": {"hostnames": [host], "rules": rules}}
