"""Weights on the Hugging Face Hub: one checkpoint per repository, ``model.safetensors``.

A checkpoint carries its own configuration, so a repository needs nothing else.
"""

import os
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from mnist_transformer.models import checkpoint

PREFIX = "hf://"
FILENAME = "model.safetensors"


def download(address: str) -> Path:
    """The file behind ``hf://owner/name`` or ``hf://owner/name@revision``, cached or downloaded.

    A wrong address, or a file that is neither there nor in the cache, raises ValueError.
    """
    repo_id, _, revision = address.removeprefix(PREFIX).partition("@")
    try:
        return Path(hf_hub_download(repo_id, FILENAME, revision=revision or None))
    except HFValidationError as error:
        raise ValueError(f"address is {address!r}, expected {PREFIX}owner/name") from error
    except LocalEntryNotFoundError as error:
        raise ValueError(f"{address} is not in the cache and the hub cannot be reached") from error
    except HfHubHTTPError as error:
        raise ValueError(f"{address} has no {FILENAME} that can be read here") from error


def push(path: str | os.PathLike[str], repo_id: str, *, private: bool = False) -> str:
    """Upload a checkpoint to a repository, made if need be; returns the commit's address.

    The hub's own login or HF_TOKEN says who you are. Raises ValueError for another file.
    """
    checkpoint.read_notes(path)  # so that nothing else is ever published by mistake
    api, file = HfApi(), os.fspath(path)
    api.create_repo(repo_id, exist_ok=True, private=private)
    commit = api.upload_file(path_or_fileobj=file, path_in_repo=FILENAME, repo_id=repo_id)
    return str(commit.commit_url)
