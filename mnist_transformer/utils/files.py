"""Lists a folder's files, and writes files in one go: a kill or a full disk leaves no half."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from threading import get_ident


def short_name(place: str) -> str:
    """A model's name without its folders, where "." is the folder itself."""
    return Path(os.path.abspath(place)).name


def files_below(folder: Path) -> list[Path]:
    """The files in a folder and its subfolders, as sorted paths relative to it.

    Hidden files, and all files in hidden folders, are left out.
    """
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return [path for path in paths if not any(part.startswith(".") for part in path.parts)]


def make_folder(path: Path) -> None:
    """Make a folder and those above it; ValueError if it is nested too deep, else OSError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except RecursionError as error:  # mkdir calls itself for the folder above
        wrong = f"{str(path)[:40]!r}... is nested too deep"
        raise ValueError(f"{wrong}, expected fewer folders") from error


def check_place(path: Path) -> None:
    """Make a file's folder; OSError now, not after long work, if the file cannot be written."""
    make_folder(path.parent)
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file atomically, making its folder; an OSError leaves the old file there."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name[-50:]}.{os.getpid()}.{get_ident()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:  # a full disk does not say which file it was
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):  # it is gone, or the disk refuses any change
            temporary.unlink()
    if os.name == "posix":  # elsewhere a folder cannot be opened to sync it
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
