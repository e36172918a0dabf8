"""Runs a command in a process group of its own until standard input closes: then whoever wanted it is gone.

A server starts processes of its own, and a SIGKILL of the collector must leave none of them behind.
Usage: python supervise.py COMMAND...
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

PATIENCE = 10  # seconds that a server has to end by itself


def main(command: list[str]) -> int:
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    threading.Thread(target=_until_nobody_listens, args=(server,), daemon=True).start()
    try:
        return server.wait()
    finally:
        _signal(server, signal.SIGKILL)  # what it started and did not end


def _until_nobody_listens(server: subprocess.Popen[bytes]) -> None:
    sys.stdin.buffer.read()
    _signal(server, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(PATIENCE)
    _signal(server, signal.SIGKILL)


def _signal(server: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
