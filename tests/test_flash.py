"""The one-step model: its loss, its teacher, and how many passes a drawing takes."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers import TINY, make_teacher, moved, random_images

from mnist_transformer.models import checkpoint, loading
from mnist_transformer.models.flash import SHARPNESS, Flash
from mnist_transformer.networks.conditioning import guide
from mnist_transformer.networks.diffusion import to_signed
from mnist_transformer.networks.solvers import ddim_step
from mnist_transformer.options import Keep, Sampling

CONFIG = TINY["flash"]
LABELS = torch.arange(6) % 3


@pytest.fixture
def model(monkeypatch) -> Flash:
    monkeypatch.setattr(Flash, "teacher", make_teacher(CONFIG.data))
    return moved(CONFIG).eval()


def test_a_model_that_draws_as_its_teacher_has_no_loss(model, monkeypatch):
    images = random_images(6)
    x0 = to_signed(images)
    monkeypatch.setattr(model.teacher, "denoise", lambda cond, x_t, t: x0[-len(x_t) :])
    monkeypatch.setattr(model, "denoise", lambda cond, x_t, t: x0)
    torch.testing.assert_close(model.loss(images, LABELS), torch.zeros(6))


def test_each_image_is_drawn_from_its_own_time(model, monkeypatch):
    seen = []
    draw = model.drawn_by_teacher

    def spy(*args):
        seen.append((*args, draw(*args)))
        return seen[-1][-1]

    monkeypatch.setattr(model, "drawn_by_teacher", spy)
    found = model.loss(random_images(6), LABELS)
    cond, x_t, time, drawn = seen[0]
    assert (3 * time).tolist() == [1, 2, 3, 3, 3, 3]  # over half of them start from noise
    teacher = model.teacher
    for image, (label, x, links) in enumerate(zip(cond, x_t, 3 * time, strict=True)):
        denoise = partial(teacher.denoise, teacher.classes(label[None]))
        x = x[None]
        for link in range(int(links), 0, -1):
            t, s = torch.tensor([link / 3]), torch.tensor([(link - 1) / 3])
            x = ddim_step(teacher.diffusion, denoise, x, t, s, lambda: None)
        torch.testing.assert_close(drawn[image], x[0], atol=1e-5, rtol=1e-5)
    own = model.denoise(model.classes(cond), x_t, time)
    expected = ((own - drawn).square().mean((1, 2, 3)) + SHARPNESS**2).sqrt() - SHARPNESS
    torch.testing.assert_close(found, expected)


def test_the_teacher_is_guided(model):
    guided, teacher = moved(replace(CONFIG, built_in_guidance=3.0, num_links=1)), model.teacher
    x_t, t = torch.randn(6, 1, 8, 8), torch.ones(6)
    outputs = [teacher.denoise(teacher.classes(x), x_t, t) for x in (LABELS, LABELS * 0 + 3)]
    expected = guide(torch.cat(outputs), 3.0).clamp(-1, 1)
    torch.testing.assert_close(guided.drawn_by_teacher(LABELS, x_t, t), expected)


def test_a_digit_takes_one_pass(model, monkeypatch):
    times, denoise = [], model.denoise

    def spy(cond, x_t, t):
        times.append(t.item())
        return denoise(cond, x_t, t)

    monkeypatch.setattr(model, "denoise", spy)
    draw = partial(model.sample, [0, 1], [3, 4])
    drawn = draw()
    assert times == [1]
    assert not torch.equal(draw(Sampling(num_steps=2)), drawn)
    assert times[1:] == [1, 0.5]
    keep = Keep(random_images(2), torch.ones(2, 1, 8, 8, dtype=torch.bool))
    draw(keep=keep)
    assert len(times[3:]) == CONFIG.num_links


def test_weights_do_without_the_teacher(model, tmp_path, monkeypatch):
    assert not [name for name in model.state_dict() if "teacher" in name]
    checkpoint.save(model, tmp_path / "model.safetensors")
    monkeypatch.undo()
    monkeypatch.setattr(loading, "load", None)
    assert len(checkpoint.load(tmp_path / "model.safetensors").sample([0], [0])) == 1


def test_a_deeper_model_starts_as_its_teacher(model):
    deeper = replace(CONFIG, depth=CONFIG.depth + 2).build()
    deeper.start()
    x_t, t = torch.randn(6, 1, 8, 8), torch.ones(1)
    ours, theirs = (m.denoise(m.classes(LABELS), x_t, t) for m in (deeper, model.teacher))
    torch.testing.assert_close(ours, theirs)
    wider = replace(CONFIG, dim=2 * CONFIG.dim).build()
    wider.start()
    assert not wider.output.weight.any()  # as it was built


def test_another_teacher_is_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown model 'nobody'"):
        replace(CONFIG, teacher="nobody").build().loss(random_images(6), LABELS)
    path = tmp_path / "model.safetensors"
    checkpoint.save(TINY["mar"].build(), path)
    with pytest.raises(ValueError, match="the teacher is a MAR of mnist, expected a DDPM"):
        replace(CONFIG, teacher=str(path)).build().loss(random_images(6), LABELS)
    with pytest.raises(ValueError, match=r"are \('cosine', 'x'\), expected \('flow', 'x'\)"):
        replace(CONFIG, schedule="cosine")
