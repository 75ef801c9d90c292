"""ask."""

import sys
from typing import Annotated

from tyro.conf import Positional, arg

from mnist_transformer.commands import common
from mnist_transformer.options import GUIDED, check_seed
from mnist_transformer.utils.files import short_name
from mnist_transformer.utils.terminal import complain


def ask(
    prompt: Annotated[Positional[str | None], arg(metavar="PROMPT")] = None,
    model: common.Model = "mnist-prompt-scratch",
    seed: common.Seed = 0,
    how: common.How = GUIDED,
    out: common.Out = None,
    device: common.Device = None,
) -> None:
    """Ask for a number in words, as in "Show me 2 + four"; without a prompt, line by line.

    Only requests for a number from 0 to 99 are answered, named plainly or as a sum, difference or
    product. Models that read prompts are mnist-prompt-scratch, which needs its guidance, and
    mnist-prompt-smollm2, which needs the extra [prompts]. Lines are read until Ctrl-D.

    Args:
        prompt: The request; without it the lines of standard input are requests.
    """
    check_seed(seed)
    common.check_picture(out)
    if prompt is None and sys.stdin is None:
        raise ValueError("standard input is closed, expected it open or a prompt")
    from mnist_transformer.prompting import asking
    from mnist_transformer.prompting.prompts import SCOPE
    from mnist_transformer.utils import images

    asked = asking.load(model, device)

    def answer(text: str) -> None:
        digits = asked.answer(text)
        if not digits:
            raise ValueError(f"{text!r} asks for nothing that I can draw: {SCOPE}")
        number = "".join(map(str, digits))
        png = common.picture_file(number, out)
        conditions, seeds = asked.conditions([text], [digits]), range(seed, seed + len(digits))
        drawn = asked.drawer.sample(conditions, seeds, how)
        made = f"{text} drawn by {short_name(model)}, seed {seed}, {how}"
        common.finish(images.grid(drawn, len(digits)), png, made, said=f"{number}: ")

    if prompt is not None:
        return answer(prompt)
    mark = "> " if sys.stdin.isatty() else ""
    while True:  # a wrong line is reported, and the next one read
        try:
            if line := input(mark).strip():
                answer(line)
        except EOFError:
            return
        except ValueError as error:
            complain(str(error))
