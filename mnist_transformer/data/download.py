"""Files from the network: the first mirror that delivers the right bytes, kept in a cache."""

from collections.abc import Sequence
from pathlib import Path

import pooch
import requests


def fetch(name: str, md5: str, mirrors: Sequence[str], dataset: str = "") -> Path:
    """The file's path in the user's cache, downloaded (with a progress bar) unless it is there.

    Args:
        md5: of the file's bytes; a download or cached file with another hash is discarded.
        mirrors: URLs of folders that hold the file, ending in a slash, tried in this order.
        dataset: its folder in the cache, as several have files of the same name; MNIST has none.

    OSError: no mirror delivered the file, or the cache cannot be written.
    """
    cache = Path(pooch.os_cache("mnist-transformer")) / dataset
    download = pooch.HTTPDownloader(progressbar=True, timeout=30)
    failures = []
    for mirror in mirrors:
        try:
            url, known = mirror + name, f"md5:{md5}"
            return Path(pooch.retrieve(url, known, name, cache, downloader=download))
        except requests.RequestException as error:
            reply = error.response
            reason = type(error).__name__ if reply is None else f"HTTP {reply.status_code}"
            failures.append(f"{mirror} ({reason})")
        except ValueError:
            # A wrong hash: pooch has deleted the file.
            failures.append(f"{mirror} (it sent a damaged or different file)")
    raise OSError(
        f"could not download {name} from {' or '.join(failures)}; "
        "get it elsewhere and name its folder with --data"
        + (" or MNIST_TRANSFORMER_DATA" if not dataset else "")
    )


def obtain(folder: Path | None, name: str, md5: str, mirrors: Sequence[str], dataset: str) -> Path:
    """A data set's file, from a folder or downloaded; ValueError if the folder's is not the one."""
    if folder is None:
        return fetch(name, md5, mirrors, dataset)
    path, where = folder / name, f"get it from {' or '.join(mirrors)}"
    if not path.is_file():
        raise ValueError(f"{folder} holds no {name}; {where}, or give no folder")
    if (found := pooch.file_hash(str(path), "md5")) != md5:
        raise ValueError(f"{path} is not {dataset}'s: its md5 is {found}, expected {md5}; {where}")
    return path
