"""The race of drawing: what it counts, what it extrapolates, and the rows that it leaves."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tyro
from helpers import TINY, make_spec
from torch.nn import functional as F

from mnist_transformer.evaluation import ledger
from mnist_transformer.evaluation import speed as timing
from mnist_transformer.models import checkpoint
from mnist_transformer.recipes import RECIPES
from mnist_transformer.utils.devices import fast_dtype
from mnist_transformer.utils.terminal import exit_code
from tools import bench, peers, race, report, trials

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "matmul_peak", lambda device: timing.matmul_peak(device, 64))


@pytest.fixture
def small_old_way(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(RECIPES[bench.OLD_MODEL], model=TINY["pixel"])
    monkeypatch.setitem(RECIPES, bench.OLD_MODEL, recipe)
    monkeypatch.setattr(bench, "shipped", dict)  # as if it were not


def run(arguments: str) -> int:
    """The tool as it is run: ``python -m tools.bench``."""
    return exit_code("bench", lambda: tyro.cli(bench.main, args=arguments.split()))


def subject(draw: Callable[[int], object], share: float = 1.0) -> race.Subject:
    return race.Subject("a model", "plain", 10, draw, draw, share)


def test_operations_are_counted_attention_too() -> None:
    a, b = torch.randn(3, 4), torch.randn(4, 5)
    assert timing.count_flops(lambda: a @ b) == 2 * 3 * 4 * 5
    q, k, v = torch.randn(3, 2, 3, 8, 16, requires_grad=True).unbind()
    square = 2 * 2 * 3 * 8 * 8 * 16  # one product of scores, all heads

    def attend(causal: bool) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    assert timing.count_flops(lambda: attend(False)) == 2 * square
    assert timing.count_flops(lambda: attend(True)) == square
    assert timing.count_flops(lambda: attend(False).sum().backward()) == 7 * square
    with torch.inference_mode():
        assert timing.count_flops(lambda: attend(True)) == square
        assert timing.count_flops(lambda: F.linear(a, b.T)) == 2 * 3 * 4 * 5


def test_the_rest_of_a_drawing_is_extrapolated(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(race, "now", lambda device: next(clock))  # a second between two looks
    figures = race.measure(subject(lambda num_images: None, share=0.25), 8, CPU, seconds=20)
    assert figures["p50, s"] == figures["p90, s"] == figures["p99, s"] == 4
    assert figures["images/s"] == 2
    assert figures["drawings"] > 2
    # A drawing that is longer than the time for all is the only one.
    assert race.measure(subject(lambda num_images: None), 1, CPU, 0.5)["drawings"] == 1
    drawn: list[int] = []
    compiled = subject(drawn.append)._replace(warm_up=True)  # the first one compiles
    assert race.measure(compiled, 1, CPU, 0.5)["drawings"] == 1
    assert len(drawn) == 2


def test_the_old_way_passes_over_all_pixels_before() -> None:
    """Without a share left to extrapolate, operations are those of every single pass."""
    model = TINY["pixel"].build().eval()
    old = bench._full_passes("tiny", model, num_passes=model.num_values)
    assert old.share == 1
    few = bench._full_passes("tiny", model)
    assert few.share == bench.NUM_PASSES / 64
    assert "8 of 64 passes" in few.setting
    every, some = timing.count_flops(lambda: old.draw(2)), timing.count_flops(lambda: few.draw(2))
    assert some / few.share == pytest.approx(every, rel=0.03)


def test_a_race_leaves_a_row_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    model = TINY["pixel"].build()
    said: list[str] = []
    subjects = bench.settings_of("tiny", model, said.append)
    settings = [s.setting for s in subjects]
    assert settings[0].startswith(race.THE_OLD_WAY)
    assert settings[1] == "plain"
    assert settings[-1] == "compiled"
    assert ("bfloat16" in settings) == (fast_dtype("cpu") == torch.bfloat16) == (not said)

    def broken(num_images: int) -> None:
        raise torch._dynamo.exc.TorchDynamoException("no compiler\nat all")

    subjects = [*subjects[:2], subjects[-1]._replace(draw=broken)]
    rows = list(race.race(subjects, (1, 3, 20), CPU, seconds=0.01, tell=said.append))
    assert said[-1] == "tiny, compiled: not measured, no compiler"
    assert [row["metrics"]["settings"]["batch"] for row in rows] == [1, 3, 1, 3, 20]
    assert len({row["recipe"] for row in rows}) == 5
    for row in rows:
        figures = row["metrics"]["figures"]
        assert row["parameters"] == model.num_parameters
        assert 0 < figures["p50, s"] <= figures["p90, s"] <= figures["p99, s"]
        assert figures["GFLOP an image"] > 0
    assert rows[0]["metrics"]["figures"]["times the old way, one at a time"] == 1
    # The cache spares the passes.
    assert (
        rows[2]["metrics"]["figures"]["GFLOP an image"]
        < rows[0]["metrics"]["figures"]["GFLOP an image"] / 5
    )


def test_what_draws_in_bfloat16_anyway_is_raced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "fast_dtype", lambda device: torch.bfloat16)
    for family, settings in (("patch", ["plain", "bfloat16"]), ("mar", ["plain"])):
        subjects = bench.settings_of("tiny", TINY[family].build(), pytest.fail)
        assert [s.setting for s in subjects] == [*settings, "compiled"]


def test_compiled_draws_what_it_drew() -> None:
    """Without waiting for a compiler: traced, cache and all, and run as it is."""
    model = replace(TINY["pixel"], data=make_spec(3, 3, levels=16), depth=1).build()
    before = model.sample([0, 1], [1, 2])
    model.transformer.compile(dynamic=True, backend="eager")
    assert torch.equal(model.sample([0, 1], [1, 2]), before)


def test_the_tool_records_its_rows(
    small_old_way: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ledger, "results_folder", lambda: tmp_path / "results")
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, dynamic: None)
    weights = tmp_path / "tiny.safetensors"
    checkpoint.save(TINY["patch"].build(), weights)
    flags = "--batch-sizes 1 2 --seconds 0.01 --no-peers --device cpu"
    assert run(f"{weights} {flags}") == 0
    assert "tiny.safetensors, plain, 2: " in capsys.readouterr().out
    rows = ledger.latest(tmp_path / "results" / "ledger.jsonl")
    assert f"bench/{bench.OLD_MODEL} (random weights)/plain/1" in rows
    assert "bench/tiny.safetensors/compiled/2" in rows
    table = report.make_table("bench", rows)
    assert "| tiny.safetensors | plain | 2 |" in table
    assert "times the old way" in table
    assert rows["bench/tiny.safetensors/plain/2"]["metrics"]["figures"]["times plain"] == 1
    plot = (tmp_path / "results" / "bench" / "plot.png").read_bytes()
    assert plot.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--batch-sizes 0", "a batch size is 0"),
        ("--seconds 0", "seconds are 0"),
        ("no-such-model --no-peers", "unknown model 'no-such-model'"),
    ],
)
def test_mistakes_are_one_sentence(
    flags: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(flags) == 2
    assert message in capsys.readouterr().err


def test_missing_peers_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "PACKAGES", ("no_such_package",))
    with pytest.raises(ValueError, match=r"no_such_package not found.*mnist-transformer\[bench\]"):
        peers.check_installed()


@pytest.mark.parametrize("peer", ["gpt2", "x_transformers"])
def test_peers_that_read_draw_every_pixel(peer: str) -> None:
    pytest.importorskip({"gpt2": "transformers"}.get(peer, peer))
    config = replace(TINY["pixel"], data=make_spec(8, levels=16))
    one = getattr(peers, peer)(CPU, config)
    one.draw(2)  # checks the number of pixels itself
    # Of the pixel model's size: its own has a head apart and no biases.
    assert one.parameters == pytest.approx(config.build().num_parameters, rel=0.3)


def test_peers_that_denoise_have_their_share_timed() -> None:
    pytest.importorskip("diffusers")
    config = RECIPES[bench.OLD_MODEL].model
    ddpm, ddim = peers.unet(CPU, config)
    assert (ddpm.share, ddim.share) == (0.01, 0.2)
    assert ddpm.parameters == ddim.parameters == pytest.approx(3.5e6, rel=0.2)
    ddim.draw(1)


def test_peers_are_measured_as_models_are() -> None:
    for package in peers.PACKAGES:
        pytest.importorskip(package)
    said: list[str] = []
    config = replace(TINY["pixel"], data=make_spec(8, levels=16))
    rows = list(race.race(peers.peers(CPU, config), (2,), CPU, seconds=0.01, tell=said.append))
    assert not said
    assert len({row["recipe"] for row in rows}) == 4
    assert all(row["metrics"]["figures"]["GFLOP an image"] > 0 for row in rows)


def test_a_table_is_the_mean_over_seeds() -> None:
    rows = [
        trials.make_row("positions", {"positions": scheme}, {"bits/dim": bits}, seed=seed)
        for scheme, seed, bits in (("rope", 0, 0.5), ("none", 0, 0.75), ("rope", 1, 0.7))
    ]
    rows.append(trials.make_row("bench", {"model": "other"}, {"images/s": 1.0}))
    latest = {row["recipe"]: row for row in rows}
    assert trials.table(latest, "positions") == (
        "| positions | bits/dim |\n| --- | ---: |\n| rope | 0.6 ± 0.14 |\n| none | 0.75 |\n"
    )
    assert trials.table({}, "positions") == "Not measured yet.\n"
    with pytest.raises(
        ValueError, match="experiment is 'tea', expected one of bench, hard-use, attention"
    ):
        trials.name_of("tea", {})


RETIRED = {
    "codecs",
    "level-law",
    "level-law-training",
    "mar",
    "patch-tricks",
    "patching",
    "smallest",
}


def test_every_experiment_of_the_ledger_has_its_script_or_is_retired() -> None:
    for row in ledger.rows():
        name = row["metrics"].get("experiment")
        if name and name not in RETIRED:
            trials.check_experiment(name)
