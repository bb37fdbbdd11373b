#!/usr/bin/env bash
# huggingface_hub 2.4.0 (with fsspec 2026.9.0): downloads that are killed, and ranges.
#
# 1. `hf_hub_download` does not resume. Each download goes into a file of its own,
#    `<etag>.<8 hex digits>.incomplete`; when the process is killed, the next one begins at byte 0
#    (no Range header) and leaves that file where it is. It resumes only after errors of the network
#    within one process.
# 2. `HfFileSystem().cat_file(path, start, end)` asks for up to 5 MiB beyond `end`: it opens a file
#    whose cache reads ahead. `cache_type="none"` asks for these bytes alone.
#
# Seen, of a file of 20,000,000 bytes: "killed download: 1 incomplete file left", "again: asked for
# from byte 0, 1 incomplete file still there", "cat_file: bytes=0-5242979, with cache_type none:
# bytes=0-99". Exits with 1 if this has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet huggingface_hub==2.4.0 fsspec==2026.9.0
cd "$folder"
HF_HOME="$folder/home" HF_HUB_DISABLE_PROGRESS_BARS=1 "$folder/venv/bin/python" - <<'PYTHON'
import hashlib, http.server, json, os, subprocess, sys, threading, time
from pathlib import Path

DATA = bytes(20_000_000)
OID = hashlib.sha1(b"blob %d\0" % len(DATA) + DATA).hexdigest()
ranges, slow = [], True


class Hub(http.server.BaseHTTPRequestHandler):
    """The paths and headers by which the Hub serves one small repository."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        if "/resolve/" in self.path:
            self.content()
        elif "/tree/" in self.path:
            self.reply([{"type": "file", "path": "0.tar", "size": len(DATA), "oid": OID}])
        else:
            self.reply({"id": "someone/set", "sha": "0" * 40, "private": False, "siblings": []})

    def reply(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def content(self):
        wanted, start, end = self.headers.get("Range"), 0, len(DATA)
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), int(last) + 1 if last else end
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", f'"{OID}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(end - start))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(DATA)}")
        self.end_headers()
        if self.command == "GET":
            ranges.append(wanted)
            try:
                for at in range(start, end, 1_000_000):
                    self.wfile.write(DATA[at : min(at + 1_000_000, end)])
                    time.sleep(0.5 if slow else 0)
            except OSError:
                pass  # the client was killed

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_address[1]}"
download = [sys.executable, "-c", (
    "from huggingface_hub import hf_hub_download as d; "
    "d('someone/set', '0.tar', repo_type='dataset', local_dir='copy')"
)]
parts = lambda: [p for p in Path("copy").rglob("*.incomplete") if p.stat().st_size]

process = subprocess.Popen(download)
while not parts():
    assert process.poll() is None
    time.sleep(0.1)
time.sleep(1)
process.kill()
process.wait()
left = parts()
print(f"killed download: {len(left)} incomplete file left")
slow = False
ranges.clear()
subprocess.run(download, check=True)
again = list(ranges)
print(f"again: asked for from {again[0] or 'byte 0'}, {len(parts())} incomplete file still there")
assert Path("copy/0.tar").read_bytes() == DATA

from huggingface_hub import HfFileSystem

ranges.clear()
path = "datasets/someone/set/0.tar"
assert HfFileSystem().cat_file(path, 0, 100) == DATA[:100]
assert HfFileSystem().cat_file(path, 0, 100, cache_type="none") == DATA[:100]
print(f"cat_file: {ranges[0]}, with cache_type none: {ranges[1]}")
expected = ["bytes=0-5242979", "bytes=0-99"]
sys.exit(not (len(left) == 1 and again == [None] and parts() == left and ranges == expected))
PYTHON
