"""Promises of the patch model beyond the contract: blank patches, colours, batches, drawing."""

from dataclasses import dataclass, field, replace

import pytest
import torch
from helpers import TINY, make_spec, moved
from torch import Tensor

from mnist_transformer.models.patch import draw
from mnist_transformer.models.patch.draw import Drawing
from mnist_transformer.networks import levels as levels_of
from mnist_transformer.networks.conditioning import guidance_free
from mnist_transformer.networks.neighbourhood import Neighbourhood
from mnist_transformer.options import Keep, Sampling

WIDE_COLOUR = replace(make_spec(8, 3, levels=4), shape=(3, 4, 12))
CONFIGS = {
    "grey": TINY["patch"],
    "background 3": replace(TINY["patch"], data=make_spec(8, 3, levels=16, background=3)),
    "two levels": replace(TINY["patch"], data=make_spec(8, 3, levels=2), margin=4),
    "wide, in colour": replace(TINY["patch"], data=WIDE_COLOUR, patch_size=2),
    "wide, in colour, no background": replace(
        TINY["patch"], data=replace(WIDE_COLOUR, background=None), patch_size=2
    ),
}


@pytest.fixture(params=CONFIGS)
def any_model(request):
    return moved(CONFIGS[request.param]).eval()


@pytest.fixture
def model():
    return moved(TINY["patch"]).eval()


def sparse(model, number):
    """Images whose patches are blank or not, the first ones all blank."""
    torch.manual_seed(0)
    shape, fill = (number, *model.image_shape), model.config.data.background or 0
    images = torch.randint(0, model.config.data.num_levels, shape, dtype=torch.uint8)
    ink = torch.rand(shape) < torch.linspace(0, 0.3, number).view(-1, 1, 1, 1)
    return torch.where(ink, images, fill)


def test_likelihood_of_an_image_does_not_depend_on_its_batch(any_model):
    images, labels = sparse(any_model, 9), torch.arange(9) % 3
    together = any_model.nll(images, labels)
    alone = [any_model.nll(images[i : i + 1], labels[i : i + 1]) for i in range(9)]
    torch.testing.assert_close(together, torch.cat(alone))
    pixels = any_model.pixel_nats(images, labels)
    assert pixels.shape == (9, *any_model.image_shape[1:])
    torch.testing.assert_close(pixels.sum((1, 2)), together)


@dataclass(eq=False)
class Forced(Drawing):
    """A drawing given its symbols; it keeps the logits that it would have drawn from."""

    guessed_bits = 0

    ink: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    values: dict[tuple[int, int, int], Tensor] = field(default_factory=dict)

    def draw_gates(self, logits_NC: Tensor, rows_N: Tensor, patch_NC: Tensor) -> Tensor:
        for row, logits, patches in zip(rows_N, logits_NC, patch_NC, strict=True):
            for patch, logit in zip(patches.tolist(), logits, strict=True):
                self.ink[int(self.place_R[row]), patch] = logit  # one drawn again replaces it
        return super().draw_gates(logits_NC, rows_N, patch_NC)

    def draw(self, logits: Tensor, rows: Tensor, patch: Tensor, symbol: int) -> Tensor:
        if symbol > 0:
            for row, number, x in zip(rows, patch.tolist(), logits, strict=True):
                self.values[int(self.place_R[row]), number, symbol - 1] = x
        return self.given_RPU[self.place_R[rows], patch, symbol]


@torch.no_grad()
def test_training_sees_what_the_steps_of_drawing_see(any_model):
    """Packed and all at once, or from the cache and value by value: the same logits."""
    decoder, images = any_model.decoder, sparse(any_model, 9)
    labels = torch.arange(9) % 3
    packed = decoder.lay_out(images)
    ink_BP, value_NIV = any_model.logits(packed, labels)
    own_NI = packed.own_NI
    value_NIV = decoder.not_blank(value_NIV, own_NI)

    symbols = draw.symbols_of(decoder.around, images)
    drawing = Forced(*any_model.begin(labels[:, None]), symbols, Sampling())
    *_, drawn = drawing.steps()
    assert torch.equal(drawn(), images)
    if decoder.gate is not None:
        assert len(drawing.place_R) < 9  # some left on the way
        found = [drawing.ink[b, p] for b in range(9) for p in range(decoder.around.num_patches)]
        torch.testing.assert_close(torch.stack(found).view_as(ink_BP), ink_BP)
    places = packed.inked_BP.nonzero().tolist()
    found = [drawing.values[b, p, i] for b, p in places for i in range(own_NI.shape[1])]
    torch.testing.assert_close(torch.stack(found).view_as(value_NIV), value_NIV)


def test_all_images_may_be_blank(model):
    blank = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    assert model.nll(blank, [0, 1]).isfinite().all()
    with torch.no_grad():
        model.decoder.gate.output.bias.fill_(-1e4)
    assert [canvas.sum().item() for canvas in model.steps([0, 1], seeds=[0, 1])] == [0]


def test_without_a_background_there_is_no_gate():
    model = CONFIGS["wide, in colour, no background"].build()
    assert not [name for name, _ in model.named_parameters() if "gate" in name]
    canvases = list(model.eval().steps([0], seeds=[0]))
    assert len(canvases) == 1 + 2 * 6  # a step per patch
    assert canvases[0].sum() == 0


def test_a_patch_with_ink_is_not_all_background(any_model):
    """However improbable the other values of its last place are."""
    decoder, background = any_model.decoder, any_model.config.data.background
    if background is None:
        pytest.skip("there is no gate")
    with torch.no_grad():
        decoder.gate.output.bias.fill_(1e4)
        decoder.head.output.bias[background] += 1e4
    drawn = any_model.sample([0, 1, 2], seeds=range(3))
    inked = decoder.lay_out(drawn).inked_BP
    assert inked.all()
    assert ((drawn != background).sum((1, 2, 3)) == inked.shape[1]).all()


@pytest.mark.parametrize("how", [Sampling(), Sampling(guidance=2.0)])
def test_drawing_with_images_dropped_from_the_cache_is_drawing_them_alone(model, how):
    """Images of very different length, so that the cache is made smaller on the way."""
    with torch.no_grad():
        model.decoder.gate.output.bias.fill_(-2.0)
    seeds = list(range(24))
    together = model.sample([0] * 24, seeds, how)
    num_inked = model.decoder.lay_out(together).inked_BP.sum(1)
    assert num_inked.min() < num_inked.max()
    alone = torch.cat([model.sample([0], [seed], how) for seed in seeds])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("how", [Sampling(), Sampling(temperature=0.8, top_k=5, guidance=2.0)])
def test_values_drawn_from_guesses_are_those_drawn_one_by_one(any_model, how, monkeypatch):
    seeds, labels = range(40), [seed % 3 for seed in range(40)]
    monkeypatch.setattr(Drawing, "guessed_bits", 0)
    one_by_one = any_model.sample(labels, seeds, how)
    for guessed_bits in (100, 10_000):
        monkeypatch.setattr(Drawing, "guessed_bits", guessed_bits)
        assert torch.equal(any_model.sample(labels, seeds, how), one_by_one)


def test_few_images_are_drawn_in_fewer_passes(model, monkeypatch):
    passes = []
    model.decoder.head.register_forward_hook(lambda *_: passes.append(Drawing.guessed_bits))
    for guessed_bits in (0, 512):
        monkeypatch.setattr(Drawing, "guessed_bits", guessed_bits)
        for seed in range(10):
            model.sample([1], [seed])
    assert passes.count(512) < 0.9 * passes.count(0)


def test_the_window_is_the_same_by_rows_and_by_product(any_model):
    around, window = any_model.decoder.around, any_model.decoder.head.window
    values = torch.randint(0, len(around.features), (5, len(around.slots)))  # the last is outside
    table = (around.features @ window.weight).flatten(0, 1)
    by_rows = window.look(table, values, 0, around.num_own)
    torch.testing.assert_close(by_rows.flatten(1), window(around.embed(values)))
    some = window.look(table, values, 1, 3)
    torch.testing.assert_close(some, by_rows[:, 1:3])


def test_a_value_sees_earlier_ones_within_the_margin_alone(any_model):
    around, window = any_model.decoder.around, any_model.decoder.head.window
    values = torch.zeros(1, len(around.slots), dtype=torch.long)
    before = window(around.embed(values)).view(around.num_own, -1)
    for slot, (row, column, _) in enumerate(around.slots):
        changed = values.clone()
        changed[0, slot] = 1
        after = window(around.embed(changed)).view(around.num_own, -1)
        for i, (y, x, _) in enumerate(around.slots[around.num_before :]):
            near = max(abs(row - y), abs(column - x)) <= around.margin
            sees = near and slot < around.num_before + i
            assert torch.equal(before[i], after[i]) != sees


@pytest.mark.parametrize(("levels", "background"), [(2, 0), (2, None), (3, 1), (16, 0), (256, 0)])
def test_features_tell_levels_apart_and_are_as_few_as_can_be(levels, background):
    features = levels_of.features(levels, background)
    assert features.shape[0] == levels + 1
    assert features.shape[1] <= min(levels, 18)
    assert torch.cdist(features, features).fill_diagonal_(1).min() > 0.05
    assert torch.linalg.matrix_rank(features.double()) == features.shape[1]


def test_built_in_guidance_is_a_share_of_the_way_from_the_null_class_in_training(model):
    guided = replace(model.config, built_in_guidance=2.0, class_drop=0.0, dropout=0.5).build()
    guided.load_state_dict(model.state_dict())
    images, labels = sparse(model, 6), torch.arange(6) % 3
    packed = guided.eval().decoder.lay_out(images)
    own, null = (guided.logits(packed, cond) for cond in (labels, torch.full((6,), 3)))
    between = [guidance_free(x, y, 2.0) for x, y in zip(own, null, strict=True)]
    for middle, x, y in zip(between, own, null, strict=True):
        torch.testing.assert_close(middle, (x + y) / 2)
    expected = guided.decoder.nats(packed, *between).flatten(1).sum(1)
    guided.train()
    for block in guided.transformer.blocks:  # all else is as in training
        block.attention.dropout = block.probability = 0.0
    loss = guided.loss(images, labels)
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    assert not guided.classes.table.weight.grad[3].any(), "the null class is held fixed"
    torch.testing.assert_close(guided.nll(images, labels), model.nll(images, labels))
    torch.testing.assert_close(guided.nll(images, labels, fitted=True), expected)
    assert guided.training


def test_an_error_in_the_null_pass_leaves_the_mode(model, monkeypatch):
    guided = replace(model.config, built_in_guidance=2.0).build().train()
    monkeypatch.setattr(type(guided), "num_classes", 99)  # the null class is not one of the model's
    with pytest.raises(IndexError):
        guided.loss(sparse(model, 3), torch.arange(3))
    assert guided.training


def test_kept_pixels_of_a_wide_coloured_image(any_model):
    images = sparse(any_model, 4)
    mask = torch.zeros(4, 1, *any_model.image_shape[1:], dtype=torch.bool)
    mask[..., ::2] = True
    drawn = any_model.sample([0, 1, 2, 0], range(4), Sampling(num_particles=3), Keep(images, mask))
    kept = mask.expand_as(images)
    assert torch.equal(drawn[kept], images[kept])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 3}, "image_size is 8, expected a multiple of patch_size 3"),
        ({"patch_size": 0}, "patch_size is 0, expected 1 or more"),
        ({"margin": 0}, "margin is 0, expected 1 to 16"),
        ({"built_in_guidance": 0.5}, "built_in_guidance is 0.5, expected 1 or more"),
    ],
)
def test_senseless_sizes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY["patch"], **change)


def test_logistics_around_a_prediction_are_probabilities_of_levels():
    torch.manual_seed(0)
    parameters, predicted = torch.randn(100, 15) * 4, torch.rand(100) * 300 - 20
    logits = levels_of.log_prob(
        parameters[:, None], predicted[:, None], torch.arange(256), num_levels=256
    )
    assert logits.isfinite().all()
    assert torch.allclose(logits.exp().sum(1), torch.ones(100), atol=1e-5)
    # The mass between two edges, as the paper has it, in float64.
    weights, means, log_scales = parameters.double().chunk(3, -1)
    scales = log_scales.clamp(min=levels_of.LEAST_LOG_SCALE).exp() * 255
    edges = torch.arange(1, 256) - 0.5 - predicted.double()[:, None]
    below = (edges[..., None] / scales[:, None] - means[:, None]).sigmoid()
    ends = (
        torch.nn.functional.pad(below, (0, 0, 1, 0)),
        torch.nn.functional.pad(below, (0, 0, 0, 1)),
    )
    ends[1][:, -1] = 1
    expected = ((ends[1] - ends[0]) * weights.softmax(-1)[:, None]).sum(-1)
    assert torch.allclose(logits.exp(), expected.float(), atol=1e-5)


def test_a_value_is_predicted_from_those_drawn_before_it():
    spec = make_spec(4, 2, levels=256, channels=3, background=None)
    around = Neighbourhood(spec, size=2, margin=1)
    columns = torch.arange(4, dtype=torch.uint8).expand(1, 3, 4, 4) * 10
    images = columns + torch.tensor([0, 50, 100], dtype=torch.uint8)[:, None, None]
    values = around.pad(images)[:, around.slot_index]
    predicted, own = around.predict(values)[0], values[0, :, around.num_before :]
    # Inside, green and blue differ from their prediction as red does: not at all.
    inside = own[3].view(2, 2, 3)
    assert torch.equal(predicted[3].view(2, 2, 3)[..., 1:], inside[..., 1:].float())
    for i in range(around.num_own):
        other = values.clone()
        other[..., around.num_before + i :] = 7
        assert torch.equal(
            around.predict(other)[..., : i + 1], around.predict(values)[..., : i + 1]
        )
