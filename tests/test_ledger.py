"""The ledger is only ever appended to, and the pages' tables come from it alone."""

import json
import re
from pathlib import Path

import pytest
from helpers import TINY

from mnist_transformer.evaluation import ledger, tables
from mnist_transformer.models import checkpoint
from tools import columns, report


@pytest.fixture(autouse=True)
def with_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models without a recipe stand in no table."""
    made = dict.fromkeys(("tiny", "other"), report.RECIPES["mnist-mar"])
    monkeypatch.setattr(report, "RECIPES", report.RECIPES | made)


def figure(mean: float) -> dict[str, float]:
    return {"mean": mean, "sd": 0.001}


def drawn(guidance: float) -> dict[str, object]:
    return {
        "guidance": guidance,
        "agreement": figure(0.98),
        "fd_cnn": figure(1.25),
        "precision": figure(0.9),
        "recall": figure(0.8),
        "copies": {"ratio": 1.02, "near": 0.011, "exact": 0},
    }


def row(recipe: str = "tiny", bits: float = 0.61, **changes: object) -> ledger.Row:
    metrics = {
        "bits_per_dim": bits,
        "num_samples": 1000,
        "images_per_second": {"1": 5.0, "256": 321.0},
        "floor": {k: v for k, v in drawn(1.0).items() if k not in ("guidance", "copies")},
        "drawn": [drawn(1.0), drawn(2.0)],
    }
    made = ledger.make_row(
        recipe,
        metrics,
        parameters=7_140_000,
        exact=True,
        images_seen=640_000,
        seconds=9_000.0,
        command="mnist-transformer eval tiny",
    )
    return {**made, **changes}


def test_rows_come_back_as_they_were_appended(tmp_path: Path) -> None:
    path = tmp_path / "results" / "ledger.jsonl"
    wanted = [row(), row("other"), row(bits=0.6)]
    for one in wanted:
        assert ledger.append(one, path) == path
    assert ledger.rows(path) == wanted
    assert list(ledger.latest(path)) == ["tiny", "other"]
    assert ledger.latest(path)["tiny"]["metrics"]["bits_per_dim"] == 0.6


def test_appending_leaves_earlier_bytes_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    before = b""
    for number in range(3):
        ledger.append(row(bits=number), path)
        after = path.read_bytes()
        assert after.startswith(before)
        assert after.count(b"\n") == number + 1
        before = after


def test_row_says_where_it_was_measured() -> None:
    made = row()
    assert tuple(made) == ledger.FIELDS
    assert re.search(r"\d+ cores?$", made["device"])
    assert re.match(r"\d{4}-\d\d-\d\dT", made["date"])


@pytest.mark.parametrize(
    "changes",
    [
        {"extra": 1},
        {"metrics": {"bits_per_dim": float("nan")}},
        {"command": "mnist-transformer eval tiny --data /somewhere/mnist"},
        {"command": "mnist-transformer eval tiny --data=/somewhere/mnist"},
    ],
)
def test_bad_rows_are_refused_and_not_written(tmp_path: Path, changes: dict[str, object]) -> None:
    path = tmp_path / "ledger.jsonl"
    with pytest.raises(ValueError):  # noqa: PT011 - json's own message for NaN
        ledger.append(row(**changes), path)
    assert not path.exists()


def test_command_loses_the_places_of_this_machine() -> None:
    arguments = ["mnist-transformer", "eval", "runs/a", "--data", "/x/mnist", "--out=/y/z", "3"]
    cleaned = ledger.clean_command(arguments)
    assert cleaned == "mnist-transformer eval runs/a --data mnist --out=z 3"
    arguments = ["mnist-transformer", "eval", "/x/lr=0.1/run", "--data=/x/a=b/mnist"]
    assert ledger.clean_command(arguments) == "mnist-transformer eval run --data=mnist"


def test_broken_ledger_names_its_line(tmp_path: Path) -> None:
    path, known = tmp_path / "ledger.jsonl", row()
    ledger.append(known, path)
    whole = path.read_bytes()
    half = whole[: len(whole) // 2]
    path.write_bytes(whole + half + b"\n" + whole)
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        ledger.rows(path)
    path.write_bytes(whole + half)  # as a kill leaves it
    assert ledger.rows(path) == [known]
    with pytest.raises(ValueError, match="middle of a row"):
        ledger.append(row(), path)


def test_missing_ledger_is_empty(tmp_path: Path) -> None:
    assert ledger.rows(tmp_path / "none.jsonl") == []
    assert ledger.latest(tmp_path / "none.jsonl") == {}


def test_installed_package_shows_its_own_and_the_users_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, folder = tmp_path / "site-packages" / "package", tmp_path / "elsewhere"
    package.mkdir(parents=True)
    folder.mkdir()
    monkeypatch.setattr(ledger, "_PACKAGE", package)
    monkeypatch.chdir(folder)
    ledger.append(row("shipped"), package / "ledger.jsonl")
    assert list(ledger.latest()) == ["shipped"]
    assert ledger.append(row("own")) == folder / "results" / "ledger.jsonl"
    assert list(ledger.latest()) == ["shipped", "own"]


PAGE = "# Title\n\n<!-- ledger:{} -->\nold | figures\n<!-- /ledger -->\n\nText 0.123 stays.\n"


@pytest.mark.parametrize("name", [*report.TABLES, "positions", "diffusion-steps"])
def test_render_fills_the_marks_and_nothing_else(name: str) -> None:
    page = PAGE.format(name)
    rows = {"tiny": row(), "judge": row("judge", metrics={"accuracy": 0.9961, "accuracy_val": 1})}
    filled = report.render(page, rows.values())
    assert filled.startswith(f"# Title\n\n<!-- ledger:{name} -->\n")
    assert filled.endswith("<!-- /ledger -->\n\nText 0.123 stays.\n")
    assert "old" not in filled
    assert report.render(filled, rows.values()) == filled


def test_results_table_shows_the_figures() -> None:
    table = columns.results_table({"tiny": row(), "bound": row("bound", exact=False)})
    lines = table.splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert "| tiny | 7.1M | 0.610 | – | 1,000 | 98.0 ± 0.1 |" in lines[2]
    assert "≤ 0.610" in lines[3]
    assert "training images" in lines[4]


def test_a_figure_in_a_sentence() -> None:
    page = "It has <!-- figure:tiny {} -->much<!-- / --> and more.\n"
    filled = report.render(page.format("parameters"), [row()])
    assert filled == "It has <!-- figure:tiny parameters -->7.1M<!-- / --> and more.\n"
    with pytest.raises(ValueError, match="no figure 'beauty' of 'tiny' to fill a mark with"):
        report.render(page.format("beauty"), [row()])


def test_the_models_with_the_nearest_digits_come_first() -> None:
    far, near = row("mnist-var"), row("mnist-mar")
    for each, mean in ((far, 12.3), (near, 9.0)):
        each["metrics"]["drawn"][0]["fd_cnn"] = figure(mean)
    lines = report.models_table({"mnist-var": far, "mnist-mar": near}).splitlines()
    assert [line.split("`")[1] for line in lines[2:]] == ["mnist-mar", "mnist-var"]


def test_a_table_holds_one_data_set() -> None:
    rows = {"tiny": row(), "other": {**row("other"), "dataset": "cifar10"}}
    rows["other"]["metrics"]["floor"]["fd_cnn"] = figure(9.0)
    mnist = report.render(PAGE.format("results"), rows.values())
    assert "| tiny |" in mnist
    assert "| other |" not in mnist
    assert "9.000" not in mnist
    cifar = report.render(PAGE.format("results cifar10"), rows.values())
    assert cifar.startswith("# Title\n\n<!-- ledger:results cifar10 -->\n")
    assert "| other |" in cifar
    assert "| tiny |" not in cifar
    assert "| training images | – | – | – | 1,000 | 98.0 ± 0.1 | – | 9.000 ± 0.001 |" in cifar
    assert "9.000" in columns.results_table(rows)  # a floor for each data set
    assert "1.250 ± 0.001 | – | 90.0 / 80.0 | – |" in columns.results_table(rows)


def test_a_recipe_stands_in_the_table_of_each_data_set_it_was_measured_on() -> None:
    both = [row(bits=0.5), {**row(bits=2.5), "dataset": "cifar10-jpeg"}]
    for name, bits, others in (
        ("results", "0.500", "2.500"),
        ("results cifar10-jpeg", "2.500", "0.500"),
    ):
        filled = report.render(PAGE.format(name), both)
        assert f"| tiny | 7.1M | {bits} |" in filled
        assert others not in filled
    empty = report.render(PAGE.format("results kmnist"), both)
    assert "<!-- ledger:results kmnist -->\nNot measured yet.\n<!-- /ledger -->" in empty


def test_what_no_judge_has_seen_has_a_likelihood_and_speed() -> None:
    bare = row()
    for name in ("drawn", "floor", "num_samples"):
        del bare["metrics"][name]
    table = columns.results_table({"tiny": bare})
    assert table.splitlines()[2] == f"| tiny | 7.1M | 0.610 |{' – |' * 8}"
    assert table.count("\n") == 3
    assert "| 321 |" in columns.speed_table({"tiny": bare})


def test_model_without_likelihood_or_training_record_is_shown() -> None:
    bare = row(images_seen=None, seconds=None, exact=None)
    del bare["metrics"]["bits_per_dim"]
    del bare["metrics"]["drawn"][1]
    assert f"| {tables.NOTHING} |" in columns.results_table({"tiny": bare})
    assert f"| {tables.NOTHING} |" in columns.speed_table({"tiny": bare})


@pytest.mark.parametrize(
    "page",
    [
        "<!-- ledger:nonsense -->\n<!-- /ledger -->",
        "<!-- ledger:results -->\n",
        "<!-- /ledger -->\n",
        "<!-- ledger:results -->\n<!-- ledger:speed -->\n<!-- /ledger -->",
    ],
)
def test_wrong_marks_are_refused(page: str) -> None:
    with pytest.raises(ValueError, match=r"mark|no table"):
        report.render(page, [])


def test_thin_keeps_the_end_and_the_rare_records() -> None:
    records = [{"step": step, "loss": 0.0} for step in range(5000)]
    records[1234]["val"] = 1.0
    kept = report.thin(records)
    assert len(kept) < 500
    assert kept[0] == records[0]
    assert kept[-1] == records[-1]
    assert records[1234] in kept
    assert report.thin([]) == []


def test_report_renders_pages_and_collects_runs(tmp_path: Path) -> None:
    ledger.append(row(), tmp_path / "results" / "ledger.jsonl")
    (tmp_path / "README.md").write_text(PAGE.format("results"), encoding="utf-8")
    run = tmp_path / "runs" / "tiny"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0}) + "\n")
    (run / "loss.png").write_bytes(b"picture")
    assert [path.name for path in report.report(tmp_path)] == ["README.md"]  # not finished
    model = TINY["patch"].build()
    checkpoint.save(model, run / "model.safetensors", images="320000")
    assert not report.report(tmp_path)  # another run than the one that was measured
    checkpoint.save(model, run / "model.safetensors", images="640000")
    written = {path.relative_to(tmp_path).as_posix() for path in report.report(tmp_path)}
    assert written == {"results/tiny/log.jsonl", "results/tiny/loss.png"}
    assert "7.1M" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert (tmp_path / "results" / "tiny" / "loss.png").read_bytes() == b"picture"
    assert not report.report(tmp_path)


def test_report_plots_the_validations_of_a_run_that_is_gone(tmp_path: Path) -> None:
    measured = row()
    measured["metrics"]["curve"] = [[60.0, 1000, 0.9], [120.0, 2000, 0.8]]
    ledger.append(measured, tmp_path / "results" / "ledger.jsonl")
    (tmp_path / "README.md").touch()
    assert report.report(tmp_path) == [tmp_path / "results" / "tiny" / "loss.png"]
    assert (tmp_path / "results" / "tiny" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not report.report(tmp_path)


def test_report_without_a_readme_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"README\.md is missing"):
        report.report(tmp_path)
