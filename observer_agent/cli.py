"""The front door: click commands that parse, call, print and choose the exit code.

Exit codes: 0 well, 1 not well (each command says what that means), 2 wrong usage, 3 not running, 78 a wrong setting.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from observer_agent import __version__
from observer_agent.errors import ConfigError, ObserverError

if TYPE_CHECKING:
    from observer_agent.queueaccess import Report

EXIT_CONFIG = 78

config_option = click.option(
    "--config", "file", type=click.Path(path_type=Path, dir_okay=False), help="TOML file of settings."
)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
dry_option = click.option("--dry-run", is_flag=True, help="Change nothing and say what would be done.")


def guarded(command: Callable[..., int | None]) -> Callable[..., None]:
    """Turns what a command returns or raises into an exit code and, where something is wrong, one line."""

    @wraps(command)
    def call(*args: Any, **kwargs: Any) -> None:
        try:
            code = command(*args, **kwargs)
        except ConfigError as error:
            click.echo(f"observer-agent: {error}", err=True)
            code = EXIT_CONFIG
        except ObserverError as error:
            click.echo(f"observer-agent: {error}", err=True)
            code = 2
        sys.exit(code or 0)

    return call


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="observer-agent", message="%(prog)s %(version)s")
def main() -> None:
    """Probes what you name, judges it, and delivers every verdict. It never needs you."""


@main.command()
@config_option
@click.option("--log-level", type=click.Choice(["debug", "info"]), help="debug prints every body before it is sent.")
@guarded
def run(file: Path | None, log_level: str | None) -> int:
    """Runs the agent until SIGTERM. Settings come from the environment and --config."""
    from observer_agent import commands

    if log_level:
        os.environ["VERBOSE"] = str(log_level == "debug").lower()
    return commands.run(file)


@main.command()
@config_option
@click.option("--connect", is_flag=True, help="Ask the cloud as well: network, TLS, key, definitions.")
@json_option
@guarded
def check(file: Path | None, connect: bool, as_json: bool) -> int:
    """Says whether the settings are right. Exit 78 if not, 1 if the cloud does not answer."""
    from observer_agent import commands, show

    report = commands.check(file, connect)
    click.echo(json.dumps(report) if as_json else show.check(report))
    return 0 if report["ok"] else 1


@main.command()
@click.argument("source_type", metavar="TYPE", required=False)
@click.argument("pairs", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--file", "document", type=click.Path(path_type=Path, dir_okay=False), help="A document of definitions.")
@click.option("--key", help="Which metric of the document.")
@config_option
@json_option
@guarded
def probe(
    source_type: str | None,
    pairs: tuple[str, ...],
    document: Path | None,
    key: str | None,
    file: Path | None,
    as_json: bool,
) -> int:
    """Looks once and shows what was seen. Exit 0 with a reading, 1 without."""
    from observer_agent import commands, show

    if bool(source_type) == bool(document) or bool(document) != bool(key):
        raise click.UsageError("give TYPE key=value ..., or --file FILE --key KEY")
    result = (
        commands.probe_key(document, key, file) if document and key else commands.probe(source_type or "", pairs, file)
    )
    click.echo(json.dumps(result, default=str) if as_json else show.probe(result))
    return 0 if result["value"] is not None else 1


@main.command()
@config_option
@json_option
@guarded
def probes(file: Path | None, as_json: bool) -> int:
    """Loads the custom probes and lists them. Exit 1 where something is refused."""
    from observer_agent import commands, show

    found = commands.custom_probes(file)
    click.echo(json.dumps(found) if as_json else show.custom_probes(found))
    return 1 if found["refused"] else 0


@main.command()
@config_option
@click.option("--watch", is_flag=True, help="Again and again until Ctrl-C.")
@click.option("--interval", type=click.FloatRange(min=0.2), default=2.0, show_default=True, help="Seconds, of --watch.")
@click.option("--verbose", "-v", is_flag=True, help="Runs, phases and details of each definition.")
@click.option("--all", "everything", is_flag=True, help="Every definition, not the first 50 alone.")
@json_option
@guarded
def status(file: Path | None, watch: bool, interval: float, verbose: bool, everything: bool, as_json: bool) -> int:
    """Says how the running agent is. Exit 0 if it delivers, 1 if not, 3 if none runs."""
    from observer_agent import watching
    from observer_agent.commands import status

    look = watching.Look(lambda: status(file), as_json, verbose, everything)
    return watching.watch(look, interval) if watch else watching.once(look)


@main.command()
@click.argument("metric")
@click.option("--last", type=click.IntRange(min=1), default=3, show_default=True, help="How many, the newest first.")
@config_option
@json_option
@guarded
def why(file: Path | None, metric: str, last: int, as_json: bool) -> int:
    """Shows why the status of METRIC (id or title) changed; the agent may run or not. Exit 1 where nothing is kept."""
    from observer_agent import why

    return _tell(why.report(metric, last, file), as_json)


@main.command()
@click.option("--bundle", type=click.Path(path_type=Path, dir_okay=False), help="Write a redacted .tar.gz (mode 0600).")
@config_option
@json_option
@guarded
def doctor(file: Path | None, bundle: Path | None, as_json: bool) -> int:
    """Finds out what is wrong, and says how to mend it. Exit 0 nothing, 1 warnings only, 2 something is broken."""
    from observer_agent import doctor

    report, note = doctor.main(file, bundle)
    click.echo(json.dumps(doctor.facts(report, bundle)) if as_json else doctor.text(report, note))
    return report.code


@main.group()
def policy() -> None:
    """The operator's policy: what probes may reach, whatever the definitions say."""


@policy.command("show")
@config_option
@json_option
@guarded
def policy_show(file: Path | None, as_json: bool) -> int:
    """Shows the rules that count. Exit 78 if the file is wrong."""
    from observer_agent import policyshow

    shown = policyshow.show(file)
    click.echo(json.dumps(shown) if as_json else policyshow.rules_text(shown))
    return 0


@policy.command("test")
@click.argument("target", metavar="URL|HOST[:PORT]")
@click.option("--source-type", help="Ask for a probe of this source type.")
@config_option
@json_option
@guarded
def policy_test(target: str, source_type: str | None, file: Path | None, as_json: bool) -> int:
    """Says whether a probe may go there; connects to nothing. Exit 0 allowed, 1 denied."""
    from observer_agent import policyshow

    report = policyshow.test(target, source_type, file)
    click.echo(json.dumps(report) if as_json else policyshow.verdict_text(report))
    return 0 if report["allowed"] else 1


@main.command()
@click.option("--since", metavar="TIME", help="Only what was sent in this time, such as 90m or 1h.")
@click.option("--last", type=click.IntRange(min=1), help="Only the last so many.")
@click.option("--follow", is_flag=True, help="What is sent from now on, until Ctrl-C.")
@config_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line instead of text.")
@guarded
def sent(file: Path | None, since: str | None, last: int | None, follow: bool, as_json: bool) -> int:
    """Shows each request that has left, secrets masked; the agent may run or not. Exit 1 where none is on record."""
    from observer_agent import sentshow
    from observer_agent.clock import Clock

    return sentshow.sent(sentshow.Wish(since, last, follow, as_json), file, Clock())


@main.group()
def queue() -> None:
    """Looks at the queue file and changes it; what changes it needs the agent stopped."""


@queue.command()
@config_option
@json_option
@guarded
def stats(file: Path | None, as_json: bool) -> int:
    """Counts what waits, what was accepted and what was lost; works with the agent running or not."""
    from observer_agent import commands, show

    found = commands.queue_stats(file)
    click.echo(json.dumps(found) if as_json else show.table(found))
    return 0


@queue.command()
@config_option
@json_option
@guarded
def verify(file: Path | None, as_json: bool) -> int:
    """Checks every row, sum and account; works with the agent running or not. Exit 1 with findings."""
    from observer_agent import queueaccess, queuelook

    return _tell(queuelook.verify(queueaccess.load(file)), as_json)


@queue.command()
@click.option("--jsonl", is_flag=True, help="One JSON object a line instead of an array.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="A file (mode 0600) instead of stdout.")
@config_option
@json_option
@guarded
def export(file: Path | None, jsonl: bool, output: Path | None, as_json: bool) -> int:
    """Writes the waiting rows, oldest first, and leaves them there. Exit 1 where damaged rows are left out."""
    from observer_agent import queueaccess, queuelook

    return _tell(queuelook.export(queueaccess.load(file), jsonl, output), as_json, err=output is None)


@queue.command("import")
@click.argument("source", metavar="FILE", type=click.File("rb"))
@click.option("--skip-invalid", is_flag=True, help="Import the valid lines where others are not.")
@dry_option
@config_option
@json_option
@guarded
def import_(file: Path | None, source: IO[bytes], skip_invalid: bool, dry_run: bool, as_json: bool) -> int:
    """Puts the rows of an export (- is stdin) into the queue as new rows. Exit 1 where a line is not valid."""
    from observer_agent import queueaccess, queuechange

    return _tell(queuechange.import_rows(queueaccess.load(file), source, skip_invalid, dry_run), as_json)


@queue.command()
@click.option("--yes", is_flag=True, help="Do it; without it the command only says what it would delete.")
@dry_option
@config_option
@json_option
@guarded
def purge(file: Path | None, yes: bool, dry_run: bool, as_json: bool) -> int:
    """Deletes every waiting row; they are counted as lost. Exit 2 without --yes."""
    from observer_agent import queueaccess, queuechange

    return _tell(queuechange.purge(queueaccess.load(file), yes, dry_run), as_json)


@queue.group()
def rejected() -> None:
    """Dead letters: the rows that the cloud has refused."""


@rejected.command("list")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="How many.")
@config_option
@json_option
@guarded
def rejected_list(file: Path | None, limit: int, as_json: bool) -> int:
    """Shows the dead letters, the newest first; works with the agent running or not."""
    from observer_agent import queueaccess, queuelook

    return _tell(queuelook.rejected(queueaccess.load(file), limit), as_json)


@rejected.command("retry")
@click.option("--id", "ids", type=int, multiple=True, help="Which one; may be given again and again.")
@click.option("--all", "everything", is_flag=True, help="All of them.")
@dry_option
@config_option
@json_option
@guarded
def rejected_retry(file: Path | None, ids: tuple[int, ...], everything: bool, dry_run: bool, as_json: bool) -> int:
    """Moves dead letters back into the queue as new rows. Exit 1 where some have to stay."""
    from observer_agent import queueaccess, queuechange

    return _tell(queuechange.retry(queueaccess.load(file), ids, everything, dry_run), as_json)


@rejected.command("purge")
@click.option("--older-than", metavar="TIME", help="Only those that were refused longer ago, such as 90m or 3d.")
@dry_option
@config_option
@json_option
@guarded
def rejected_purge(file: Path | None, older_than: str | None, dry_run: bool, as_json: bool) -> int:
    """Deletes dead letters; they stay counted as lost."""
    from observer_agent import queueaccess, queuechange

    return _tell(queuechange.purge_rejected(queueaccess.load(file), older_than, dry_run), as_json)


def _tell(report: Report, as_json: bool, err: bool = False) -> int:
    click.echo(json.dumps(report.facts) if as_json else report.text, err=err)
    return report.code


@main.command()
@click.option("--seconds", type=click.IntRange(min=20), help="How long; without it until Ctrl-C.")
@click.option("--dialect", type=click.Choice(["observer", "lighthouse"]), default="observer", show_default=True)
@json_option
@guarded
def demo(seconds: int | None, dialect: str, as_json: bool) -> int:
    """Shows the whole way: real targets, an agent and a hub of its own, with an outage in the middle."""
    from observer_agent.demo import Demo
    from observer_agent.demo.lighthouse import LighthouseDemo

    return (LighthouseDemo if dialect == "lighthouse" else Demo)(seconds, as_json).run()


if __name__ == "__main__":
    main()
