"""Uploading an export to the Hugging Face hub, and its errors in one sentence."""

import os
import re
from pathlib import Path
from typing import Any

from msgspec import Struct

from targen_async.errors import RunStopped, TargenError, UserError

TOKEN, ENDPOINT = "HF_TOKEN", "HF_ENDPOINT"
_REPO = re.compile(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*", re.ASCII)
_NETWORK = ("httpx", "httpx2", "httpcore", "requests", "urllib3")
"""What the hub's client speaks HTTP with, by version: their errors share no base."""
_MESSAGE = "Upload by targen export"


class Hub(Struct, frozen=True):
    """A client that is ready, and the repository that is meant."""

    api: Any
    repo: str
    private: bool


def open_hub(repo: str, private: bool) -> Hub:
    """Check all that can be checked before anything is written or sent.

    The token comes from HF_TOKEN only, never from a login stored on this machine. Raises UserError.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            f"--push needs a package that is not there ({error.name}): "
            "pip install 'targen-async[data]'"
        ) from error
    if not _REPO.fullmatch(repo):
        raise UserError(f"--push {repo!r} is no name of a repository, as owner/name is")
    token = os.environ.get(TOKEN, "").strip()
    if not token:
        raise UserError(f"--push needs a token with write access in {TOKEN}")
    endpoint = os.environ.get(ENDPOINT) or None
    api = huggingface_hub.HfApi(endpoint=endpoint, token=token, library_name="targen-async")
    return Hub(api, repo, private)


def push_folder(hub: Hub, folder: Path) -> str:
    """Upload a folder as a data set; returns its address.

    The repository is made where there is none; files of the same names are replaced in one commit,
    others stay. Raises UserError where the hub refuses, RunStopped where it cannot be reached.
    """
    from huggingface_hub.errors import HfHubHTTPError

    api, repo, kind = hub.api, hub.repo, "dataset"
    try:
        url = api.create_repo(repo, repo_type=kind, private=hub.private, exist_ok=True)
        if hub.private and not api.repo_info(url.repo_id, repo_type=kind).private:
            raise UserError(
                f"{repo} is there already and is public: nothing was uploaded; leave out "
                "--private or name another repository"
            )
        api.upload_folder(
            folder_path=folder, repo_id=url.repo_id, repo_type=kind, commit_message=_MESSAGE
        )
    except TargenError:
        raise
    except HfHubHTTPError as error:
        raise _refusal(hub, error.response.status_code, _stays(folder)) from error
    except ValueError as error:
        told = " ".join(str(error).split())
        raise UserError(
            f"{api.endpoint} does not take the upload: {told}{_stays(folder)}"
        ) from error
    except Exception as error:
        origin = type(error).__module__.partition(".")[0]
        if origin not in _NETWORK and not isinstance(error, OSError):
            raise
        raise RunStopped(
            f"{api.endpoint} cannot be reached ({type(error).__name__}){_stays(folder)}"
        ) from error
    return str(url)


def _stays(folder: Path) -> str:
    return f"; the export stays in {folder}, to try again name another --out"


def _refusal(hub: Hub, status: int, stays: str) -> UserError | RunStopped:
    where, repo = hub.api.endpoint, hub.repo
    if status == 429:
        return RunStopped(f"{where} asks to wait (429){stays}")
    if status >= 500:
        return RunStopped(f"{where} failed ({status}){stays}")
    why = {
        401: f"refuses {TOKEN} for {repo} (401): it needs write access there",
        403: f"refuses {TOKEN} for {repo} (403): it needs write access there",
        404: f"has no place for {repo} (404): the owner may be misspelt",
    }
    return UserError(
        f"{where} {why.get(status, f'refuses the upload to {repo} ({status})')}{stays}"
    )
