"""A state as `/api/state` shows it, made up, for those who draw it."""

from __future__ import annotations


def definition(n, title="", status="healthy", **changes):
    made = {
        "id": f"id-{n:05d}",
        "title": title or f"Definition {n:05d}",
        "source_type": "tcp",
        "status": status,
        "value": n + 0.5,
        "reason": None,
        "fault": None,
        "detail": {"address": "127.0.0.1"},
        "phases": {"resolve": 0.1, "connect": 0.4},
        "duration_ms": 0.5,
        "interval_seconds": 60.0,
        "last_run_at": "2030-01-02T03:04:05.000Z",
        "next_run_in_seconds": 12.5,
        "problem": None,
    }
    return {**made, **changes}


def state(definitions, **changes):
    cloud = {"url": "https://cloud.example", "dialect": "observer", "delivering": True, "problem": None}
    cloud |= {"last_push_at": "2030-01-02T03:04:09.000Z", "failing_for_seconds": 0, "fenced_by": None, "heartbeats": 7}
    cloud |= {"last_heartbeat_at": None, "definitions_version": "v1", "last_definitions_at": None}
    queue = {
        "path": "/q.db",
        "depth": 12,
        "capacity": 10_000,
        "bytes": 4100,
        "oldest_age_seconds": 3.0,
        "queue_id": "q",
    }
    worker = {"name": "send", "alive": True, "hung": False, "restarts": 0, "turns": 9, "busy_seconds": 0}
    process = {"version": "0.1.0", "pid": 42, "hostname": "web-1", "started_at": "2030-01-01T00:00:00.000Z"}
    return {
        "summary": f"Delivering. {len(definitions)} definitions.",
        "process": process | {"uptime_seconds": 97_445.0, "now": "2030-01-02T03:04:10.000Z"},
        "cloud": cloud | {"definitions_problem": None},
        "queue": queue | {"given": 30, "accepted": 18, "lost": {}, "kept_in_memory": 0},
        "workers": [worker, *({**worker, "name": f"probe-tcp-{n}"} for n in range(3))],
        "definitions": definitions,
        "losses": {"cap": 3},
        "otlp": None,
        "relay": None,
        "custom_probes": {"names": [], "refused": []},
        "history": {
            "interval_seconds": 10.0,
            "until": "",
            "depth": [0, 5, 12],
            "accepted": [9, 9, 0],
            "lost": [0, 0, 3],
        },
        "log": [{"level": "WARN", "message": "sender: <b>bold</b>", "timestamp": "2030-01-02T03:04:05.000Z"}],
        "configuration": {"AGENT_KEY": "(set)", "CLOUD_SERVER_URL": "http…mple"},
        **changes,
    }
