"""What the verbs share: types of options, the recipe by name, the command as it was typed."""

import difflib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

if TYPE_CHECKING:
    from mnist_transformer.recipes import Recipe

PROG = "mnist-transformer"


def _number_or_none(kind: type[int] | type[float]) -> PrimitiveConstructorSpec[int | float | None]:
    """Reads a number as tyro does one that has a default, and so complains as shortly."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=kind.__name__.upper(),
        instance_from_str=lambda words: kind(words[0]),
        is_instance=lambda value: value is None or isinstance(value, kind),
        str_from_instance=lambda value: [str(value)],
    )


# Options that may be left out; the metavar keeps "None" out of --help.
_GIVEN = "(optional)"
OptionalPath: TypeAlias = Annotated[Path | None, arg(metavar="PATH", help_behavior_hint=_GIVEN)]
OptionalStr: TypeAlias = Annotated[str | None, arg(metavar="STR", help_behavior_hint=_GIVEN)]
OptionalInt: TypeAlias = Annotated[int | None, _number_or_none(int), arg(help_behavior_hint=_GIVEN)]
OptionalFloat: TypeAlias = Annotated[
    float | None, _number_or_none(float), arg(help_behavior_hint=_GIVEN)
]


def find_recipe(name: str) -> "Recipe":
    from mnist_transformer.recipes import RECIPES

    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.4) or list(RECIPES)
        raise ValueError(f"there is no recipe {name!r}; nearest: {', '.join(near)}")
    return RECIPES[name]


def typed_command() -> str:
    """The command line, without folders of this machine."""
    from mnist_transformer.evaluation import ledger

    return ledger.clean_command([PROG, *sys.argv[1:]])
