"""The record of every measurement: results/ledger.jsonl, one JSON object per line.

A row has FIELDS; ``exact`` is true for an exact likelihood, false for an upper bound, null for
none. Rows are appended, never edited: the latest row of each recipe counts. The tables of the
docs are made from it.
"""

import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path, PurePath
from typing import Any

Row = dict[str, Any]

FIELDS = (
    "recipe", "dataset", "commit", "date", "device", "torch",
    "parameters", "images_seen", "seconds", "metrics", "exact", "command",
)  # fmt: skip
FIRST_DATASET = "mnist"  # of old rows, which do not name theirs
_PACKAGE = Path(__file__).parent.parent


def results_folder() -> Path:
    """``results`` of the source tree that the package is in, else of the current folder."""
    root = _PACKAGE.parent
    return (root if (root / "pyproject.toml").exists() else Path.cwd()) / "results"


def describe_device(device: str = "cpu") -> str:
    """The accelerator, or the processor and its number of cores; never the machine's name."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", info.read_text() if info.exists() else "", re.M)
    name = found[1].strip() if found else platform.processor() or platform.machine()
    gpu = ", its GPU" if device.startswith("mps") else ""
    return f"{name}, {cores} core{'s' if cores != 1 else ''}{gpu}"


def current_commit() -> str | None:
    """Short name of the source tree's commit, with "-dirty" when files differ from it."""
    command = ["git", "-C", str(_PACKAGE.parent)]  # and no repository further up
    command += ["--git-dir=.git", "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None  # installed, or a source tree without its history


def clean_command(arguments: Sequence[str]) -> str:
    """A command line without this machine's paths: absolute ones keep only their last part."""
    cleaned = []
    for argument in arguments:
        is_flag = argument.startswith("-")
        flag, equals, value = argument.partition("=") if is_flag else ("", "", argument)
        is_place = PurePath(value).is_absolute() or value.startswith("~")
        cleaned.append(flag + equals + (PurePath(value).name if is_place else value))
    return " ".join(cleaned)


def make_row(
    recipe: str, metrics: Mapping[str, Any], *, parameters: int, device: str = "cpu", **known: Any
) -> Row:
    """A row for ``append`` with the commit, date, device and torch version of this moment.

    ``known`` holds other FIELDS; ``images_seen`` and ``seconds`` are those of the training.
    """
    import torch

    row = dict.fromkeys(FIELDS) | {"dataset": FIRST_DATASET, "command": ""} | known
    return row | {
        "recipe": recipe,
        "commit": current_commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": describe_device(device),
        "torch": torch.__version__,
        "parameters": parameters,
        "metrics": dict(metrics),
    }


def append(row: Mapping[str, Any], path: Path | None = None) -> Path:
    """Add a row at the end of the ledger and return the ledger's path; may raise OSError.

    Raises ValueError: a field is missing or unknown, a number is not finite, the command names
    a path of this machine, or the ledger ends in the middle of a row.
    """
    if set(row) != set(FIELDS):
        raise ValueError(f"row has fields {sorted(row)}, expected {sorted(FIELDS)}")
    if clean_command(str(row["command"]).split(" ")) != row["command"]:
        raise ValueError(f"command is {row['command']!r}, expected one without absolute paths")
    line = json.dumps({name: row[name] for name in FIELDS}, allow_nan=False)
    path = whole(path or results_folder() / "ledger.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return path


def whole(path: Path) -> Path:
    """The path of a ledger, which need not exist; ValueError if it is not a file of whole rows."""
    if path.exists() and (not path.is_file() or path.read_bytes()[-1:] not in (b"", b"\n")):
        raise ValueError(f"{path} is not a file or ends in the middle of a row, expected full rows")
    return path


def rows(path: Path | None = None) -> list[Row]:
    """All rows of a ledger, oldest first; none if the file does not exist.

    Without a path: the rows that an installed package brings, then those of this folder. An
    incomplete last line is left out. Raises ValueError if another line is not a row.
    """
    if path is None:
        return rows(_PACKAGE / "ledger.jsonl") + rows(results_folder() / "ledger.jsonl")
    if not path.is_file():
        return []
    found, text = [], path.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), start=1):
        try:
            row = {"dataset": FIRST_DATASET, **json.loads(line)}
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"{path} line {number} is not JSON, expected a row") from error
        if set(row) != set(FIELDS):
            raise ValueError(f"{path} line {number} is not a row of {', '.join(FIELDS)}")
        found.append(row)
    return found


def latest(path: Path | None = None) -> dict[str, Row]:
    """The last row of each recipe, by name, in the order of the recipes' first rows."""
    return {row["recipe"]: row for row in rows(path)}
