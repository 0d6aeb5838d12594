"""Signed calls to AWS in its query protocol: an action and its parameters in, the answer's XML out, or Failed.

Only the signing (SigV4) and the reading of AWS's own files is botocore's (the extra `cloudwatch`); every connection is
ours, so that policy and deadline hold. AWS's texts are not shown: they may name roles, and hold what was signed. Runs
on the probe's thread.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlencode

from observer_agent.model import Fault
from observer_agent.probes._backend import BODY_LIMIT, COURTESY, ERROR_LIMIT, Words
from observer_agent.probes._http import Request, Response, exchange
from observer_agent.probes._reasons import Failed, Reason, timed_out
from observer_agent.probes._slots import Late, NoThread, Taken
from observer_agent.probes._tools import Run
from observer_agent.probes._url import Url, parse_url
from observer_agent.probes._wallet import Keys

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

INSTALL: Final = "botocore is not installed: pip install 'observer-agent[cloudwatch]'"

WORDS: Final = Words(
    auth_ref_missing=Reason.CLOUDWATCH_CREDENTIALS_MISSING,
    unauthorized=Reason.CLOUDWATCH_ACCESS_DENIED,
    query_error=Reason.CLOUDWATCH_INVALID_PARAMETER,
    server_error=Reason.CLOUDWATCH_SERVER_ERROR,
    timeout=Reason.CLOUDWATCH_TIMEOUT,
    unreachable=Reason.CLOUDWATCH_UNREACHABLE,
    error=Reason.CLOUDWATCH_ERROR,
    not_found=Reason.CLOUDWATCH_RESOURCE_NOT_FOUND,
)
_SUFFIXES: Final[Mapping[str, str]] = {
    "cn-": "amazonaws.com.cn",
    "us-iso-": "c2s.ic.gov",
    "us-isob-": "sc2s.sgov.gov",
    "us-isof-": "csp.hci.ic.gov",
    "eu-isoe-": "cloud.adc-e.uk",
    "eusc-": "amazonaws.eu",
}
_BY_CODE: Final[Mapping[str, Reason]] = {
    name: reason
    for reason, names in (
        (
            Reason.CLOUDWATCH_ACCESS_DENIED,
            "AccessDenied AuthFailure InvalidClientTokenId OptInRequired SignatureDoesNotMatch UnrecognizedClient "
            "IncompleteSignature MissingAuthenticationToken NotAuthorized InvalidIdentityToken IDPRejectedClaim",
        ),
        (
            Reason.CLOUDWATCH_THROTTLED,
            "Throttling Throttled RequestLimitExceeded TooManyRequests RequestThrottled LimitExceeded",
        ),
        (
            Reason.CLOUDWATCH_INVALID_PARAMETER,
            "InvalidParameterValue InvalidParameterCombination MissingParameter MissingRequiredParameter "
            "ValidationError Validation InvalidFormat InvalidNextToken",
        ),
        (Reason.CLOUDWATCH_RESOURCE_NOT_FOUND, "ResourceNotFound"),
        (Reason.CLOUDWATCH_EXPIRED_CREDENTIALS, "ExpiredToken"),
        (Reason.CLOUDWATCH_SERVER_ERROR, "InternalFailure InternalService InternalServiceError ServiceUnavailable"),
    )
    for name in names.split()
}


class Service(NamedTuple):
    """One of AWS's services: its name in an endpoint and in a signature, the environment's name for it, the version."""

    name: str
    env: str
    version: str


MONITORING: Final = Service("monitoring", "AWS_ENDPOINT_URL_CLOUDWATCH", "2010-08-01")
STS: Final = Service("sts", "AWS_ENDPOINT_URL_STS", "2011-06-15")


class Library(NamedTuple):
    """What is used of botocore."""

    auth: Any
    request: Any
    credentials: Any
    error: type[Exception]


class Answer(NamedTuple):
    """An answer's XML; `find` ignores namespaces."""

    root: Element

    def text(self, path: str) -> str:
        """The text at a path of names joined by `/`, empty where there is none."""
        return (self.root.findtext(_anywhere(path)) or "").strip()

    def all(self, path: str) -> list[Answer]:
        """Every element at a path."""
        return [Answer(each) for each in self.root.findall(_anywhere(path))]


def library(run: Run) -> Any:
    """botocore, imported on a helper thread: a slow disk must not outlive the deadline. Raises Failed."""
    wallet = run.tools.wallet
    if wallet.library:
        return wallet.library
    try:
        outcome = run.tools.custom.slots.run("\0botocore", _imported, run.deadline)
    except (Late, Taken):
        raise timed_out("loading botocore", Fault.AGENT) from None
    except NoThread:
        raise Failed(Reason.NO_MEMORY, "no thread could be started", Fault.AGENT) from None
    if outcome.error:
        name = type(outcome.error).__name__
        text = INSTALL if isinstance(outcome.error, ImportError) else f"botocore cannot be loaded: {name}"
        raise Failed(Reason.SOURCE_UNAVAILABLE, text)
    wallet.library = outcome.value
    return wallet.library


def _imported() -> Library:
    load = importlib.import_module
    return Library(
        load("botocore.auth").SigV4Auth,
        load("botocore.awsrequest").AWSRequest,
        load("botocore.credentials"),
        load("botocore.exceptions").BotoCoreError,
    )


def endpoint(service: Service, region: str, run: Run) -> Url:
    """Where a service is in a region, or where AWS_ENDPOINT_URL_... says; raises Failed."""
    env = run.tools.env
    given = env.get(service.env, "").strip() or env.get("AWS_ENDPOINT_URL", "").strip()
    if given:
        try:
            return parse_url(given)
        except ValueError as error:
            raise Failed(Reason.CLOUDWATCH_ERROR, f"{service.env} or AWS_ENDPOINT_URL {error}", Fault.CONFIG) from None
    suffix = next((name for start, name in _SUFFIXES.items() if region.startswith(start)), "amazonaws.com")
    return Url("https", f"{service.name}.{region}.{suffix}", 443, "/")


def call(service: Service, parameters: Mapping[str, str], keys: Keys | None, region: str, run: Run) -> Answer:
    """One action, signed where there are keys; raises Failed."""
    url = endpoint(service, region, run)
    body = urlencode({"Version": service.version, **parameters}).encode()
    headers = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
    if keys:
        headers = _signed(service, url, headers, body, keys, region, library(run))
    tls = run.tools.contexts.system(True, run) if url.scheme == "https" else None
    with exchange(Request("POST", url, tuple(headers.items()), body), run, tls) as response:
        if response.status != 200:
            raise _refused(response, run, service)
        return Answer(_parsed(response.plain_body(BODY_LIMIT + 1)))


def _signed(
    service: Service, url: Url, headers: dict[str, str], body: bytes, keys: Keys, region: str, lib: Library
) -> dict[str, str]:
    request = lib.request(method="POST", url=url.text, headers=headers, data=body)
    credentials = lib.credentials.Credentials(keys.access, keys.secret, keys.token)
    lib.auth(credentials, service.name, region).add_auth(request)
    return {str(name): str(value) for name, value in request.headers.items()}


def _refused(response: Response, run: Run, service: Service) -> Failed:
    """What an error means: its code first, then its status."""
    status, code = response.status, ""
    run.hurry(COURTESY)
    try:
        code = Answer(_parsed(response.plain_body(ERROR_LIMIT))).text("Error/Code")[:64]
    except Failed:
        pass  # the status alone tells enough
    by_status = {403: Reason.CLOUDWATCH_ACCESS_DENIED, 429: Reason.CLOUDWATCH_THROTTLED}
    other = Reason.CLOUDWATCH_SERVER_ERROR if status >= 500 else by_status.get(status, Reason.CLOUDWATCH_ERROR)
    reason = reason_of(code, other)
    shown = code if code.isascii() and code.replace(".", "").isalnum() else "no code"
    return Failed(reason, f"{service.name} answered {status} ({shown})", http_status=status)


def reason_of(code: str, other: Reason) -> Reason:
    """The reason for AWS's code of an error, in whichever of its spellings."""
    name = code.rpartition("#")[2].partition(":")[0].removesuffix("Exception").removesuffix("Fault")
    return _BY_CODE.get(name, _BY_CODE.get(code, other))


def _parsed(body: bytes) -> Element:
    from xml.etree import ElementTree  # only here: most agents never need it

    if len(body) > BODY_LIMIT:
        raise Failed(Reason.BODY_TOO_LARGE, f"the answer has more than {BODY_LIMIT} bytes")
    if b"<!" in body.replace(b"<!--", b"").replace(b"<![CDATA[", b""):
        raise Failed(Reason.CLOUDWATCH_ERROR, "the answer has a DTD, as no answer of AWS has")
    try:
        return ElementTree.fromstring(body)
    except (ElementTree.ParseError, ValueError):
        raise Failed(Reason.CLOUDWATCH_ERROR, "the answer is not XML: is this AWS?") from None


def _anywhere(path: str) -> str:
    return ".//" + "/".join(f"{{*}}{name}" for name in path.split("/"))
