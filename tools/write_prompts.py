"""Have a language model write training prompts, and keep the right ones.

    OPENAI_API_KEY=... python -m tools.write_prompts 1000 --out prompts.jsonl

Needs openai, which the extra [test] installs, and a server with OpenAI's chat completions and
structured output. SmolLM2 behind llama.cpp's server wrote the shipped prompts.

The model gets calculations and a voice. It writes a sentence for each one and states operation,
operands and answer. Arithmetic checks the statement, and rules read the numbers in the sentence.
Wrong prompts are dropped and counted by reason. Right ones are appended as JSON lines after each
request, so the same command resumes an interrupted run. Every run adds a line to OUT.runs.jsonl.
The key is read from OPENAI_API_KEY alone and sent to the server alone.
"""

import json
import os
import random
import re
import sys
from collections import Counter
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import openai
import tyro
from pydantic import BaseModel

from mnist_transformer.data.prompted import read_prompts
from mnist_transformer.evaluation.ledger import clean_command
from mnist_transformer.prompting.grammar import prompts
from mnist_transformer.prompting.prompts import MAX_BYTES, SIGN, compute, find_numbers, results_of
from mnist_transformer.utils.terminal import exit_code, say, stages

ADDRESS = re.compile(r"https?://([\w.-]+|\[[\da-f:]+\])(:\d+)?(/[^\s@?]*)?")
KEY_VARIABLE = "OPENAI_API_KEY"
MAX_RETRIES = 5  # by the client, which honours Retry-After and waits longer each time
MAX_TOKENS = 2000  # of a reply
MAX_FRUITLESS = 40  # requests in a row without a new prompt
SYSTEM = (
    "You write what people type to a program that draws one number from 0 to 99. Each sentence "
    "asks it to draw a number, named plainly or as a sum, difference or product, with numbers in "
    'digits or in words, such as "Show me 2 + four" or "pls draw twice 21". Write one sentence for '
    "each number or calculation that you are given, and state its operation, operands and answer."
)
VOICES = ("a child", "a teacher", "a poet", "someone in a hurry", "a very polite person")
SIGNS = {"number": "the number {}", "sum": "{} + {}", "difference": "{} - {}", "product": "{} x {}"}
# Next to a number these change its meaning: without a known phrase, nothing is read.
CHANGES = re.compile(
    rf"{SIGN} ?#|# ?{SIGN}(?: |$)|\bx #|# x\b|\b(?:plus|minus|times|add|adding|added|sum|total|"
    r"subtract|subtracting|subtracted|less|fewer|more|from|away|taken|twice|double|doubled|"
    r"triple|thrice|multiply|multiplied|product|difference|half|third|quarter|dozen|divided|"
    r"squared?|cubed?|root|power|percent|hundred|thousand|million|billion|negative|point)\b"
)


class Written(BaseModel):
    """A sentence and the model's statement about it."""

    text: str
    operation: Literal["number", "sum", "difference", "product"]
    operands: list[int]
    answer: int


class Reply(BaseModel):
    """The structure of a reply."""

    prompts: list[Written]


def ask(client: openai.OpenAI, model: str, request: str) -> list[Written]:
    """The prompts of the model's reply; none if it cannot be used.

    Raises:
        ConnectionError: the server cannot be reached, refuses, or is not one of this kind.
    """
    try:
        completion = client.chat.completions.parse(
            model=model,
            messages=[{"role": "system", "content": SYSTEM}, {"role": "user", "content": request}],
            response_format=Reply,
            max_completion_tokens=MAX_TOKENS,
        )
    except (openai.LengthFinishReasonError, openai.ContentFilterFinishReasonError, ValueError):
        return []
    except (openai.APIError, AttributeError, TypeError) as error:
        # The server's words may repeat the key. A web page is an AttributeError in the client.
        raise ConnectionError(f"{client.base_url} failed: {type(error).__name__}") from None
    parsed = completion.choices[0].message.parsed if completion.choices else None
    return parsed.prompts if parsed else []


def parse(text: str) -> int | None:
    """The number that a plainly written request asks for; None where the rules are not sure.

    A single number is the answer if nothing near it changes its meaning. Otherwise the text has
    to contain phrases of the templates, and all of them have to agree.
    """
    marked, numbers = find_numbers(text)
    answers = results_of(marked, numbers)
    if not answers and len(numbers) == 1 and not CHANGES.search(marked):
        answers = {compute("number", numbers)}
    return answers.pop() if len(answers) == 1 else None


def fault(said: Written) -> str | None:
    """The reason to drop a prompt; None if it is right."""
    if not 0 < len(said.text.encode()) <= MAX_BYTES:
        return "empty or too long"
    if compute(said.operation, said.operands) != said.answer:
        return "wrong arithmetic"
    numbers, operands = Counter(find_numbers(said.text)[1]), Counter(said.operands)
    doubled = said.operation == "product" and numbers + Counter([2]) == operands
    if numbers != operands and not doubled:
        return "other numbers in the text"
    return None if parse(said.text) in (None, said.answer) else "asks for something else"


def key(text: str) -> str:
    """Equal for texts that differ only in case, spaces or their end."""
    return " ".join(text.casefold().split()).strip(" .!?")


def resume(out: Path) -> set[str]:
    """Keys of the prompts in a file; a last line that an interruption cut off is removed."""
    if not out.exists():
        return set()
    content = out.read_bytes()
    torn = content[content.rfind(b"\n") + 1 :]
    if torn and torn.startswith(b'{"text": '[: len(torn)]):
        os.truncate(out, len(content) - len(torn))
    return {key(prompt.text) for prompt in read_prompts(out)}


def write(client: openai.OpenAI, model: str, out: Path, n: int, per_request: int) -> str:
    """Append prompts to a file until it holds n different ones; returns the counts in words."""
    seen, counts, fruitless = resume(out), Counter(requests=0, kept=0), 0
    tasks = (p for p in prompts("train", len(seen)) if p.answer is not None)
    rng, date = random.Random(len(seen)), datetime.now(timezone.utc).isoformat(" ", "seconds")
    command = clean_command(["python", "-m", "tools.write_prompts", *sys.argv[1:]])
    run = {"model": model, "date": date, "command": command, "counts": counts}
    with out.open("a", encoding="utf-8") as file, stages() as report:
        try:
            while len(seen) < n and fruitless < MAX_FRUITLESS:
                report("prompts", len(seen), n)
                # Only words are wanted, and small models are bad at arithmetic.
                wanted = "; ".join(
                    f"{SIGNS[task.operation].format(*task.operands)}, answer {task.answer}"
                    for task in islice(tasks, per_request)
                )
                reply = ask(client, model, f"In the words of {rng.choice(VOICES)}: {wanted}")
                counts.update(["requests"] if reply else ["requests", "unusable reply"])
                fruitless += 1
                for said in reply:
                    if len(seen) == n:
                        break
                    said.text = " ".join(said.text.split())
                    reason = fault(said) or ("duplicate" if key(said.text) in seen else "kept")
                    counts[reason] += 1
                    if reason == "kept":
                        file.write(json.dumps(said.model_dump() | {"model": model}) + "\n")
                        seen.add(key(said.text))
                        fruitless = 0
                file.flush()
                os.fsync(file.fileno())
        finally:
            with out.with_suffix(".runs.jsonl").open("a", encoding="utf-8") as record:
                record.write(json.dumps(run) + "\n")
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    if len(seen) < n:
        raise ValueError(f"{model} wrote nothing new in {fruitless} requests in a row ({told})")
    return told


def main(
    n: Annotated[tyro.conf.Positional[int], tyro.conf.arg(metavar="N")],
    out: Path = Path("prompts.jsonl"),
    model: str = "gpt-4.1-nano",
    base_url: str = "https://api.openai.com/v1",
    per_request: int = 10,
    timeout: float = 60.0,
) -> None:
    """Write prompts until OUT holds N different ones.

    Args:
        n: How many different prompts OUT is to hold.
        out: JSON lines, appended to.
        model: The model's name at the server.
        base_url: The server's address.
        per_request: How many prompts to ask for at once; 1 suits a small model.
        timeout: Seconds that one reply may take.
    """
    if n < 1 or per_request < 1:
        raise ValueError(f"N is {n} and per_request is {per_request}, expected 1 or more")
    if not ADDRESS.fullmatch(base_url):  # a password or key in it would get into the record
        raise ValueError("the base URL is not one like https://api.openai.com/v1")
    secret = os.environ.get(KEY_VARIABLE, "").strip()
    if not secret or not secret.isascii():
        raise ValueError(f"{KEY_VARIABLE} holds no key; any word will do where none is needed")
    client = openai.OpenAI(
        api_key=secret, base_url=base_url, timeout=timeout, max_retries=MAX_RETRIES
    )
    say(f"{out}: {write(client, model, out, n, per_request)}")


if __name__ == "__main__":
    sys.exit(exit_code("write_prompts", lambda: tyro.cli(main, description=__doc__)))
