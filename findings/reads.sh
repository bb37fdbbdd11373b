#!/usr/bin/env bash
# s3fs 2026.9.0 (aiobotocore 3.10.0): however many threads or coroutines read through one file
# system, ten requests are in flight; the others wait for a connection, without a word. The limit is
# botocore's max_pool_connections, which synchronous clients only warn about and exceed. fsspec's own
# http file system has 100. So 64 threads get several times the rate from
# S3FileSystem(config_kwargs={"max_pool_connections": 64}).
#
# Seen, of 256 ranged reads by 64 threads from a server that answers after 40 ms:
#   s3fs, as it is: at most 10 in flight
#   s3fs, 64 connections: at most 64 in flight
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet s3fs==2026.9.0 fsspec==2026.9.0 aiobotocore==3.10.0
cat > "$folder/connections.py" <<'PYTHON'
import http.server
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import s3fs

DATA = bytes(1000)
lock = threading.Lock()
now = most = 0


class Bucket(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        global now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.04)
        first, last = map(int, self.headers["Range"].partition("=")[2].split("-"))
        with lock:
            now -= 1
        self.send_response(206)
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(DATA)}")
        self.end_headers()
        self.wfile.write(DATA[first : last + 1])


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 256


server = Server(("127.0.0.1", 0), Bucket)
threading.Thread(target=server.serve_forever, daemon=True).start()
for name, config in (("as it is", {}), ("64 connections", {"max_pool_connections": 64})):
    files = s3fs.S3FileSystem(
        key="any",
        secret="any",
        endpoint_url=f"http://127.0.0.1:{server.server_port}",
        client_kwargs={"region_name": "us-east-1"},
        config_kwargs=config,
    )
    most = 0
    with ThreadPoolExecutor(64) as pool:
        read = lambda number: files.cat_file("bucket/key", start=number, end=number + 100)
        assert {len(part) for part in pool.map(read, range(256))} == {100}
    print(f"s3fs, {name}: at most {most} in flight")
PYTHON
seen=$("$folder/venv/bin/python" "$folder/connections.py")
echo "$seen"
[[ $seen == *"as it is: at most 10 in flight"* ]]
[[ ! $seen == *"64 connections: at most 10 in flight"* ]]
