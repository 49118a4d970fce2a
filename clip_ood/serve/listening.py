"""Serves an application on this machine until it is ended."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from clip_ood.errors import UserError
from clip_ood.process.asked_to_end import asked_to_end
from clip_ood.serve.access import LOOPBACK, Access, Call
from clip_ood.serve.limits import Limits
from clip_ood.serve.timed_protocol import TimedProtocol

SILENT = 75  # seconds that an answered client may keep its connection for; clients and balancers drop theirs before (they wait 60 s at most)
GRACE = 60  # seconds in which what was asked before the end is answered
PORT = 8710  # if it is taken and none was asked for, the system chooses another one
ANY = ("0.0.0.0", "::")


def listen(host: str, port: int | None) -> socket.socket:
    """Opens a socket at this address. Raises: UserError if it cannot be had."""
    for each in (port or PORT, *([] if port else [0])):
        try:
            return socket.create_server((host, each), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and port is None and each:
                continue
            way_out = (
                "name another --port"
                if error.errno in (errno.EADDRINUSE, errno.EACCES)
                else "name an address of this machine"
            )
            raise UserError(f"--host {host}, port {each}: {error.strerror or error}; {way_out}") from error
    raise AssertionError


def access_at(host: str, port: int) -> Access:
    """Returns who may use an application that listens there."""
    cookie = f"clip_ood_{port}"  # browsers send a cookie to all ports of a machine
    if host in LOOPBACK:
        return Access(cookie=cookie)
    return Access((host, socket.gethostname()), by_number=host in ANY, cookie=cookie)


def serve(app: FastAPI, at: socket.socket, host: str, access: Access, say: Callable[[str], None]) -> None:
    """Says the address, and serves the application until a signal ends it."""
    port = at.getsockname()[1]
    name = socket.gethostname() if host in ANY else host
    say(f"Open http://{f'[{name}]' if ':' in name else name}:{port}/?token={access.token}")
    if host not in LOOPBACK:
        say(
            f"--host {host}: other machines can reach it, and what goes to and fro is not encrypted. Whoever has this address may decide"
        )
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, lifespan="off", ws="none")
    uvicorn.Server(config).run(sockets=[at])


class Server(uvicorn.Server):
    """A server whose end a signal asks for: what was asked is answered, and the command goes on.

    After `GRACE` seconds, or a second signal, the requests that are not answered yet are cancelled.
    """

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        with asked_to_end(self.stop):
            yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Closes the server; from Python 3.12 on, uvicorn itself would wait for open connections even after a second signal."""
        closing = asyncio.create_task(super().shutdown(sockets))
        while not (closing.done() or self.force_exit):
            await asyncio.wait([closing], timeout=0.1)
        if closing.done():
            closing.result()

    def stop(self, at_once: bool = False) -> None:
        """Has the server end, and answer what was asked; `at_once`, or the second time, without that."""
        self.force_exit = self.should_exit or at_once
        self.should_exit = True


def service(app: Call, limits: Limits) -> Server:
    """Returns a server of an application for programs; `run(sockets=[…])` serves until the server is stopped."""
    protocol = type("Protocol", (TimedProtocol,), {"seconds": limits.seconds})
    config = uvicorn.Config(
        app,
        http=protocol,
        log_level="error",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_keep_alive=SILENT,
        timeout_graceful_shutdown=GRACE,
    )
    return Server(config)
