"""HTTP/1.1 as uvicorn speaks it, for clients that may be slow on purpose: each part of a request has a time limit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD, REST = "head", "rest"
AT_END = 2.0  # seconds that a refused client has once the server ends


class TimedProtocol(H11Protocol):
    """Ends a connection whose request has no whole head after `seconds`, that goes on sending a body after its answer, or that does not
    take what is left of its answer in that time, be it closed or not. The application limits the time of a body that it reads, and uvicorn
    that in which an answered client may be silent.

    What comes after a refusal is read and dropped for as long, or for `AT_END` once the server ends, because a connection that is closed
    while the client still sends loses the answer. `scope["state"]["connections"]` holds all open connections.
    """

    seconds = 30.0
    _awaited: str | None = None
    _answered = _lingers = _ends = False
    _timer: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(_Ended(transport, self._linger))
        # `pause_writing` comes with the first byte that the client does not take
        transport.set_write_buffer_limits(high=0)
        self.app_state["connections"] = self.connections
        self._look()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._answered = True
        self._look()

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP; a body of which that is seen behind the answer has had one, and for HEAD h11 takes no words."""
        state = self.conn.our_state
        if state is h11.IDLE or (state is h11.SEND_RESPONSE and self.scope["method"] != "HEAD"):
            super().send_400_response(msg)
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # uvicorn leaves it after an error
        for timer in (self._timer, self._unread):
            if timer is not None:
                timer.cancel()

    def shutdown(self) -> None:
        self._ends = True
        super().shutdown()
        if self._lingers:
            self._wait(self.transport.abort, min(self.seconds, AT_END))

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self.seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def _look(self) -> None:
        """Begins to wait for what the client is to send next, if that is not what is awaited already."""
        if self.transport.is_closing():
            return
        awaited = None
        if self.conn.their_state is h11.IDLE:
            if not self._answered or self.conn.trailing_data[0]:
                awaited = HEAD
            elif self.timeout_keep_alive_task is None:  # uvicorn does not begin it after the rest of a refused body
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )
        elif self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE:
            awaited = REST
            self._unset_keepalive_if_required()
        if awaited != self._awaited:
            self._awaited = awaited
            self._wait(None if awaited is None else self._end, self.seconds)

    def _wait(self, end: Callable[[], None] | None, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if end is None else self.loop.call_later(seconds, end)

    def _end(self) -> None:
        if self._awaited == HEAD and self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]:
            self._refuse(f"The head of the request did not come within {self.seconds:g} s.".encode())
        if self._awaited == REST:
            self.transport.abort()
        else:
            self.transport.close()

    def _linger(self, transport: asyncio.Transport) -> None:
        """Closes a connection; one whose client was answered while it still sent, once it has seen the end, or `seconds` later."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # nobody reads what the application would answer
            self.cycle.message_event.set()
        if self.conn.their_state not in (h11.SEND_BODY, h11.ERROR) and self.conn.our_state is not h11.MUST_CLOSE:
            transport.close()
            return
        try:
            transport.write_eof()
        except OSError:  # the client has gone
            transport.abort()
            return
        self._lingers = True
        transport.resume_reading()
        self._wait(transport.abort, min(self.seconds, AT_END) if self._ends else self.seconds)

    def _refuse(self, reason: bytes) -> None:
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
        for event in (
            h11.Response(status_code=408, headers=headers, reason=b"Request Timeout"),
            h11.Data(data=reason),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event))


class _Ended:
    """A transport that is closed as `end` does, once."""

    def __init__(self, transport: asyncio.Transport, end: Callable[[asyncio.Transport], None]) -> None:
        self._transport, self._end, self._is_ended = transport, end, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._is_ended or self._transport.is_closing()

    def close(self) -> None:
        if not self.is_closing():
            self._is_ended = True
            self._end(self._transport)
