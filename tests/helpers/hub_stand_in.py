"""A Hugging Face Hub on this machine: what its client asks for when it lists and reads.

Paths, headers and codes are the Hub's: pages of listings by a Link header; large files (LFS) by a
redirect to another path, which answers ranges; 401 for what is not there as for what is private;
403 and X-Error-Code GatedRepo for what asks for consent.
"""

import contextlib
import dataclasses
import hashlib
import http.server
import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlparse

import huggingface_hub
import pytest

from flaxclip.data.storage.file_systems import file_system

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_of_somebody"
_LARGE = (".tar", ".parquet", ".safetensors", ".bin", ".pt", ".zip")
_API = re.compile(
    r"api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)(/(?P<what>[\w-]+)(/(?P<rest>.+))?)?"
)
_RESOLVE = re.compile(r"((?P<kind>datasets)/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<rest>.+)")


@dataclasses.dataclass
class Hosted:
    """A repository; its files are those of a folder, as they are at each request."""

    folder: Path
    kind: str = "datasets"
    private: bool = False
    """Shown to who has the token."""
    gated: bool = False
    """Listed to all, read by none."""
    commit: str = COMMIT
    revisions: tuple[str, ...] = ("main",)


@dataclasses.dataclass
class Hub:
    """A running server."""

    address: str
    repositories: Mapping[str, Hosted]
    page: int = 1000
    """Entries of a listing that come at once."""
    requests: list[str] = dataclasses.field(default_factory=list)
    """`GET /path bytes=0-99` of all that have come."""
    failing: list[int] = dataclasses.field(default_factory=list)
    """Statuses that the next requests for files are answered with."""
    seconds_per_read: float = 0.0
    """That a request for a file takes."""
    released: threading.Event = dataclasses.field(default_factory=threading.Event)
    """Requests for files wait until it is set, as it is at first."""
    held: str = ""
    """If given, only those with it in them wait: a path's end and ` bytes=FIRST-`, or a part."""
    flipped: set[str] = dataclasses.field(default_factory=set)
    """Names of files of which a byte is changed on the way."""

    def __post_init__(self) -> None:
        self.released.set()

    def reads(self, of: str = "") -> list[str]:
        """The requests for content."""
        return [line for line in self.requests if "/cdn/" in line and of in line]


@contextlib.contextmanager
def serve_hub(repositories: Mapping[str, Hosted]) -> Iterator[Hub]:
    """A server of these, by `OWNER/NAME`. `HF_ENDPOINT` makes the client take it for the Hub."""
    running = Hub("", repositories)

    class Handler(_Handler):
        hub = running

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        running.address = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield running
        finally:
            running.released.set()
            server.shutdown()


@contextlib.contextmanager
def hub(repository: str, folder: Path) -> Iterator[str]:
    """The address of a server with one repository of a model."""
    with serve_hub({repository: Hosted(folder, "models")}) as running:
        yield running.address


def take_for_the_hub(monkeypatch: pytest.MonkeyPatch, address: str, token: str = "") -> None:
    """Let the client in this process speak to the server at an address, logged in or not."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("HF_TOKEN", token)
    file_system.cache_clear()
    huggingface_hub.HfFileSystem.clear_instance_cache()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(body)

    def _answer(self, body: dict | None = None) -> None:
        url = urlparse(self.path)
        ranged = f" {self.headers['Range']}" if self.headers.get("Range") else ""
        self.hub.requests.append(f"{self.command} {url.path}{ranged}")
        # Revisions with slashes come encoded: refs%2Fconvert%2Fparquet.
        path = url.path.strip("/")
        if found := _API.fullmatch(path):
            self._api(found, parse_qs(url.query), body)
        elif path.startswith("cdn/"):
            self._content(Path(unquote(path.removeprefix("cdn"))))
        elif found := _RESOLVE.fullmatch(path):
            self._resolve(found)
        else:
            self._fail(404)

    def _repository(self, found: re.Match[str], kind: str) -> Hosted | None:
        hosted = self.hub.repositories.get(found["name"])
        token = self.headers.get("Authorization")
        if token not in (None, f"Bearer {TOKEN}"):
            self._fail(401, message="Invalid credentials in Authorization header")
            return None
        if hosted is None or hosted.kind != kind or (hosted.private and token is None):
            # To who is not logged in, what is missing is as what is private.
            if token is None:
                self._fail(401, message="Invalid username or password.")
            else:
                self._fail(404, "RepoNotFound", "Repository not found")
            return None
        return hosted

    def _api(self, found: re.Match[str], query: dict, body: dict | None) -> None:
        hosted = self._repository(found, found["kind"])
        if hosted is None:
            return
        what, (revision, _, inner) = found["what"], (found["rest"] or "").partition("/")
        if what in ("revision", "tree", "paths-info") and not self._knows(hosted, revision):
            return
        if what == "auth-check":
            if hosted.gated:
                self._fail(403 if self.headers.get("Authorization") else 401, "GatedRepo")
            else:
                self._json({})
        elif what in (None, "revision"):
            info = {"id": found["name"], "sha": hosted.commit, "private": hosted.private}
            self._json(info | {"gated": "manual" if hosted.gated else False, "siblings": []})
        elif what == "paths-info" and body is not None:
            files = [path for path in body["paths"] if (hosted.folder / path).is_file()]
            self._json([_entry(hosted.folder, hosted.folder / path) for path in files])
        elif what == "tree":
            self._tree(hosted.folder, hosted.folder / unquote(inner), query)
        else:
            self._fail(404)

    def _tree(self, root: Path, folder: Path, query: dict) -> None:
        if not folder.is_dir():
            self._fail(404, "EntryNotFound")
            return
        recursive = query.get("recursive") in (["True"], ["true"])
        entries = [_entry(root, p) for p in sorted(folder.rglob("*") if recursive
                                                    else folder.iterdir())]  # fmt: skip
        start = int(query.get("cursor", ["0"])[0])
        headers = {}
        if len(entries) > start + self.hub.page:
            address = self.hub.address + urlparse(self.path).path
            more = f"recursive={recursive}&cursor={start + self.hub.page}"
            headers["Link"] = f'<{address}?{more}>; rel="next"'
        self._json(entries[start : start + self.hub.page], headers)

    def _resolve(self, found: re.Match[str]) -> None:
        hosted = self._repository(found, found["kind"] or "models")
        if hosted is None:
            return
        revision, _, path = found["rest"].partition("/")
        if not self._knows(hosted, revision):
            return
        if hosted.gated:
            self._fail(403 if self.headers.get("Authorization") else 401, "GatedRepo")
            return
        if self.hub.failing:
            self._fail(self.hub.failing.pop(0))
            return
        file = hosted.folder / unquote(path)
        if not file.is_file():
            self._fail(404, "EntryNotFound")
            return
        entry = _entry(hosted.folder, file)
        # Of small files the redirect is one inside the Hub.
        self.send_response(302 if "lfs" in entry else 307)
        self.send_header("Location", f"{self.hub.address}/cdn{file}")
        self.send_header("X-Repo-Commit", hosted.commit)
        self.send_header("X-Linked-Size", str(entry["size"]))
        tag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        self.send_header("X-Linked-Etag", f'"{tag}"')
        self._send(b"", "text/plain")

    def _knows(self, hosted: Hosted, revision: str) -> bool:
        if unquote(revision) in (hosted.commit, *hosted.revisions):
            return True
        self._fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return False

    def _content(self, file: Path) -> None:
        if self.hub.held in f"{self.path} {self.headers.get('Range', '')}":
            self.hub.released.wait()
        time.sleep(self.hub.seconds_per_read)
        data = file.read_bytes()
        tag = _large_oid(data) if file.suffix in _LARGE else _git_oid(data)
        if file.name in self.hub.flipped:
            data = data[:-1] + bytes([data[-1] ^ 1])
        start, end = 0, len(data)
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) + 1, len(data)) if last else len(data)
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", f'"{tag}"')
        self.send_header("Accept-Ranges", "bytes")
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self._send(data[start:end], "application/octet-stream")

    def _fail(self, status: int, code: str = "", message: str = "") -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message or code or "something is wrong")
        self._send(json.dumps({"error": message}).encode(), "application/json")

    def _json(self, value: object, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(200)
        for name, content in (headers or {}).items():
            self.send_header(name, content)
        self._send(json.dumps(value).encode(), "application/json")

    def _send(self, data: bytes, kind: str) -> None:
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):  # of a client that was killed
                self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def _entry(root: Path, path: Path) -> dict:
    name = path.relative_to(root).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "size": 0, "oid": _git_oid(name.encode())}
    data = path.read_bytes()
    entry = {"type": "file", "path": name, "size": len(data), "oid": _git_oid(data)}
    if path.suffix in _LARGE:
        entry["lfs"] = {"oid": _large_oid(data), "size": len(data), "pointerSize": 134}
    return entry


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _large_oid(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
