"""Models over codes: what a token sees, caches, the frozen tokenizer, what is kept."""

from dataclasses import replace

import pytest
import torch
from helpers import (
    BARS,
    Killed,
    assert_same_bits,
    kill_at,
    make_digits,
    make_spec,
    moved,
    random_images,
    weights,
)

from experiments import var, var_picture
from mnist_transformer.evaluation import ledger
from mnist_transformer.evaluation import protocol as evaluate
from mnist_transformer.models import checkpoint
from mnist_transformer.models import var as family
from mnist_transformer.models.classifier import ClassifierConfig
from mnist_transformer.models.var import VarConfig
from mnist_transformer.models.vqvae import VQVAEConfig
from mnist_transformer.networks.conditioning import guide
from mnist_transformer.networks.drawing import Noise, adjust_logits
from mnist_transformer.networks.transformer import KVCache
from mnist_transformer.options import Keep, Sampling
from mnist_transformer.recipes import RECIPES, Recipe
from mnist_transformer.training import optim
from mnist_transformer.training.loop import train

TOKENIZER = VQVAEConfig(
    make_spec(12, 3), width=8, depth=1, scales=(1, 2, 3), codebook_size=16, code_dim=4
)
TINY = VarConfig(make_spec(12, 3), tokenizer=TOKENIZER, dim=16, depth=2, num_heads=2, mlp_dim=16)
RASTER = replace(TINY, tokenizer=replace(TOKENIZER, scales=(3,)), order="raster")
CONFIGS = {"scales": TINY, "raster": RASTER}
# The number of tokens in each step, and where each scale begins.
STEPS = {"scales": [1, 4, 9], "raster": [1] * 9}


@pytest.fixture(params=CONFIGS, ids=str)
def model(request):
    return make(CONFIGS[request.param])


def make(config):
    return moved(config).eval()


def states_of(model, codes, labels):
    x = model.embed(inputs_of(model, codes))
    return model.transformer(x, mask=model.mask_TT, cond=model.classes(labels))


def inputs_of(model, codes):
    return model._inputs(model.tokenizer.totals(codes))


def test_a_token_sees_the_steps_before_it_and_its_own(model):
    """By perturbation of codes: those of a step and of later ones change nothing in it."""
    sizes = STEPS[model.config.order]
    codes = torch.randint(0, 16, (2, sum(sizes)))
    with torch.no_grad():
        states = states_of(model, codes, torch.tensor([0, 1]))
        start = 0
        for size in sizes:
            changed = codes.clone()
            changed[:, start : start + size] = (codes[:, start : start + size] + 5) % 16
            moved = (states_of(model, changed, torch.tensor([0, 1])) - states).abs().amax((0, 2))
            assert not moved[: start + size].any()
            assert (moved[start + size :] > 1e-6).all()
            start += size


def test_tokens_of_a_scale_see_one_another():
    """By gradient of what the transformer is given: all of the own and coarser scales, no more."""
    model = make(TINY)
    x = torch.randn(1, 14, 16, requires_grad=True)
    states = model.transformer(x, mask=model.mask_TT, cond=model.classes(torch.tensor([0])))
    for token in range(14):
        (gradient,) = torch.autograd.grad(states[0, token].sum(), x, retain_graph=True)
        seen = gradient[0].abs().sum(-1) > 0
        end = next(end for end in (1, 5, 14) if token < end)
        assert seen[:end].all()
        assert not seen[end:].any()


def test_cached_equals_uncached(model):
    sizes = STEPS[model.config.order]
    codes, labels = torch.randint(0, 16, (2, sum(sizes))), torch.tensor([0, 2])
    with torch.no_grad():
        whole = states_of(model, codes, labels)
        cache = KVCache(model.transformer, 2, device=model.device)
        x = model.embed(inputs_of(model, codes))
        parts = [model.transformer(p, cache, cond=model.classes(labels)) for p in x.split(sizes, 1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


def test_drawing_follows_the_training_distribution(model, monkeypatch):
    """Step by step, sampling computes the logits that training would, given the drawn codes."""
    seen, drawn = [], []
    draw = family.draw_categorical

    def spy(logits, uniform, how):
        seen.append(logits)
        drawn.append(draw(logits, uniform, how))
        return drawn[-1]

    monkeypatch.setattr(family, "draw_categorical", spy)
    labels = torch.tensor([0, 1])
    canvas = model.sample(labels, seeds=[3, 4])
    codes = torch.cat([ids.view(2, -1) for ids in drawn], dim=1)
    assert torch.equal(canvas, model.tokenizer.decode(codes))
    with torch.no_grad():
        states = model.tokenizer.by_scale(states_of(model, codes, labels))
        wanted = [output(s) for output, s in zip(model.outputs, states, strict=True)]
    found = torch.cat([logits.view(2, -1, 16) for logits in seen], dim=1)
    torch.testing.assert_close(found, torch.cat(wanted, dim=1))


def test_wrong_codes_are_left_to_finer_scales():
    tokenizer = make(TINY).tokenizer
    features = tokenizer.features(random_images(16, 12))
    codes, totals = tokenizer.quantize(features)
    wrong_codes, wrong_totals = tokenizer.quantize(features, wrong=0.9)
    assert torch.equal(codes[:, :1], wrong_codes[:, :1])
    assert not torch.equal(totals[0], wrong_totals[0])
    left = tokenizer.pool(features - wrong_totals[0], 1)
    assert torch.equal(wrong_codes[:, 1:5], tokenizer.codebook(1).nearest(left))
    model = make(replace(TINY, correction=0.9))
    images, labels = random_images(16, 12), torch.arange(16) % 3
    losses = []
    for model.training in (True, False):
        for seed in (0, 1):
            torch.manual_seed(seed)
            losses.append(model.loss(images, labels).mean().item())
    assert losses[0] != losses[1]
    assert losses[2] == losses[3]


def test_guidance_grows_over_the_scales(monkeypatch):
    model, used = make(TINY), []

    def guided(output, scale):
        used.append(scale)
        return guide(output, scale)

    monkeypatch.setattr("mnist_transformer.models.var.guide", guided)
    for drawer, scale in ((model, 4.0), (model, 0.0), (make(RASTER), 3.0)):
        drawer.sample([0], [0], Sampling(guidance=scale))
    assert used[:3] == [2, 3, 4]
    assert used[3:6] == [0, 0, 0]
    assert set(used[6:]) == {3}
    plain, guided = (
        model.sample([0] * 8, range(8), Sampling(guidance=scale)) for scale in (1.0, 9.0)
    )
    assert not torch.equal(plain, guided)
    # Guidance 0 is no class at all.
    null = model.sample(None, range(8))
    assert torch.equal(model.sample([0] * 8, range(8), Sampling(guidance=0.0)), null)


def test_top_k_keeps_the_likeliest():
    logits = torch.tensor([[1.0, 4.0, 2.0, 3.0]])
    kept = adjust_logits(logits, Sampling(top_k=2)).isfinite()
    assert kept.tolist() == [[False, True, False, True]]
    assert torch.equal(adjust_logits(logits, Sampling(top_k=9)), logits)


def test_canvases(model):
    """One a scale, or one a row."""
    assert len(list(model.steps([0, 1], seeds=[1, 2]))) == 3


def test_the_tokenizer_is_frozen():
    model = make(TINY).train()
    before = {k: v.clone() for k, v in model.tokenizer.state_dict().items()}
    optimizers = optim.build_optimizers(model, RECIPES["mnist-var"])
    model.loss(random_images(6, 12), torch.arange(6) % 3).sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    assert_same_bits(dict(model.tokenizer.state_dict()), before)
    frozen = {id(p) for p in model.tokenizer.parameters()}
    in_groups = {id(p) for o in optimizers for g in o.param_groups for p in g["params"]}
    assert not frozen & in_groups
    assert len(in_groups) == len([p for p in model.parameters() if p.requires_grad])


# --- keeping ---


def test_kept_cells_keep_their_codes(model, monkeypatch):
    """The left column of cells, and all but the last row of pixels of the middle one, are kept."""
    images, labels = random_images(4, 12), [0, 1, 2, 0]
    mask = torch.zeros(4, 1, 12, 12, dtype=torch.bool)
    mask[..., :4] = True
    mask[:, :, :11, 4:8] = True
    totals = []
    render = model.tokenizer.render
    monkeypatch.setattr(
        model.tokenizer, "render", lambda total: totals.append(total.clone()) or render(total)
    )
    drawn = model.sample(labels, range(4), keep=Keep(images, mask))
    assert torch.equal(drawn[mask], images[mask])
    kept = mask.view(4, 3, 4, 3, 4).transpose(2, 3).flatten(1, 2).flatten(2).all(-1)  # (4, 9)
    assert kept.sum() == 4 * 5
    features = model.tokenizer.features(torch.where(mask, images, 0))
    level = len(model.config.tokenizer.scales) - 1
    codes = model.tokenizer.codebook(level).codes
    before = torch.zeros_like(features) if level == 0 else totals[-2]
    nearest = codes[torch.cdist(features - before, codes).argmin(-1)]
    torch.testing.assert_close((totals[-1] - before)[kept], nearest[kept])


def test_what_is_not_kept_is_not_looked_at(model):
    images = random_images(2, 12)
    mask = torch.rand(2, 1, 12, 12) < 0.7
    other = torch.where(mask, images, random_images(2, 12))
    first, second = (model.sample([0, 1], [5, 6], keep=Keep(x, mask)) for x in (images, other))
    assert torch.equal(first, second)


def test_keeping_everything_reconstructs(model):
    """All cells kept: the codes are the image's own, whatever the model would have drawn."""
    images = random_images(3, 12)
    mask = torch.ones(3, 1, 12, 12, dtype=torch.bool)
    noise = Noise(range(3))
    with torch.inference_mode():
        steps = model.sample_steps(torch.tensor([0, 1, 2]), noise, Sampling(), Keep(images, mask))
        *_, last = steps
    assert torch.equal(last, model.tokenizer.reconstruct(images))


# --- through the project ---

RECIPE = Recipe(
    "tiny-var",
    replace(
        TINY,
        data=make_spec(8, 3),
        tokenizer=replace(TOKENIZER, data=make_spec(8, 3), scales=(1, 2)),
    ),
    dataset="none",
    batch_size=8,
    epochs=2,
    ema=0.2,
    tokenizer="tiny-vqvae",
)


def make_tokenizer(runs, **changes):
    """A run of the tokenizer, as far as another run can see; returns its weights."""
    torch.manual_seed(5)
    tokenizer = replace(RECIPE.model.tokenizer, **changes).build()
    (runs / "tiny-vqvae").mkdir(parents=True)
    checkpoint.save(tokenizer, runs / "tiny-vqvae" / "model.safetensors")
    return tokenizer.state_dict()


def test_killed_and_resumed_is_bit_identical(tmp_path, monkeypatch):
    """And the tokenizer in it is the recipe's, to the bit, averaging or not."""
    tokenizer = make_tokenizer(tmp_path)
    whole = train(RECIPE, tmp_path / "whole", data=BARS, device="cpu")
    with monkeypatch.context() as patch:
        kill_at(patch, step=3)
        with pytest.raises(Killed):
            train(RECIPE, tmp_path / "killed", data=BARS, device="cpu")
    (tmp_path / "tiny-vqvae" / "model.safetensors").unlink()  # a run holds its tokenizer
    resumed = train(RECIPE, tmp_path / "killed", data=BARS, device="cpu")
    assert_same_bits(weights(resumed), weights(whole))
    assert_same_bits(dict(checkpoint.load(whole).tokenizer.state_dict()), dict(tokenizer))


def test_a_tokenizer_of_another_make_is_refused(tmp_path):
    make_tokenizer(tmp_path, scales=(2,))
    with pytest.raises(
        ValueError, match=r"tokenizer has scales \(2,\), the transformer expects \(1, 2\)"
    ):
        train(RECIPE, tmp_path / "var", data=BARS, device="cpu")
    with pytest.raises(ValueError, match=r"tokenizer has codebook_size 8, .* expects 16"):
        make(TINY).set_tokenizer(replace(TOKENIZER, codebook_size=8).build())
    with pytest.raises(ValueError, match="the tokenizer is a Classifier, expected a VQVAE"):
        make(TINY).set_tokenizer(ClassifierConfig(make_spec()).build())


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(
        ValueError, match="train it first with `mnist-transformer train tiny-vqvae`"
    ):
        train(RECIPE, tmp_path / "var", data=BARS, device="cpu")
    with pytest.raises(ValueError, match="names the tokenizer None, expected one for a Var"):
        train(replace(RECIPE, tokenizer=None), tmp_path / "var", data=BARS, device="cpu")
    recipe = replace(RECIPE, model=RECIPE.model.tokenizer)
    with pytest.raises(ValueError, match="tokenizer tiny-vqvae, expected none for a VQVAE"):
        train(recipe, tmp_path / "var", data=BARS, device="cpu")


def test_wrong_images_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 1, 8, 8\), expected .* \(B, 1, 12, 12\)"):
        make(TINY).loss(random_images(2, 8), torch.tensor([0, 1]))


def test_senseless_sizes_are_refused():
    with pytest.raises(ValueError, match="order is 'snake', expected one of scales, raster"):
        replace(TINY, order="snake")
    with pytest.raises(ValueError, match=r"correction is 2, expected a number in \[0, 1\)"):
        replace(RASTER, correction=2)
    with pytest.raises(ValueError, match=r"scales are \(1, 2, 3\), expected one scale"):
        replace(TINY, order="raster")


# --- the experiment ---


def test_the_experiment_resumes_and_plots(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ledger, "results_folder", lambda: tmp_path / "results")
    monkeypatch.setattr(evaluate, "load_judge", lambda spec: ClassifierConfig(spec).build())
    monkeypatch.setattr(var, "load_dataset", lambda name, folder: make_digits())
    monkeypatch.setattr(var, "sampling_speed", lambda model, batch_size: 1.0)
    tokenizer = VQVAEConfig(make_spec(), width=8, depth=1, codebook_size=4, code_dim=4)
    tiny = replace(TINY, tokenizer=tokenizer, data=make_spec())
    for name, config in (("mnist-vqvae", tokenizer), ("mnist-var", tiny)):
        small = replace(RECIPES[name], model=config, batch_size=8)
        monkeypatch.setitem(RECIPES, name, small)
    request = {"cells": (var.RASTER, "7", "1 7"), "tokenizer_seconds": 0.1, "max_seconds": 0.1}
    var.main(**request, num_samples=20)
    path = tmp_path / "results" / "ledger.jsonl"
    before = path.read_text()
    assert len(before.splitlines()) == 3
    var.main(**request, num_samples=20)
    assert path.read_text() == before
    for name in ("var", "var/usage"):
        assert (tmp_path / "results" / name / "plot.png").exists()
    # Two cells share a tokenizer; the last is a model that the picture can be made of.
    assert len(list((tmp_path / "runs").glob("**/tokenizer/*/*/*/model.safetensors"))) == 2
    run = next((tmp_path / "runs").glob("**/var/1 7/**/model.safetensors"))
    var_picture.main(model=str(run))
    assert (tmp_path / "results" / "var" / "how.png").exists()
    with pytest.raises(ValueError, match="does not draw"):
        var_picture.main(
            model=str(next((tmp_path / "runs").glob("**/tokenizer/**/model.safetensors")))
        )
