"""Connections of clients that do not read what they asked for."""

from __future__ import annotations

import asyncio
import socket

import pytest

from clip_ood.serve.limits import Limits
from clip_ood.serve.listening import service

ANSWER = b"x" * 60_000  # more than the small buffers of the system take, and less than asyncio's own high-water mark
SECONDS = 0.5


async def answer(scope, receive, send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": ANSWER})


def connected(port: int) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
    connection.connect(("127.0.0.1", port))
    return connection


async def until(true) -> None:
    while not true():
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("header", ["", "Connection: close\r\n"])
def test_a_connection_ends_whose_client_does_not_take_its_answer(header):
    """Kept alive, or closed behind an answer that is not sent yet."""

    async def ask() -> None:
        server = service(answer, Limits(seconds=SECONDS))
        at = socket.create_server(("127.0.0.1", 0))
        at.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
        serving = asyncio.create_task(server._serve([at]))
        await until(lambda: server.started)
        with connected(at.getsockname()[1]) as connection:
            connection.sendall(f"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n{header}\r\n".encode())
            await asyncio.wait_for(until(lambda: server.server_state.total_requests), 10)  # the answer is given
            (open_one,) = server.server_state.connections
            assert open_one.transport.get_write_buffer_size()
            await asyncio.wait_for(until(lambda: not server.server_state.connections), 20 * SECONDS)
        server.stop()
        await serving

    asyncio.run(ask())
