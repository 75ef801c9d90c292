"""The dials of the demo, derived from the fields of ``Sampling``, and their values.

Every option has its dial, hidden where no model honours it, so all tabs pass the same values on.
"""

from collections.abc import Sequence
from dataclasses import Field
from typing import Any

import gradio as gr

from mnist_transformer.models.base import GenerativeModel
from mnist_transformer.options import NEED_KEEP, OPTIONS, PLAIN, Dial, Sampling

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
    """The dials of all options, in the order of the fields, for ``read``.

    Args:
        keeping: whether pixels are kept.
        start: where the dials stand at first.
    """
    made = []
    for option, label in _DIALS:
        value = getattr(start, option.name)
        value = value[label.endswith(" to")] if isinstance(value, tuple) else value
        made.append(_dial(option.metadata["dial"], label, value, _fit(option, models, keeping)))
    return made


def refit(models: Sequence[GenerativeModel], keeping: bool = False) -> list[dict[str, Any]]:
    """Updates of all dials for other models."""
    return [gr.update(**_fit(option, models, keeping)) for option, _ in _DIALS]


def _fit(option: Field, models: Sequence[GenerativeModel], keeping: bool) -> dict[str, Any]:
    """The properties of an option's dials that depend on the models."""
    users = [model for model in models if option.name in model.honours]
    fit: dict[str, Any] = {"visible": bool(users) and (keeping or option.name not in NEED_KEEP)}
    if option.name == "num_steps":  # that all of the models can take
        fit["maximum"] = min([option.metadata["dial"].high, *(m.max_steps for m in users)])
    return fit


def _dial(dial: Dial, label: str, value: Any, fit: dict[str, Any]) -> gr.Component:
    if dial.choices:
        return gr.Dropdown([dial.none, *dial.choices], value=value or dial.none, label=label, **fit)
    info = f"{dial.low:g}: {dial.none}" if dial.none else None
    shown = {"maximum": dial.high, "step": dial.step, "label": label, "info": info} | fit
    return gr.Slider(dial.low, value=dial.low if value is None else value, **shown)


def read(values: Sequence[Any]) -> Sampling:
    """The options that all dials stand for; ValueError for one that is empty or out of range."""
    found: dict[str, list[Any]] = {}
    for (option, label), value in zip(_DIALS, values, strict=True):
        found.setdefault(option.name, []).append(_read(option.metadata["dial"], label, value))
    given: dict[str, Any] = {k: tuple(x) if len(x) > 1 else x[0] for k, x in found.items()}
    return Sampling(**given)


def _read(dial: Dial, label: str, value: Any) -> Any:
    if dial.choices:
        return None if value == dial.none else value
    value = number(label.lower(), value, dial.low, dial.high, dial.step)
    return None if dial.none and value == dial.low else value


def for_model(model: GenerativeModel, wanted: Sampling, who: str) -> tuple[Sampling, str]:
    """The options that a model honours; and a sentence about the changed ones that it does not."""
    changed = wanted.changed()
    used = {name: getattr(wanted, name) for name in changed & model.honours}
    labels = [o.metadata["dial"].label for o in OPTIONS if o.name in changed - model.honours]
    note = f"{who} does not use {', '.join(labels).lower()}." if labels else ""
    return Sampling(**used), note


def number(name: str, value: float | None, low: float, high: float, step: float = 1) -> Any:
    """A field's number, an int where ``step`` is 1; ValueError if it is empty or out of range."""
    whole = step == 1
    if value is None or not low <= value <= high or (whole and value != int(value)):
        kind = "whole number" if whole else "number"
        raise ValueError(f"{name} is {value}, expected a {kind} from {low} to {high}")
    return int(value) if whole else value
