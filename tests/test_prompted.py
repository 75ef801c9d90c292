"""A prompt, its answer and a digit in one sequence."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from helpers import (
    BARS,
    TINY,
    Killed,
    assert_same_bits,
    kill_at,
    make_spec,
    moved,
    random_images,
    weights,
)

from mnist_transformer.data import Dataset, Split
from mnist_transformer.data.prompted import (
    PromptedSplit,
    Prompts,
    is_for_testing,
    read_prompts,
    with_prompts,
)
from mnist_transformer.models.patch_law.prompted import Prompted, PromptedConfig
from mnist_transformer.options import Sampling
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


@pytest.fixture
def model() -> Prompted:
    return moved(CONFIG).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return random_images(4, levels=16)


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


def test_a_picture_depends_on_its_prompt_and_answer_and_on_earlier_patches_only(
    model: Prompted, images: torch.Tensor
) -> None:
    def nats(image: torch.Tensor, *said: tuple[str, tuple[int, ...], int]) -> torch.Tensor:
        with torch.no_grad():
            return model.pixel_nats(image, stack([row(*x) for x in said]))

    first = nats(images[:1], ("ab", (1, 2), 1))
    for said in (("bb", (1, 2), 1), ("ab", (1, 0), 1), ("ab", (1, 2), 2)):
        assert (nats(images[:1], said) != first).all()
    changed = images[:1].clone()
    changed[..., 4:, 4:] = 15 - changed[..., 4:, 4:]
    after = nats(changed, ("ab", (1, 2), 1))
    assert torch.equal(after[:, :4], first[:, :4])
    assert torch.equal(after[:, 4:, :4], first[:, 4:, :4])
    assert not torch.equal(after, first)
    # Neither on what else is in the batch, or read beside it.
    pair = nats(images[:2], ("ab", (1, 2), 1), ("a longer one", (0,), 0))
    torch.testing.assert_close(pair[:1], first)
    rows = stack([row("ab", (1, 2), 1), row("no", (), 1)])[None]
    torch.testing.assert_close(model.pixel_nats(images[:1], rows), first)


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
    model.classes.drop = 1 - 1e-7
    losses = []
    for text in ("ab", "xyz"):
        torch.manual_seed(0)
        rows = stack([row(text, (1,), 1)] * 4)
        seen = model._nats_and_states(images, model.classes.with_drops(rows[:, 0]), rows[:, 1:])
        losses.append(seen[0])
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(losses[0].flatten(1).sum(1), model.eval().nll(images, None))


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
        PromptedConfig(make_spec(classes=11))


SAID = {"one": (1,), "twenty": (2, 0), "two": (2,), "a cat": ()}


def test_it_learns_to_answer_and_to_refuse() -> None:
    torch.manual_seed(0)
    model = replace(CONFIG, answer_weight=1e3).build()
    blank = torch.zeros(len(SAID), 1, 8, 8, dtype=torch.uint8)
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
    def ten(split: Split) -> Split:
        return replace(split, labels=torch.arange(len(split)) % 10)

    return with_prompts(BARS.map(lambda name, split: ten(split)), Prompts(300))


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
    config = replace(CONFIG, data=make_spec(8, levels=4), dropout=0.1, depth=1)
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
