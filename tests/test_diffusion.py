"""Diffusion on toys whose best denoiser is known, and beside diffusers."""

import math
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from helpers import TINY

from mnist_transformer.networks.diffusion import (
    SCHEDULES,
    SPACES,
    Diffusion,
    discretized_normal,
    to_signed,
    to_uint8,
)
from mnist_transformer.networks.drawing import Noise
from mnist_transformer.networks.solvers import STEPS, ddim_step, sample
from mnist_transformer.options import SAMPLERS

MEAN, SD = 0.3, 0.5
POINTS, SHARES = torch.tensor([-0.5, 0.5]), torch.tensor([0.3, 0.7])


def as_prediction(diffusion, x0, x_t, at):
    """What a network that knows E[x0 | x_t] would return."""
    noise = (x_t - at.alpha * x0) / at.sigma
    v = at.v_noise * noise - at.v_data * x0
    return {"x": x0, "epsilon": noise, "v": v}[diffusion.prediction]


def normal_denoiser(diffusion):
    """For data that is N(MEAN, SD^2) in every dimension."""

    def denoise(x_t, t):
        at = diffusion.levels(t, x_t)
        gain = at.alpha * SD**2 / (at.alpha**2 * SD**2 + at.sigma**2)
        return as_prediction(diffusion, MEAN + gain * (x_t - at.alpha * MEAN), x_t, at)

    return denoise


def points_denoiser(diffusion, points=POINTS, shares=SHARES):
    """For data that is one of a few points in every dimension."""

    def denoise(x_t, t):
        at = diffusion.levels(t, x_t)
        distance = (x_t - at.alpha * points[:, None, None]) / at.sigma
        weight = (shares.log()[:, None, None] - distance**2 / 2).softmax(0)
        return as_prediction(diffusion, (weight * points[:, None, None]).sum(0), x_t, at)

    return denoise


def draw(diffusion, denoise, number, num_steps, sampler):
    generator = torch.Generator().manual_seed(0)

    def normal():
        return torch.randn(number, 1, generator=generator)

    *_, x = sample(diffusion, denoise, normal(), num_steps, sampler, normal)
    return x


# --- beside another implementation ---


@pytest.mark.parametrize("scheduler_class", [DDPMScheduler, DDIMScheduler])
@pytest.mark.parametrize("num_steps", [1000, 50, 1])
def test_steps_equal_those_of_diffusers(scheduler_class, num_steps):
    """The paper's schedule and ancestral sampler, and DDIM, with the same network and noise."""
    options = {"use_clipped_model_output": True} if scheduler_class is DDIMScheduler else {}
    scheduler = scheduler_class(timestep_spacing="trailing")
    scheduler.set_timesteps(num_steps)
    diffusion = Diffusion("linear", "epsilon", "epsilon")
    sampler = "ancestral" if scheduler_class is DDPMScheduler else "ddim"
    torch.manual_seed(0)
    x_1 = torch.randn(2, 1, 4, 4)
    mix = torch.randn(16, 16) / 4

    def network(x_t, t):  # anything that is no constant
        return (x_t.flatten(1) @ mix).view_as(x_t).tanh() + t.view(-1, 1, 1, 1)

    expected, generator = x_1, torch.Generator().manual_seed(1)
    for t in scheduler.timesteps:
        output = network(expected, (t + 1) / 1000)
        expected = scheduler.step(output, t, expected, generator=generator, **options).prev_sample
    generator = torch.Generator().manual_seed(1)
    *_, x = sample(
        diffusion,
        network,
        x_1,
        num_steps,
        sampler,
        lambda: torch.randn(x_1.shape, generator=generator),
    )
    torch.testing.assert_close(x, expected, atol=2e-4, rtol=1e-3)


def test_noise_levels_equal_those_of_diffusers():
    scheduler = DDPMScheduler()
    t = torch.arange(1, 1001) / 1000
    at = Diffusion("linear").levels(t, t)
    torch.testing.assert_close(at.alpha**2, scheduler.alphas_cumprod, atol=1e-6, rtol=1e-4)


# --- schedules, times and predictions ---


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_levels_go_from_data_to_noise(schedule):
    diffusion = Diffusion(schedule)
    t = diffusion.times(100).flip(0)
    at = diffusion.levels(t, t)
    assert (at.alpha[0], at.sigma[0]) == (1, 0)
    assert at.alpha[-1] < 0.01
    assert at.sigma[-1] > 0.999
    assert (at.alpha.diff() < 0).all()
    assert (at.sigma.diff() > 0).all()
    torch.testing.assert_close(at.v_noise * at.alpha + at.v_data * at.sigma, torch.ones(101))


@pytest.mark.parametrize("num_steps", [0, 1001])
def test_too_few_or_many_steps_are_refused(num_steps):
    with pytest.raises(ValueError, match=f"num_steps is {num_steps}, expected 1 to 1000"):
        Diffusion().times(num_steps)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_steps", [1, 7, 1000])
def test_times_fall_from_one_to_zero(schedule, num_steps):
    t = Diffusion(schedule).times(num_steps)
    assert len(t) == num_steps + 1
    assert (t[0], t[-1]) == (1, 0)
    assert (t.diff() < 0).all()


def test_training_times_cover_their_distribution():
    torch.manual_seed(0)
    uniform = Diffusion().draw_times(1000)
    torch.testing.assert_close(uniform.sort().values, torch.linspace(0, 1, 1000), atol=2e-3, rtol=0)
    t = Diffusion(time_mean=0.8, time_sd=0.8).draw_times(4000)
    assert t.logit().mean().item() == pytest.approx(0.8, abs=0.01)
    assert t.logit().std().item() == pytest.approx(0.8, abs=0.01)
    steps = Diffusion("linear").draw_times(1000) * 1000
    assert sorted(steps.round().int().tolist()) == list(range(1, 1001))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", SPACES)
def test_every_prediction_gives_the_same_estimate(schedule, prediction):
    diffusion = Diffusion(schedule, prediction, clip=math.inf)
    x0, noise, t = torch.randn(5, 1), torch.randn(5, 1), torch.linspace(0.1, 0.9, 5)
    at = diffusion.levels(t, x0)
    x_t = at.alpha * x0 + at.sigma * noise
    found = diffusion.estimate(lambda x_t, t: as_prediction(diffusion, x0, x_t, at), x_t, t)
    torch.testing.assert_close(found, (x0, noise), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("loss_space", SPACES)
def test_the_loss_of_an_estimate_does_not_depend_on_the_prediction(schedule, loss_space):
    """A network's error is measured in ``loss_space``, whatever it returns."""
    losses = []
    for prediction in SPACES:
        # Away from the ends, where levels are kept off 0.
        diffusion = Diffusion(schedule, prediction, loss_space, time_mean=0.0, time_sd=0.3)
        x0 = torch.full((64, 2), 0.4)
        torch.manual_seed(0)
        losses.append(diffusion.loss(normal_denoiser(diffusion), x0))
    torch.testing.assert_close(losses[0], losses[1], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(losses[0], losses[2], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["schedule", "prediction", "loss_space"])
def test_unknown_names_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} is 'ddpm', expected one of"):
        Diffusion(**{name: "ddpm"})
    with pytest.raises(ValueError, match=f"{name} is 'ddpm', expected one of"):
        replace(TINY["ddpm"], **{name: "ddpm"})


# --- samplers on data whose best denoiser is known ---


def test_samplers_are_those_that_sampling_offers():
    assert tuple(STEPS) == SAMPLERS


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", SPACES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_follow_a_normal_distribution(schedule, prediction, sampler):
    diffusion = Diffusion(schedule, prediction, clip=math.inf)
    x = draw(diffusion, normal_denoiser(diffusion), 20_000, 200, sampler)
    assert x.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert x.std().item() == pytest.approx(SD, abs=0.02)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_fall_on_two_points_in_their_shares(schedule, sampler):
    diffusion = Diffusion(schedule)
    x = draw(diffusion, points_denoiser(diffusion), 4000, 100, sampler)
    assert ((x.abs() - 0.5).abs() < 0.02).float().mean() > 0.99
    assert (x > 0).float().mean().item() == pytest.approx(0.7, abs=0.03)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_heun_is_of_second_order(schedule):
    """Ten times the steps: a tenth of Euler's error, and far less of Heun's."""
    diffusion = Diffusion(schedule, clip=math.inf)
    denoise = normal_denoiser(diffusion)
    exact = draw(diffusion, denoise, 100, 1000, "heun")
    error = {
        (sampler, steps): (draw(diffusion, denoise, 100, steps, sampler) - exact).abs().max()
        for sampler in ("euler", "heun")
        for steps in (10, 100)
    }
    assert error["euler", 100] < error["euler", 10] / 5
    assert error["heun", 100] < error["heun", 10] / 20
    assert error["heun", 10] < error["euler", 10]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_step_gives_what_is_expected(schedule):
    diffusion = Diffusion(schedule)
    x = draw(diffusion, points_denoiser(diffusion), 100, 1, "euler")
    mean = (POINTS * SHARES).sum().item()
    torch.testing.assert_close(x, torch.full_like(x, mean), atol=0.02, rtol=0)


def test_ddim_with_eta_one_is_the_ancestral_step():
    """Its mean is DDPM's equation 7, and its variance that of the posterior."""
    diffusion = Diffusion("linear", clip=math.inf)
    x_t, t, s = torch.randn(50, 1), torch.tensor([0.4]), torch.tensor([0.399])
    denoise = normal_denoiser(diffusion)
    x0, _ = diffusion.estimate(denoise, x_t, t)
    mean = ddim_step(diffusion, denoise, x_t, t, s, lambda: torch.zeros(50, 1), eta=1.0)
    moved = ddim_step(diffusion, denoise, x_t, t, s, lambda: torch.ones(50, 1), eta=1.0)
    bar_t, bar_s = (diffusion.levels(u, u).alpha.double() ** 2 for u in (t, s))
    beta = 1 - bar_t / bar_s
    expected = bar_s.sqrt() * beta / (1 - bar_t) * x0
    expected = expected + (1 - beta).sqrt() * (1 - bar_s) / (1 - bar_t) * x_t
    torch.testing.assert_close(mean, expected.float(), atol=1e-4, rtol=1e-4)
    variance = ((1 - bar_s) / (1 - bar_t) * beta).expand(50, 1).float()
    torch.testing.assert_close((moved - mean) ** 2, variance, atol=1e-4, rtol=1e-3)


def test_what_is_kept_decides_the_rest():
    """Both dimensions are always the same point: keep one and the other follows (RePaint)."""
    diffusion = Diffusion()

    def denoise(x_t, t):
        at = diffusion.levels(t, x_t)
        odds = (at.alpha * x_t.sum(1, keepdim=True) / at.sigma**2 / 2).clamp(-40, 40)
        return (odds / 1).tanh().expand_as(x_t) / 2

    generator = torch.Generator().manual_seed(0)

    def normal():
        return torch.randn(200, 2, generator=generator)

    kept = torch.where(torch.arange(200) % 2 == 0, 0.5, -0.5).unsqueeze(1).expand(200, 2)
    mask = torch.tensor([True, False]).expand(200, 2)
    agreement = {}
    for num_resamples in (1, 5):
        *_, x = sample(
            diffusion, denoise, normal(), 20, "euler", normal, (kept, mask), num_resamples
        )
        assert torch.equal(x[:, 0], kept[:, 0])
        agreement[num_resamples] = (x[:, 1] * kept[:, 1] > 0).float().mean().item()
    assert agreement[1] > 0.6
    assert agreement[5] > max(0.9, agreement[1])


# --- the bound ---


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", ["x", "epsilon"])
def test_bound_is_above_the_exact_likelihood_and_near_it(schedule, prediction):
    """Black or white pixels, 30 to 70: no model has fewer nats than their entropy."""
    diffusion = Diffusion(schedule, prediction)
    denoise = points_denoiser(diffusion, torch.tensor([-1.0, 1.0]))
    x0 = torch.where(torch.arange(1000) < 300, -1.0, 1.0).unsqueeze(1)
    nats = diffusion.bound(denoise, x0, Noise(range(1000)), num_samples=100)
    entropy = -(SHARES * SHARES.log()).sum().item()
    error = 3 * nats.std().item() / math.sqrt(1000)
    # The last step's normal leaves up to half of its mass on the second level and beyond.
    assert entropy - error < nats.mean().item() < entropy + math.log(2) + error + 0.05


def test_bound_from_some_terms_is_that_from_all():
    diffusion = Diffusion("linear", "epsilon", "epsilon")
    denoise = normal_denoiser(diffusion)
    x0 = to_signed(to_uint8(MEAN + SD * torch.randn(400, 1)).clamp(1, 254))
    every = diffusion.bound(denoise, x0, Noise(range(400))).mean().item()
    some = diffusion.bound(denoise, x0, Noise(range(400)), num_samples=20).mean().item()
    assert some == pytest.approx(every, rel=0.05)


def test_grey_levels_share_all_probability():
    levels = to_signed(torch.arange(256, dtype=torch.uint8))
    for mean in (-1.0, 0.003, 0.9):
        for sd in (0.01, 0.3):
            log_p = discretized_normal(levels, torch.tensor(mean), torch.tensor(sd))
            assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-4)
            assert log_p.isfinite().all()
