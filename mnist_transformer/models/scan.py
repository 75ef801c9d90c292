"""Digits drawn as MNIST's scans: a patch model over black-and-white scans of about 46 x 46.

    p(image | class) >= (1 - e) p(m | class) p(scan | class, m) + e p_escape(image | class)

MNIST's program (data/scans.py) turns a scan of side m into the image, and the package holds a
scan of nearly every image of MNIST. A pixel of a scan is one bit, so the model needs no grey
levels. The left side sums over all scans that give the image; the right side takes one of them, so
the likelihood is a bound. An image without a scan is coded by another model, after an escape of
probability e.

Shapes: B images, S the side of the canvas, D dim.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import log
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_transformer.data import scans
from mnist_transformer.data.scan_file import Scans, load_scans, packed
from mnist_transformer.models.base import Canvas, GenerativeModel, Seeds, evaluating
from mnist_transformer.models.config import ModelConfig
from mnist_transformer.models.patch.model import Patch, PatchConfig
from mnist_transformer.networks.conditioning import guide, with_null
from mnist_transformer.networks.drawing import Noise, draw_categorical
from mnist_transformer.networks.entropy import Coder
from mnist_transformer.options import Keep, Sampling
from mnist_transformer.utils.checks import check_share

# One bit selects each; their eight combinations are the symmetries of a square.
TURNS: tuple[Callable[[Tensor], Tensor], ...] = (
    partial(torch.flip, dims=(2,)),
    partial(torch.flip, dims=(3,)),
    partial(torch.transpose, dim0=2, dim1=3),
)


@dataclass(frozen=True)
class ScanConfig(ModelConfig):
    """A model of scans, and how it codes an image that has none.

    Args:
        scan: the patch model; its data set has black-and-white images of S x S, and its
            ``built_in_guidance`` and ``class_drop`` hold for the whole.
        escape: a shipped model with an exact likelihood.
        escape_share: the probability e that an image is coded by that model.
        turned: share of training scans that are turned or mirrored, with a vector that says how:
            distribution augmentation (Jun et al. 2020, PMLR 119), as there are few scans.
    """

    scan: PatchConfig
    escape: str = "mnist-patch"
    escape_share: float = 0.003
    turned: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.escape_share < 1:
            raise ValueError(f"escape_share is {self.escape_share}, expected one in (0, 1)")
        check_share("turned", self.turned)
        if self.canvas < scans.SIDES.start:
            raise ValueError(f"scans are {self.canvas} wide, expected {scans.SIDES.start} or more")
        if self.data.shape != (1, scans.IMAGE, scans.IMAGE):
            raise ValueError(f"images are {self.data.shape}, expected MNIST's (1, 28, 28)")

    @property
    def canvas(self) -> int:
        """The side of the scans' canvas; larger scans count as missing."""
        return self.scan.data.shape[1]


class SidedPatch(Patch):
    """A patch model whose conditions (B, 3) are a class, the scan's side, and how it is turned."""

    def __init__(self, config: ScanConfig, num_text_tokens: int = 0) -> None:
        super().__init__(config.scan, num_text_tokens)
        dim = config.scan.dim
        self.sides = nn.Embedding(config.canvas - scans.SIDES.start + 1, dim)
        nn.init.normal_(self.sides.weight, std=0.02)
        self.turns = None
        if config.turned:
            self.turns = nn.Embedding.from_pretrained(torch.zeros(8, dim), freeze=False)

    def embed(self, cond: Tensor) -> Tensor:
        return self.classes(cond[:, 0]) + self.embed_form(cond)

    def embed_form(self, cond: Tensor) -> Tensor:
        """The vector of side and turn."""
        side_BD = self.sides(cond[:, 1] - scans.SIDES.start)
        return side_BD if self.turns is None else side_BD + self.turns(cond[:, 2])

    def without_class(self, cond: Tensor) -> Tensor:
        return torch.cat([super().without_class(cond[:, :1]), cond[:, 1:]], 1)


class Scan(GenerativeModel):
    """See the module's docstring. Images are MNIST's, uint8 (B, 1, 28, 28)."""

    patch_class: ClassVar[type[SidedPatch]] = SidedPatch
    likelihood = "bound"
    archive = ()
    honours = Patch.honours
    adamw_modules = ("side", *(f"patch.{name}" for name in Patch.adamw_modules))

    def __init__(self, config: ScanConfig) -> None:
        super().__init__(config)
        self.built_in_guidance = config.scan.built_in_guidance
        self.patch = self.patch_class(config)
        # Logits of m.
        self.side = nn.Embedding(config.data.num_classes + 1, self.patch.sides.num_embeddings)
        nn.init.zeros_(self.side.weight)

    def compile(self, **how: object) -> None:
        self.patch.compile(**how)

    @property
    def escape(self) -> GenerativeModel:
        """The model that codes images without a scan; not part of this one's weights."""
        from mnist_transformer.models.loading import companion

        return companion(self.config.escape, str(self.device))

    def find(self, images: Tensor) -> tuple[Scans, Tensor, Tensor]:
        """The archive; for each image (B,) the index of its scan, -1 for none; and its side."""
        archive = self.archive or load_scans()
        index = archive.find(images.cpu())
        sides = archive.sides[index.clamp(min=0)]
        has_B = (index >= 0) & (sides <= self.config.canvas)
        return archive, index.where(has_B, -1), sides.where(has_B, scans.SIDES.start)

    def look_up(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Whether images have a scan, bool (B,); scans (B, 1, S, S), else blank; sides (B,)."""
        archive, index, side_B = self.find(images)
        scan_B = archive.canvas(index, self.config.canvas)[:, None]
        return (index >= 0).to(self.device), scan_B.to(self.device), side_B.to(self.device)

    def sided(self, cond: Tensor, sides: Tensor) -> Tensor:
        """The patch model's conditions (B, 3 ...), from this model's and the scans' sides (B,)."""
        cond = cond.view(len(cond), cond[:1].numel())
        form = torch.stack([sides, torch.zeros_like(sides)], 1)
        return torch.cat([cond[:, :1], form, cond[:, 1:]], 1)

    def turn(self, scan: Tensor, sided: Tensor) -> tuple[Tensor, Tensor]:
        """Turn or mirror some of the scans (B, 1, S, S) in training, and set their conditions."""
        if self.training and self.config.turned:
            # Drawn on the CPU, so that one seed turns the same scans on every device.
            is_turned_B = torch.rand(len(scan)) < self.config.turned
            turn_B = (torch.randint(1, 8, (len(scan),)) * is_turned_B).to(scan.device)
            for bit, turned in enumerate(TURNS):
                chosen_B = (turn_B >> bit) % 2 == 1
                scan = torch.where(chosen_B[:, None, None, None], turned(scan), scan)
            sided = torch.cat([sided[:, :2], turn_B[:, None], sided[:, 3:]], 1)
        return scan, sided

    def side_nats(self, labels: Tensor, sides: Tensor) -> Tensor:
        """Nats (B,) of the sides given the classes."""
        return F.cross_entropy(self.side(labels), sides - scans.SIDES.start, reduction="none")

    def loss(self, images: Tensor, cond: Tensor) -> Tensor:
        """Nats (B,) of each image's scan and side; 0 for an image that has none."""
        has_B, scan_B, side_B = self.look_up(images)
        nats_B = self.side_nats(self.patch.classes.with_drops(cond), side_B)
        nats_B = nats_B + self.patch.loss(*self.turn(scan_B, self.sided(cond, side_B)))
        return nats_B.where(has_B, 0)

    def nats(self, images: Tensor, cond: Tensor, fitted: bool = False) -> Tensor:
        share, (has_B, scan_B, side_B) = self.config.escape_share, self.look_up(images)
        sided = self.sided(cond, side_B)
        nats_B = self.side_nats(sided[:, 0], side_B) + self.patch.nats(scan_B, sided, fitted)
        nats_B = nats_B - log(1 - share)
        if not has_B.all():
            other = self.escape.nats(images[~has_B], sided[~has_B, 0])
            nats_B[~has_B] = other - log(share)
        return nats_B

    def source(self, images: Tensor) -> tuple[Tensor, ...]:
        archive, index, side_B = self.find(images)
        has_B = index >= 0
        scan_B = archive.canvas(index[has_B], self.config.canvas)[:, None]
        return has_B, scan_B, side_B[has_B] - scans.SIDES.start

    def code(self, coder: Coder, cond: Tensor, source: Sequence[Tensor]) -> Tensor:
        labels = cond if cond.ndim == 1 else cond[:, 0]
        side_B = source[1] if source else torch.zeros_like(labels)
        sides = coder.code(self.side(labels), side_B) + scans.SIDES.start
        drawn = self.patch.code(coder, self.sided(cond, sides), source[:1])
        boxes = scans.to_boxes(drawn[:, 0], sides)
        return scans.place(boxes, *scans.corner(boxes))

    def sample_steps(
        self, cond: Tensor, noise: Noise, how: Sampling, keep: Keep | None
    ) -> Iterator[Canvas]:
        """Yield previews of the images; only the last ones are exact, by MNIST's program."""

        def preview(canvas: Callable[[], Tensor]) -> Tensor:
            return scans.preview(canvas()[:, 0], sides, *corner)

        if keep is None:
            sides, kept = self._draw_sides(cond, noise, how), None
            corner = [torch.full_like(sides, (scans.IMAGE - scans.BOX) // 2)] * 2
        else:
            sides, corner, kept = self._around(keep)
        for canvas in self.patch.sample_steps(self.sided(cond, sides), noise, how, kept):
            yield partial(preview, canvas)
        boxes = scans.to_boxes(canvas()[:, 0], sides)
        yield scans.place(boxes, *(scans.corner(boxes) if keep is None else corner))

    @torch.inference_mode()
    def scans(self, cond: Sequence[int], seeds: Seeds, how: Sampling) -> Scans:
        noise = Noise(seeds, self.device)
        self.steps(cond, noise.seeds, how)  # checks
        with evaluating(self):
            labels = self.check_cond(cond, len(noise))
            sides = self._draw_sides(labels, noise, how)
            *_, drawn = self.patch.sample_steps(self.sided(labels, sides), noise, how, None)
        places = [scans.square(side, self.config.canvas) for side in sides.tolist()]
        squares = (x[0, place, place] for x, place in zip(drawn().cpu(), places, strict=True))
        none = torch.zeros(0, *self.image_shape, dtype=torch.uint8)
        return Scans(sides.cpu(), labels.cpu(), none, packed(squares))

    def _draw_sides(self, cond: Tensor, noise: Noise, how: Sampling) -> Tensor:
        labels = cond if cond.ndim == 1 else cond[:, 0]
        logits = guide(self.side(with_null(labels, self.num_classes, how.guidance)), how.guidance)
        return draw_categorical(logits, noise.uniform(1)[:, 0], how) + scans.SIDES.start

    def _around(self, keep: Keep) -> tuple[Tensor, list[Tensor], Keep]:
        """The sides (B,), the corners of the boxes, and the scans' pixels that are kept.

        A scan's pixel is kept if all image pixels that it contributes to are kept. An image
        without a scan gets an enlargement in place of one.
        """
        has_B, scan_B, side_B = self.look_up(keep.images)
        seen = keep.images.masked_fill(~keep.mask, 0)
        large_B, sides, row, column = scans.enlarge(seen[:, 0], self.config.canvas)
        large_B[has_B], sides[has_B] = scan_B[has_B, 0], side_B[has_B]
        boxes = scans.to_boxes(large_B[has_B], sides[has_B])
        row[has_B], column[has_B] = scans.corner(boxes)
        mask = scans.kept(keep.mask[:, 0], sides, row, column, self.config.canvas)
        return sides, [row, column], Keep(large_B[:, None], mask[:, None])
