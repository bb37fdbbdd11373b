"""What the Hugging Face Hub does not let be read: why, and what to do about it."""

import re
import sys
from typing import Any, NamedTuple

from flaxclip.data.storage.repeated_requests import causes, described, status_of

_URL = re.compile(
    r"hf://(?P<datasets>datasets/)?(?P<name>[^/@]+/[^/@]+)(@(?P<revision>refs/[^/]+/[^/]+|[^/]+))?"
)


class Refusal(NamedTuple):
    """An answer by which a repository cannot be read."""

    message: str
    is_absent: bool
    """True if there is no such repository for this account."""


def hub_refusal(error: BaseException, url: str) -> Refusal | None:
    """The refusal that an error of the Hub's client tells of.

    Args:
        error: raised over the URL, or what another was raised from.
        url: `hf://OWNER/NAME...`, `hf://datasets/OWNER/NAME...`.

    Returns:
        None if the error is another one.
    """
    errors: Any = sys.modules.get("huggingface_hub.errors")
    found = _URL.match(url)
    if errors is None or found is None:
        return None
    kind, name = "data set" if found["datasets"] else "model", found["name"]

    def is_a(*types: type[BaseException]) -> bool:
        return any(isinstance(one, types) for one in causes(error))

    if is_a(errors.GatedRepoError):
        page = f"https://huggingface.co/{found['datasets'] or ''}{name}"
        return Refusal(
            f"{found[0]} is given only to those who have agreed to its terms\n"
            f"agree at {page}, then log in: hf auth login, or set HF_TOKEN",
            True,
        )
    if is_a(errors.RevisionNotFoundError):
        return Refusal(
            f"{found[0]}: the {kind} has no revision {found['revision'] or 'main'!r}\n"
            "expected a branch, a tag or a commit of it",
            False,
        )
    if is_a(errors.OfflineModeIsEnabled):
        return Refusal(
            f"{found[0]} is to be asked for, which HF_HUB_OFFLINE forbids\nunset it", False
        )
    refused = is_a(errors.HfHubHTTPError) and status_of(error) in (401, 403)
    # For the client it is a missing repository at https:// addresses alone.
    if is_a(errors.RepositoryNotFoundError) or (refused and not _is_logged_in()):
        return Refusal(
            f"the Hub shows no {kind} {name}: there is none, or it is private\n"
            "check the name; to read a private one, log in: hf auth login, or set HF_TOKEN",
            True,
        )
    if refused:
        return Refusal(
            f"the Hub does not accept the token that is set: {described(error)}\n"
            f"log in anew: hf auth login, or set HF_TOKEN to one that may read {kind}s",
            False,
        )
    return None


def _is_logged_in() -> bool:
    import huggingface_hub

    return huggingface_hub.get_token() is not None
