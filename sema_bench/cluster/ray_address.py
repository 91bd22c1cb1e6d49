"""Check the address of a Ray cluster, and set the variables that joining it needs, before Ray is imported."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from sema_bench.errors import UsageError

#: Seconds within which an address must answer.
CONNECT_S = 5.0


def check_ray_address(address: str | None) -> str | None:
    """Return the address to join, once a Ray cluster answers there; None to start one on this machine.

    Set the environment variables that Ray reads when it is imported. ``address`` is ``host:port`` or ``auto``; None
    stands for ``RAY_ADDRESS``. An address that is malformed or does not answer raises UsageError.
    """
    wanted = address or os.environ.get("RAY_ADDRESS")
    if wanted and wanted != "auto":
        host, _, port = wanted.rpartition(":")
        if wanted.startswith("ray://") or not host or not port.isdecimal():
            raise UsageError(f"--ray-address takes host:port, of a cluster of this machine, or auto; got {wanted!r}")
        try:
            speaks = _speaks_http2(host, int(port))
        except (OSError, OverflowError) as problem:
            raise UsageError(f"no Ray cluster answers at {wanted}: {problem}") from None
        if not speaks:
            raise UsageError(f"what answers at {wanted} is not the head of a Ray cluster (its default port is 6379)")
    # Ray's memory monitor kills the agent, not the worker that took the memory; our own check does better.
    os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if wanted:
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", str(round(CONNECT_S)))  # one a second
        if _has_token():  # `ray start --head` then asks for it, but clients would not send it
            os.environ.setdefault("RAY_AUTH_MODE", "token")
    return wanted or None


def _has_token() -> bool:
    """Check whether Ray has a token for clusters that require one."""
    named = os.environ.get("RAY_AUTH_TOKEN"), os.environ.get("RAY_AUTH_TOKEN_PATH")
    return any(named) or (Path.home() / ".ray" / "auth_token").is_file()


def _speaks_http2(host: str, port: int) -> bool:
    """Check whether the listener answers as gRPC does, with a SETTINGS frame (RFC 9113, 3.4)."""
    if os.environ.get("RAY_USE_TLS") == "1":
        return True
    until = time.monotonic() + CONNECT_S
    with socket.create_connection((host, port), timeout=CONNECT_S) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
        answer = b""
        while len(answer) < 4:
            connection.settimeout(max(0.01, until - time.monotonic()))
            if not (more := connection.recv(16)):
                break
            answer += more
    return answer[3:4] == b"\x04"
