"""Two events as clients send them, and the whole explanation of each, as users read it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from telemetry.cli.explain import _as_json
from telemetry.dialects.sample import read_samples
from telemetry.explain import Explainer

__all__ = ["ERROR", "TRACK", "check_explained"]

_FOLDER: Final = Path(__file__).parents[1] / "vectors" / "explained"
_NOW: Final = datetime(2026, 11, 22, 10, 15, 42, 123456, tzinfo=UTC)

ERROR: dict[str, Any] = {
    "event_id": "AB" * 16,
    "timestamp": "2026-11-20T10:15:42.5Z",
    "platform": "python",
    "level": "error",
    "logentry": {"message": "login of jane@example.com failed", "params": ["jane"]},
    "exception": {
        "values": [
            {
                "type": "KeyError",
                "value": "no row for 4711, password=hunter2",
                "stacktrace": {
                    "frames": [
                        {
                            "filename": "/home/jane/app.py",
                            "function": "find",
                            "lineno": 3,
                            "vars": {"user": "'Jane Doe'"},
                        }
                    ]
                },
            }
        ]
    },
    "user": {"id": 4711, "email": "jane@example.com", "ip_address": "203.0.113.77"},
    "request": {
        "url": "https://app.example.com/users/jane?mail=jane@example.com",
        "headers": {
            "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101 Firefox/130.0",
            "Cookie": "session=zqx",
        },
        "data": {"note": "call Jane"},
    },
    "tags": [["queue", "mail"], ["jane@example.com", "x"], ["policy", "mine"]],
    "surprise": {"x": "Jane Doe"},
    "jane@example.com": 1,
}
TRACK: dict[str, Any] = {
    "app_id": "11",
    "event": "task created",
    "identity": "4711",
    "timestamp": "2026-11-20T10:15:42Z",
    "idempotency_key": "order-77-of-jane",
    "session_id": "sess-zqx",
    "user_id": "900719925",
    "properties": {
        "project": "p-zqx",
        "priority": "high",
        "assignees": 3,
        "recurring": True,
        "title": "Call Jane Doe",
    },
}


def check_explained(explainer: Explainer) -> None:
    """Require that an explanation is, word for word, what ``tests/vectors/explained`` says."""
    for name, event in (("error", ERROR), ("track", TRACK)):
        (sample,) = read_samples(json.dumps(event).encode())
        (told,) = explainer.explain(sample, now=_NOW)
        # The digest changes with every edit of a policy file; nothing else here may without notice.
        text = json.dumps(_as_json(told), ensure_ascii=False)
        text = text.replace(explainer.policy.digest[:12], "POLICY")
        wanted = json.loads((_FOLDER / f"{name}.json").read_text("utf-8"))
        assert json.loads(text) == wanted, f"{name} is explained otherwise"
