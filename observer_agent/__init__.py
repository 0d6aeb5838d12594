"""observer-agent: probes, judges, keeps and delivers; observer-hub: the cloud that you host yourself.

The way of one sample:
    probes/tcp.py -> collector.py -> verdict.py -> diskqueue.py -> sender.py -> clouds/observer.py

    floor 0 - words (stdlib only)
errors.py         the few errors, drawn as a tree, named by what happens next
clock.py          now, monotonic, and the only waits in the program
model.py          definition, reading, verdict, sample, batch, answer, health: frozen data
    floor 1 - tools (know words)
variables.py      the one table of settings: names, defaults, rules
lighthousefile.py the YAML file of the original Lighthouse agent
config.py         environment, file and credential to frozen settings; a complaint names its key
logs.py           text, JSON or journal lines, redaction, throttling of repeated lines
notify.py         what systemd is told: ready, alive, a line of status
selfmetrics.py    the agent's own registry; every loss has a reason here
backoff.py        pure: attempt number and Retry-After to seconds
resolver.py       names to addresses within a deadline
transport.py      one HTTP call under a deadline: an answer, never an exception
verdict.py        pure: thresholds, and the grid of due moments
worker.py         a step repeated on a named thread; the supervisor
listener.py       a small local HTTP server for what pushes to the agent
sentlog.py        the record of what has left, and masked bodies in debug lines
queuefile.py      the format of the queue file, and reading it from outside
evidencefile.py   the file of evidence: a ring of transitions for each metric
accounts.py       what each queue id was given, accepted and lost
rows.py           which rows repeat what is known, and which go first
space.py          room on the disk: what is accepted can be stored and delivered
rawpages.py       the pages of a damaged queue file, its WAL laid over
rawrecords.py     the pages in use, and the records on them
salvage.py        what those records mean, into a new queue file
nodes.py          YAML text to values that remember their lines
policy.py         the operator's policy: what probes may reach and use
job.py            one definition's schedule, memory and account of slots
bursts.py         one burst of instant looks at a time, of all pools together
lead.py           which thread of a pool waits for the next job
pulse.py          notices that the agent itself was not let run
witness.py        addresses that answered a while ago, asked again when a target is silent
sections.py       services and pages of a document, and single fields
document.py       a document of definitions to the wire's rows
    floor 2 - ends (know tools; never one another)
probes/           the table of source types, and look(): deadline, duration, catch-all around any probe
relayqueue.py     pings of jobs, on the disk before they are acknowledged
relaydoor.py      requests of jobs to pings
diskqueue/        the bounded queue on persist-queue: put, peek, settle
clouds/           the table of dialects: observer, memory
    floor 3 - the line (is handed the ends)
collector.py      due jobs of one source type, a pool of threads
keeper.py         the newest verdicts, while the queue file takes none
sender.py         peek, deliver, settle by the answer, when next
heartbeat.py      every 30 s on a connection of its own
definitions.py    when to fetch, what a row means, the last good set
broadcast.py      log lines to the cloud, best effort
    floor 4 - the whole
whole.py          what every agent is made of: queue, sender, workers, from start to stop
looking.py        all that surrounds a look: policy, probes, pools, lookout, evidence
agent.py          the Observer dialect's agent: heartbeat, definitions, relay, reload
lookout.py        the agent's own blindness told from a target's fault
evidence.py       what is kept of each transition, in the background
relay.py          pings of jobs on this machine, handed on to the cloud
lighthouse/       the second dialect's agent: checks, up and down, console
tally.py          what is counted of probes, and whether there is too much to do
pools.py          the collectors of all source types, and their threads
    floor 5 - around it
status.py         the agent's state as one JSON object
show.py           results as text for a person
watching.py       `status`, once or again and again
commands.py       what each command does
why.py            `why`: the evidence of a metric's last transitions
sentshow.py       `sent`: that record as text or JSON, once or as it comes
policyshow.py     `policy show`, `policy test`
queuerows.py      strict reading of stored rows and exports
queueaccess.py    how a `queue` command comes to the queue file: to look, to change
queuelook.py      verify, export, the list of dead letters
queuechange.py    import, retry and purge of dead letters, purge
doctor/           what is wrong, why, and how to mend it
demo/             targets, a hub, an agent and an outage, in one command
dashboard/        the local page: /api/state, /metrics, /healthz, /readyz
hub/              the self-hosted cloud: a program of its own
    floor 6 - the front door
cli.py            click commands: parse, call, print, exit code
__main__.py       python -m observer_agent
"""

__version__ = "0.1.0"
