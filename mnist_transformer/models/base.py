"""The whole contract between model families and the rest of the project.

Images are uint8 (B, C, H, W) everywhere outside a model; conditions are int64: labels (B,), or
rows of tokens (B, 1 + T) for a family that reads prompts (prompting/tokens.py).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mnist_transformer.networks.drawing import Noise
from mnist_transformer.networks.entropy import Coder
from mnist_transformer.options import NEED_KEEP, Keep, Sampling
from mnist_transformer.utils.checks import check_below, check_tensor
from mnist_transformer.utils.devices import check_defaults

Canvas = Tensor | Callable[[], Tensor]
"""Images of an unfinished drawing, or a function that makes them, valid until the next step."""
Cond = Tensor | Sequence[int] | None
"""A class per image, as a caller gives it; None stands for no class."""
Seeds = Iterable[int]
"""A seed per image."""


class Model(nn.Module, ABC):
    """A model that ``train`` can train; ``config``, a frozen dataclass, builds it."""

    # How ``nll`` relates to the likelihood. With one, the loss sums over all C*H*W dimensions; it
    # is the nats, regularisers aside, if they are exact and no guidance is built in.
    likelihood: ClassVar[Literal["exact", "bound"] | None] = None
    built_in_guidance: float = 1.0  # the guidance that it learned to draw with
    adamw_modules: ClassVar[tuple[str, ...]] = ()  # trained by AdamW instead of Muon

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.config.image_shape

    @property
    def num_classes(self) -> int:
        return self.config.data.num_classes

    def check_images(self, images: Tensor) -> Tensor:
        """The images on the model's device; ValueError if dtype, shape or levels do not fit."""
        check_tensor("images", images, torch.uint8, "B", *self.image_shape)
        num_levels = self.config.data.num_levels
        if num_levels < 256 and images.numel() and images.max().item() >= num_levels:
            raise ValueError(f"a pixel is {images.max().item()}, expected below {num_levels}")
        return images.to(self.device)

    def check_cond(self, cond: Cond, num_images: int) -> Tensor:
        """int64 labels (B,) on the model's device; None becomes the null class."""
        if cond is None:
            return torch.full((num_images,), self.num_classes, device=self.device)
        labels = torch.as_tensor(cond)
        if labels.shape != (num_images,):
            expected = f"for {num_images} seeds, expected one class per seed"
            raise ValueError(f"got classes of shape {tuple(labels.shape)} {expected}")
        if num_images and (labels.is_floating_point() or labels.dtype == torch.bool):
            raise ValueError(f"classes are {labels.dtype}, expected integers")
        check_below("class", labels, self.num_classes)
        return labels.to(self.device, torch.int64)

    def figures(self, images: Tensor, cond: Tensor) -> dict[str, float]:
        """Further figures to log at a validation, by name, over all its images."""
        return {}

    def start(self) -> None:
        """Called once before the first training step, to start from weights that exist."""

    @abstractmethod
    def loss(self, images: Tensor, cond: Tensor) -> Tensor:
        """The training objective (B,), float32; regularisers act in training mode only."""

    def nll(self, images: Tensor, cond: Cond, *, fitted: bool = False) -> Tensor:
        """Nats float32 (B,) over all C*H*W dimensions given the class; None: without one.

        With ``fitted``, by the distribution that was fitted to the images. A model with built-in
        guidance draws from another one.

        Raises ValueError: no likelihood, or images or classes that do not fit the model.
        """
        images = self.check_images(images)
        with evaluating(self):
            cond = self.check_cond(cond, len(images))
            return self.nats(images, cond, fitted)

    def nats(self, images: Tensor, cond: Tensor, fitted: bool = False) -> Tensor:
        """``nll`` of checked arguments; a family with a ``likelihood`` implements it."""
        raise ValueError(f"{type(self).__name__} has no likelihood to measure bits/dim with")

    def forward(self, images: Tensor, cond: Tensor) -> Tensor:
        # DistributedDataParallel wraps forward, so that is where the loss is.
        return self.loss(images, cond)


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Evaluation mode inside the context; ValueError if torch's defaults are unusual."""
    check_defaults()
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def in_batches(
    model: Model,
    function: Callable[..., Tensor],
    *columns: Tensor,
    batch_size: int = 500,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """``function`` of columns (N, ...) in batches, in evaluation mode: float64 on the CPU.

    ``report`` is called with (done, total) after each batch.
    """
    parts, done = [], 0
    with evaluating(model), torch.inference_mode():
        for batch in zip(*(column.split(batch_size) for column in columns), strict=True):
            parts.append(function(*(x.to(model.device) for x in batch)).cpu().double())
            done += len(batch[0])
            report(done, len(columns[0]))
    return torch.cat(parts)


def measured_at_once(images: Tensor) -> int:
    """How many of these images (N, C, H, W) a likelihood is measured of at once, for memory."""
    return max(50, 250 * 784 // images[0].numel())


class Judge(Model):
    """A model whose predictions and features judge drawn images."""

    @abstractmethod
    def classify(self, features: Tensor) -> Tensor:
        """Unnormalised log-probabilities (B, K) of the classes, from ``features``."""

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Features (B, F) of uint8 images (B, C, H, W)."""

    def logits(self, images: Tensor) -> Tensor:
        """Those of ``classify``, of uint8 images (B, C, H, W)."""
        return self.classify(self.features(images))


class GenerativeModel(Model):
    """A model that draws. A family implements ``loss`` and ``sample_steps``."""

    honours: ClassVar[frozenset[str]] = frozenset()  # the Sampling options that it uses
    archive: Any = None  # in a model of scans: those of known images, or () for MNIST's
    max_steps: int = 1  # of a drawing, in a family that honours num_steps

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.config.data.class_names

    @abstractmethod
    def sample_steps(
        self, cond: Tensor, noise: Noise, how: Sampling, keep: Keep | None
    ) -> Iterator[Canvas]:
        """Yield uint8 canvases (B, C, H, W) as the drawing happens, the last one finished."""

    def steps(
        self, cond: Cond, seeds: Seeds, how: Sampling | None = None, keep: Keep | None = None
    ) -> Generator[Tensor, None, None]:
        """Check the request, then stream ``sample_steps`` in eval mode, kept pixels pasted back.

        Takes one class and one seed per image; None draws without a class. The same seed gives the
        same image in any batch, up to rounding. A request that does not fit raises ValueError.
        """
        return (images() for images in self._start(cond, seeds, how, keep))

    def sample(
        self, cond: Cond, seeds: Seeds, how: Sampling | None = None, keep: Keep | None = None
    ) -> Tensor:
        """Draw: uint8 (B, C, H, W) on the CPU. Arguments and errors as in ``steps``."""
        images = partial(torch.empty, 0, *self.image_shape, dtype=torch.uint8)
        for images in self._start(cond, seeds, how, keep):
            pass
        return images()

    def _start(
        self, cond: Cond, seeds: Seeds, how: Sampling | None, keep: Keep | None
    ) -> Generator[partial[Tensor], None, None]:
        """A checked drawing: for each canvas a function that makes its images."""
        how = how or Sampling()
        noise = Noise(seeds, self.device)
        if cond is None and how.guidance != 1:
            raise ValueError(f"guidance is {how.guidance}, expected 1 where no class is given")
        cond = self.check_cond(cond, len(noise))
        used = self.honours if keep is not None else self.honours - NEED_KEEP
        if ignored := how.changed() - used:
            raise ValueError(
                f"{type(self).__name__} does not use {', '.join(sorted(ignored))}; "
                f"it uses {', '.join(sorted(used)) or 'no options'}"
            )
        if how.num_steps is not None and how.num_steps > self.max_steps:
            raise ValueError(f"num_steps is {how.num_steps}, expected 1 to {self.max_steps}")
        if keep is not None:
            keep = Keep(keep.images.to(self.device), keep.mask.to(self.device))
            check_tensor("images to keep", keep.images, torch.uint8, len(noise), *self.image_shape)
            check_tensor("masks", keep.mask, torch.bool, len(noise), 1, *self.image_shape[1:])
            self.check_images(keep.images.masked_fill(~keep.mask, 0))
        return self._run(cond, noise, how, keep)

    def scans(self, cond: Sequence[int], seeds: Seeds, how: Sampling) -> Any:
        """The ``Scans`` of which ``sample`` returns the images.

        Raises ValueError in a family that draws none, and as ``steps`` does.
        """
        raise ValueError(f"a {type(self).__name__} draws no scans, expected a model of scans")

    def source(self, images: Tensor) -> tuple[Tensor, ...]:
        """bool (B,): which images uint8 (B, C, H, W) can be coded; then the input of ``code``."""
        return torch.ones(len(images), dtype=torch.bool), images

    def code(self, coder: Coder, cond: Tensor, source: Sequence[Tensor]) -> Tensor:
        """Write the images of a ``source``, or if that is (), read one image per condition:
        uint8 (B, C, H, W), on the CPU."""
        expected = "expected one of pixels, patches or scans with a likelihood"
        raise ValueError(f"a model of the kind {type(self).__name__} codes no images, {expected}")

    def _run(
        self, cond: Tensor, noise: Noise, how: Sampling, keep: Keep | None
    ) -> Generator[partial[Tensor], None, None]:
        @torch.inference_mode()
        def show(canvas: Canvas) -> Tensor:
            images = canvas if isinstance(canvas, Tensor) else canvas()
            if keep is not None:
                images = torch.where(keep.mask, keep.images, images)
            return images.cpu().clone()

        # Inference mode is on within a step of the generator, not while the caller has a canvas.
        steps = torch.inference_mode()(self.sample_steps)
        if len(noise):
            with evaluating(self):
                for canvas in steps(cond, noise, how, keep):
                    yield partial(show, canvas)


@runtime_checkable
class Tokenizer(Protocol):
    """A model that encodes images uint8 (B, C, H, W) and decodes them again."""

    def reconstruct(self, images: Tensor) -> Tensor: ...
