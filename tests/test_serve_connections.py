"""Connections, with applications that are played: of clients that do not read, go on sending, or fall silent."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from unittest.mock import Mock

import pytest

from clip_ood.serve import listening
from clip_ood.serve.limits import Limits
from clip_ood.serve.listening import Server, service

ANSWER = b"x" * 60_000  # more than the small buffers of the system take, and less than asyncio's own high-water mark
SECONDS = 0.5


async def answer(scope, receive, send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": ANSWER})


async def refuse(scope, receive, send) -> None:
    await send({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"8")]})
    await send({"type": "http.response.body", "body": b"too long"})


@asynccontextmanager
async def served(app, buffer: int | None = None, seconds: float = SECONDS) -> AsyncIterator[tuple[Server, int]]:
    """A server, and its port."""
    server = service(app, Limits(seconds=seconds))
    at = socket.create_server(("127.0.0.1", 0))
    if buffer is not None:
        at.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    serving = asyncio.create_task(server._serve([at]))
    await until(lambda: server.started)
    yield server, at.getsockname()[1]
    server.stop()
    await asyncio.wait_for(serving, 10)


async def until(true) -> None:
    while not true():
        await asyncio.sleep(0.01)


def connected(port: int) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
    connection.connect(("127.0.0.1", port))
    return connection


@pytest.mark.parametrize("header", ["", "Connection: close\r\n"])
def test_a_connection_ends_whose_client_does_not_take_its_answer(header):
    """Kept alive, or closed behind an answer that is not sent yet."""

    async def ask() -> None:
        async with served(answer, buffer=4608) as (server, port):
            with connected(port) as connection:
                connection.sendall(f"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n{header}\r\n".encode())
                await asyncio.wait_for(until(lambda: server.server_state.total_requests), 10)  # the answer is given
                (open_one,) = server.server_state.connections
                assert open_one.transport.get_write_buffer_size()
                await asyncio.wait_for(until(lambda: not server.server_state.connections), 20 * SECONDS)

    asyncio.run(ask())


@pytest.mark.parametrize("ending", [False, True])
@pytest.mark.parametrize(
    ("line", "headers"),
    [
        ("POST / HTTP/1.0", "Content-Length: 300000"),
        ("POST / HTTP/1.1", "Content-Length: 300000\r\nConnection: close"),
        ("POST / HTTP/1.1", "Content-Length: 300000"),
        ("POST / HTTP/1.1", "Transfer-Encoding: chunked"),
        ("no HTTP", ""),
    ],
)
def test_a_refused_client_that_goes_on_sending_reads_its_answer(line, headers, ending, caplog):
    """Whatever ends the connection, also where the server itself ends and the body is broken."""

    async def ask() -> bytes:
        async with served(refuse) as (server, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"{line}\r\nHost: 127.0.0.1\r\n{headers}\r\n\r\n".encode())
            await asyncio.sleep(0.1)  # it is answered by now
            if ending:
                server.stop()
            for _ in range(300):
                writer.write(b"x" * 1000)
                await writer.drain()
            await asyncio.sleep(0.05)
            got = await reader.read(65536)
            writer.close()
            if not ending:
                await asyncio.wait_for(until(lambda: not server.server_state.connections), 10)
        return got

    got = asyncio.run(ask())
    assert got.startswith(b"HTTP/1.1 4") and got.endswith((b"too long", b"Invalid HTTP request received."))
    assert not [each for each in caplog.records if each.exc_info]


def test_a_client_that_never_stops_sending_is_cut_off():
    async def ask() -> None:
        async with served(refuse) as (_, port):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST / HTTP/1.0\r\nContent-Length: 1000000000\r\n\r\n")
            begun = asyncio.get_running_loop().time()
            with pytest.raises(ConnectionError):
                while asyncio.get_running_loop().time() - begun < 20 * SECONDS:
                    writer.write(b"x")
                    await writer.drain()
                    await asyncio.sleep(0.01)
            assert asyncio.get_running_loop().time() - begun > SECONDS / 2

    asyncio.run(ask())


async def _reset(port: int, content: bytes) -> None:
    """Sends something, and resets the connection."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.sendall(content)
    await asyncio.sleep(0.1)
    connection.close()


@pytest.mark.parametrize(
    "content",
    [
        b"HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 5\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n",
    ],
)
def test_a_client_that_goes_while_it_is_refused_leaves_no_error(content, caplog):
    async def slow(scope, receive, send) -> None:
        await asyncio.sleep(0.2)
        await refuse(scope, receive, send)

    async def ask() -> None:
        async with served(slow) as (server, port):
            await _reset(port, content)
            await asyncio.wait_for(until(lambda: not server.server_state.connections), 10)

    asyncio.run(ask())
    assert not [each for each in caplog.records if each.exc_info]


def test_a_socket_that_is_gone_ends_its_connection_alone(monkeypatch, caplog):
    """The client resets it just as the server ends."""

    async def ask() -> None:
        async with served(refuse) as (server, port):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
            await asyncio.sleep(0.1)
            (open_one,) = server.server_state.connections
            monkeypatch.setattr(open_one.transport._transport, "write_eof", Mock(side_effect=OSError(107, "gone")))
            server.stop()
            await asyncio.wait_for(until(lambda: not server.server_state.connections), 10)
            writer.close()

    asyncio.run(ask())
    assert not [each for each in caplog.records if each.exc_info]


@pytest.mark.parametrize("rest", [(b"8\r\n12345678\r\n", b"zz\r\n"), (b"0\r\n\r\n", b"\r\n")])
def test_an_application_is_told_that_its_client_is_refused_meanwhile(rest, caplog):
    """A body that breaks off, or something behind a request that is answered still."""
    told = []

    async def reading(scope, receive, send) -> None:
        while (message := await receive())["type"] != "http.disconnect":
            pass
        told.append(message)
        await refuse(scope, receive, send)

    async def ask() -> bytes:
        async with served(reading, seconds=60) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
            for each in rest:
                await asyncio.sleep(0.1)
                writer.write(each)
            await asyncio.wait_for(until(lambda: told), 10)
            got = await reader.read(65536)
            writer.close()
        return got

    assert asyncio.run(ask()).startswith(b"HTTP/1.1 400 ")
    assert not [each for each in caplog.records if each.exc_info]


def test_the_end_waits_two_seconds_for_a_refused_client():
    async def ask() -> None:
        async with served(refuse, seconds=60) as (server, port):
            for version in range(2):  # one that lingers already, and one that is kept open
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"POST / HTTP/1.%d\r\nHost: a\r\nContent-Length: 5\r\n\r\n" % version)
            await asyncio.sleep(0.1)
            server.stop()
            await asyncio.wait_for(until(lambda: not server.server_state.connections), 10)

    asyncio.run(ask())


def test_the_end_waits_for_no_head_that_has_begun():
    async def ask() -> None:
        async with served(refuse, seconds=60) as (server, port):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST / HTTP/1.1\r\n")
            await asyncio.sleep(0.1)
            server.stop()
            await asyncio.wait_for(until(lambda: not server.server_state.connections), 10)
            writer.close()

    asyncio.run(ask())


def test_a_client_whose_refused_body_was_dropped_may_be_silent_as_any_answered_one(monkeypatch):
    monkeypatch.setattr(listening, "SILENT", 3 * SECONDS)
    request = b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1\r\n\r\n"

    async def ask() -> None:
        async with served(refuse) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for silent in (2 * SECONDS, 0.0):
                writer.write(request)
                assert (await reader.readuntil(b"too long")).startswith(b"HTTP/1.1 413")
                writer.write(b"x")
                await asyncio.sleep(silent)
            assert await asyncio.wait_for(reader.read(), 20 * SECONDS) == b""
            writer.close()

    asyncio.run(ask())
