"""Data set repositories of the Hugging Face Hub: their addresses, what is in them, what is wrong.

hf://datasets/OWNER                      all repositories of an owner
hf://datasets/OWNER/NAME[@REVISION]      one, at a branch, tag or commit
hf://datasets/OWNER/NAME/FOLDER          a folder of it, such as one configuration
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote

from flaxclip.benchmark.datasets import MissingDataError
from flaxclip.benchmark.sets.origin import RemoteFile, RemoteSet
from flaxclip.data.storage.hub_refusals import hub_refusal
from flaxclip.data.storage.repeated_requests import described, request
from flaxclip.errors import InputError

PREFIX = "hf://datasets/"
_ADDRESS = re.compile(
    r"hf://datasets/(?P<owner>[\w.-]+)"
    r"(/(?P<name>[\w.-]+)(@(?P<revision>refs/(convert|pr)/[^/]+|[^/]+))?(/(?P<folder>.+))?)?"
)
_Answer = TypeVar("_Answer")


class Address(NamedTuple):
    """Where data sets are on the Hub."""

    owner: str
    name: str | None = None
    """If None, all of the owner's repositories are meant."""
    revision: str | None = None
    folder: str = ""
    """In the repository."""

    @property
    def cache_path(self) -> str:
        """`OWNER/NAME[@REVISION]`."""
        revision = f"@{self.revision.replace('/', '-')}" if self.revision else ""
        return f"{self.owner}/{self.name}{revision}"

    def look_up(self) -> RemoteSet:
        """See `look_up`."""
        return look_up(f"{self.owner}/{self.name}", self.revision)


def is_on_hub(path: str) -> bool:
    """True of `hf://` addresses, whatever is wrong with them."""
    return path.startswith("hf:")


def parse_address(url: str) -> Address:
    """The parts of an address.

    Raises:
        InputError: it is none of a data set, or of an owner of data sets.
    """
    found = _ADDRESS.fullmatch(url.rstrip("/"))
    if found is None:
        raise InputError(
            f"{url} is no address of data sets\n"
            f"expected {PREFIX}OWNER, {PREFIX}OWNER/NAME or {PREFIX}OWNER/NAME@REVISION"
        )
    revision = found["revision"] and unquote(found["revision"])
    return Address(found["owner"], found["name"], revision, found["folder"] or "")


def look_up(name: str, revision: str | None) -> RemoteSet:
    """What the repository `OWNER/NAME` holds now, at its revision; if None, its main branch.

    Raises:
        MissingDataError: there is none, or it may not be read without an account that it lets in.
        InputError: it has no such revision, or huggingface_hub is not installed or refused.
        StorageAwayError: the Hub does not answer.
    """
    api = _client().HfApi()

    def read(seconds: float) -> RemoteSet:
        info = api.dataset_info(name, revision=revision, timeout=seconds)
        if info.gated:  # all but its files is public: they would be refused one by one
            api.auth_check(name, repo_type="dataset")
        commit = info.sha
        entries = api.list_repo_tree(name, recursive=True, revision=commit, repo_type="dataset")
        files = {entry.path: _file(entry) for entry in entries if hasattr(entry, "blob_id")}
        return RemoteSet(name, f"{PREFIX}{name}@{commit}", files)

    return _asked(name, revision, read)


def _asked(name: str, revision: str | None, ask: Callable[[float], _Answer]) -> _Answer:
    """What `ask`, which is given seconds, says of a repository; repeated while errors may pass."""
    url = f"{PREFIX}{name}" + (f"@{revision}" if revision else "")

    def send(seconds: float) -> _Answer:
        try:
            return ask(seconds)
        except Exception as error:
            if refusal := hub_refusal(error, url):
                # No cause is kept: by it, a refusal would be taken for expired credentials.
                kind = MissingDataError if refusal.is_absent else InputError
                raise kind(refusal.message) from None
            raise

    try:
        return request(url, send)
    except _client().errors.HfHubHTTPError as error:
        raise InputError(f"cannot read {url}: {described(error)}") from None


def _client() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise InputError(
            f"cannot read {PREFIX} addresses: {error}\npip install 'flaxclip[hf]'"
        ) from None
    return huggingface_hub


def _file(entry: Any) -> RemoteFile:
    checksum = f"git:{entry.blob_id}" if entry.lfs is None else f"sha256:{entry.lfs.sha256}"
    return RemoteFile(entry.size, checksum)
