"""Weights on the Hugging Face Hub: one checkpoint per repository, ``model.safetensors``.

A checkpoint carries its own configuration and is verified when it is loaded, so a repository
needs nothing else. ``load("hf://owner/name")`` draws with it.
"""

import os
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from mnist_transformer.models import checkpoint

PREFIX = "hf://"
FILENAME = "model.safetensors"


def download(address: str) -> Path:
    """The file behind ``hf://owner/name`` or ``hf://owner/name@revision``, from the hub's cache
    where it is there already.

    Raises:
        ValueError: a wrong address, a repository without such a file, or a hub that cannot be
            reached for a file that is not in the cache.
    """
    repo_id, _, revision = address.removeprefix(PREFIX).partition("@")
    try:
        return Path(hf_hub_download(repo_id, FILENAME, revision=revision or None))
    except HFValidationError as error:
        raise ValueError(f"address is {address!r}, expected {PREFIX}owner/name") from error
    except LocalEntryNotFoundError as error:
        raise ValueError(f"{address} is not in the cache and the hub cannot be reached") from error
    except HfHubHTTPError as error:  # no such repository, revision or file; or not allowed
        raise ValueError(f"{address} has no {FILENAME} that can be read here") from error


def push(path: str | os.PathLike[str], repo_id: str, *, private: bool = False) -> str:
    """Upload a checkpoint to a repository, made if need be; returns the commit's address.

    Who you are comes from the hub's own login or HF_TOKEN.

    Raises:
        ValueError: the file is not a checkpoint of this package.
    """
    checkpoint.read_notes(path)  # so that nothing else is ever published by mistake
    api = HfApi()
    api.create_repo(repo_id, exist_ok=True, private=private)
    commit = api.upload_file(
        path_or_fileobj=os.fspath(path), path_in_repo=FILENAME, repo_id=repo_id
    )
    return str(commit.commit_url)
