"""HTTP/1.1 as uvicorn speaks it, for clients that may be slow on purpose: each part of a request has a time limit."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD, REST = "head", "rest"


class TimedProtocol(H11Protocol):
    """Ends a connection whose request has no whole head after `seconds`, that goes on sending a body after its answer, or that does not
    take what is left of its answer in that time, be it closed or not. The application limits the time of a body that it reads, and uvicorn
    that in which an answered client may be silent.

    What comes after a refusal is read and dropped for as long, because a connection that is closed while the client still sends loses
    the answer. `scope["state"]["connections"]` holds all open connections.
    """

    seconds = 30.0
    _awaited: str | None = None
    _answered = False
    _timer: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        transport.set_write_buffer_limits(
            high=0
        )  # `pause_writing` comes with the first byte that the client does not take
        self.app_state["connections"] = self.connections
        self._look()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._answered = True
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._timer, self._unread):
            if timer is not None:
                timer.cancel()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self.seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def _look(self) -> None:
        """Begins to wait for what the client is to send next, if that is not what is awaited already."""
        awaited = None
        if self.conn.their_state is h11.IDLE:
            # uvicorn times an answered client, but not after the rest of a refused body
            is_timed = self._answered and self.timeout_keep_alive_task is not None
            awaited = None if is_timed and not self.conn.trailing_data[0] else HEAD
        elif self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE:
            awaited = REST
        if awaited == self._awaited:
            return
        self._awaited = awaited
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if awaited is None else self.loop.call_later(self.seconds, self._end)

    def _end(self) -> None:
        if self.transport.is_closing():
            return
        if self._awaited == HEAD and self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]:
            self._refuse(f"The head of the request did not come within {self.seconds:g} s.".encode())
        self.transport.close()

    def _refuse(self, reason: bytes) -> None:
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
        for event in (
            h11.Response(status_code=408, headers=headers, reason=b"Request Timeout"),
            h11.Data(data=reason),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event))
