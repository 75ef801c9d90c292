"""How to draw: the options of one drawing, declared once, and the pixels that it must keep.

The command line's flags and the demo's dials are derived from the fields of ``Sampling``, so a
new option touches this file and the family that uses it. Importing this needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

SAMPLERS = ("ancestral", "ddim", "euler", "heun")


@dataclass(frozen=True)
class Dial:
    """How the demo sets an option: by a slider for each number, or a list of choices."""

    label: str
    low: float = 0
    high: float = 1
    step: float = 1  # of the slider; whole numbers only where it is 1
    none: str = ""  # the meaning of ``low``, or of no choice, where the option's default is None
    choices: tuple[str, ...] = ()  # instead of a slider


def _option(default: Any, help: str, dial: Dial, fits: Callable[[Any], bool], expected: str) -> Any:
    """A field; ``fits`` tells whether a value is as ``expected``."""
    metadata = {"help": f"{help} ({expected})", "dial": dial, "fits": fits, "expected": expected}
    return field(default=default, metadata=metadata)


FLAGSHIP = "mnist-scan"  # the default model
MAX_BATCH = 256  # images drawn at once


@dataclass(frozen=True)
class Sampling:
    """Options of one drawing; a family that does not honour a changed one raises ValueError."""

    temperature: float = _option(
        1.0,
        "Divides the logits, or scales a continuous token's noise: below 1 is safer, above wilder",
        Dial("Temperature", 0.1, 2, 0.05),
        lambda t: 1e-6 <= t <= 1e3,
        "a number from 1e-6 to 1,000",
    )
    top_k: int | None = _option(
        None,
        "Draw from this many of the most probable values only",
        Dial("Top k", 0, 256, none="all values"),
        lambda k: k >= 1,
        "1 or more",
    )
    top_p: float = _option(
        1.0,
        "Nucleus sampling, arXiv 1904.09751: draw from the most probable values of this total mass",
        Dial("Top p", 0.05, 1, 0.05),
        lambda p: 0 < p <= 1,
        "a number in (0, 1]",
    )
    guidance: float = _option(
        1.0,
        "Classifier-free guidance, arXiv 2207.12598: 1 is plain, 0 ignores the class, above 1 "
        "overstates it",
        Dial("Guidance", 0, 5, 0.25),
        lambda scale: 0 <= scale <= 1e3,
        "a number from 0 to 1,000",
    )
    num_steps: int | None = _option(
        None,
        "Number of refinement steps, in a model that draws in steps",
        Dial("Steps", 0, 100, none="the model's own"),
        lambda n: n >= 1,
        "1 or more",
    )
    sampler: str | None = _option(
        None,
        "How diffusion gets from noise to data",
        Dial("Sampler", none="the model's own", choices=SAMPLERS),
        lambda name: name in SAMPLERS,
        f"one of {', '.join(SAMPLERS)}",
    )
    guidance_interval: tuple[float, float] = _option(
        (0.0, 1.0),
        "LOW and HIGH: guide diffusion only where its noise level, 0 for data and 1 for noise, is "
        "above LOW and at most HIGH, arXiv 2404.07724",
        Dial("Guidance interval", 0, 1, 0.05),
        lambda ends: 0 <= ends[0] < ends[1] <= 1,
        "0 <= low < high <= 1",
    )
    num_particles: int = _option(
        16,
        "How many drawings compete for each image around kept pixels, in a model that draws in "
        "raster order; 1 does not look ahead",
        Dial("Particles", 1, 128),
        lambda n: n >= 1,
        "1 or more",
    )

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if value != f.default and not f.metadata["fits"](value):
                raise ValueError(f"{f.name} is {value!r}, expected {f.metadata['expected']}")

    def changed(self) -> set[str]:
        """Names of the options that differ from their defaults."""
        return {f.name for f in fields(self) if getattr(self, f.name) != f.default}


OPTIONS = fields(Sampling)
NEED_KEEP = frozenset({"num_particles"})  # used around kept pixels only
PLAIN, GUIDED = Sampling(), Sampling(guidance=2.0)
Sampling.__doc__ = f"{Sampling.__doc__}\n\n    Args:\n" + "".join(
    f"        {f.name}: {f.metadata['help']}\n" for f in OPTIONS
)


@dataclass(frozen=True)
class Keep:
    """Pixels that a drawing must keep: inpainting is sampling with this."""

    images: Tensor  # uint8 (B, C, H, W)
    mask: Tensor  # bool (B, 1, H, W), true where the pixel of ``images`` is kept


def check_seed(first: int, num_images: int = 1) -> None:
    """Raises ValueError if a seed of these images has more than the 32 bits that torch uses."""
    for seed in (first, first + num_images - 1):
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed is {seed}, expected an integer from 0 to 2**32 - 1")
