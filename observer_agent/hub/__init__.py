"""observer-hub: the cloud that you host yourself, a program of its own.

    cli.py         the front door: commands; keys_cli.py, job_cli.py, webhook_cli.py and document_cli.py hold
                   the groups
    asked.py       what commands share: errors as one line, who asks
    production.py  several processes under gunicorn
    settings.py    environment and options to frozen settings; a complaint names its key
    server.py      waitress embedded: one thread for the sockets (sockets.py), a few for requests, an orderly end
    app.py         the Flask application: joins the three faces below, errors as JSON, limits
    agent_api.py   the face for agents: definitions, receiver, heartbeat, log (docs/wire.md)
    read_api.py    the face for programs: /api/v1
    console/       the face for people: pages made on the server, forms, a little script
    sessions.py    who is logged in to the console, and how often a wrong token was tried
    beats.py       how the queues of agents were, minute by minute
    access.py      who may come in: an agent by its key, everybody else by the token
    keys.py        made, listed, rotated, revoked; keys_api.py is their face for programs
    limits.py      how often a key or an address may come
    patient.py     what workers and requests do while the database is away
    machines.py    pure: the alert state machines of an agent; alerts.py moves them in a transaction
    statuses.py    which status of a metric holds, after its dwell
    rollup.py      pure: verdicts to seconds by status; roller.py fills hours and days, keep.py forgets
    health.py      whether the process lives and can work, for balancers
    horizon.py     up to which id the rows are complete
    history.py     what a metric was; history_api.py is its face; pushed.py finds rows by time
    objectives.py  what services promise of metrics, and what was kept
    openapi.py     the whole HTTP API as an OpenAPI document, of the objects in shapes.py
    expose.py      the Prometheus text format; remote.py and remote_format.py write to one
    ticker.py      what is done without being asked; lease.py: by one process at a time
    wire.py        pure: bodies and headers of agents to words, bad rows to reject codes
    pings.py       pure: pings of jobs, held against their form; jobs.py: what becomes of them, job_store.py keeps it
    fencing.py     pure: whose process is the newest
    ranges.py      pure: sets of row ids as ranges
    apply.py       documents of definitions to the store: one transaction, nothing or all of it
    references.py  what a document names besides itself, held against the hub
    difference.py  pure: what a document would change
    form.py        what the hub holds as a document, and that as text
    tell.py        pure: what applying did, for people and programs
    follow.py      the document of `serve --config`, read again when it changes
    document_api.py, document_cli.py   apply, export and validate from outside
    events.py      what has happened, and the outbox of those who are to be told
    webhooks.py    who is told, tests, redeliveries, the log; webhook_api.py and webhook_cli.py are its faces
    courier.py     delivers the outbox, one worker and a few threads
    outbox.py      whose turn it is, claims, attempts, when to try again
    post.py        one POST under one deadline; guard.py: which addresses it may reach
    audit.py       who has changed what
    lighthouse/    the second dialect: a console for Lighthouse agents
    store.py       everything that is written, each in one transaction; intake.py: what agents send
    look.py        everything that is read
    database.py    the engine, its transactions, and the schema brought up to date; partitions.py on PostgreSQL
    together.py    writes of several threads in one transaction; hot.py: statements compiled once
    schema.py      the tables; `migrations/` makes them

It knows errors, clock, model, worker, logs, nodes, sections, document and `probes.parse`, nothing else of the agent:
the golden messages in `tests/wire/` are the referee between the two.
"""
