"""The tokenizer: ids come back, scales are residuals, codes live, and every figure is right."""

import math
from dataclasses import replace

import pytest
import torch
from helpers import BRIGHT_BARS as DATASET
from helpers import VQVAE_RECIPE as RECIPE
from helpers import Killed, assert_same_bits, kill_at, make_spec, random_images, weights
from torch.nn.functional import binary_cross_entropy_with_logits

from mnist_transformer.data import Split
from mnist_transformer.evaluation import ledger
from mnist_transformer.evaluation import protocol as evaluate
from mnist_transformer.models import checkpoint
from mnist_transformer.models.base import Tokenizer
from mnist_transformer.models.classifier import ClassifierConfig
from mnist_transformer.networks.codebook import Codebook, code_usage
from mnist_transformer.training import log as runlog
from mnist_transformer.training.loop import train
from tools import report

TINY = RECIPE.model


def make(config=TINY):
    torch.manual_seed(0)
    return config.build().eval()


def test_encode_and_decode():
    model, images = make(), random_images()
    codes = model.encode(images)
    assert isinstance(model, Tokenizer)
    assert codes.shape == (6, 5)
    assert codes.dtype == torch.int64
    assert codes.min() >= 0
    assert codes.max() < 6
    drawn = model.decode(codes)
    assert drawn.shape == images.shape
    assert drawn.dtype == torch.uint8
    assert torch.equal(drawn, model.reconstruct(images))


def test_ids_come_back():
    """Codes whose features are apart by more than all finer scales can add are found again."""
    model = make()
    coarse, fine = (model.codebook(level).codes for level in (0, 1))
    coarse.copy_(torch.arange(6.0)[:, None] * 100)
    fine.copy_(torch.randn(6, 4))
    fine[0] = 0
    codes = torch.tensor([[3, 1, 2, 4, 5], [0, 0, 0, 0, 0], [5, 5, 4, 3, 3]])
    found, totals = model.quantize(model.totals(codes)[-1])
    assert torch.equal(found, codes)
    for total, wanted in zip(totals, model.totals(codes), strict=True):
        torch.testing.assert_close(total, wanted)


def test_each_scale_codes_what_is_left():
    model = make(replace(TINY, data=make_spec(), scales=(1, 2, 3, 4, 5, 7)))
    features = model.features(random_images(3, 28))
    torch.testing.assert_close(features.square().mean(-1), torch.ones(3, 49), rtol=1e-3, atol=0)
    codes, totals = model.quantize(features)
    assert codes.shape == (3, 104)
    left = features
    for level, ids in enumerate(model.by_scale(codes)):
        pooled = model.pool(left, level)
        assert torch.equal(ids, torch.cdist(pooled, model.codebook(level).codes).argmin(-1))
        left = features - totals[level]
    scale = model.config.scales[3]
    mean = model.pool(features, 3).mT.unflatten(-1, (scale, scale))
    maps = features.mT.unflatten(-1, (7, 7))
    torch.testing.assert_close(mean[..., 0, 0], maps[..., :2, :2].mean((-2, -1)))
    torch.testing.assert_close(model.pool(features, 5), features)


def test_usage_and_perplexity():
    assert code_usage(torch.arange(8), 8) == (1.0, pytest.approx(8))
    assert code_usage(torch.tensor([[5, 5], [5, 5]]), 8) == (1 / 8, 1.0)
    # Two codes, three to one: exp(3/4 ln 4/3 + 1/4 ln 4).
    wanted = math.exp(0.75 * math.log(4 / 3) + 0.25 * math.log(4))
    assert code_usage(torch.tensor([2, 2, 0, 2]), 4) == (0.5, pytest.approx(wanted))


def test_figures_are_of_each_scale(monkeypatch):
    model = make()
    codes = torch.tensor([[1, 0, 1, 2, 3], [1, 4, 5, 0, 0]] * 200)
    parts = iter(codes.split(250))
    monkeypatch.setattr(model, "encode", lambda images: next(parts))
    figures = model.figures(random_images(400), torch.zeros(400, dtype=torch.long))
    assert figures["usage_1x1"] == pytest.approx(1 / 6)
    assert figures["perplexity_1x1"] == pytest.approx(1)
    assert figures["usage_2x2"] == 1
    wanted = math.exp(3 / 8 * math.log(8 / 3) + 5 / 8 * math.log(8))
    assert figures["perplexity_2x2"] == pytest.approx(wanted)


def test_truncated_images_are_decoded_from_coarse_scales():
    """In training only; with truncated_share 1 the finest scale is never seen by the decoder."""
    model = make(replace(TINY, truncated_share=1.0, commitment=0.0)).train()
    images = random_images()
    losses = model.loss(images, torch.zeros(6))
    model.eval()
    _, totals = model.quantize(model.features(images))
    logits = model._decoded(totals[0])
    coarse = binary_cross_entropy_with_logits(logits, images / 255, reduction="none")
    coarse = coarse.mean((1, 2, 3))
    fine = model.loss(images, torch.zeros(6))
    torch.testing.assert_close(losses, coarse)
    assert (fine - coarse).abs().max() > 1e-5


# --- the codebook ---


def test_the_first_batch_starts_it_by_k_means():
    torch.manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    rows = (centres[:, None] + torch.randn(4, 50, 2) * 0.1).flatten(0, 1)
    book = Codebook(6, 2, decay=0.9, dead=0.03)
    book.learn(rows)
    ids = book.nearest(rows)
    assert code_usage(ids, 6)[0] == 1
    means = torch.stack([rows[ids == code].mean(0) for code in range(6)])
    torch.testing.assert_close(book.codes, means)
    assert torch.cdist(rows, book.codes).amin(1).mean() < 3


def test_codes_are_moving_averages_of_what_is_nearest():
    book = Codebook(2, 1, decay=0.9, dead=0.0)
    book.codes.copy_(torch.tensor([[0.0], [10.0]]))
    book.counts.copy_(torch.tensor([2.0, 4.0]))
    book.sums.copy_(torch.tensor([[0.0], [40.0]]))
    book.learn(torch.tensor([[1.0], [2.0], [9.0]]))
    assert book.counts.tolist() == pytest.approx([0.9 * 2 + 0.1 * 2, 0.9 * 4 + 0.1])
    wanted = [0.1 * 3 / (0.9 * 2 + 0.1 * 2), (0.9 * 40 + 0.1 * 9) / (0.9 * 4 + 0.1)]
    assert book.codes.flatten().tolist() == pytest.approx(wanted)


def test_a_dead_code_starts_anew_and_is_used():
    torch.manual_seed(0)
    book = Codebook(8, 2, decay=0.9, dead=0.05)
    rows = torch.randn(400, 2)
    book.learn(rows)
    book.codes[3] = 1000.0
    book.sums[3] = book.counts[3] * 1000.0
    for _ in range(60):
        book.learn(rows)
    assert book.codes.abs().max() < 5
    assert code_usage(book.nearest(rows), 8)[0] == 1


def test_fewer_vectors_than_codes():
    torch.manual_seed(0)
    book = Codebook(64, 2, decay=0.9, dead=0.03)
    for _ in range(20):
        book.learn(torch.randn(5, 2))
    assert book.codes.isfinite().all()


def test_vectors_that_are_not_finite_teach_nothing():
    book = Codebook(4, 2, decay=0.9, dead=0.03)
    book.learn(torch.randn(9, 2))
    before = {name: value.clone() for name, value in book.state_dict().items()}
    book.learn(torch.full((9, 2), float("nan")))
    assert all(torch.equal(before[name], value) for name, value in book.state_dict().items())


def test_only_training_teaches_it():
    model, images = make(), random_images()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.loss(images, torch.zeros(6))
    model.train()
    model.encode(images)
    assert_same_bits(dict(model.state_dict()), before)
    model.loss(images, torch.zeros(6))
    assert not torch.equal(model.codebook(1).codes, before["codebooks.1.codes"])


def test_gradient_reaches_every_parameter():
    model = make().train()
    model.loss(random_images(), torch.zeros(6)).sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def test_loss_in_bfloat16_is_close():
    model, images = make(), random_images()
    exact = model.loss(images, torch.zeros(6))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model.loss(images, torch.zeros(6))
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.03, atol=0)


# --- through the project ---


def test_save_and_load_to_the_bit(tmp_path):
    model, images = make().train(), random_images()
    model.loss(images, torch.zeros(6))
    checkpoint.save(model, tmp_path / "model.safetensors")
    loaded = checkpoint.load(tmp_path / "model.safetensors")
    assert loaded.config == model.config
    assert_same_bits(loaded.state_dict(), model.state_dict())
    assert torch.equal(loaded.reconstruct(images), model.eval().reconstruct(images))


def test_killed_and_resumed_is_bit_identical(tmp_path, monkeypatch):
    """Codebooks, their averages and what is restarted at random included."""
    whole = train(RECIPE, tmp_path / "whole", data=DATASET, device="cpu")
    with monkeypatch.context() as patch:
        kill_at(patch, step=3)
        with pytest.raises(Killed):
            train(RECIPE, tmp_path / "killed", data=DATASET, device="cpu")
    resumed = train(RECIPE, tmp_path / "killed", data=DATASET, device="cpu")
    assert_same_bits(weights(resumed), weights(whole))
    last = runlog.read_metrics(tmp_path / "whole" / "metrics.jsonl")[-1]
    assert last["kind"] == "validation"
    for scale in ("1x1", "2x2"):
        assert 0 < last[f"usage_{scale}"] <= 1
        assert 1 <= last[f"perplexity_{scale}"] <= 6


def test_it_learns(tmp_path):
    config = replace(RECIPE.model, commitment=0.1)
    recipe = replace(RECIPE, model=config, epochs=1000, ema=0.0, adamw_lr=3e-3)
    few = replace(DATASET, train=Split(DATASET.train.images[:8], DATASET.train.labels[:8]))
    model = checkpoint.load(train(recipe, tmp_path, data=few, device="cpu"))
    error = (model.reconstruct(few.train.images) / 255 - few.train.images / 255).square().mean()
    assert error < 0.3 * (few.train.images / 255).var()


def test_its_figures_are_measured(monkeypatch):
    torch.manual_seed(0)
    judge = ClassifierConfig(make_spec(8, 3), width=2).build()
    monkeypatch.setattr(evaluate, "load_judge", lambda spec: judge)
    splits = [Split(random_images(number), torch.arange(number) % 10) for number in (60, 30, 40)]
    found = evaluate.evaluate(
        make(),
        replace(DATASET, train=splits[0], val=splits[1], test=splits[2]),
        evaluate.Samples(30, seeds=(0, 1)),
    )
    row = ledger.make_row("tiny", found, parameters=7)
    assert 0 < found["reconstruction"]["squared_error"] < 1
    assert found["reconstruction_val"]["fd_cnn"] >= 0
    assert found["ceiling"].keys() == found["floor"].keys()
    assert 0 < found["reconstruction"]["usage_2x2"] <= 1
    assert report.tokenizer_table({"tiny": row}).count("| tiny |") == 1
    lines = report.codes_table({"tiny": row}).splitlines()[2:]
    assert [line.split(" | ")[1] for line in lines] == ["1x1", "2x2"]


@pytest.mark.parametrize(
    ("codes", "sentence"),
    [
        (torch.zeros(2, 4, dtype=torch.int64), r"shape \(2, 4\), expected .* \(B, 5\)"),
        (torch.zeros(5, dtype=torch.int64), r"shape \(5,\), expected"),
        (torch.zeros(2, 5), r"torch\.float32 .*, expected torch\.int64"),
        (torch.full((2, 5), 6), "code 6 is unknown, expected 0 to 5"),
        (torch.full((2, 5), -1), "code -1 is unknown"),
    ],
)
def test_wrong_codes_are_refused(codes, sentence):
    with pytest.raises(ValueError, match=sentence):
        make().decode(codes)


def test_wrong_images_are_refused():
    with pytest.raises(ValueError, match=r"shape \(1, 1, 12, 12\), expected .* \(B, 1, 8, 8\)"):
        make().encode(random_images(1, 12))
    with pytest.raises(ValueError, match=r"images are torch\.float32"):
        make().encode(random_images(1).float())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data": make_spec(10)}, "image_size is 10, expected a multiple of 4"),
        ({"scales": (1, 3)}, r"scales are \(1, 3\), expected .* end at 2"),
        ({"scales": (2, 1, 2)}, "expected ascending"),
        ({"scales": (0, 2)}, "from 1 or more"),
        ({"scales": ()}, r"scales are \(\)"),
        ({"codebook_size": 1}, "1 codes"),
        ({"decay": 1.0}, "decay 1.0"),
        ({"truncated_share": 1.5}, "truncated_share is 1.5"),
    ],
)
def test_senseless_sizes_are_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        replace(TINY, **changes).build()
