"""Files of a folder over HTTP, as from a bucket: slowly, and with whatever can go wrong.

    with FaultyStore(folder, latency=0.04, refused=0.05) as store:
        fetch(Extent(store.url("0.tar"), ...))

Or in front of another server, such as an emulator of object storage, whose answers it passes on:
`FaultyStore(behind=("127.0.0.1", 9000))`. In a process of its own, which prints the address:
`python -m tests.helpers.faulty_store FOLDER '{"latency": 0.04}'`.
"""

import collections
import contextlib
import dataclasses
import http.client
import http.server
import json
import os
import random
import re
import socket
import struct
import sys
import threading
import time

_HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding")
CUT = 2  # of a body that breaks off, one part in so many is sent


@dataclasses.dataclass
class FaultyStore:
    """What can go wrong may be changed at any time; everything is counted.

    Single faults are named by their status, or `reset` (in the middle of the body), `short` (a body
    that ends early, and claims to be complete), `drop` (no answer at all).
    """

    folder: str = ""
    behind: tuple[str, int] | None = None
    """Address of a server to ask in place of the folder."""
    latency: float = 0.0
    """Seconds before each answer."""
    bytes_per_second: float | None = None
    """Of each connection."""
    refused: float = 0.0
    """Share of requests that are answered 503."""
    reset: float = 0.0
    """Share of requests whose connection is reset in the middle of the body."""
    ignores_range: bool = False
    ignores_match: bool = False
    sends_length: bool = True
    status: int | None = None
    """Of every answer."""
    away: bool = False
    """Every connection is reset at once."""
    seed: int = 0
    next_faults: collections.deque = dataclasses.field(default_factory=collections.deque)
    """Of the next requests for data, one each."""
    held: collections.deque = dataclasses.field(default_factory=collections.deque)
    """Events that the answers to the next requests for data wait for, one each; None is no wait."""
    hanging: set = dataclasses.field(default_factory=set)
    """Names of files that are never sent."""
    answers: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    """By (method, status or fault)."""
    bytes: int = 0
    most_at_once: int = 0

    def __enter__(self):
        self._random, self._lock, self._at_once = random.Random(self.seed), threading.Lock(), 0
        self.closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.store = self
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def address(self):
        return f"http://127.0.0.1:{self._server.server_port}"

    def url(self, name):
        return f"{self.address}/{name}"

    def asked(self, method="GET"):
        """Number of requests."""
        return sum(count for (asked, _), count in self.answers.items() if asked == method)

    def forget(self):
        """Count from 0."""
        self.answers.clear()
        self.bytes = self.most_at_once = 0

    @contextlib.contextmanager
    def answering(self):
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        yield
        with self._lock:
            self._at_once -= 1

    def wait_before_answer(self, asks_for_data):
        self.closing.wait(self.latency)
        with self._lock:
            released = self.held.popleft() if asks_for_data and self.held else None
        while released is not None and not released.wait(0.02) and not self.closing.is_set():
            pass

    def fault(self, asks_for_data):
        """What goes wrong with a request; None if nothing does."""
        with self._lock:
            if self.away:
                return "drop"
            if self.status:
                return self.status
            if not asks_for_data:
                return None
            if self.next_faults:
                return self.next_faults.popleft()
            drawn = self._random.random()
            if drawn < self.refused:
                return 503
            return "reset" if drawn < self.refused + self.reset else None

    def count(self, method, outcome, size=0):
        with self._lock:
            self.answers[method, outcome] += 1
            self.bytes += size


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request, client_address):
        """Clients leave when they like."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        with self.server.store.answering():
            self._answer()

    do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = do_GET

    def log_message(self, *_):
        pass

    def _answer(self):
        store, method, name = self.server.store, self.command, self.path.lstrip("/")
        length = int(self.headers.get("Content-Length", 0))
        sent = self._chunks() if "Transfer-Encoding" in self.headers else self.rfile.read(length)
        asks_for_data = method == "GET" and (not store.behind or "Range" in self.headers)
        fault = store.fault(asks_for_data)
        store.wait_before_answer(asks_for_data)
        if fault == "drop":
            store.count(method, fault)
            return self._reset()
        if name in store.hanging and method == "GET":
            store.count(method, "hang")
            store.closing.wait()
            return self._reset()
        if isinstance(fault, int):
            return self._refuse(fault)
        if store.behind:
            return self._pass_on(sent, fault)
        try:
            file = open(os.path.join(store.folder, name), "rb")  # noqa: SIM115
        except OSError:
            return self._refuse(404)
        with file:
            stat = os.fstat(file.fileno())
            tag = f'"{stat.st_mtime_ns}-{stat.st_size}"'
            wanted = self.headers.get("If-Match")
            if wanted not in (None, tag) and not store.ignores_match:
                return self._refuse(412)
            start, end, status = 0, stat.st_size, 200
            limits = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if limits and not store.ignores_range:
                start, end, status = int(limits[1]), min(int(limits[2]) + 1, stat.st_size), 206
                if start >= stat.st_size:
                    return self._refuse(416)
            data = os.pread(file.fileno(), end - start, start) if method == "GET" else b""
        headers = {"ETag": tag, "Content-Length": str(end - start)}
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{stat.st_size}"
        self._reply(status, headers, data, fault)

    def _pass_on(self, sent, fault):
        connection = http.client.HTTPConnection(*self.server.store.behind)
        with contextlib.closing(connection):
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            dropped = [*_HOP_BY_HOP, "content-length"] + ["range"] * self.server.store.ignores_range
            for name, value in self.headers.items():
                if name.lower() not in dropped:
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(sent)))
            connection.endheaders(sent)
            answer = connection.getresponse()
            data = answer.read()
            headers = {n.title(): v for n, v in answer.getheaders() if n.lower() not in _HOP_BY_HOP}
        if self.command != "HEAD":
            headers["Content-Length"] = str(len(data))
        self._reply(answer.status, headers, data, fault)

    def _chunks(self):
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _reply(self, status, headers, data, fault):
        store = self.server.store
        data = data if fault is None else data[: len(data) // CUT]
        store.count(self.command, fault or status, len(data))  # before anybody can have it
        self.send_response_only(status)
        if not store.sends_length or fault == "short":
            headers.pop("Content-Length", None)
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self._send(data)
        if fault == "reset":
            self._reset()

    def _send(self, data):
        rate, store = self.server.store.bytes_per_second, self.server.store
        part = len(data) if rate is None else max(1, int(rate / 50))
        for start in range(0, len(data), part or 1):
            if rate is not None:
                store.closing.wait(part / rate)
            self.wfile.write(data[start : start + part])

    def _refuse(self, status):
        self.server.store.count(self.command, status)
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _reset(self):
        self.wfile.flush()
        self.close_connection = True
        linger = struct.pack("ii", 1, 0)  # what is sent at closing is a reset
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()


if __name__ == "__main__":
    with FaultyStore(sys.argv[1], **json.loads(sys.argv[2])) as running:
        print(running.address, flush=True)
        while True:
            time.sleep(1)
