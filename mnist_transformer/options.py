"""How to draw: the options of one drawing, declared once, and the pixels that it must keep.

A field of ``Sampling`` carries its help and its dial. The command line's flags and the demo's
dials are derived from the fields, so a new option touches this file and the family that uses it.
Importing this needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

SAMPLERS = ("ancestral", "ddim", "euler", "heun")


@dataclass(frozen=True)
class Dial:
    """How the demo sets an option: by a slider for each number, or a list of choices.

    Args:
        label: the option's name on the page.
        low, high, step: of the slider; whole numbers only where ``step`` is 1.
        none: the meaning of ``low``, or of no choice, where the option's default is None.
        choices: the values to choose from, instead of a slider.
    """

    label: str
    low: float = 0
    high: float = 1
    step: float = 1
    none: str = ""
    choices: tuple[str, ...] = ()


def _option(default: Any, help: str, dial: Dial, needs_keep: bool = False) -> Any:
    metadata = {"help": help, "dial": dial, "needs_keep": needs_keep}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Sampling:
    """Options of one drawing; a family that does not honour a changed one raises ValueError."""

    temperature: float = _option(
        1.0,
        "Divides the logits, or scales the noise of a continuous token, above 0: below 1 draws "
        "safer, above 1 wilder.",
        Dial("Temperature", 0.1, 2, 0.05),
    )
    top_k: int | None = _option(
        None,
        "Draw from this many of the most probable values only, 1 or more.",
        Dial("Top k", 0, 256, none="all values"),
    )
    top_p: float = _option(
        1.0,
        "Draw from the most probable values that together reach this mass, in (0, 1] (nucleus "
        "sampling, arXiv 1904.09751).",
        Dial("Top p", 0.05, 1, 0.05),
    )
    guidance: float = _option(
        1.0,
        "Scale of classifier-free guidance (arXiv 2207.12598), 0 or more: 1 is plain, 0 ignores "
        "the class, above 1 overstates it.",
        Dial("Guidance", 0, 5, 0.25),
    )
    num_steps: int | None = _option(
        None,
        "Number of refinement steps, in a model that draws in steps.",
        Dial("Steps", 0, 100, none="the model's own"),
    )
    sampler: str | None = _option(
        None,
        f"How diffusion gets from noise to data: {', '.join(SAMPLERS)}.",
        Dial("Sampler", none="the model's own", choices=SAMPLERS),
    )
    guidance_interval: tuple[float, float] = _option(
        (0.0, 1.0),
        "LOW and HIGH: guide diffusion at noise levels t with LOW < t <= HIGH only; 0 is data, 1 "
        "is noise (arXiv 2404.07724).",
        Dial("Guidance interval", 0, 1, 0.05),
    )
    num_particles: int = _option(
        16,
        "How many drawings compete for each image around kept pixels, in a model that draws in "
        "raster order; 1 does not look ahead.",
        Dial("Particles", 1, 128),
        needs_keep=True,
    )

    def __post_init__(self) -> None:
        if not self.temperature > 0 or self.temperature == float("inf"):
            raise ValueError(f"temperature is {self.temperature}, expected a finite number above 0")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}, expected 1 or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, expected a number in (0, 1]")
        if not 0 <= self.guidance < float("inf"):
            raise ValueError(f"guidance is {self.guidance}, expected a finite number of 0 or more")
        if self.num_steps is not None and self.num_steps < 1:
            raise ValueError(f"num_steps is {self.num_steps}, expected 1 or more")
        if self.num_particles < 1:
            raise ValueError(f"num_particles is {self.num_particles}, expected 1 or more")
        if self.sampler is not None and self.sampler not in SAMPLERS:
            raise ValueError(f"sampler is {self.sampler!r}, expected one of {', '.join(SAMPLERS)}")
        low, high = self.guidance_interval
        if not 0 <= low < high <= 1:
            raise ValueError(
                f"guidance_interval is {self.guidance_interval}, expected 0 <= low < high <= 1"
            )

    def changed(self) -> set[str]:
        """Names of the options that differ from their defaults."""
        return {f.name for f in fields(self) if getattr(self, f.name) != f.default}


OPTIONS = fields(Sampling)
NEED_KEEP = frozenset(f.name for f in OPTIONS if f.metadata["needs_keep"])  # else not used
PLAIN, GUIDED = Sampling(), Sampling(guidance=2.0)
Sampling.__doc__ = f"{Sampling.__doc__}\n\n    Args:\n" + "".join(
    f"        {f.name}: {f.metadata['help']}\n" for f in OPTIONS
)


@dataclass(frozen=True)
class Keep:
    """Pixels that a drawing must keep: inpainting is sampling with this.

    Args:
        images: uint8 (B, C, H, W).
        mask: bool (B, 1, H, W), true where the pixel of ``images`` is kept.
    """

    images: Tensor
    mask: Tensor


def check_seed(seed: int) -> None:
    """Raises ValueError for a seed that torch's generator would cut: it uses 32 bits."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}, expected an integer from 0 to 2**32 - 1")
