"""What every family promises, on tiny images: see models/base.py."""

import re
from dataclasses import replace

import pytest
import torch
from helpers import TINY, make_scans, make_spec, make_teacher, moved

from mnist_transformer.models import FAMILIES, checkpoint
from mnist_transformer.models.base import GenerativeModel
from mnist_transformer.models.ddpm import DDPM
from mnist_transformer.models.flash import Flash, FlashConfig
from mnist_transformer.models.guided import GuidedModel
from mnist_transformer.models.mar import MAR
from mnist_transformer.models.scan import Scan
from mnist_transformer.options import Keep, Sampling

OPTIONS = {
    "temperature": Sampling(temperature=0.7),
    "top_k": Sampling(top_k=3),
    "top_p": Sampling(top_p=0.8),
    "guidance": Sampling(guidance=2.0),
    "num_steps": Sampling(num_steps=3),
    "sampler": Sampling(sampler="heun"),
    "guidance_interval": Sampling(guidance=2.0, guidance_interval=(0.3, 0.8)),
    "num_particles": Sampling(num_particles=3),  # around kept pixels
}


IN_COLOUR = make_spec(8, 3, levels=16, channels=3, background=None)
PHOTOGRAPHS = make_spec(8, 3, channels=3, background=None)
CASES = TINY | {
    "patch in colour": replace(TINY["patch"], data=IN_COLOUR, num_logistics=3),
    "pixel in colour": replace(TINY["pixel"], data=IN_COLOUR),
    "mar in colour": replace(TINY["mar"], data=PHOTOGRAPHS),
    "ddpm in colour": replace(TINY["ddpm"], data=PHOTOGRAPHS),
    "flash in colour": replace(TINY["flash"], data=PHOTOGRAPHS),
    "var in colour": replace(
        TINY["var"],
        data=PHOTOGRAPHS,
        tokenizer=replace(TINY["var"].tokenizer, data=PHOTOGRAPHS),
    ),
}


@pytest.fixture(params=CASES, ids=str)
def model(request, monkeypatch) -> GenerativeModel:
    monkeypatch.setattr("mnist_transformer.models.scan.load_scans", make_scans)
    config = CASES[request.param]
    if isinstance(config, FlashConfig):
        monkeypatch.setattr(Flash, "teacher", make_teacher(config.data))
    return moved(config)


@pytest.fixture
def batch(model) -> tuple[torch.Tensor, torch.Tensor]:
    levels = model.config.data.num_levels
    images = torch.randint(0, levels, (6, *model.image_shape), dtype=torch.uint8)
    if isinstance(model, Scan):
        images = make_scans().images
    return images, torch.arange(6) % model.num_classes


def assert_same_images(model, drawn, expected):
    """Equal; one grey level apart at most where pixels are real numbers until the end.

    The rounding error of a matrix product depends on how many rows it has, so a number between
    two grey levels may be rounded to either. Symbols of a finite set do not show it.
    """
    levels = 1 if isinstance(model, DDPM | Flash | MAR) else 0
    assert (drawn.int() - expected.int()).abs().max() <= levels


def loss(model, batch):
    """What some families draw at random for it is the same every time."""
    torch.manual_seed(0)
    return model.loss(*batch)


def test_every_family_that_draws_is_here():
    drawing = {n for n, (_, family) in FAMILIES.items() if issubclass(family, GenerativeModel)}
    assert drawing == set(TINY)
    in_colour = {case.removesuffix(" in colour") for case in CASES if case not in TINY}
    assert in_colour == drawing - {"prompted", "scan"}  # of MNIST alone


def test_loss_is_finite_and_one_an_image(model, batch):
    found = model.loss(*batch)
    assert found.shape == (6,)
    assert found.dtype == torch.float32
    assert found.isfinite().all()


def test_gradient_reaches_every_parameter(model, batch):
    model.train()
    model.loss(*batch).sum().backward()
    learning = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    untouched = [n for n, p in learning if p.grad is None or not p.grad.any()]
    assert not untouched


def with_guidance(config, scale):
    """The config with guidance built in, and no class dropped."""
    if hasattr(config, "scan"):
        return replace(config, scan=with_guidance(config.scan, scale))
    return replace(config, built_in_guidance=scale, class_drop=0.0)


def test_no_built_in_guidance_reads_no_null_class(model, batch, monkeypatch):
    plain = moved(with_guidance(model.config, 1.0))
    expected = loss(plain, batch)
    monkeypatch.setattr(GuidedModel, "without_class", None)
    assert torch.equal(loss(plain, batch), expected)


def test_built_in_guidance_is_learned_by_the_conditional_branch(model, batch):
    """The null class is held fixed; it learns from images without their class, as they are."""
    images, labels = batch
    plain, guided = (moved(with_guidance(model.config, scale)) for scale in (1.0, 2.0))
    assert guided.built_in_guidance == 2
    assert not torch.equal(loss(plain, batch), loss(guided, batch))
    if not isinstance(model, Scan):  # of a scan's side too
        null = torch.full_like(labels, model.num_classes)
        assert torch.equal(loss(plain, (images, null)), loss(guided, (images, null)))
    with torch.autocast("cpu", torch.bfloat16):
        loss(guided, batch).sum().backward()
    untouched = [n for n, p in guided.named_parameters() if p.requires_grad and p.grad is None]
    assert not untouched
    classes = guided.patch.classes if isinstance(model, Scan) else guided.classes
    gradient = classes.table.weight.grad
    assert not gradient[model.num_classes].any()
    assert gradient[: model.num_classes].any(1).all()


def test_eval_is_deterministic(model, batch):
    model.eval()
    assert torch.equal(loss(model, batch), loss(model, batch))


def test_a_seed_gives_the_same_image_in_any_batch(model):
    requests = {5: 0, 6: 1, 7: 2, 8: 1}
    together = model.sample(list(requests.values()), seeds=requests)
    alone = [model.sample([label], seeds=[seed]) for seed, label in requests.items()]
    assert together.shape == (4, *model.image_shape)
    assert together.dtype == torch.uint8
    assert_same_images(model, together, torch.cat(alone))
    assert not torch.equal(together, model.sample([0, 1, 2, 1], seeds=[1, 2, 3, 4]))


def test_steps_end_in_the_sample(model):
    canvases = list(model.steps([0, 1], seeds=[1, 2]))
    assert len(canvases) > 1
    assert torch.equal(canvases[-1], model.sample([0, 1], seeds=[1, 2]))


def test_drawing_leaves_the_mode_and_autograd_as_they_were(model, batch):
    model.train()
    steps = model.steps([0], seeds=[0])
    next(steps)
    assert not torch.is_inference_mode_enabled()
    steps.close()
    assert model.training
    model.loss(*batch).sum().backward()


def test_kept_pixels_are_kept_to_the_bit(model, batch):
    images, labels = batch
    mask = torch.rand(6, 1, *model.image_shape[1:]) < 0.5
    drawn = model.sample(labels, range(6), keep=Keep(images, mask))
    kept = mask.expand_as(images)
    assert torch.equal(drawn[kept], images[kept])
    assert not torch.equal(drawn[~kept], images[~kept])


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_is_honoured_or_refused(model, option):
    keep = None
    if option == "num_particles":
        with pytest.raises(ValueError, match="does not use num_particles"):
            model.sample([0], [0], OPTIONS[option])
        black = torch.zeros(8, *model.image_shape, dtype=torch.uint8)
        _, height, width = model.image_shape
        keep = Keep(black, torch.arange(width) % 2 == torch.zeros(8, 1, height, 1))
    if option in model.honours:
        plain = model.sample([0] * 8, range(8), keep=keep)
        assert not torch.equal(plain, model.sample([0] * 8, range(8), OPTIONS[option], keep))
    else:
        with pytest.raises(ValueError, match=rf"does not use .*\b{option}\b"):
            model.sample([0] * 8, range(8), OPTIONS[option], keep)


def test_save_and_load_to_the_bit(model, batch, tmp_path):
    checkpoint.save(model, tmp_path / "model.safetensors")
    loaded = checkpoint.load(tmp_path / "model.safetensors")
    assert loaded.config == model.config
    model.eval()
    loaded.eval()
    assert torch.equal(loss(loaded, batch), loss(model, batch))
    assert torch.equal(loaded.sample([0], [0]), model.sample([0], [0]))


def test_likelihood_counts_every_pixel(model, batch):
    if model.likelihood is None:
        pytest.skip("this family has no likelihood")
    images, labels = batch
    model.eval()
    with torch.no_grad():
        nats = model.nll(images, labels)
        for y, x in ((0, 0), (3, 4), (7, 7)):
            changed = images.clone()
            changed[..., y, x] = (changed[..., y, x] + 5) % 16
            assert (model.nll(changed, labels) != nats).all()
        assert (model.nll(images, None) != nats).any()
        if model.likelihood == "exact" and model.built_in_guidance == 1:
            torch.testing.assert_close(model.loss(images, labels), nats)


@pytest.mark.parametrize(
    ("cond", "seeds", "message"),
    [
        ([3], [0], "class 3 is unknown, expected 0 to 2"),
        ([-1], [0], "class -1 is unknown"),
        ([0, 1], [0], r"classes of shape \(2,\) for 1 seeds"),
        ([0.5], [0], "expected integers"),
        ([0], [-1], "seed is -1, expected"),
    ],
)
def test_wrong_requests_are_refused(model, cond, seeds, message):
    with pytest.raises(ValueError, match=message):
        model.sample(cond, seeds)


def test_wrong_masks_and_images_are_refused(model, batch):
    images, labels = batch
    mask = torch.ones(6, 1, *model.image_shape[1:], dtype=torch.bool)
    with pytest.raises(ValueError, match=r"masks are .*, expected"):
        model.sample(labels, range(6), keep=Keep(images, mask[:, :, :3]))
    with pytest.raises(ValueError, match=r"masks are torch\.float32"):
        model.sample(labels, range(6), keep=Keep(images, mask.float()))
    with pytest.raises(ValueError, match=r"images to keep are .*, expected"):
        model.sample(labels, range(6), keep=Keep(images[:2], mask))
    with pytest.raises(ValueError, match=r"of shape \(\), expected torch\.uint8 of shape \(B, "):
        model.check_images(images[0, 0, 0, 0])
    if model.likelihood is not None:
        with pytest.raises(ValueError, match=r"expected torch\.uint8 of shape"):
            model.nll(images[..., :4], labels)


def test_no_seeds_draw_nothing(model):
    assert model.sample([], []).shape == (0, *model.image_shape)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("temperature", 0, "from 1e-6 to 1,000"),
        ("temperature", -1, "from 1e-6 to 1,000"),
        ("temperature", float("nan"), "from 1e-6 to 1,000"),
        ("temperature", 1e-39, "from 1e-6 to 1,000"),
        ("guidance", 1e39, "from 0 to 1,000"),
        ("top_k", 0, "1 or more"),
        ("top_p", 0, r"in \(0, 1\]"),
        ("top_p", 1.5, r"in \(0, 1\]"),
        ("guidance", -1, "from 0 to 1,000"),
        ("num_steps", 0, "1 or more"),
    ],
)
def test_senseless_options_are_refused(option, value, message):
    with pytest.raises(
        ValueError, match=f"{option} is {re.escape(str(value))}, expected .*{message}"
    ):
        Sampling(**{option: value})


def test_loss_in_bfloat16_is_close(model, batch):
    """Machines with bfloat16 instructions train under autocast."""
    model.eval()
    exact = loss(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = loss(model, batch)
    rounded.sum().backward()
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.03, atol=0)
