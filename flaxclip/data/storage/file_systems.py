"""Which client speaks to a URL, and the states of files there and on disk."""

import functools
import hashlib
import os
from typing import Any, NamedTuple

import fsspec

from flaxclip.data.storage.repeated_requests import (
    STALL_SECONDS,
    TransientError,
    call,
    request,
    status_may_pass,
)
from flaxclip.errors import InputError

REQUESTS_AT_ONCE = 64
"""In flight, to remote storage, in each process. A core decodes some 600 images a second and a
request takes about 0.1 s, so that 60 keep it busy; as many encoded images take a few MB."""

_S3 = ("s3", "s3a")
_HTTP = ("http", "https")
_GOOGLE = ("gs", "gcs")


class Version(NamedTuple):
    """Identifies one state of a file."""

    size: int
    mtime_ns: int
    """In object storage without times, a number made of the object's tag."""


def is_remote(path: str) -> bool:
    """True if `path` is a URL."""
    return "://" in path


@functools.lru_cache(16)
def file_system(protocol: str, repeats: bool = True) -> fsspec.AbstractFileSystem:
    """The file system of URLs that begin with `protocol`.

    Args:
        protocol: such as gs or s3.
        repeats: let clients repeat failed requests by themselves, as some do: for listings of many
            pages, and for writing. If False, they tell of each failure at once, to be called within
            `request`, which repeats and counts.

    Raises:
        InputError: the package that speaks to it is not installed.
    """
    try:
        options = _options(protocol)
        if repeats:
            return fsspec.filesystem(protocol, **options)
        if protocol in _GOOGLE:
            session = _failing_at_once() | _set_by_user(_GOOGLE, "session_kwargs")
            return fsspec.filesystem(protocol, **options, session_kwargs=session)
        if protocol in _S3:
            botocore = {"retries": {"total_max_attempts": 1}} | options["config_kwargs"]
            s3 = fsspec.filesystem(protocol, config_kwargs=botocore, skip_instance_cache=True)
            s3.retries = 1  # of its own, besides those of botocore
            return s3
        return fsspec.filesystem(protocol, **options)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"cannot open {protocol}:// paths: {error}\n"
            "for Google Cloud Storage: pip install 'flaxclip[gcs]'; for S3: 'flaxclip[s3]'; "
            "for http(s)://: 'flaxclip[http]'"
        ) from None


def _options(protocol: str) -> dict[str, Any]:
    """Settings of the client; what the user has set stands."""
    if protocol in _S3:
        # It would have 10 connections, at which all further requests wait.
        connections = {"max_pool_connections": REQUESTS_AT_ONCE}
        return {"config_kwargs": connections | _set_by_user(_S3, "config_kwargs")}
    if protocol in (*_HTTP, *_GOOGLE):
        import aiohttp

        # They would wait for a silent server for 5 minutes, or forever.
        patience = aiohttp.ClientTimeout(sock_connect=STALL_SECONDS, sock_read=STALL_SECONDS)
        if protocol in _HTTP:
            # Some servers compress what they send, and know ranges of what is compressed alone.
            options = {"timeout": patience, "headers": {"Accept-Encoding": "identity"}}
            return {"client_kwargs": options | _set_by_user(_HTTP, "client_kwargs")}
        if not any("requests_timeout" in fsspec.config.conf.get(name, {}) for name in _GOOGLE):
            return {"requests_timeout": patience}
    return {}


@functools.cache
def _failing_at_once() -> dict[str, Any]:
    """Arguments of `aiohttp.ClientSession` whose failures gcsfs does not repeat.

    It has no option for that, but repeats the errors of aiohttp and its own alone.
    """
    import aiohttp

    class Response(aiohttp.ClientResponse):
        async def read(self) -> bytes:
            try:
                return await super().read()
            except aiohttp.ClientError as error:
                raise TransientError(f"{type(error).__name__} {error}".strip()) from error

    async def check(response: aiohttp.ClientResponse) -> None:
        if status_may_pass(response.status):
            response.close()
            raise TransientError(f"HTTP status {response.status} {response.reason}")

    async def fail(session: Any, context: Any, failure: Any) -> None:
        error = failure.exception
        if isinstance(error, aiohttp.ClientError):
            raise TransientError(f"{type(error).__name__} {error}".strip()) from error

    trace = aiohttp.TraceConfig()
    trace.on_request_exception.append(fail)
    return {"response_class": Response, "raise_for_status": check, "trace_configs": [trace]}


def _set_by_user(protocols: tuple[str, ...], option: str) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name in protocols:
        settings |= fsspec.config.conf.get(name, {}).get(option, {})
    return settings


def file_system_of(path: str, repeats: bool = True) -> fsspec.AbstractFileSystem:
    """The file system of a URL; see `file_system`, also for the `InputError`."""
    return file_system(path.partition("://")[0], repeats)


def unbuffered(path: str) -> dict[str, Any]:
    """Arguments of `cat_file` by which no more is fetched than is asked for."""
    # It opens a file to read from, which would fetch the next 5 MB along.
    return {"cache_type": "none"} if path.startswith("hf://") else {}


def version_of(path: str) -> Version:
    """The present state of a file.

    Raises:
        OSError: there is none, or it cannot be reached.
        InputError: the server does not say how large it is.
        StorageAwayError: its storage stays away.
    """
    return state_of(path)[0]


def state_of(path: str, *, anew: bool = False) -> tuple[Version, dict[str, Any]]:
    """The present state of a file, and arguments of `cat_file` that ask for this state alone.

    Raises as `version_of` does.

    Args:
        path: of a file, or a URL.
        anew: ask the server even if the client has the state from a listing.
    """
    if not is_remote(path):
        stat = os.stat(path)
        return Version(stat.st_size, stat.st_mtime_ns), {}
    fs = file_system_of(path, repeats=False)
    if anew:
        fs.invalidate_cache()
    info = request(path, lambda seconds: call(fs, "info", seconds, path))
    if info.get("size") is None:
        raise InputError(
            f"the server does not say how large {path} is\n"
            "expected an answer with Content-Length, as file servers and object storage give it"
        )
    condition: dict[str, Any] = {}
    protocol = path.partition("://")[0]
    if protocol in _GOOGLE and info.get("generation"):
        condition = {"generation": info["generation"]}
    # A weak tag equals none, not even itself.
    elif protocol in _HTTP and info.get("ETag", "").startswith('"'):
        condition = {"headers": {"If-Match": info["ETag"]}}
    return version_in(info), condition


def version_in(info: dict[str, Any]) -> Version:
    """The state that object storage describes, when asked for a file or listing a folder."""
    return Version(int(info["size"]), _change_number(info))


def _change_number(info: dict[str, Any]) -> int:
    for name in (
        *("generation", "etag", "ETag", "blob_id", "mtime", "LastModified", "last_modified"),
        *("Last-Modified", "created"),
    ):
        if info.get(name):
            digest = hashlib.sha256(str(info[name]).encode()).digest()
            return int.from_bytes(digest[:7])
    return 0
