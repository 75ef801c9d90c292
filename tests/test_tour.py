"""The evening path of docs/tour.md: its files are there, and short enough for an evening."""

import re
from pathlib import Path

TOUR = Path(__file__).parent.parent / "docs" / "tour.md"
MAX_LINES = 2_500


def test_the_evening_path_fits_into_an_evening():
    named = re.findall(r"^\| \d+ \| \[[^]]*\]\(([^)]*)\)", TOUR.read_text(), re.MULTILINE)
    assert len(named) > 10
    lines = 0
    for name in named:
        path = TOUR.parent / name
        for file in sorted(path.glob("*.py")) if path.is_dir() else [path]:
            lines += len(file.read_text().splitlines())
    assert lines < MAX_LINES
