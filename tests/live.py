"""A real `darkroom serve` in a process of its own, for tests that need one: browsers, SDKs, samples, faults."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

START_SECONDS = 60
STOP_SECONDS = 20


class LiveServer:
    """start, stop (SIGTERM), kill (SIGKILL); the data folder and the port outlive a restart."""

    def __init__(self, data: Path, *, engine: str = "fake", port: int = 0, **settings: str) -> None:
        """settings: by their environment names without DARKROOM_, in lower case."""
        self.data = data
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.settings = {"engine": engine, "allow_private_urls": "1", **settings}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.data / "server.log"

    def start(self) -> LiveServer:
        self.data.mkdir(parents=True, exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")}
        given = {f"DARKROOM_{name.upper()}": value for name, value in self.settings.items()}
        command = [sys.executable, "-m", "darkroom.cli", "serve", "--port", str(self.port), "--data", str(self.data)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, env={**kept, **given}, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        self.wait_until_ready()
        return self

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.tail()}")
            try:
                if httpx.get(f"{self.url}/health", timeout=2).is_success:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError(f"the server did not get ready:\n{self.tail()}")

    def stop(self) -> None:
        """As an operator would: SIGTERM, and SIGKILL only when that is not heard."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    def __enter__(self) -> LiveServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def free_port() -> int:
    """One that stays free until it is used, also while the server on it is restarted: the system gives none below its
    own range to a connection or to another server."""
    system = Path("/proc/sys/net/ipv4/ip_local_port_range")
    lowest = int(system.read_text().split()[0]) if system.is_file() else 32768
    for port in random.SystemRandom().sample(range(10_000, max(lowest, 20_000)), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")
