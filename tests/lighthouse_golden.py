"""The golden messages of the second dialect, and what a captured request looks like beside them."""

from __future__ import annotations

import base64
import json
from pathlib import Path

WIRE = Path(__file__).parent / "wire" / "lighthouse"
GOLDEN = {file.stem: json.loads(file.read_text()) for file in sorted(WIRE.glob("*.json"))}
OURS = {name: golden for name, golden in GOLDEN.items() if golden.get("ours", True)}
OF_HTTP = {"Host", "Accept", "Accept-Encoding", "Content-Length"}


def endpoint_of(golden: dict) -> str:
    """The last part of its path."""
    return golden["request"]["path"].rpartition("/")[2]


def names(*endpoints: str, ours: bool = True) -> list[str]:
    """The messages of some endpoints."""
    return [name for name, golden in (OURS if ours else GOLDEN).items() if endpoint_of(golden) in endpoints]


def answer_body(golden: dict) -> bytes:
    """What the console says, byte for byte."""
    said = golden["answer"]
    return json.dumps(said["body"]).encode() if "body" in said else said["text"].encode()


def split(request: bytes) -> tuple[str, dict[str, str], bytes]:
    """A captured request: its first line, its headers, its body."""
    head, _, body = request.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return first, dict(line.split(": ", 1) for line in lines), body


def check_request(golden: dict, request: bytes) -> None:
    """The request is the golden one: its line, each header, no other than HTTP's own, and the body."""
    first, headers, body = split(request)
    wanted = golden["request"]
    assert first == f"{wanted['method']} {wanted['path']} HTTP/1.1"
    assert {name: headers.get(name) for name in wanted["headers"]} == wanted["headers"]
    assert set(headers) - set(wanted["headers"]) <= OF_HTTP
    if "body" in wanted:
        assert json.loads(body) == wanted["body"]
    else:
        assert body == base64.b64decode(wanted["base64"]) if "base64" in wanted else body == b""
