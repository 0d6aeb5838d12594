"""observer-hub: the cloud that you host yourself, a program of its own.

    cli.py         the front door: `key create`, `serve`
    settings.py    environment and options to frozen settings; a complaint names its key
    server.py      waitress embedded: one thread for the sockets, a few for requests, an orderly end
    app.py         the Flask application: joins the three faces below, errors as JSON, limits
    agent_api.py   the face for agents: definitions, receiver, heartbeat, log (docs/wire.md)
    read_api.py    the face for programs: /api/v1
    pages.py       the face for people: one plain page
    access.py      who may come in: an agent by its key, everybody else by the token
    wire.py        pure: bodies and headers of agents to words, bad rows to reject codes
    fencing.py     pure: whose process is the newest
    ranges.py      pure: sets of row ids as ranges
    apply.py       a document of definitions to the store
    store.py       everything that is written, each in one transaction
    look.py        everything that is read
    database.py    the engine, its transactions, and the schema brought up to date
    schema.py      the tables; `migrations/` makes them

It knows errors, clock, model, worker, logs, document and `probes.parse`, nothing else of the agent: the golden messages
in `tests/wire/` are the referee between the two.
"""
