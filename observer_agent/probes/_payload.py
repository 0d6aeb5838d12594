"""What a configuration says to a target of plain bytes, and what it wants to hear (`send`, `send_hex`, `expect`).

Raw fields in, bytes out. Neither what was sent nor what came back stands in any text. Pure.
"""

from __future__ import annotations

from typing import Final

from observer_agent.probes._config import Fields

SENT: Final = 4_096  # bytes at most
READ: Final = 4_096  # bytes of an answer that are looked through


def parse_send(fields: Fields) -> bytes:
    """`send`, a text, or `send_hex`, bytes as hexadecimal digits; empty where there is neither."""
    text = fields.text("send", longest=SENT)
    data = fields.parsed("send_hex", _hex)
    if text is not None and data is not None:
        fields.problem("send_hex", "cannot be used together with send")
    found = data if data is not None else (text or "").encode()
    if len(found) > SENT:
        fields.problem("send", f"must be at most {SENT} bytes")
    return found


def parse_expect(fields: Fields) -> bytes:
    """`expect`, a text that the answer must hold; empty where nothing is expected."""
    found = (fields.text("expect", longest=READ) or "").encode()
    if len(found) > READ:
        fields.problem("expect", f"must be at most {READ} bytes")
    return found


def _hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise ValueError("must be hexadecimal digits, two for each byte") from None
