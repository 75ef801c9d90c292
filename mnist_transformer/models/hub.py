"""Weights on the Hugging Face Hub: one checkpoint per repository, ``model.safetensors``.

A checkpoint carries its own configuration, so a repository needs nothing else.
"""

import logging
import os
from contextlib import suppress
from functools import partial
from pathlib import Path

import huggingface_hub.constants  # first: on a wrong HF_ENDPOINT the others print a line too
from huggingface_hub import (
    CommitOperationAdd,
    HfApi,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id

from mnist_transformer.models import checkpoint

PREFIX = "hf://"
FILENAME = "model.safetensors"


def download(address: str) -> Path:
    """The file behind ``hf://owner/name`` or ``hf://owner/name@revision``, cached or downloaded.

    A wrong address, or a file that is neither on the Hub nor in the cache, raises ValueError.
    """
    repo_id, _, revision = address.removeprefix(PREFIX).partition("@")
    fetch = partial(hf_hub_download, repo_id, FILENAME, revision=revision or None)
    logging.getLogger("huggingface_hub.utils._fixes").setLevel("INFO")  # logs a lock it awaits
    try:
        validate_repo_id(repo_id)
        # Asked once: hf_hub_download would retry an unreachable hub for half a minute.
        get_hf_file_metadata(hf_hub_url(repo_id, FILENAME, revision=revision or None))
        return Path(fetch())
    except HFValidationError as error:
        raise ValueError(f"address is {address!r}, expected {PREFIX}owner/name") from error
    except Exception as error:  # from the address, a proxy or a missing package
        with suppress(LocalEntryNotFoundError):
            return Path(fetch(local_files_only=True))
        refused = f"{address} has no {FILENAME} that can be read here"
        raise _failure(error, refused, f"{address} is not in the cache") from error


def push(
    path: str | os.PathLike[str], repo_id: str, card: str = "", *, private: bool = False
) -> str:
    """Upload a checkpoint and its card, Markdown, to a repository; returns the commit's address.

    The repository is created if needed. The hub's own login or HF_TOKEN identifies you. Raises
    ValueError for another file, a wrong address, or a hub that refuses or cannot be reached.
    """
    checkpoint.read_notes(path)  # so that nothing else is ever published by mistake
    contents: dict[str, str | bytes] = {FILENAME: os.fspath(path), "README.md": card.encode()}
    try:
        validate_repo_id(repo_id)
        api, files = HfApi(), [CommitOperationAdd(*entry) for entry in contents.items()]
        api.create_repo(repo_id, exist_ok=True, private=private)
        commit = api.create_commit(repo_id, files, commit_message=f"Add {FILENAME}")
    except HFValidationError as error:
        raise ValueError(f"repository is {repo_id!r}, expected owner/name") from error
    except Exception as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        refused = f"the hub refuses {repo_id} (status {status})"
        refused += ": log in by `hf auth login` or HF_TOKEN"
        raise _failure(error, refused, f"{repo_id} is not published") from error
    return str(commit.commit_url)


def _failure(error: Exception, refused: str, failed: str) -> ValueError:
    """``refused`` if the hub refused the request, else ``failed`` because it cannot be reached."""
    if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
        return ValueError(refused)
    hub = huggingface_hub.constants.ENDPOINT
    reason = f"{hub} cannot be reached: {error}".partition("\n")[0]
    return ValueError(f"{failed} and the hub at {reason}")
