"""Weights on the Hugging Face Hub: one checkpoint per repository, ``model.safetensors``.

A checkpoint carries its own configuration, so a repository needs nothing else.
"""

import logging
import os
from contextlib import suppress
from functools import partial
from pathlib import Path

import huggingface_hub.constants  # first: of a wrong HF_ENDPOINT the others print a line too
from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id

from mnist_transformer.models import checkpoint

PREFIX = "hf://"
FILENAME = "model.safetensors"


def download(address: str) -> Path:
    """The file behind ``hf://owner/name`` or ``hf://owner/name@revision``, cached or downloaded.

    A wrong address, or a file that is neither there nor in the cache, raises ValueError.
    """
    repo_id, _, revision = address.removeprefix(PREFIX).partition("@")
    fetch = partial(hf_hub_download, repo_id, FILENAME, revision=revision or None)
    logging.getLogger("huggingface_hub.utils._fixes").setLevel("INFO")  # tells of a lock it awaits
    try:
        validate_repo_id(repo_id)
        # Once: hf_hub_download would ask a hub that is not there for half a minute.
        get_hf_file_metadata(hf_hub_url(repo_id, FILENAME, revision=revision or None))
        return Path(fetch())
    except HFValidationError as error:
        raise ValueError(f"address is {address!r}, expected {PREFIX}owner/name") from error
    except Exception as error:  # of an address, a proxy, a package that it needs
        with suppress(LocalEntryNotFoundError):
            return Path(fetch(local_files_only=True))
        if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
            raise ValueError(f"{address} has no {FILENAME} that can be read here") from error
        hub = huggingface_hub.constants.ENDPOINT
        reason = f"{hub} cannot be reached: {error}".partition("\n")[0]
        raise ValueError(f"{address} is not in the cache and the hub at {reason}") from error


def push(path: str | os.PathLike[str], repo_id: str, *, private: bool = False) -> str:
    """Upload a checkpoint to a repository, made if need be; returns the commit's address.

    The hub's own login or HF_TOKEN says who you are. Raises ValueError for another file.
    """
    checkpoint.read_notes(path)  # so that nothing else is ever published by mistake
    api, file = HfApi(), os.fspath(path)
    api.create_repo(repo_id, exist_ok=True, private=private)
    commit = api.upload_file(path_or_fileobj=file, path_in_repo=FILENAME, repo_id=repo_id)
    return str(commit.commit_url)
