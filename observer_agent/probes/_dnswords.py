"""DNS messages: a question to bytes, bytes to an answer that was held against the question.

dnspython is used as a codec alone: it resolves and connects nothing. It is imported inside functions, so that who has
no `dns` definition does not pay for it. Runs on the probe's thread.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from observer_agent.model import Fault
from observer_agent.probes._reasons import Failed, Reason

if TYPE_CHECKING:
    from dns.message import Message

RECORD_TYPES: Final = ("A", "AAAA", "CNAME", "MX", "TXT", "NS", "SRV", "CAA", "PTR", "SOA")
PAYLOAD: Final = 1_232  # what goes through every network in one piece (DNS flag day 2020)

_CODES: Final[Mapping[str, tuple[Reason, str]]] = MappingProxyType(
    {
        "NXDOMAIN": (Reason.NOT_FOUND, "the name does not exist (NXDOMAIN)"),
        "FORMERR": (Reason.DNS_FORMERR, "the server did not understand the question (FORMERR)"),
        "SERVFAIL": (Reason.DNS_SERVFAIL, "the server could not find out (SERVFAIL)"),
        "NOTIMP": (Reason.DNS_NOTIMP, "the server cannot answer such a question (NOTIMP)"),
        "REFUSED": (Reason.DNS_REFUSED, "the server refuses to answer (REFUSED)"),
    }
)


class NotOurs(Exception):
    """A message that answers another question, or none: it is passed over."""


class Question(NamedTuple):
    """A name, a record type's word, and the id of the message."""

    domain: str
    record_type: str
    id: int

    def render(self, edns: bool) -> bytes:
        """The message's bytes: recursion desired, and EDNS where the server knows it."""
        import dns.message

        options: dict[str, Any] = {"use_edns": 0, "payload": PAYLOAD} if edns else {}
        return dns.message.make_query(self.domain, self.record_type, id=self.id, **options).to_wire()


class Answer(NamedTuple):
    """What a server said: the code's word, the records as texts, the aliases that led there."""

    code: str
    truncated: bool
    records: tuple[tuple[str, ...], ...] = ()
    ttl: int | None = None
    aliases: tuple[str, ...] = ()
    authoritative: bool = False
    authenticated: bool = False


def understand(question: Question, data: bytes) -> Answer:
    """The answer in a message; raises NotOurs, or Failed (EBADRESP) where the answer to our question is malformed."""
    import dns.exception
    import dns.flags
    import dns.message
    import dns.rcode

    _check_head(question, data)
    try:
        message = dns.message.from_wire(data, ignore_trailing=True)
        _check_question(question, message)
        code = dns.rcode.to_text(message.rcode())
        answer = Answer(
            code,
            bool(message.flags & dns.flags.TC),
            authoritative=bool(message.flags & dns.flags.AA),
            authenticated=bool(message.flags & dns.flags.AD),
        )
        return answer if answer.truncated or code != "NOERROR" else _with_records(answer, question, message)
    except (dns.exception.DNSException, ValueError) as error:
        raise Failed(Reason.DNS_BADRESP, f"the answer is malformed ({type(error).__name__})") from None


def judge(answer: Answer, question: Question, by_choice: bool) -> None:
    """Raises Failed where there is no record; `by_choice`: the definition names the server, so its faults are the
    target's and not the resolver's."""
    if answer.code != "NOERROR":
        unnamed = (Reason.DNS_ERROR, f"the server answers {answer.code[:20]}")
        reason, text = _CODES.get(answer.code, unnamed)
        raise Failed(reason, text, Fault.TARGET if by_choice else None)
    if not answer.records:
        # Where they lead is an answer: it stays in the detail, log lines may leave.
        name = "the name to which its aliases lead" if answer.aliases else "the name"
        raise Failed(Reason.DNS_NODATA, f"{name} has no {question.record_type} record")


def _check_head(question: Question, data: bytes) -> None:
    """Id, answer bit and kind of question, before anything else is read."""
    if len(data) < 12 or int.from_bytes(data[:2]) != question.id or data[2] & 0xF8 != 0x80:
        raise NotOurs


def _check_question(question: Question, message: Message) -> None:
    import dns.name
    import dns.rdataclass
    import dns.rdatatype

    if not message.question and message.rcode() != 0:
        return  # servers that did not understand the question cannot repeat it
    asked = (dns.name.from_text(question.domain), dns.rdatatype.from_text(question.record_type), dns.rdataclass.IN)
    if [(q.name, q.rdtype, q.rdclass) for q in message.question] != [asked]:
        raise NotOurs


def _with_records(answer: Answer, question: Question, message: Any) -> Answer:
    chain = message.resolve_chaining()
    aliases = tuple(_name(rrset[0].target) for rrset in chain.cnames)
    if chain.answer is None:
        return answer._replace(aliases=aliases)
    forms = _FORMS[question.record_type]
    records = tuple(sorted(forms(rdata) for rdata in chain.answer))
    return answer._replace(records=records, ttl=chain.minimum_ttl, aliases=aliases)


# -- records: the text that is shown first, then the other forms that an expected value may have


def _name(name: Any) -> str:
    return str(name.to_text(omit_final_dot=True)).lower() or "."


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")


def _mx(rdata: Any) -> tuple[str, ...]:
    host = _name(rdata.exchange)
    return host, f"{rdata.preference} {host}", f"{host} (priority {rdata.preference})"


def _srv(rdata: Any) -> tuple[str, ...]:
    target = _name(rdata.target)
    long = f"{target}:{rdata.port} (priority {rdata.priority}, weight {rdata.weight})"
    return f"{rdata.priority} {rdata.weight} {rdata.port} {target}", target, f"{target}:{rdata.port}", long


_FORMS: Final[Mapping[str, Callable[[Any], tuple[str, ...]]]] = MappingProxyType(
    {
        "A": lambda rdata: (rdata.address,),
        "AAAA": lambda rdata: (str(ipaddress.IPv6Address(rdata.address)),),
        "CNAME": lambda rdata: (_name(rdata.target),),
        "NS": lambda rdata: (_name(rdata.target),),
        "PTR": lambda rdata: (_name(rdata.target),),
        "MX": _mx,
        "SRV": _srv,
        "TXT": lambda rdata: (_text(b"".join(rdata.strings)),),
        "CAA": lambda rdata: (
            f"{_text(rdata.tag)} {_text(rdata.value)}",
            f"{rdata.flags} {_text(rdata.tag)} {_text(rdata.value)}",
            _text(rdata.value),
        ),
        "SOA": lambda rdata: (f"{_name(rdata.mname)} {_name(rdata.rname)} {rdata.serial}", _name(rdata.mname)),
    }
)


# -- what an operator writes


def expected(record_type: str, text: str) -> str:
    """An expected value in the form that records have; raises ValueError."""
    if not text or record_type in ("TXT", "CAA"):
        return text
    if record_type in ("A", "AAAA"):
        try:
            return str(ipaddress.IPv4Address(text) if record_type == "A" else ipaddress.IPv6Address(text))
        except ValueError:
            raise ValueError(f"must be an IPv{4 if record_type == 'A' else 6} address, as whole") from None
    text = " ".join(text.lower().split())
    return text.removesuffix(".").replace(".:", ":").replace(". ", " ") or "."


def matches(record_type: str, text: str, answer: Answer) -> bool:
    """Whether a record is what was expected: free text may hold it, everything else must equal it."""
    if record_type in ("TXT", "CAA"):
        return any(text in forms[0] for forms in answer.records)
    return any(text in forms for forms in answer.records)


def holds(text: str, answer: Answer, exactly: bool) -> bool:
    """Whether a record equals a text, or has it as a part, whatever the record type; names without regard to case."""
    forms = (form for forms in answer.records for form in forms)
    return any(text == form if exactly else text.lower() in form.lower() for form in forms)


_LABEL = re.compile(r"[!-.0-\[\]-~/]{1,63}")


def domain_name(text: str) -> str:
    """A domain in ASCII and lower case with a dot at the end; any printable character but the backslash may stand in a
    label, for names as `*.example.com` and `0/25.2.0.192.in-addr.arpa`. Raises ValueError."""
    name = text.strip().lower()
    try:
        name = name if name.isascii() else name.encode("idna").decode("ascii")
    except UnicodeError:
        name = ""
    bare = name.removesuffix(".")
    if name != "." and (len(bare) > 253 or not all(_LABEL.fullmatch(label) for label in bare.split("."))):
        raise ValueError("must be a domain's name")
    return f"{bare}."
