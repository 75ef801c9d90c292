"""ask."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from mnist_transformer.commands.common import OptionalInt, OptionalPath, OptionalStr
from mnist_transformer.commands.draw import check_picture, picture_files
from mnist_transformer.utils.terminal import complain, say, show


def ask(
    prompt: Annotated[Positional[str | None], arg(metavar="PROMPT")] = None,
    model: str = "mnist-prompt-scratch",
    seed: int = 0,
    temperature: float = 1.0,
    top_k: OptionalInt = None,
    top_p: float = 1.0,
    guidance: float = 2.0,
    out: OptionalPath = None,
    device: OptionalStr = None,
) -> None:
    """Ask for a number in words, as in "Show me 2 + four"; without a prompt, line by line.

    What is no request for a number from 0 to 99, plainly or as a sum, difference or product, is
    refused. Lines are read until Ctrl-D.

    Args:
        prompt: What to draw; if it is not given, the lines of standard input are.
        model: A shipped model, a checkpoint or a training run's folder that reads prompts:
            mnist-prompt-scratch, or mnist-prompt-smollm2 (needs the extra [prompts]).
        seed: The same seed draws the same picture of the same prompt.
        temperature: Above 0; below 1 draws safer, above 1 wilder. Answers are not drawn at random.
        top_k: Draw from this many of the likeliest values only.
        top_p: Draw from the likeliest values that make up this share, in (0, 1].
        guidance: Classifier-free guidance: 1 is plain, above 1 makes the digits plainer, which
            mnist-prompt-scratch needs and mnist-prompt-smollm2 does not.
        out: The PNG file to write, or a folder for it; otherwise NUMBER.png in this folder.
        device: Such as cpu, cuda or mps; otherwise the best there is.
    """
    if prompt is not None and not prompt.strip():
        raise ValueError('the prompt is empty, expected a sentence such as "Draw a 7"')
    from mnist_transformer.networks.drawing import Noise
    from mnist_transformer.options import Sampling
    from mnist_transformer.prompting import asking
    from mnist_transformer.prompting.prompts import SCOPE
    from mnist_transformer.utils import images

    how = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, guidance=guidance)
    Noise([seed])  # a seed that is none is known before the model is loaded
    check_picture(out)
    asked = asking.load(model, device)

    def answer(text: str) -> None:
        digits = asked.answer(text)
        if not digits:
            raise ValueError(f"{text!r} asks for nothing that I can draw: {SCOPE}")
        number = "".join(map(str, digits))
        png, _ = picture_files(number, out, gif=False)
        drawn = asked.draw([text], [digits], range(seed, seed + len(digits)), how)
        picture = images.grid(drawn, len(digits))
        notes = {"Description": f"{text} drawn by {Path(model).name}, seed {seed}, {how}"}
        images.save_png(images.enlarge(picture), png, notes)
        show(picture)
        say(f"{number}: saved {png}")

    if prompt is not None:
        answer(prompt)
    else:
        _answer_lines(answer)


def _answer_lines(answer: Callable[[str], None]) -> None:
    """Answer every line of standard input; what is wrong with one is said, and the next is read."""
    mark = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(mark)
        except EOFError:
            return
        except UnicodeDecodeError:
            complain("a line is no text in UTF-8, expected a sentence")
            continue
        if not line.strip():
            continue
        try:
            answer(line.strip())
        except ValueError as error:
            complain(str(error))
