"""Prompts that a language model writes, each one checked before it is kept.

The model is given operands and a voice, and states operation, operands and answer beside each
sentence, which ``prompt_corpus.fault`` checks. What passes is appended to a file of JSON lines at
once, so that an interrupted run goes on where it stopped; beside it stands a record of the runs:
model, date, what was kept, and what was dropped for which reason.
"""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mnist_transformer.prompting import corpus as prompt_corpus
from mnist_transformer.prompting import grammar as prompt_grammar
from mnist_transformer.prompting.corpus import fault, key, tidy
from mnist_transformer.prompting.prompts import Prompt, parse
from tools.chat import ChatServer, UnusableReply

NUM_EXAMPLES = 3  # answered requests that stand before the real one
MAX_FRUITLESS = 40  # requests in a row that bring nothing new

_SYSTEM = (
    "You write what people type to a program that draws one number from 0 to 99. Each sentence "
    "asks it to draw a number, named plainly or as a sum, difference or product, with numbers in "
    "digits or in words. Write one sentence for each number or calculation that you are given, and "
    "state its operation, operands and answer. Reply in JSON."
)
_VOICES = (
    *("a child", "a teacher", "someone in a hurry", "a very polite person", "an excited person"),
    *("a grumpy person", "a shopkeeper", "someone texting a friend", "a scientist", "a poet"),
    *("a grandmother", "a person of few words"),
)
_SIGNS = {
    "number": "the number {}",
    "sum": "{} + {}",
    "difference": "{} - {}",
    "product": "{} x {}",
}


class Written(BaseModel):
    """One sentence, as the model states it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: str
    operation: Literal["number", "sum", "difference", "product"]
    operands: list[int] = Field(min_length=1, max_length=2)
    answer: int


class Reply(BaseModel):
    """What the model is asked for."""

    model_config = ConfigDict(extra="forbid")

    prompts: list[Written]


@dataclass
class Run:
    """What one run did; ``dropped`` counts prompts, and whole replies, by reason."""

    model: str
    base_url: str
    date: str
    command: str | None = None
    num_requests: int = 0
    num_kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.dropped.items())
        return f"{self.num_kept} kept in {self.num_requests} requests; dropped: {reasons or 'none'}"


def write_corpus(
    out: Path,
    *,
    base_url: str,
    model: str,
    n: int,
    per_request: int = 10,
    temperature: float = 1.0,
    timeout: float = 60.0,
    seed: int = 0,
    command: str | None = None,
    report: Callable[[str, int, int | None], None] = lambda stage, done, total: None,
) -> Run:
    """Append prompts to ``out`` until it holds n different ones.

    Args:
        out: JSON lines, made where missing; a half-written last line is put right.
        base_url, model, temperature, timeout: as in ``ChatServer``; the key is in OPENAI_API_KEY.
        per_request: how many prompts a request asks for.
        command: kept in the record.
        report: called with ("prompts", how many there are, n).

    Raises:
        ValueError: an argument or a file that cannot be used, or a model that brings nothing new.
        ConnectionError: a server that cannot be reached, refuses, or stopped answering.
        OSError: ``out`` cannot be written.

    Whatever is raised, the prompts kept until then are in ``out`` and the same call goes on.
    """
    if n < 1:
        raise ValueError(f"n is {n}, expected 1 or more")
    if not 1 <= per_request <= 50:
        raise ValueError(f"per_request is {per_request}, expected 1 to 50")
    if not 0 <= temperature <= 2:
        raise ValueError(f"temperature is {temperature}, expected 0 to 2")
    if not 0 < timeout < float("inf"):
        raise ValueError(f"timeout is {timeout}, expected a finite number of seconds above 0")
    schema = Reply.model_json_schema()
    schema["properties"]["prompts"]["maxItems"] = per_request
    server = ChatServer(
        base_url,
        model,
        timeout=timeout,
        temperature=temperature,
        max_tokens=300 + 100 * per_request,
        schema=schema,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    earlier = prompt_corpus.earlier_runs(out)
    seen = {key(prompt.text) for prompt in prompt_corpus.resume(out)}
    date = f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M:%S} UTC"
    run = Run(model, base_url, date, command)
    rng = random.Random(seed + len(seen))
    tasks = _tasks(rng.randrange(2**32))
    fruitless = 0
    with prompt_corpus.appending(out) as append:
        while len(seen) < n and fruitless < MAX_FRUITLESS:
            report("prompts", len(seen), n)
            try:
                shown, messages = _messages(tasks, rng.choice(_VOICES), per_request)
                items = _read(server.ask(messages), model)
            except UnusableReply as reason:
                items = [str(reason)]
            except ConnectionError as error:
                safe = f"; {len(seen)} of {n} prompts are in {out}, and the same command goes on"
                raise ConnectionError(f"{error}{safe if seen else ''}") from None
            run.num_requests += 1
            num_before = run.num_kept
            for item in items[: per_request * 2]:
                problem = item if isinstance(item, str) else _fault(item, seen, shown)
                if problem is not None:
                    run.dropped[problem] = run.dropped.get(problem, 0) + 1
                elif isinstance(item, Prompt) and len(seen) < n:
                    append(item)
                    seen.add(key(item.text))
                    run.num_kept += 1
            prompt_corpus.record(out, [*earlier, asdict(run)])
            fruitless = 0 if run.num_kept > num_before else fruitless + 1
    report("prompts", len(seen), n)
    if len(seen) < n:
        raise ValueError(
            f"{model} brought nothing new in {fruitless} requests in a row, {len(seen)} of {n} "
            f"prompts are in {out} ({run})"
        )
    return run


def _read(content: str, model: str) -> list[Prompt | str]:
    """The prompts of a reply; in the place of one that is none, the reason."""
    try:
        # A model that is not held to JSON puts a word before it and after.
        items = list(json.loads(content[content.find("{") : content.rfind("}") + 1])["prompts"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UnusableReply("unreadable reply") from None
    read: list[Prompt | str] = []
    for item in items:
        try:
            said = Written.model_validate(item)
        except ValidationError:
            read.append("malformed")
            continue
        operands = tuple(said.operands)
        read.append(Prompt(tidy(said.text), said.answer, said.operation, operands, model))
    return read


def _fault(prompt: Prompt, seen: set[str], shown: set[str]) -> str | None:
    """Why a prompt cannot be kept, beside those that are there and those that were examples."""
    if key(prompt.text) in shown:
        return "copied"
    return fault(prompt) or ("duplicate" if key(prompt.text) in seen else None)


def _tasks(seed: int) -> Iterator[Prompt]:
    """Plain requests of the grammar: operands to use, and examples."""
    for prompt in prompt_grammar.prompts("train", seed):
        if prompt.answer is not None and parse(prompt.text) == prompt.answer:
            yield prompt


def _messages(
    stream: Iterator[Prompt], voice: str, num_prompts: int
) -> tuple[set[str], list[dict[str, str]]]:
    """A request, after answered ones of the same operations with sentences of the grammar.

    Returns:
        The keys of those sentences, and the messages.
    """
    shown: set[str] = set()
    tasks = list(islice(stream, num_prompts))
    messages = [{"role": "system", "content": _SYSTEM}]
    for _ in range(NUM_EXAMPLES):
        like = [next(p for p in stream if p.operation == task.operation) for task in tasks[:3]]
        shown |= {key(p.text) for p in like}
        stated = [
            {"text": p.text, "operation": p.operation, "operands": p.operands, "answer": p.answer}
            for p in like
        ]
        messages.append({"role": "user", "content": _order(like, "anyone")})
        messages.append({"role": "assistant", "content": json.dumps({"prompts": stated})})
    messages.append({"role": "user", "content": _order(tasks, voice)})
    return shown, messages


def _order(tasks: list[Prompt], voice: str) -> str:
    # Small models are bad at arithmetic, and it is their words that are wanted.
    wanted = "; ".join(
        f"{_SIGNS[task.operation].format(*task.operands)}, answer {task.answer}" for task in tasks
    )
    return f"In the words of {voice}: {wanted}"
