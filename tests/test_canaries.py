"""The search for planted secrets finds them however they are hidden.

What it finds around real agents is in test_canaries_observer.py and test_canaries_lighthouse.py.
"""

from __future__ import annotations

import base64
import gzip
import zlib
from urllib.parse import quote

import cramjam
import pytest

from tests.canaries import Canaries, unpacked


@pytest.mark.parametrize(
    "hide",
    [
        bytes,
        lambda b: base64.b64encode(b),
        lambda b: base64.b64encode(b"x" + b),
        lambda b: base64.b64encode(b"xy" + b),
        lambda b: base64.urlsafe_b64encode(b"xy" + b),
        lambda b: quote(b, safe="").encode().replace(b"c", b"%63"),
        lambda b: b"".join(b"\\u%04x" % each for each in b),
        lambda b: b.hex().encode(),
        gzip.compress,
        zlib.compress,
        lambda b: base64.b64encode(gzip.compress(b)),
        lambda b: gzip.compress(base64.b64encode(b)),
        lambda b: quote(base64.b64encode(b"x" + b), safe="").encode(),
    ],
)
def test_a_secret_is_found_however_it_is_hidden(hide):
    canaries = Canaries()
    canaries.plant("not here")
    secret = canaries.plant("here", head='"', tail="é")
    assert canaries.found_in(b'{"a":"' + hide(secret.encode()) + b'","b":1}') == ["here"]


def test_a_secret_in_a_block_of_snappy_is_found():
    canaries = Canaries()
    body = bytes(cramjam.snappy.compress_raw(b"x" * 100 + canaries.plant("here").encode() + b"x" * 100))
    head = b"POST /a HTTP/1.1\r\nContent-Encoding: snappy\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert canaries.found_in(
        b"".join(unpacked([b"POST /b HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}" + head + body]))
    ) == ["here"]
