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


def dials(
    models: Sequence[GenerativeModel], keeping: bool = False, start: Sampling = PLAIN
) -> list[gr.Component]:
    """The dials of all options, in the order of the fields, for ``read``.

    Args:
        keeping: whether pixels are kept.
        start: where the dials stand at first.
    """
    components = []
    for option in OPTIONS:
        fit, value = _fit(option, models, keeping), getattr(start, option.name)
        values = value if isinstance(value, tuple) else (value,)
        for label, one in zip(_labels(option), values, strict=True):
            components.append(_dial(option.metadata["dial"], label, one, fit))
    return components


def refit(models: Sequence[GenerativeModel], keeping: bool = False) -> list[dict[str, Any]]:
    """Updates of all dials for other models."""
    fits = [(option, _fit(option, models, keeping)) for option in OPTIONS]
    return [gr.update(**fit) for option, fit in fits for _ in _labels(option)]


def _labels(option: Field) -> list[str]:
    """The labels of an option's dials, one for each of its numbers."""
    label = option.metadata["dial"].label
    return [f"{label} from", f"{label} to"] if isinstance(option.default, tuple) else [label]


def _fit(option: Field, models: Sequence[GenerativeModel], keeping: bool) -> dict[str, Any]:
    """The properties of an option's dials that depend on the models."""
    users = [model for model in models if option.name in model.honours]
    fit: dict[str, Any] = {"visible": bool(users) and (keeping or option.name not in NEED_KEEP)}
    if option.name == "num_steps":  # that all of the models can take
        high = option.metadata["dial"].high
        fit["maximum"] = min([high, *(model.max_steps for model in users)])
    return fit


def _dial(dial: Dial, label: str, value: Any, fit: dict[str, Any]) -> gr.Component:
    if dial.choices:
        return gr.Dropdown([dial.none, *dial.choices], value=value or dial.none, label=label, **fit)
    info = f"{dial.low:g}: {dial.none}" if dial.none else None
    shown = {"maximum": dial.high, "step": dial.step, "label": label, "info": info} | fit
    return gr.Slider(dial.low, value=dial.low if value is None else value, **shown)


def read(values: Sequence[Any]) -> Sampling:
    """The options that all dials stand for.

    Raises:
        ValueError: a value is empty or out of its dial's range.
    """
    rest = iter(values)
    given: dict[str, Any] = {}
    for option in OPTIONS:
        found = [_read(option.metadata["dial"], label, next(rest)) for label in _labels(option)]
        given[option.name] = tuple(found) if len(found) > 1 else found[0]
    return Sampling(**given)


def _read(dial: Dial, label: str, value: Any) -> Any:
    if dial.choices:
        return None if value == dial.none else value
    if dial.step == 1:
        value = whole(label.lower(), value, dial.low, dial.high)
    elif value is None or not dial.low <= value <= dial.high:
        raise ValueError(
            f"{label.lower()} is {value}, expected a number from {dial.low:g} to {dial.high:g}"
        )
    return None if dial.none and value == dial.low else value


def for_model(model: GenerativeModel, wanted: Sampling) -> tuple[Sampling, list[str]]:
    """The options that a model honours, and the labels of the changed ones that it does not."""
    changed = wanted.changed()
    used = {name: getattr(wanted, name) for name in changed & model.honours}
    labels = [o.metadata["dial"].label for o in OPTIONS if o.name in changed - model.honours]
    return Sampling(**used), [label.lower() for label in labels]


def whole(name: str, value: float | None, low: float, high: float) -> int:
    """The number of a field, or ValueError where it is empty or out of its range."""
    if value is None or not low <= value <= high or value != int(value):
        raise ValueError(f"{name} is {value}, expected a whole number from {low} to {high}")
    return int(value)
