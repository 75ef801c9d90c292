"""The dials of the demo, derived from the fields of ``Sampling``, and their values.

Every option has its dial, hidden where no model honours it, so all tabs pass the same values on.
"""

from collections.abc import Sequence
from dataclasses import Field
from typing import Any

import gradio as gr

from mnist_transformer.models.base import GenerativeModel
from mnist_transformer.options import NEED_KEEP, OPTIONS, PLAIN, Sampling

MAX_SEED = 2**31

# An interval has two dials, every other option one.
_DIALS: list[tuple[Field, str]] = [
    (option, option.metadata["dial"].label + part)
    for option in OPTIONS
    for part in ((" from", " to") if isinstance(option.default, tuple) else ("",))
]


def dials(
    models: Sequence[GenerativeModel], keeping: bool = False, start: Sampling = PLAIN
) -> list[gr.Component]:
    """The seed, then the dials of all options in the order of the fields, for ``read``.

    They start at the values of ``start``; ``keeping`` says whether pixels are kept.
    """
    made: list[gr.Component] = [gr.Number(0, label="Seed")]
    for option, label in _DIALS:
        dial, value = option.metadata["dial"], getattr(start, option.name)
        fit = {"label": label, **_fit(option, models, keeping)}
        if dial.choices:
            made.append(gr.Dropdown([dial.none, *dial.choices], value=value or dial.none, **fit))
            continue
        if isinstance(value, tuple):
            value = value[label.endswith(" to")]
        info = f"{dial.low:g}: {dial.none}" if dial.none else None
        fit = {"maximum": dial.high, "step": dial.step, "info": info, **fit}
        made.append(gr.Slider(dial.low, value=dial.low if value is None else value, **fit))
    return made


def refit(models: Sequence[GenerativeModel], keeping: bool = False) -> list[dict[str, Any]]:
    """Updates of all dials but the seed for other models."""
    return [gr.update(**_fit(option, models, keeping)) for option, _ in _DIALS]


def _fit(option: Field, models: Sequence[GenerativeModel], keeping: bool) -> dict[str, Any]:
    """The properties of an option's dials that depend on the models."""
    users = [model for model in models if option.name in model.honours]
    fit: dict[str, Any] = {"visible": bool(users) and (keeping or option.name not in NEED_KEEP)}
    if option.name == "num_steps":  # as many as all the models can take
        fit["maximum"] = min([option.metadata["dial"].high, *(m.max_steps for m in users)])
    return fit


def read(values: Sequence[Any]) -> tuple[int, Sampling]:
    """The seed and the options that all dials stand for.

    A value that is empty or out of range raises ValueError.
    """
    seed = number("seed", values[0], 0, MAX_SEED)
    found: dict[str, list[Any]] = {}
    for (option, label), value in zip(_DIALS, values[1:], strict=True):
        dial = option.metadata["dial"]
        if not dial.choices:
            value = number(label.lower(), value, dial.low, dial.high, dial.step)
        is_none = dial.none and value == (dial.none if dial.choices else dial.low)
        found.setdefault(option.name, []).append(None if is_none else value)
    given: dict[str, Any] = {k: tuple(x) if len(x) > 1 else x[0] for k, x in found.items()}
    return seed, Sampling(**given)


def for_model(model: GenerativeModel, wanted: Sampling, who: str) -> tuple[Sampling, str]:
    """The options that a model honours; and a sentence about the changed ones that it does not."""
    changed = wanted.changed()
    used = {name: getattr(wanted, name) for name in changed & model.honours}
    labels = [o.metadata["dial"].label for o in OPTIONS if o.name in changed - model.honours]
    note = f"{who} does not use {', '.join(labels).lower()}." if labels else ""
    return Sampling(**used), note


def number(name: str, value: Any, low: float, high: float, step: float = 1) -> Any:
    """A field's number, an int where ``step`` is 1; ValueError if it is not one or out of range."""
    whole, fits = step == 1, isinstance(value, int | float) and low <= value <= high
    if not fits or (whole and value != int(value)):
        kind = "whole number" if whole else "number"
        raise ValueError(f"{name} is {value}, expected a {kind} from {low} to {high}")
    return int(value) if whole else value
