"""The one-step model: its links, its teacher, and how many passes a drawing takes."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers import TINY, make_teacher, moved, random_images

from mnist_transformer.models import checkpoint, loading
from mnist_transformer.models.flash import SHARPNESS, Flash
from mnist_transformer.networks.conditioning import guide
from mnist_transformer.networks.diffusion import to_signed
from mnist_transformer.options import Keep, Sampling

CONFIG = TINY["flash"]
LABELS = torch.arange(6) % 3


@pytest.fixture
def model(monkeypatch) -> Flash:
    monkeypatch.setattr(Flash, "teacher", make_teacher(CONFIG.data))
    return moved(CONFIG).eval()


def test_all_of_a_path_leads_to_one_image(model, monkeypatch):
    """A teacher that knows the image, and a model that names it, do not differ."""
    images = random_images(6)
    x0 = to_signed(images)
    monkeypatch.setattr(model.teacher, "denoise", lambda cond, x_t, t: x0)
    monkeypatch.setattr(model, "denoise", lambda cond, x_t, t: x0)
    torch.testing.assert_close(model.loss(images, LABELS), torch.zeros(6))


def test_the_lowest_link_ends_in_the_teachers_image(model, monkeypatch):
    """With one link, the model learns the teacher's image of noise."""
    seen = []
    one = moved(replace(CONFIG, num_links=1))
    step = one.step_of_teacher

    def spy(*args):
        seen.append((*args, step(*args)))
        return seen[-1][-1]

    monkeypatch.setattr(one, "step_of_teacher", spy)
    found = one.loss(random_images(6), LABELS)
    cond, x_t, t, s, x_s = seen[0]
    assert t.tolist() == [1] * 6
    assert s.tolist() == [0] * 6
    teacher = one.teacher
    own = teacher.denoise(teacher.classes(cond), x_t, t).clamp(-1, 1)
    torch.testing.assert_close(x_s, own)
    errors = one.denoise(one.classes(cond), x_t, t) - own
    expected = (errors.square().mean((1, 2, 3)) + SHARPNESS**2).sqrt() - SHARPNESS
    torch.testing.assert_close(found, expected)


def test_the_teacher_is_guided(model):
    guided, teacher = moved(replace(CONFIG, built_in_guidance=3.0)), model.teacher
    x_t, t = torch.randn(6, 1, 8, 8), torch.ones(6)
    outputs = [teacher.denoise(teacher.classes(x), x_t, t) for x in (LABELS, LABELS * 0 + 3)]
    expected = guide(torch.cat(outputs), 3.0).clamp(-1, 1)
    torch.testing.assert_close(guided.step_of_teacher(LABELS, x_t, t, t * 0), expected)


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


def test_another_teacher_is_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown model 'nobody'"):
        replace(CONFIG, teacher="nobody").build().loss(random_images(6), LABELS)
    path = tmp_path / "model.safetensors"
    checkpoint.save(TINY["mar"].build(), path)
    with pytest.raises(ValueError, match="the teacher is a MAR of mnist, expected a DDPM"):
        replace(CONFIG, teacher=str(path)).build().loss(random_images(6), LABELS)
    with pytest.raises(ValueError, match=r"are \('cosine', 'x'\), expected \('flow', 'x'\)"):
        replace(CONFIG, schedule="cosine")
