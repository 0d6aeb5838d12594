"""Documents of definitions to the store: read, validated by the agent's own parsers, reconciled by key.

Texts or files go in; what they change, and every remark with its line, comes out. What is not named is left alone, or
pruned where that is asked for. Everything of one call is one transaction. Runs on the thread of a command or a request.
"""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, delete, exists, or_, update

from observer_agent import document
from observer_agent.document import Document, Remark
from observer_agent.errors import DocumentError, InvalidConfig
from observer_agent.hub import audit, jobs, schema
from observer_agent.hub.difference import Change, Difference, compare
from observer_agent.hub.form import METRIC, PAGE, SECTIONS, SERVICE, Forms, held, metric_form
from observer_agent.hub.hot import Bulk
from observer_agent.hub.references import resolve
from observer_agent.hub.store import UNMANAGED, Managed, Store, bump
from observer_agent.sections import Severity

log = logging.getLogger(__name__)

# docs/wire.md; what this version's agents have no probe for is kept as it is
SOURCE_TYPES = (
    "prometheus http tcp dns tls_cert icmp grpc websocket mtls_http database otlp cloudwatch custom loki "
    "elasticsearch host"
).split()


@dataclass(frozen=True, slots=True)
class Options:
    """How to apply: `partial` goes on without what is left out, `actor` is who asks, for the audit log."""

    dry_run: bool = False
    prune: bool = False
    partial: bool = False
    actor: str = "config"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was to change, what there is to say, and whether it was refused because something was left out."""

    difference: Difference
    remarks: tuple[Remark, ...]
    refused: bool
    dry_run: bool = False

    @property
    def applied(self) -> bool:
        """Whether the store now is what the documents say."""
        return not self.refused and not self.dry_run


def check(source_type: str, config: Mapping[str, Any]) -> str | None:
    """Holds a configuration against the parser of its source type, or returns a note; raises InvalidConfig."""
    from observer_agent import probes

    if source_type == document.HEARTBEAT:
        jobs.parse(config)
        return None
    if source_type in probes.SOURCES:
        probes.parse(source_type, config)
        older = f"the source type {source_type} is ours: agents of other makes, and older ones, do not know it"
        return None if source_type in SOURCE_TYPES else older
    known = [*dict.fromkeys((*SOURCE_TYPES, *probes.SOURCES)), *document.UNRULED]
    near = difflib.get_close_matches(source_type, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"write one of {', '.join(known)}"
    raise InvalidConfig(f"source_type: {ascii(source_type)[:66]} is not known: {hint}")


def apply_file(store: Store, file: Path) -> bool:
    """Applies what can be understood of a file and says whether anything changed; each fault is a warning.

    Raises DocumentError.
    """
    found = document.read(read_file(file), str(file), check)
    outcome = apply(store, found, Options(partial=True))
    for remark in outcome.remarks:
        log.log(logging.INFO if remark.severity is Severity.NOTE else logging.WARNING, "%s", remark)
    said = "changed" if outcome.difference else "are as they were"
    log.info("The definitions %s: %d metrics in %s", said, len(found.metrics), file)
    return bool(outcome.difference)


def read_file(file: Path) -> str:
    """The text of a file; raises DocumentError."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "is not UTF-8 text"
        raise DocumentError(f"{file} cannot be read: {why}; name a readable document of definitions") from None


def apply(store: Store, found: Document, options: Options) -> Outcome:
    """Reconciles the store with a document, or says what that would do."""
    if options.dry_run:
        with store.database.read() as conn:
            return _Round(store, conn, options).do(found)
    return store.database.run(lambda conn: _Round(store, conn, options).do(found))


class _Round:
    """One reconciliation, inside its transaction."""

    def __init__(self, store: Store, conn: Connection, options: Options) -> None:
        self._store = store
        self._conn = conn
        self._options = options

    def do(self, found: Document) -> Outcome:
        options = self._options
        if not options.dry_run:
            bump(self._conn, 0)  # two that apply at once do so one after the other
        before = held(self._conn)
        found = resolve(self._conn, found, before, options.prune)
        wanted = {
            METRIC: {metric.key: metric_form(metric) for metric in found.metrics},
            SERVICE: {item.key: item.body for item in found.services},
            PAGE: {item.key: item.body for item in found.pages},
        }
        difference = self._compare(before, wanted, found.sections)
        faults = any(remark.severity is Severity.ERROR for remark in found.remarks)
        refused = faults and (options.prune or not options.partial)
        if difference and not refused and not options.dry_run:
            self._write(found, difference, before[METRIC])
        return Outcome(difference, found.remarks, refused, options.dry_run)

    def _compare(
        self, before: Mapping[str, Forms], wanted: Mapping[str, Forms], sections: frozenset[str]
    ) -> Difference:
        """Only the sections that a document has are pruned: a misspelt one must not empty the hub."""
        total = Difference()
        for kind, section in SECTIONS.items():
            prune = self._options.prune and section in sections
            total = total.plus(compare(kind, before[kind], wanted[kind], prune))
        return total

    def _write(self, found: Document, difference: Difference, before: Forms) -> None:
        touched = {(change.kind, change.key) for change in difference.created + difference.changed}
        for change in difference.pruned:
            self._prune(change)
        metrics = [metric for metric in found.metrics if (METRIC, metric.key) in touched]
        self._store.put(self._conn, [Managed(each.key, each.title, each.agent, each.wire) for each in metrics])
        for metric in metrics:
            if not metric.description and "description" in before.get(metric.key, {}):
                self._drop(METRIC, metric.key)
        # The description is for people: it is no part of the definition that agents get.
        kept = [(METRIC, each.key, {"description": each.description}) for each in metrics if each.description]
        items = [item for item in (*found.services, *found.pages) if (item.kind, item.key) in touched]
        self._keep([*kept, *((item.kind, item.key, item.body) for item in items)])
        bump(self._conn, 1)
        self._record(difference)

    def _keep(self, rows: Sequence[tuple[str, str, Mapping[str, Any]]]) -> None:
        """Rows of `objects`: kind, key and body."""
        texts = [{"kind": kind, "key": key, "body": json.dumps(body, allow_nan=False)} for kind, key, body in rows]
        _OBJECTS.rows(self._conn, texts)

    def _drop(self, kind: str, key: str) -> None:
        objects = schema.objects
        self._conn.execute(delete(objects).where(objects.c.kind == kind, objects.c.key == key))

    def _prune(self, change: Change) -> None:
        """An object goes. A metric with a history stays readable: unmanaged, with its title; agents stop probing it."""
        self._drop(change.kind, change.key)
        if change.kind != METRIC:
            return
        metrics = schema.metrics
        here = metrics.c.key == change.key
        history = (schema.latest, schema.pushes, schema.days)
        seen = or_(*(exists().where(table.c.metric_id == metrics.c.id) for table in history))
        self._conn.execute(delete(metrics).where(here, metrics.c.managed.is_(True), ~seen))
        self._conn.execute(update(metrics).where(here).values(key=None, managed=False, source_type=UNMANAGED))

    def _record(self, difference: Difference) -> None:
        now, actor = self._store.now(), self._options.actor
        lists = {"create": difference.created, "change": difference.changed, "prune": difference.pruned}
        made = [
            audit.entry(actor, f"{change.kind}.{word}", change.key, ", ".join(field.field for field in change.fields))
            for word, changes in lists.items()
            for change in changes
        ]
        audit.keep(self._conn, now, made)


_OBJECTS = Bulk(schema.objects, ("kind", "key", "body"), keys=("kind", "key"))
