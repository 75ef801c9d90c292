"""Figures of known answers: uniform models, equal sets, copies, toy manifolds."""

import math
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers import TINY, make_spec
from torch import Tensor, nn

from mnist_transformer.data import Dataset, Split, load_dataset
from mnist_transformer.data.mnist import SPEC as MNIST
from mnist_transformer.evaluation import metrics
from mnist_transformer.evaluation import protocol as evaluate
from mnist_transformer.evaluation import speed as timing
from mnist_transformer.models.base import GenerativeModel
from mnist_transformer.models.classifier import Classifier, ClassifierConfig, random_affine
from mnist_transformer.models.config import ModelConfig
from mnist_transformer.models.patch.model import PatchConfig
from mnist_transformer.networks.drawing import Noise
from mnist_transformer.options import Keep, Sampling
from mnist_transformer.recipes import Recipe
from mnist_transformer.training import log as runlog


class Uniform(GenerativeModel):
    """Every image has the same probability; drawn images are class-coloured noise."""

    honours = frozenset({"guidance"})
    likelihood = "exact"

    def __init__(self) -> None:
        super().__init__(ModelConfig(make_spec(8)))
        self.bias = nn.Parameter(torch.zeros(1))

    def loss(self, images: Tensor, cond: Tensor) -> Tensor:
        return self.nll(images, cond) + 0 * self.bias

    def sample_steps(
        self, cond: Tensor, noise: Noise, how: Sampling, keep: Keep | None
    ) -> Iterator[Tensor]:
        ink = noise.uniform(*self.image_shape) * 20 + 22 * cond.view(-1, 1, 1, 1)
        yield ink.to(torch.uint8)

    def nll(self, images: Tensor, cond: Tensor | None, *, fitted: bool = False) -> Tensor:
        nats = images[0].numel() * math.log(256)
        return torch.full((len(images),), nats)


class Reader(Classifier):
    """Reads the classes of ``Uniform`` off their brightness."""

    def __init__(self) -> None:
        super().__init__(ClassifierConfig(make_spec(8), width=1))

    def classify(self, features: Tensor) -> Tensor:
        read = (255 * features.mean(1) - 10) / 22
        return -(read.unsqueeze(1) - torch.arange(10)).square()

    def features(self, images: Tensor) -> Tensor:
        return images.flatten(1).float()[:, :16] / 255


def make_split(num_images: int, seed: int) -> Split:
    images, labels = evaluate.draw_balanced(Uniform(), num_images, seed, Sampling())
    return Split(images, labels)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return Dataset(make_split(400, 100), make_split(50, 101), make_split(200, 102), make_spec(8))


def test_uniform_model_has_8_bits_per_dim(dataset: Dataset) -> None:
    seen = []
    value = metrics.bits_per_dim(Uniform(), dataset.test, report=lambda *args: seen.append(args))
    assert value == pytest.approx(8, abs=1e-6)
    assert seen[-1] == ("bits/dim", 200, 200)


def test_bits_per_dim_weighs_every_image_alike() -> None:
    model = PatchConfig(
        make_spec(8), dim=16, depth=1, num_heads=2, mlp_dim=16, head_width=8, head_mlp_dim=8
    ).build()
    split = make_split(7, 3)
    nats = model.eval().nll(split.images, split.labels).mean().item()
    value = metrics.bits_per_dim(model.train(), split)
    assert value == pytest.approx(nats / math.log(2) / 64, rel=1e-4)
    assert model.training


def test_model_without_likelihood_is_refused(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="no likelihood"):
        metrics.bits_per_dim(Reader(), dataset.test)


def test_class_agreement_counts_what_is_read_right(dataset: Dataset) -> None:
    features, labels = Reader().features(dataset.test.images), dataset.test.labels
    assert metrics.class_agreement(features, labels, Reader()) == 1
    wrong = torch.where(torch.arange(200) < 50, (labels + 1) % 10, labels)
    assert metrics.class_agreement(features, wrong, Reader()) == 0.75


def test_distance_of_a_set_to_itself_is_nothing() -> None:
    points = torch.randn(500, 8)
    assert metrics.fd_cnn(points, points) == pytest.approx(0, abs=1e-6)


def test_distance_of_shifted_and_scaled_points() -> None:
    points = torch.randn(4000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    points = points - points.mean(0)
    assert metrics.fd_cnn(points, points + 2) == pytest.approx(12, rel=1e-6)
    # Twice as wide: tr(S + 4 S - 4 S) = tr(S).
    assert metrics.fd_cnn(points, 2 * points) == pytest.approx(points.var(0).sum().item(), rel=1e-6)


def test_features_must_match() -> None:
    with pytest.raises(ValueError, match="same F"):
        metrics.fd_cnn(torch.zeros(5, 2), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="4 or more"):
        metrics.precision_recall(torch.zeros(3, 2), torch.zeros(9, 2))


def test_precision_and_recall_of_toy_sets() -> None:
    generator = torch.Generator().manual_seed(0)
    left = torch.rand(200, 2, generator=generator)
    right = torch.rand(200, 2, generator=generator) + 100
    both = torch.cat([left, right])
    assert tuple(metrics.precision_recall(left, left).values()) == (1, 1)
    assert tuple(metrics.precision_recall(left, right).values()) == (0, 0)
    # A model that draws half of what there is: all real, half covered.
    assert tuple(metrics.precision_recall(both, left).values()) == (1, 0.5)
    # A model that draws twice what there is: half real, all covered.
    assert tuple(metrics.precision_recall(left, both).values()) == (0.5, 1)


def test_ball_reaches_to_the_third_neighbour() -> None:
    real = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    # The balls have radius 3, 2, 2, 3: together they cover [-3, 6].
    inside, outside = torch.tensor([[-2.9]] * 4), torch.tensor([[6.1]] * 4)
    assert metrics.precision_recall(real, inside)["precision"] == 1
    assert metrics.precision_recall(real, outside)["precision"] == 0


def test_nearest_distances_are_those_of_brute_force() -> None:
    train, images = torch.randint(0, 256, (2, 300, 1, 6, 6), dtype=torch.uint8).unbind()
    found = metrics.nearest_distances(images, train)
    wanted = torch.cdist(images.flatten(1).double(), train.flatten(1).double()) / 255
    torch.testing.assert_close(found.double(), wanted.min(1).values, rtol=1e-4, atol=1e-4)


def test_copies_are_found() -> None:
    generator = torch.Generator().manual_seed(0)

    def new(num_images: int) -> Tensor:
        return torch.randint(0, 256, (num_images, 1, 6, 6), dtype=torch.uint8, generator=generator)

    train, test, fresh = new(300), new(200), new(200)
    held_out = metrics.nearest_distances(test, train)
    honest = metrics.copy_check(fresh, train, held_out)
    assert honest["exact"] == 0
    assert honest["near"] < 0.05
    assert honest["ratio"] == pytest.approx(1, abs=0.1)
    copied = metrics.copy_check(torch.cat([train[:50], fresh[:50]]), train, held_out)
    assert copied["exact"] == 50
    assert 0.5 <= copied["near"] < 0.55
    touched = train[:100].clone()
    touched[:, 0, 0, 0] ^= 1
    near_copies = metrics.copy_check(touched, train, held_out)
    assert near_copies["exact"] == 0
    assert near_copies["near"] == 1
    assert near_copies["ratio"] < 0.1


def test_drawn_sets_are_balanced_and_differ_by_seed() -> None:
    images, labels = evaluate.draw_balanced(Uniform(), 40, 0, Sampling(), batch_size=16)
    assert labels.bincount().tolist() == [4] * 10
    again, _ = evaluate.draw_balanced(Uniform(), 40, 0, Sampling(), batch_size=40)
    other, _ = evaluate.draw_balanced(Uniform(), 40, 1, Sampling())
    assert torch.equal(images, again)
    assert not torch.equal(images, other)


def test_evaluate_finds_every_figure(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "load_judge", lambda spec: Reader())
    stages = []
    found = evaluate.evaluate(
        Uniform(),
        dataset,
        evaluate.Samples(100, seeds=(0, 1), guidances=(1.0, 3.0)),
        report=lambda stage, done, total: stages.append((stage, done <= total)),
    )
    for name in ("bits_per_dim", "bits_per_dim_val", "bits_per_dim_null"):
        assert found[name] == pytest.approx(8)
    assert (found["num_samples"], found["num_seeds"]) == (100, 2)
    assert [drawn["guidance"] for drawn in found["drawn"]] == [1.0, 3.0]
    for figures in (*found["drawn"], found["floor"]):
        assert figures["agreement"] == {"mean": 1.0, "sd": 0.0}
        # Drawn by the same law as the "real" images.
        assert figures["fd_cnn"]["mean"] < 0.05
        assert figures["precision"]["mean"] > 0.8
    assert found["drawn"][0]["copies"]["exact"] == 0
    assert found["images_per_second"].keys() == {"1", "256"}
    assert "throughput" not in found  # it takes a recipe
    assert all(ok for _, ok in stages)


def test_too_few_samples_are_refused(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="expected 20 samples or more"):
        evaluate.evaluate(Uniform(), dataset, evaluate.Samples(5))


def test_a_judge_is_measured_as_one(dataset: Dataset) -> None:
    found = evaluate.evaluate(Reader(), dataset)
    assert found["accuracy"] == 1
    assert found["accuracy_val"] == 1
    validation = runlog.validate(Reader().eval(), dataset.val, seed=0)
    assert validation["accuracy"] == 1.0
    said = f"loss {validation['loss']:.4f}, accuracy 1 on 50 images"
    assert runlog.in_words(validation) == said


def test_classifier_distorts_in_training_only() -> None:
    torch.manual_seed(0)
    model = ClassifierConfig(make_spec(8), width=2).build()
    images, labels = evaluate.draw_balanced(Uniform(), 20, 0, Sampling())
    model.train()
    assert model(images, labels).shape == (20,)
    assert not torch.equal(model(images, labels), model(images, labels))
    model.eval()
    assert torch.equal(model(images, labels), model(images, labels))
    wanted = nn.functional.cross_entropy(model.logits(images), labels, reduction="none")
    torch.testing.assert_close(model(images, labels), wanted)
    assert model.features(images).shape == (20, 4 * model.config.width)


def test_without_a_judge_likelihood_and_speed_are_measured(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "shipped", lambda: ["mnist-patch"])
    for judge in (None, "cifar10-cnn"):
        of = replace(dataset, spec=replace(dataset.spec, judge=judge))
        found = evaluate.evaluate(Uniform(), of, evaluate.Samples(100))
        expected = "bits_per_dim_val bits_per_dim bits_per_dim_null images_per_second"
        assert list(found) == expected.split()
    with pytest.raises(ValueError, match="has no judge, expected a data set that has one"):
        evaluate.load_judge(replace(MNIST, judge=None))
    coded = evaluate.evaluate(TINY["var"].tokenizer.build(), of, evaluate.Samples(100))
    assert coded["reconstruction"]["squared_error"] > 0
    assert "ceiling" not in coded


def test_a_mirroring_classifier_moves_whole_pixels() -> None:
    torch.manual_seed(0)
    still = {"max_degrees": 0.0, "max_scale": 0.0, "max_shear": 0.0}
    config = ClassifierConfig(make_spec(8, channels=3), **still, mirror=True)
    image = torch.rand(3, 8, 8)
    seen = set()
    for moved in random_affine(image.expand(200, -1, -1, -1), config):
        found = [
            (side, y, x)
            for side, original in enumerate((image, image.flip(-1)))
            for y in range(-2, 3)
            for x in range(-2, 3)
            if torch.allclose(
                moved[:, 2:6, 2:6], original[:, 2 + y : 6 + y, 2 + x : 6 + x], atol=1e-4
            )
        ]
        assert len(found) == 1
        seen |= set(found)
    assert len(seen) > 40  # of 2 * 5 * 5


def test_the_residual_classifier_is_a_judge_of_colour() -> None:
    config = ClassifierConfig(make_spec(8, 3, channels=3), width=2, mirror=True, residual=True)
    model = config.build()
    images, labels = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8), torch.arange(6) % 3
    model(images, labels).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())
    model.eval()
    assert model.features(images).shape == (6, 16)
    assert (model.features(images) >= 0).all()
    assert model.logits(images).shape == (6, 3)


def test_throughput_counts_operations_and_leaves_the_model_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(timing, "matmul_peak", partial(timing.matmul_peak, size=256))
    torch.manual_seed(0)
    config = ClassifierConfig(make_spec(8), width=2)
    model = config.build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recipe = Recipe("tiny", config, batch_size=16, epochs=1)
    found = timing.throughput(model, recipe, make_split(64, 0))
    assert found["images_per_second"] > 0
    assert 0 < found["share_of_peak"] < 1
    # Multiplications and additions of the first convolution alone, forward and for its weights.
    assert found["flops_per_image"] > 2 * 2 * 4 * 4 * 25 * 2
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kernel", ["flash_attention_for_cpu", "flash_attention"])
def test_causal_attention_counts_half_on_any_device(kernel: str) -> None:
    """Forward and backward; shapes are all that counts."""
    forward = getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}")
    backward = getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}_backward")
    q, k, v = (torch.empty(2, 3, 16, 8, dtype=torch.bfloat16, device="meta") for _ in "qkv")

    def work(causal: bool) -> None:
        out, logsumexp, *rest = forward(q, k, v, 0.0, causal)
        # Lengths, and behind them the state of the generator, of the kernel for GPUs alone.
        backward(out, q, k, v, out, logsumexp, *rest[:4], 0.0, causal, *rest[4:6])

    product = 2 * 2 * 3 * 16 * 16 * 8
    assert timing.count_flops(lambda: work(causal=False)) == 7 * product
    assert timing.count_flops(lambda: work(causal=True)) == 7 * product / 2


@pytest.mark.skipif(
    "MNIST_TRANSFORMER_DATA" not in os.environ, reason="MNIST_TRANSFORMER_DATA is not set"
)
def test_shipped_judge_reads_mnist() -> None:
    found = evaluate.judge_figures(evaluate.load_judge(MNIST), load_dataset("mnist"))
    assert found["accuracy"] >= 0.995
    assert found["accuracy_val"] >= 0.995
