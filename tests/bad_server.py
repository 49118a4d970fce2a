"""A server on this machine that breaks off, lies about the size or serves something else."""

from __future__ import annotations

import hashlib
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from clip_ood.files.checksum import Checksum

CONTENT = np.random.default_rng(0).bytes(100_000)
MD5 = hashlib.md5(CONTENT).hexdigest()
PUBLISHED = Checksum("md5", MD5)
PAGE = b"<!DOCTYPE html><html><title>Google Drive - Quota exceeded</title>" + b" " * 2000


class Server(ThreadingHTTPServer):
    """Serves `content`, with these faults: `breaks_after` bytes it closes (each time); `announces` is the size it claims;
    `ranges` False ignores Range; `shift` starts a range elsewhere; `status` answers an error; `goes_to` redirects; `headers` are
    sent beside others."""

    def __init__(self, content):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.etag, self.asked = content, '"1"', []
        self.breaks_after = self.announces = self.status = self.goes_to = None
        self.ranges, self.shift, self.headers = True, 0, {}

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/set.bin"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.asked.append(asked)
        if server.status:
            return self.send_error(server.status)
        if server.goes_to:
            self.send_response(302)
            self.send_header("Location", server.goes_to)
            return self.end_headers()
        start, total = 0, len(server.content) if server.announces is None else server.announces
        same = self.headers.get("If-Range") in (None, server.etag)
        if asked and server.ranges and same:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if start >= len(server.content):
                return self.send_error(416)
            start += server.shift
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        else:
            self.send_response(200)
        for name, value in server.headers.items():
            self.send_header(name, value)
        if total >= 0:
            self.send_header("Content-Length", str(total - start))
        if server.etag:
            self.send_header("ETag", server.etag)
        self.end_headers()
        self.wfile.write(server.content[start:][: server.breaks_after])

    def log_message(self, *_):
        pass
