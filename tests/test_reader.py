"""The adapter behind a language model, and the states that it is trained on."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from helpers import make_spec, moved

from mnist_transformer.data import states as states_of
from mnist_transformer.data.prompted import Prompts
from mnist_transformer.data.states import encode_prompts
from mnist_transformer.data.states import load as load_states
from mnist_transformer.models.reader import Reader, ReaderConfig
from mnist_transformer.prompting.tokens import encode, stack, targets
from mnist_transformer.recipes import Recipe
from mnist_transformer.training.loop import train

READER = ReaderConfig(
    make_spec(8, 3), state_dim=8, dim=16, depth=2, num_heads=2, mlp_dim=16, dropout=0.0
)
ANSWERS = [digits for size in range(3) for digits in product(range(3), repeat=size)]
SAID = {"one": (1,), "twenty": (2, 0), "two": (2,), "a cat": ()}


def some_states(texts: list[str]) -> list[torch.Tensor]:
    """What stands for a language model: a byte a token."""
    table = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
    return [table[torch.tensor(list(text.encode()))] for text in texts]


def padded(texts: list[str]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(some_states(texts), True, padding_side="left")


def test_an_adapter_answers_exactly_whatever_else_is_in_the_batch() -> None:
    reader = moved(READER).eval()
    answers = targets(stack([encode("?", digits) for digits in ANSWERS]), 3, 2)
    states = padded(["two + 1"] * len(ANSWERS))
    with torch.no_grad():
        nats = reader.loss(states, answers)
        beside = reader.loss(padded(["two + 1", "a longer prompt"]), answers[4:6])
    assert (-nats.double()).exp().sum().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(beside[0], nats[4])


def test_an_adapter_is_trained_on_states_that_were_kept(tmp_path, monkeypatch) -> None:
    with pytest.raises(ValueError, match="write them with `mnist-transformer prompts encode`"):
        load_states(tmp_path)
    encode_prompts(tmp_path, some_states, num_prompts=60, report=lambda *_: None)
    data = load_states(tmp_path)
    assert len(data.train) == len(data.val) == 60
    written = Prompts(60).written()
    states, answers = data.train.batch(torch.tensor([7, 3]))
    expected = padded([written[7].text, written[3].text]).half()
    assert torch.equal(states, expected)
    assert (
        answers[0].tolist() == targets(stack([encode("?", written[7].digits)]), 10, 2)[0].tolist()
    )
    part = data.train.part(3, 8)
    assert torch.equal(part.batch(torch.tensor([4, 0]))[0], expected)
    assert len(data.train.part(50, 1000)) == 10
    with monkeypatch.context() as other:
        other.setattr(states_of, "SOURCE", "another model")
        with pytest.raises(ValueError, match="ones first, expected another model"):
            load_states(tmp_path)
    config = replace(READER, data=make_spec(8))
    recipe = Recipe("tiny", config, dataset="none", batch_size=8, epochs=1)
    train(recipe, tmp_path / "run", data=data, device="cpu")
    assert '"answers_right"' in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_an_adapter_learns_to_answer_and_to_refuse() -> None:
    torch.manual_seed(0)
    reader: Reader = READER.build()
    states = padded(list(SAID))
    answers = targets(stack([encode("?", digits) for digits in SAID.values()]), 3, 2)
    optimizer = torch.optim.Adam(reader.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        reader.loss(states, answers).mean().backward()
        optimizer.step()
    assert reader.eval().read(states) == list(SAID.values())
