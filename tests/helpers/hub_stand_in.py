"""A Hugging Face Hub of one repository, on this machine: what its client asks for when it reads."""

import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlparse

_COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextlib.contextmanager
def hub(repository: str, folder: Path) -> Iterator[str]:
    """The address of a server with the files of `folder` as those of `repository`.

    `HF_ENDPOINT` makes the client take it for the Hub.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if "paths-info" in self.path:
                paths = json.loads(body)["paths"]
                self._json([_entry(folder, path) for path in paths if (folder / path).is_file()])
            else:
                self.send_error(404)

        def _answer(self) -> None:
            path = unquote(urlparse(self.path).path).strip("/")
            api = f"api/models/{repository}"
            if path.startswith(f"{api}/tree/"):
                self._json([_entry(folder, file.name) for file in sorted(folder.iterdir())])
            elif path == api or path.startswith(f"{api}/revision/"):
                self._json({"id": repository, "sha": _COMMIT, "private": False, "siblings": []})
            elif path.startswith(f"{repository}/resolve/"):
                self._file(folder / path.rsplit("/", 1)[-1])
            else:
                self.send_error(404)

        def _file(self, file: Path) -> None:
            if not file.is_file():
                self.send_error(404)
                return
            data = file.read_bytes()
            start, end = 0, len(data)
            if wanted := self.headers.get("Range"):
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                start, end = int(first), int(last) + 1 if last else len(data)
            self.send_response(206 if wanted else 200)
            self.send_header("ETag", f'"{_sha1(data)}"')
            self.send_header("X-Repo-Commit", _COMMIT)
            self.send_header("Accept-Ranges", "bytes")
            if wanted:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
            self._send(data[start:end], "application/octet-stream")

        def _json(self, value: object) -> None:
            self.send_response(200)
            self._send(json.dumps(value).encode(), "application/json")

        def _send(self, data: bytes, kind: str) -> None:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def _sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def _entry(folder: Path, path: str) -> dict[str, object]:
    data = (folder / path).read_bytes()
    return {"type": "file", "path": path, "size": len(data), "oid": _sha1(data)}
