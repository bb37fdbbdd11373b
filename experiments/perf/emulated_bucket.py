"""Loading through gcsfs, the real client of gs://, from an emulator that is 40 ms away.

    pip install gcsfs; pip install gcp-storage-emulator (in an environment of its own, on the PATH)
    python experiments/perf/emulated_bucket.py

The loader and the images are those of `remote_reads.py`, whose bucket costs no CPU time: here the
client's is in it, and unlike in a bucket, the emulator's. What the emulator receives passes through
a proxy, which holds it up for the latency, and counts the requests.
"""

import argparse
import asyncio
import contextlib
import os
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import remote_reads

from flaxclip.data.sources.tars.webdataset import WebDatasetSource

SHARDS, EXAMPLES = 40, 256  # in a shard; the emulator reads a file whole for each request
METHODS = (b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ")


class Proxy:
    """Passes on what clients send, after a while; answers pass at once."""

    def __init__(self, port: int) -> None:
        """Start it, in front of a server on this machine."""
        self._server, self.latency, self.requests = port, 0.0, 0
        self.port = 0
        started = threading.Event()
        threading.Thread(target=asyncio.run, args=(self._serve(started),), daemon=True).start()
        started.wait()

    async def _serve(self, started: threading.Event) -> None:
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        await server.serve_forever()

    async def _connect(self, reader, writer) -> None:
        answers, requests = await asyncio.open_connection("127.0.0.1", self._server)
        await asyncio.gather(
            self._pass_on(reader, requests, True), self._pass_on(answers, writer, False)
        )

    async def _pass_on(self, reader, writer, are_requests: bool) -> None:
        with contextlib.suppress(ConnectionError), contextlib.closing(writer):
            while data := await reader.read(2**18):
                if are_requests:
                    self.requests += data.startswith(METHODS)
                    await asyncio.sleep(self.latency)
                writer.write(data)
                await writer.drain()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=0.04)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    # Otherwise it asks Google itself for the bucket's layout.
    os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
    remote_reads.SHARDS, remote_reads.EXAMPLES = SHARDS, EXAMPLES
    with tempfile.TemporaryDirectory() as folder, emulator(folder) as port:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/index"
        proxy = Proxy(port)
        os.environ["STORAGE_EMULATOR_HOST"] = f"http://127.0.0.1:{proxy.port}"
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        remote_reads.write_shards(corpus)
        upload(corpus)
        for _ in range(arguments.rounds):
            disk = remote_reads.epoch(WebDatasetSource(f"{corpus}/*.tar"), folder)
            print(f"{'from disk':16} {disk:7.0f} pairs/s", flush=True)
            source = WebDatasetSource("gs://bucket/corpus/*.tar")
            proxy.latency, proxy.requests = arguments.latency, 0
            found = remote_reads.epoch(source, folder)
            proxy.latency = 0.0
            print(
                f"through gcsfs    {found:7.0f} pairs/s, {found / disk:.2f} of disk; the proxy has "
                f"counted {proxy.requests:,} requests",
                flush=True,
            )


@contextlib.contextmanager
def emulator(folder: str):
    """Its port, as long as it runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["gcp-storage-emulator", "start", "--in-memory", "--default-bucket", "bucket"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with (
        open(f"{folder}/log", "w") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as server,
    ):
        try:
            with socket.socket() as probe:
                while probe.connect_ex(("127.0.0.1", port)):
                    time.sleep(0.1)
            yield port
        finally:
            server.kill()


def upload(corpus: Path) -> None:
    """Copy the tars into the bucket."""
    import gcsfs

    bucket = gcsfs.GCSFileSystem(token="anon")
    for path in sorted(corpus.glob("*.tar")):
        bucket.pipe_file(f"bucket/corpus/{path.name}", path.read_bytes())


if __name__ == "__main__":
    main()
