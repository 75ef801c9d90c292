"""Digits drawn as MNIST's scans: a patch model over black-and-white scans of about 46 x 46.

    p(image | class) >= (1 - e) p(m | class) p(scan | class, m) + e p_escape(image | class)

MNIST's program (data/scans.py) turns a scan of side m into the image, and the package holds a
scan of nearly every image of MNIST. A model of scans needs no grey levels: one bit a pixel. The
left side sums over all scans that give the image, of which the right side has one; so the
likelihood is a bound. An image without a scan is coded by another model, behind an escape of
probability e.

Shapes: B images, S the side of the canvas, D dim.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import log
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_transformer.data import scans
from mnist_transformer.data.scan_file import load_scans
from mnist_transformer.models.base import GenerativeModel, evaluating
from mnist_transformer.models.config import ModelConfig
from mnist_transformer.models.patch.model import Patch, PatchConfig
from mnist_transformer.networks.drawing import Noise, draw_categorical
from mnist_transformer.options import Keep, Sampling


@dataclass(frozen=True)
class ScanConfig(ModelConfig):
    """A model of scans, and how it codes an image that has none.

    Args:
        scan: the patch model; its data set has black-and-white images of S x S, and its
            ``built_in_guidance`` and ``class_drop`` hold for the whole.
        escape: a shipped model with an exact likelihood.
        escape_share: the probability e that an image is coded by that model.
    """

    scan: PatchConfig
    escape: str = "mnist-patch"
    escape_share: float = 0.003

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.escape_share < 1:
            raise ValueError(f"escape_share is {self.escape_share}, expected one in (0, 1)")
        if self.canvas < scans.SIDES.start:
            raise ValueError(f"scans are {self.canvas} wide, expected {scans.SIDES.start} or more")
        if self.data.shape != (1, scans.IMAGE, scans.IMAGE):
            raise ValueError(f"images are {self.data.shape}, expected MNIST's (1, 28, 28)")

    @property
    def canvas(self) -> int:
        """The side of the scans' canvas; larger scans count as none."""
        return self.scan.data.shape[1]

    def build(self) -> "Scan":
        return Scan(self)


class SidedPatch(Patch):
    """A patch model whose conditions (B, 2) are a class and the side of the scan."""

    def __init__(self, config: PatchConfig) -> None:
        super().__init__(config)
        self.sides = nn.Embedding(config.data.shape[1] - scans.SIDES.start + 1, config.dim)
        nn.init.normal_(self.sides.weight, std=0.02)

    def embed(self, cond: Tensor) -> Tensor:
        return self.classes(cond[:, 0]) + self.sides(cond[:, 1] - scans.SIDES.start)

    def without_class(self, cond: Tensor) -> Tensor:
        return torch.stack([super().without_class(cond[:, 0]), cond[:, 1]], 1)


class Scan(GenerativeModel):
    """See the module's docstring. Images are MNIST's, uint8 (B, 1, 28, 28)."""

    likelihood = "bound"
    loss_sums_dims = True
    honours = Patch.honours
    adamw_modules: ClassVar[tuple[str, ...]] = (
        "side", *(f"patch.{name}" for name in Patch.adamw_modules)
    )  # fmt: skip

    def __init__(self, config: ScanConfig) -> None:
        super().__init__(config)
        self.patch = SidedPatch(config.scan)
        # Logits of m.
        self.side = nn.Embedding(config.num_classes + 1, self.patch.sides.num_embeddings)
        nn.init.zeros_(self.side.weight)

    @cached_property
    def escape(self) -> GenerativeModel:
        """The model that codes images without a scan; not part of this one's weights."""
        from mnist_transformer.models.loading import load

        # It is loaded during an evaluation, whose precision is not meant for building a model.
        with torch.autocast(self.device.type, enabled=False):
            return load(self.config.escape, str(self.device))

    def look_up(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A mask bool (B,) of the N images with a scan; their scans (N, 1, S, S) and sides (N,)."""
        archive = load_scans()
        index = archive.find(images.cpu())
        sides = torch.where(index < 0, 0, archive.sides[index.clamp(min=0)])
        has_B = (sides > 0) & (sides <= self.config.canvas)
        found = archive.canvas(index[has_B], self.config.canvas)[:, None]
        return has_B.to(self.device), found.to(self.device), sides[has_B].to(self.device)

    def loss(self, images: Tensor, cond: Tensor) -> Tensor:
        """Nats (B,) of each image's scan and side; 0 for an image that has none."""
        return self._scan_nats(self.patch.loss, images, cond)[0]

    def nats(self, images: Tensor, cond: Tensor) -> Tensor:
        share = self.config.escape_share
        nats_B, has_B = self._scan_nats(self.patch.nats, images, cond)
        nats_B = nats_B - log(1 - share)
        if not has_B.all():
            nats_B[~has_B] = self.escape.nats(images[~has_B], cond[~has_B]) - log(share)
        return nats_B

    def _scan_nats(
        self, nats_of: Callable[[Tensor, Tensor], Tensor], images: Tensor, cond: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Nats (B,) of scan and side, 0 without a scan; and which images have one, bool (B,)."""
        has_B, scan_N, side_N = self.look_up(images)
        nats_B = torch.zeros(len(images), device=images.device)
        if has_B.any():
            cond_N = cond[has_B]
            logits = self.side(self.patch.classes.with_drops(cond_N))
            nats = F.cross_entropy(logits, side_N - scans.SIDES.start, reduction="none")
            nats = nats + nats_of(scan_N, torch.stack([cond_N, side_N], 1))
            nats_B = nats_B.masked_scatter(has_B, nats)
        return nats_B, has_B

    def sample_steps(
        self, cond: Tensor, noise: Noise, how: Sampling, keep: Keep | None
    ) -> Iterator[Tensor]:
        """The images of the scans as they are drawn; only the last ones have MNIST's bytes."""
        if keep is None:
            sides, kept = self._draw_sides(cond, noise, how), None
            corner = [torch.full_like(cond, (scans.IMAGE - scans.BOX) // 2)] * 2
        else:
            sides, corner, kept = self._around(keep)
        for scan in self._scan_steps(cond, sides, noise, how, kept):
            yield scans.preview(scan, sides, *corner)
        boxes = scans.to_boxes(scan, sides)
        yield scans.place(boxes, *(scans.corner(boxes) if keep is None else corner))

    @torch.inference_mode()
    def scans(self, cond: Sequence[int], seeds: Iterable[int], how: Sampling) -> list[Tensor]:
        self.steps(cond, seeds, how)  # checks
        noise = Noise(seeds, self.device)
        with evaluating(self):
            labels = self.check_cond(cond, len(noise))
            sides = self._draw_sides(labels, noise, how)
            *_, drawn = self._scan_steps(labels, sides, noise, how, None)
        squares = [scans.square(side, self.config.canvas) for side in sides.tolist()]
        return [scan[place, place].cpu() for scan, place in zip(drawn, squares, strict=True)]

    def _draw_sides(self, cond: Tensor, noise: Noise, how: Sampling) -> Tensor:
        return draw_categorical(self.side(cond), noise.uniform(1)[:, 0], how) + scans.SIDES.start

    def _scan_steps(
        self, cond: Tensor, sides: Tensor, noise: Noise, how: Sampling, kept: Keep | None
    ) -> Iterator[Tensor]:
        """Scans uint8 (B, S, S) as they are drawn."""
        cond = torch.stack([cond, sides], 1)
        for canvas in self.patch.sample_steps(cond, noise, how, kept):
            yield canvas[:, 0]

    def _around(self, keep: Keep) -> tuple[Tensor, list[Tensor], Keep]:
        """The sides (B,), the corners of the boxes, and the scans' pixels that are kept.

        A scan's pixel is kept where all image pixels are that it has a share in. An image that
        has no scan gets an enlargement for one.
        """
        has_B, scan_N, side_N = self.look_up(keep.images)
        seen = keep.images.masked_fill(~keep.mask, 0)
        all_scans, sides, row, column = scans.enlarge(seen[:, 0], self.config.canvas)
        all_scans[has_B], sides[has_B] = scan_N[:, 0], side_N
        boxes = scans.to_boxes(scan_N[:, 0], side_N)
        row[has_B], column[has_B] = scans.corner(boxes)
        mask = scans.kept(keep.mask[:, 0], sides, row, column, self.config.canvas)
        return sides, [row, column], Keep(all_scans[:, None], mask[:, None])
