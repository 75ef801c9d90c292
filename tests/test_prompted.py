"""A prompt, its answer and a digit in one sequence."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from helpers import TINY, Killed, assert_same_bits, kill_at, make_scans, make_spec, moved, weights

from mnist_transformer.data import Dataset, Split
from mnist_transformer.data.mnist import SCANS
from mnist_transformer.data.mnist import SPEC as MNIST
from mnist_transformer.data.prompted import (
    PromptedSplit,
    Prompts,
    is_for_testing,
    read_prompts,
    with_prompts,
)
from mnist_transformer.models.prompted import Prompted
from mnist_transformer.networks.drawing import Noise
from mnist_transformer.options import Keep, Sampling
from mnist_transformer.prompting.prompts import Prompt, is_held_out
from mnist_transformer.prompting.tokens import (
    ASK,
    IGNORED,
    PAD,
    answer_nats,
    encode,
    read_greedily,
    stack,
    targets,
)
from mnist_transformer.recipes import Recipe
from mnist_transformer.training.loop import train

CONFIG = TINY["prompted"]
ANSWERS = [digits for size in range(3) for digits in product(range(3), repeat=size)]


@pytest.fixture(autouse=True)
def few_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mnist_transformer.models.scan.load_scans", make_scans)


@pytest.fixture
def model() -> Prompted:
    return moved(CONFIG).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return make_scans().images[:4]


def row(text: str, digits: tuple[int, ...], label: int) -> list[int]:
    return [label, *encode(text, digits)]


# --- tokens ---


def test_targets_are_the_digits_ones_first_then_end_then_nothing() -> None:
    text = stack([encode("ab"), encode("abc", (1,)), encode("a", (2, 0)), [PAD]])
    assert targets(text, 3, 2).tolist() == [[3, IGNORED], [1, 3], [0, 2], [IGNORED, IGNORED]]


@pytest.mark.parametrize(("text", "message"), [(" ", "is empty"), ("é" * 65, "has 130 bytes")])
def test_a_prompt_has_to_be_a_short_sentence(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode(text)


def test_half_a_character_is_no_error() -> None:
    assert encode("7\udce9")[-1] == ASK


def test_reading_stops_at_end() -> None:
    said = torch.tensor([[[0, 9, 0], [9, 0, 0]], [[0, 0, 9], [9, 0, 0]]])  # 1, 0, and END
    assert read_greedily(lambda part, answers: said, ["a", "b"], 2) == [(0, 1), ()]


# --- the model ---


def test_probabilities_of_all_answers_sum_to_one(model: Prompted) -> None:
    text = stack([encode("ab c", digits) for digits in ANSWERS])
    with torch.no_grad():
        nats = answer_nats(model.answer_logits(text), targets(text, 3, 2))
    assert (-nats.double()).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_an_answer_is_read_from_what_is_before_it(model: Prompted) -> None:
    with torch.no_grad():
        one, other, longer = (
            model.answer_logits(stack([encode(text, digits)]))[0]
            for text, digits in (("ab", (1, 0)), ("bb", (1, 0)), ("ab", (1, 2)))
        )
    assert (one != other).all()
    assert torch.equal(one[0], longer[0])
    assert not torch.equal(one[1], longer[1])


def test_a_scan_depends_on_its_prompt_and_answer_and_on_earlier_patches_only(
    model: Prompted,
) -> None:
    def nats(scan: torch.Tensor, *said: tuple[str, tuple[int, ...], int]) -> torch.Tensor:
        cond = model.sided(stack([row(*x) for x in said]), torch.full((len(said),), 24))
        with torch.no_grad():
            return model.patch.pixel_nats(scan, cond)

    scans = make_scans().canvas(torch.arange(6), 24)[:, None]
    first = nats(scans[5:], ("ab", (1, 2), 1))
    for said in (("bb", (1, 2), 1), ("ab", (1, 0), 1), ("ab", (1, 2), 2)):
        assert (nats(scans[5:], said) != first).all()
    changed = scans[5:].clone()
    changed[..., 16:, 8:] = 1 - changed[..., 16:, 8:]
    after = nats(changed, ("ab", (1, 2), 1))
    assert torch.equal(after[:, :16], first[:, :16])
    assert torch.equal(after[:, 16:, :8], first[:, 16:, :8])
    assert not torch.equal(after, first)
    # Neither on what else is in the batch.
    pair = nats(scans[[5, 4]], ("ab", (1, 2), 1), ("a longer one", (0,), 0))
    torch.testing.assert_close(pair[:1], first)


def test_a_drawing_gives_a_scan_the_probability_that_the_likelihood_has(
    model: Prompted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A drawing around a scan that is kept as a whole weighs each of its patches and values."""
    scans, sides = make_scans().canvas(torch.arange(2), 24)[:, None], make_scans().sides[:2]
    cond = model.sided(stack([row("draw a two", (2,), 2), row("10", (1, 0), 0)]), sides)
    total = torch.zeros(2)
    monkeypatch.setattr(
        "mnist_transformer.networks.particles.Particles.weigh",
        lambda self, rows, weights: total.index_add_(0, rows, weights),
    )
    keep, how = Keep(scans, torch.ones_like(scans, dtype=torch.bool)), Sampling(num_particles=1)
    with torch.no_grad():
        *_, drawn = model.patch.sample_steps(cond, Noise([0, 1], model.device), how, keep)
        torch.testing.assert_close(-total, model.patch.nats(scans, cond))
    assert torch.equal(drawn(), scans)


def test_prompts_that_are_only_read_do_not_change_a_scan(
    model: Prompted, images: torch.Tensor
) -> None:
    rows = stack([row("ab", (1, 2), 1), row("no", (), 1)])[None]
    torch.testing.assert_close(model.nll(images[:1], rows), model.nll(images[:1], rows[:, 0]))


def test_a_label_is_its_bare_digit(model: Prompted, images: torch.Tensor) -> None:
    rows = stack([row(str(label), (label,), label) for label in (0, 1, 2, 0)])
    assert torch.equal(model.nll(images, [0, 1, 2, 0]), model.nll(images, rows))
    assert torch.equal(model.sample([2], [5]), model.sample(rows[2:3], [5]))


def test_prompts_of_different_length_are_drawn_as_if_alone(model: Prompted) -> None:
    said = [("draw a two", (2,), 2), ("10", (1, 0), 0), ("ab", (1, 0), 1)]
    how = Sampling(guidance=1.5)
    together = model.sample(stack([row(*x) for x in said]), range(3), how)
    alone = [model.sample(stack([row(*x)]), [seed], how) for seed, x in enumerate(said)]
    assert torch.equal(together, torch.cat(alone))
    assert not torch.equal(together[:1], model.sample(stack([row("draw 2", (2,), 2)]), [0], how))


def test_guidance_compares_with_no_prompt_at_all(model: Prompted) -> None:
    rows = stack([row("draw a two", (2,), 2)] * 20)
    unguided = model.sample(rows, range(20), Sampling(guidance=0))
    plain = model.sample(None, range(20))
    assert (unguided == plain).float().mean() > 0.95  # rounding may turn a tie


def test_training_without_class_is_without_prompt(model: Prompted, images: torch.Tensor) -> None:
    model.train()
    model.patch.classes.drop = 1 - 1e-7
    model.config = replace(CONFIG, answer_weight=0.0)
    losses = []
    for text in ("ab", "xyz"):
        torch.manual_seed(0)
        losses.append(model.loss(images, stack([row(text, (1,), 1)] * 4)).detach())
    torch.testing.assert_close(losses[0], losses[1])
    share = math.log(1 - model.config.escape_share)
    torch.testing.assert_close(losses[0] - share, model.eval().nll(images, None))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.int64), "for 1 seeds"),
        (torch.zeros(1, 200, dtype=torch.int64), "1 to 132 tokens"),
        (torch.zeros(1, 3), "expected torch.int64"),
        (torch.tensor([[4, 65, ASK]]), "a class up to 3"),
        (torch.tensor([[0, 999]]), "ids below 260"),
        (torch.tensor([[0, PAD, ASK]]), "at the end only"),
    ],
)
def test_wrong_rows_are_refused(model: Prompted, rows: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.sample(rows, [0])


def test_classes_are_digits() -> None:
    with pytest.raises(ValueError, match="num_classes is 11"):
        replace(CONFIG, data=make_spec(classes=11))


SAID = {"one": (1,), "twenty": (2, 0), "two": (2,), "a cat": ()}


def test_it_learns_to_answer_and_to_refuse() -> None:
    torch.manual_seed(0)
    model = replace(CONFIG, answer_weight=1e3).build()
    blank = torch.zeros(len(SAID), 1, 28, 28, dtype=torch.uint8)  # none has a scan
    rows = stack([row(text, digits, 0) for text, digits in SAID.items()])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(blank, rows).mean().backward()
        optimizer.step()
    assert model.eval().read(list(SAID)) == list(SAID.values())
    assert model.figures(blank, rows) == {"answers_right": 1.0}
    assert model.read([]) == []


# --- its data ---


def prompted() -> Dataset:
    split = Split(make_scans().images.repeat(4, 1, 1, 1), torch.arange(24) % 10)
    return with_prompts(Dataset(split, split, split, MNIST), Prompts(300))


def test_a_batch_comes_with_prompts_that_ask_for_it() -> None:
    data = prompted()
    torch.manual_seed(0)
    images, rows = data.train.batch(torch.arange(20))
    assert torch.equal(images, data.train.images[:20])
    assert rows.shape[:2] == (20, 2)
    assert torch.equal(rows[:, 0, 0], torch.arange(20) % 10)
    for label, said in zip(rows[:, 0, 0].tolist(), rows[:, 0, 1:].tolist(), strict=True):
        assert ASK + 1 + label in said[said.index(ASK) :]
    torch.manual_seed(0)
    assert torch.equal(data.train.batch(torch.arange(20))[1], rows)
    assert isinstance(data.val.part(2, 4), PromptedSplit)
    with pytest.raises(ValueError, match=r"no prompt of 2 asks for a \d, expected more"):
        Prompts(2).draw(torch.zeros(1, dtype=torch.long), 1)


def test_one_prompt_in_twenty_is_written_by_a_language_model(monkeypatch) -> None:
    said = [Prompt(f"seven, {i} times", 7, "number", (7,), "a model") for i in range(20)]
    kept = [p for p in said if not is_for_testing(p)]
    assert 0 < len(kept) < len(said)
    monkeypatch.setattr("mnist_transformer.data.prompted.read_prompts", lambda: said)
    written = Prompts(1000).written()
    assert len(written) == 1000
    assert [p for p in written if p.template == "a model"] == [
        kept[i % len(kept)] for i in range(50)
    ]
    assert all(p.template != "a model" for p in Prompts(1000, corpus=False).written())


def test_a_fifth_of_written_prompts_and_all_held_out_sums_are_for_testing() -> None:
    said = [Prompt(f"{a} + {b}", a + b, "sum", (a, b)) for a in range(40) for b in range(40)]
    testing = [prompt for prompt in said if is_for_testing(prompt)]
    assert 0.25 < len(testing) / len(said) < 0.35
    assert all(prompt in testing for prompt in said if is_held_out(prompt.operands))
    assert 0 < sum(map(is_for_testing, read_prompts())) < len(read_prompts()) / 2


def test_training_prompts_are_nobody_elses() -> None:
    data = prompted()
    splits = (data.train, data.val, data.test)
    texts = [{p.text for p in split.prompts.written()} for split in splits]
    assert len(texts[0] & texts[1]) < len(texts[0]) / 10  # plain ones repeat, "Draw 4"


def test_killed_and_resumed_is_uninterrupted(tmp_path, monkeypatch) -> None:
    scan = replace(CONFIG.scan, data=replace(SCANS, shape=(1, 24, 24)), dropout=0.1, depth=1)
    config = replace(CONFIG, data=MNIST, scan=scan)
    recipe = Recipe("tiny", config, dataset="none", batch_size=8, epochs=2)
    data = prompted()
    whole = train(recipe, tmp_path / "whole", data=data, device="cpu")
    with monkeypatch.context() as patched:
        kill_at(patched, 3)
        with pytest.raises(Killed):
            train(recipe, tmp_path / "parts", data=data, device="cpu")
    parts = train(recipe, tmp_path / "parts", data=data, device="cpu")
    assert_same_bits(weights(parts), weights(whole))
    assert '"answers_right"' in (tmp_path / "whole" / "metrics.jsonl").read_text()
