"""The hub as a Lighthouse console: the second dialect's other side (docs/hub-lighthouse.md).

    face.py        what agents call: `/api/lighthouse/v1/...`, errors as `{"error": text}`
    door.py        who may come in by a token, and which instance of a token is the active one
    wire.py        pure: bodies of agents to words, in today's shapes and those of the seed page
    intake.py      what agents send, inside the transaction that keeps it
    judge.py       online, offline, stopped; which events of a check are news; the step that silence moves
    checks.py      pure: a check as a person writes it, held against its form; the etag of a list
    manage.py      lighthouses, tokens and checks made, changed, deleted, applied from a document
    document.py    pure: a document of checks (YAML)
    look.py        everything that is read
    samples.py     pure: host metrics decoded, within bounds
    api.py         the face for programs: `/api/lighthouses...`
    cli.py         `observer-hub lighthouse ...`
    described.py   all of it for the OpenAPI document
    schema.py      the tables

Words: a *lighthouse* is one agent of this dialect as the console knows it; a *check* is what it is to look at; a check
is `up` or `down`. Like the rest of the hub it knows nothing of the agent's own code for the dialect: the golden
messages in `tests/wire/lighthouse/` are the referee.
"""
