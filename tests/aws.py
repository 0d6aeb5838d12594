"""A local CloudWatch and STS for tests: the query protocol of AWS, SigV4 checked, answers as AWS documents them.

Not AWS: what it is true to is shown in test_probes_cloudwatch.py, which has AWS's own library read its answers and
write the same requests. A `Cloud` is the handler of a `tests.servers.Server`.
"""

from __future__ import annotations

import hashlib
import hmac
import socket
import threading
from datetime import UTC, datetime
from urllib.parse import parse_qsl

from tests.servers import Server, answer, read_request

ACCESS, SECRET = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
REGION = "eu-central-1"
ROLE = "arn:aws:iam::123456789012:role/observer"
TEMPORARY = ("ASIAEXAMPLE", "temporary/secret", "temporary-session-token")


def stamp(seconds: float) -> str:
    """Seconds since 1970 as AWS writes them."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def metric_data(points, status="Complete", token="", label="CPUUtilization") -> bytes:
    """GetMetricDataResponse with points of (seconds, value as text), in the order given."""
    times = "".join(f"<member>{stamp(at)}</member>" for at, _ in points)
    values = "".join(f"<member>{value}</member>" for _, value in points)
    more = f"<NextToken>{token}</NextToken>" if token else ""
    return answer(
        '<GetMetricDataResponse xmlns="http://monitoring.amazonaws.com/doc/2010-08-01/"><GetMetricDataResult>'
        f"<MetricDataResults><member><Timestamps>{times}</Timestamps><Values>{values}</Values><Label>{label}</Label>"
        f"<Id>m1</Id><StatusCode>{status}</StatusCode></member></MetricDataResults>{more}</GetMetricDataResult>"
        "<ResponseMetadata><RequestId>7d4f0a3e</RequestId></ResponseMetadata></GetMetricDataResponse>",
        Content_Type="text/xml",
    )


def error(code: str, status: int = 400, message: str = "what AWS says") -> bytes:
    """An error of the query protocol."""
    return answer(
        '<ErrorResponse xmlns="http://monitoring.amazonaws.com/doc/2010-08-01/"><Error><Type>Sender</Type>'
        f"<Code>{code}</Code><Message>{message}</Message></Error><RequestId>7d4f0a3e</RequestId></ErrorResponse>",
        status,
        Content_Type="text/xml",
    )


def assumed(ends: float, action: str = "AssumeRole") -> bytes:
    """AssumeRoleResponse with credentials that end at `ends`."""
    access, secret, token = TEMPORARY
    return answer(
        f'<{action}Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><{action}Result><Credentials>'
        f"<AccessKeyId>{access}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey>"
        f"<SessionToken>{token}</SessionToken><Expiration>{stamp(ends)}</Expiration></Credentials>"
        f"</{action}Result><ResponseMetadata><RequestId>c6104cbe</RequestId></ResponseMetadata></{action}Response>",
        Content_Type="text/xml",
    )


class Cloud:
    """Answers by action, the last answer again and again; refuses what is not signed as SigV4 says."""

    def __init__(self, keys: dict[str, str] | None = None, **answers: list[bytes]) -> None:
        self.keys = {ACCESS: SECRET, TEMPORARY[0]: TEMPORARY[1]} if keys is None else keys
        self.answers = answers
        self.asked: list[dict[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self._lock = threading.Lock()

    def __call__(self, conn: socket.socket, server: Server) -> None:
        request = read_request(conn)
        head, _, body = request.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        asked = dict(parse_qsl(body.decode(), keep_blank_values=True, strict_parsing=True))
        with self._lock:
            self.asked.append(asked)
            self.headers.append(headers)
            waiting = self.answers[asked["Action"]]
            reply = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        if asked["Action"] != "AssumeRoleWithWebIdentity" and not self._is_signed(lines[0], headers, body):
            reply = error("SignatureDoesNotMatch", 403)
        conn.sendall(reply)

    def _is_signed(self, line: str, headers: dict[str, str], body: bytes) -> bool:
        """SigV4, written from its specification."""
        method, target, _ = line.split(" ")
        kind, _, rest = headers.get("authorization", "").partition(" ")
        parts = dict(part.strip().split("=", 1) for part in rest.split(",")) if kind == "AWS4-HMAC-SHA256" else {}
        access, _, scope = parts.get("Credential", "").partition("/")
        if access not in self.keys:
            return False
        service = "monitoring" if b"Action=GetMetricData" in body else "sts"
        assert scope == f"{headers['x-amz-date'][:8]}/{REGION}/{service}/aws4_request"
        names = parts["SignedHeaders"].split(";")
        assert {"host", "x-amz-date", "content-type"} <= set(names)
        assert ("x-amz-security-token" in names) == (access == TEMPORARY[0])
        lines = "".join(f"{name}:{headers[name]}\n" for name in names)
        digest = hashlib.sha256(body).hexdigest()
        canonical = f"{method}\n{target}\n\n{lines}\n{';'.join(names)}\n{digest}"
        hashed = hashlib.sha256(canonical.encode()).hexdigest()
        key = f"AWS4{self.keys[access]}".encode()
        for part in scope.split("/"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        text = f"AWS4-HMAC-SHA256\n{headers['x-amz-date']}\n{scope}\n{hashed}"
        return hmac.new(key, text.encode(), hashlib.sha256).hexdigest() == parts["Signature"]
