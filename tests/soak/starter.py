"""Starts ``telemetry run`` often and cheaply: a process that has imported all of it, and forks.

Most of a start is imports and measuring the detectors' speed, which say nothing of durability: both
are done here, once. A forked child runs the command as it is but for that measurement: it reads the
settings, compiles the policy, opens keys, vault and log, and is killed as any other process. Every
so often the caller starts one from nothing instead.

Standard input: one JSON object a line, ``{"env": …, "cwd": …, "errors": …}``. Standard output:
``{"pid": n}`` for each, and ``{"ended": n, "code": c}``, c as in `subprocess`. At the end of its
input it kills what it started, and ends.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn, Self

__all__ = ["Process", "Starter"]

_ROOT: Final = Path(__file__).parents[2]
_COMMAND: Final = (sys.executable, "-c", "from telemetry.cli import main; main()", "run")


class Process:
    """One ``telemetry run``, by its number."""

    def __init__(self, starter: Starter, pid: int, own: subprocess.Popen[bytes] | None) -> None:
        self.pid, self._starter, self._own = pid, starter, own

    def poll(self) -> int | None:
        """Give its exit code, None while it runs."""
        if self._own is not None:
            return self._own.poll()
        return self._starter.ended.get(self.pid)

    def wait(self, timeout_s: float) -> int:
        """Wait for its end.

        Raises:
            TimeoutError: It goes on.
        """
        end = time.monotonic() + timeout_s
        while (code := self.poll()) is None:
            if time.monotonic() >= end:
                raise TimeoutError
            time.sleep(0.002)
        return code

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it has not ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class Starter:
    """The forking process, seen from whoever wants to start something."""

    def __init__(self) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("TELEMETRY_", "COV"))}
        # A crash must say where it was; what faulthandler prints holds no value.
        more = {"NO_COLOR": "1", "COLUMNS": "200", "PYTHONFAULTHANDLER": "1"}
        self._environment = {**kept, **more, "PYTHONPATH": str(_ROOT)}
        self.ended: dict[int, int] = {}
        self._started: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._scratch: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.soak.starter"],
            cwd=_ROOT,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._reader = threading.Thread(target=self._read, name="starter", daemon=True)
        self._reader.start()
        self._started.get(timeout=60)  # it has imported everything
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._scratch:
            if process.poll() is None:
                process.kill()
            process.wait(10)
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(20)
        self._reader.join(10)

    def _read(self) -> None:
        for line in self._process.stdout or ():
            told = json.loads(line)
            if "ended" in told:
                self.ended[told["ended"]] = told["code"]
            else:
                self._started.put(told["pid"])

    def start(self, env: Mapping[str, str], cwd: Path, errors: Path, *, scratch: bool) -> Process:
        """Start ``telemetry run``; `scratch`: as a new interpreter, imports and all."""
        if scratch:
            with errors.open("ab") as file:
                own = subprocess.Popen(  # noqa: S603 - our own command
                    _COMMAND,
                    cwd=cwd,
                    env={**self._environment, **env},
                    stdout=subprocess.DEVNULL,
                    stderr=file,
                )
            self._scratch.append(own)
            return Process(self, own.pid, own)
        assert self._process.stdin is not None
        order = {"env": dict(env), "cwd": str(cwd), "errors": str(errors)}
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        return Process(self, self._started.get(timeout=30), None)


def _prepare() -> None:
    """Import what a start imports, and load the tables that do not depend on settings."""
    import telemetry.cli.demo
    import telemetry.cli.explain
    import telemetry.cli.operate
    import telemetry.run
    import telemetry.sinks.heap
    import telemetry.sinks.sentry
    import telemetry.start
    from scrubbers.user_agent import reduce_user_agent
    from telemetry.policy import load_policy, policy_dir
    from telemetry.rules import Schemas

    policy = load_policy(policy_dir(""))
    schemas = Schemas(policy, policy.detectors)
    policy.detectors.check_speed(time.thread_time)
    # The soak changes no policy, so every child would compile the same one.
    policy_of, schemas_of, check = "load_policy", "Schemas", "check_speed"
    setattr(telemetry.start, policy_of, lambda _folder: policy)
    setattr(telemetry.start, schemas_of, lambda *_: schemas)
    setattr(telemetry.start, check, lambda *_: None)
    reduce_user_agent("")
    gc.collect()
    gc.freeze()


def _become(order: Mapping[str, Any]) -> NoReturn:
    """In the child: be ``telemetry run``."""
    code = 70
    try:
        os.environ.update(order["env"])
        os.chdir(order["cwd"])
        nothing = os.open(os.devnull, os.O_RDWR)
        errors = os.open(order["errors"], os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
        for wanted, found in ((0, nothing), (1, nothing), (2, errors)):
            os.dup2(found, wanted)
        faulthandler.enable(2)
        sys.argv = ["telemetry", "run"]
        from telemetry.cli import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception:  # noqa: BLE001 - as an interpreter ends
        traceback.print_exc()
        code = 1
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(code)


def _serve() -> None:
    _prepare()
    running: set[int] = set()
    signal.signal(signal.SIGCHLD, lambda *_: None)
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    _tell({"pid": 0})
    pending = b""
    while True:
        ready, _, _ = select.select([0, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
        for pid in tuple(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                running.discard(pid)
                _tell({"ended": pid, "code": os.waitstatus_to_exitcode(status)})
        if 0 not in ready:
            continue
        found = os.read(0, 65536)
        if not found:
            break
        *lines, pending = (pending + found).split(b"\n")
        for line in lines:
            pid = os.fork()
            if not pid:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for end in (woken, wake):
                    os.close(end)
                _become(json.loads(line))
            running.add(pid)
            _tell({"pid": pid})
    for pid in running:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _tell(what: Mapping[str, int]) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


if __name__ == "__main__":
    _serve()
