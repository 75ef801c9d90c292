"""A model as ONNX: one step of a drawing, for a program without PyTorch to repeat.

A step takes a drawing and random numbers, and returns the drawing after it. It does for one image
what ``patch.draw.Drawing`` and ``solvers.sample`` do. The file's metadata has a JSON text
``mnist_transformer``: format, name, family, and the numbers that a program has to know.

Shapes: G passes, 1 with the class, or 2 with class and null class; all others are fixed. P patches,
T = P + 1 tokens, N heads, K head_dim, I values of a patch, V levels, E features, D dim.
"""

import json
import logging
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mnist_transformer.data import scans
from mnist_transformer.models import FAMILIES, family_of
from mnist_transformer.models.base import GenerativeModel
from mnist_transformer.models.ddpm import DDPM, NUM_RESAMPLES
from mnist_transformer.models.flash import Flash, FlashConfig
from mnist_transformer.models.scan import Scan
from mnist_transformer.networks.transformer import KVCache
from mnist_transformer.utils.files import write_atomic

FORMAT = 1  # of inputs, outputs and metadata
OPSET = 18
PASSES = {"classes": 0, "cache": 3}  # the axis of G


def guided(output_G: Tensor, guidance: Tensor) -> Tensor:
    """``guide`` for one image; with one pass it is the output itself."""
    return output_G[-1] + guidance * (output_G[0] - output_G[-1])


def draw(logits_NV: Tensor, uniform_N: Tensor) -> Tensor:
    """``draw_categorical`` without ``searchsorted``, which ONNX lacks: int64 (N,)."""
    cumulative_NV = logits_NV.softmax(-1).cumsum(-1)
    threshold_N = uniform_N.clamp(max=1 - 2**-23) * cumulative_NV[:, -1]
    return (cumulative_NV <= threshold_N[:, None]).sum(-1)


def times_of(model: DDPM | Flash, *, keeps: bool) -> list[tuple[float, float, float]]:
    """The times t, s and r of each step of a drawing, see ``DenoiseStep``."""
    config = model.config
    if isinstance(config, FlashConfig):
        num_steps = config.num_links if keeps else config.num_steps
        return [(t, 0.0, r) for t, r in pairwise(model.diffusion.times(num_steps).tolist())]
    pairs, again = pairwise(model.diffusion.times(config.num_steps).tolist()), NUM_RESAMPLES - 1
    return [(t, s, r) for t, s in pairs for r in [*([t] * again if keeps and s else []), s]]


class DenoiseStep(nn.Module):
    """From x_t to x_s, with kept pixels in it, and on to x_r, with new noise where r is above s.

    ``times`` has t, s and r of each step: for diffusion Euler's steps with s = r, and around kept
    pixels RePaint's with r = t; for a one-step model s = 0. ``times_around`` is for kept pixels.
    """

    outputs = ("prediction", "x_s", "x_r")

    def __init__(self, model: DDPM | Flash) -> None:
        super().__init__()
        self.model, shape = model, model.image_shape
        self.inputs = {
            "x": torch.zeros(1, *shape),  # noise at first
            "times": torch.tensor([1.0, 0.5, 0.5]),
            "classes": torch.tensor([0, model.num_classes], dtype=torch.int32),
            "guidance": torch.tensor(2.0),
            "kept": torch.zeros(1, *shape),  # pixels in [-1, 1]
            "mask": torch.zeros(1, 1, *shape[1:], dtype=torch.bool),  # where they are kept
            "normal": torch.zeros(2, *shape),  # for the kept pixels, and on the way to x_r
        }
        self.about = {
            "guides": "guidance" in model.honours,
            "times": times_of(model, keeps=False),
            "times_around": times_of(model, keeps=True),
        }

    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        x, (t, s, r), diffusion = inputs["x"], inputs["times"].split(1), self.model.diffusion
        class_GD = self.model.classes(inputs["classes"].long())
        output = self.model.denoise(class_GD, x.expand(class_GD.shape[0], -1, -1, -1), t)
        prediction = guided(output, inputs["guidance"])[None]
        x0, noise = diffusion.estimate(lambda x, t: prediction, x, t)
        at_s, at_r = diffusion.levels(s, x), diffusion.levels(r, x)
        kept = at_s.alpha * inputs["kept"] + at_s.sigma * inputs["normal"][:1]
        x_s = torch.where(inputs["mask"], kept, at_s.alpha * x0 + at_s.sigma * noise)
        ratio = at_r.alpha / at_s.alpha
        added = (at_r.sigma**2 - (ratio * at_s.sigma) ** 2).clamp(min=0)
        return prediction, x_s, ratio * x_s + added.sqrt() * inputs["normal"][1:]


class FixedCache(KVCache):
    """A key-value cache (T, depth, 2, G, N, K) to which the caller adds each new token."""

    def __init__(self, cache: Tensor) -> None:
        self.cache, self.length = cache.permute(1, 2, 3, 4, 0, 5), 0
        self.added: list[Tensor] = []

    def extend(self, k_GN1K: Tensor, v_GN1K: Tensor) -> tuple[Tensor, Tensor]:
        layer = self.cache[len(self.added)]
        self.added.append(torch.stack([k_GN1K, v_GN1K]))
        keys, values = torch.cat([layer, self.added[-1]], 3)
        return keys, values


class ScanStep(nn.Module):
    """Draw one patch of a scan, or read the start token, and find the next patch with ink."""

    outputs = ("next_patch", "drawn", "added", "side", "values", "gates")

    def __init__(self, model: Scan) -> None:
        super().__init__()
        self.model, self.decoder = model, model.patch.decoder
        around, transformer = self.decoder.around, model.patch.transformer
        self.num_patches, self.num_own = around.num_patches, around.num_own
        token = len(transformer.blocks), 2, 2, transformer.num_heads, transformer.head_dim
        self.inputs = {
            "patch": torch.tensor([self.num_patches], dtype=torch.int32),  # P: the start token
            "canvas": torch.zeros(around.image_shape[1:], dtype=torch.uint8),
            "cache": torch.zeros(self.num_patches + 1, *token),
            "length": torch.tensor(0, dtype=torch.int32),  # tokens in the cache
            "classes": torch.tensor([0, model.num_classes], dtype=torch.int32),
            "guidance": torch.tensor(2.0),
            "side_uniform": torch.tensor([0.5]),
            "uniform": torch.zeros(self.num_patches, 1 + self.num_own),
        }
        shaped = ("canvas", "cache", "uniform")
        self.about = {"guides": True, **{name: list(self.inputs[name].shape) for name in shaped}}

    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        patch, cache, classes = inputs["patch"].long(), inputs["cache"], inputs["classes"].long()
        around, patch_P = self.decoder.around, torch.arange(self.num_patches)
        sides = guided(self.model.side(classes), inputs["guidance"])
        side = draw(sides[None], inputs["side_uniform"]) + scans.SIDES.start
        form_G, is_patch = torch.zeros_like(classes), patch < self.num_patches
        class_GD = self.model.patch.embed(torch.stack([classes, form_G + side, form_G], 1))

        padded = around.pad(inputs["canvas"][None, None])[0]
        drawn_at = patch.clamp(max=self.num_patches - 1)
        before, own = around.slot_index[drawn_at][0].tensor_split([around.num_before])
        around_E = around.embed(padded[before])
        x_GD = self.decoder.token(around_E) * is_patch + class_GD
        kept, place_T = FixedCache(cache), torch.arange(len(cache) + 1)
        mask = ((place_T < inputs["length"]) | (place_T == len(cache)))[None, None, None]
        x_G1D, at_G1 = x_GD[:, None], (form_G + patch)[:, None]
        state_GD = self.model.patch.transformer(x_G1D, kept, at=at_G1, mask=mask)[:, 0]
        uniform_I = inputs["uniform"][drawn_at][0, 1:]
        drawn_I, values_IV = self.values(inputs, around_E, state_GD, uniform_I)
        padded = padded.scatter(0, own, torch.where(is_patch, drawn_I, padded[own]))

        gate = self.decoder.gate
        assert gate is not None  # scans have a background
        seen_PS = padded.take(around.slot_index[:, : around.num_before])
        gates_GP = gate(gate.state(state_GD)[:, None], gate.look(around.embed(seen_PS), patch_P))
        gates_P = guided(gates_GP, inputs["guidance"])
        ink_P = draw(torch.stack([torch.zeros_like(gates_P), gates_P], 1), inputs["uniform"][:, 0])
        is_next_P = (ink_P == 1) & (~is_patch | (patch_P > patch))
        after = torch.where(is_next_P, patch_P, self.num_patches).amin(0, keepdim=True).int()
        drawn = around.crop(padded[None])[0, 0].to(torch.uint8)
        return after, drawn, torch.stack(kept.added), side, values_IV, gates_P

    def values(
        self, inputs: dict[str, Tensor], around_E: Tensor, state_GD: Tensor, uniform_I: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The values (I,) of a patch by ``draw_from_guesses``' method, and their logits (I, V)."""
        head = self.decoder.head
        weight, own_weight = head.window.matrix().tensor_split([len(around_E)])
        sums = head.state(state_GD) + around_E @ weight
        ruled_out = torch.zeros(self.num_own, head.output.out_features, dtype=torch.bool)
        ruled_out[-1, 0] = True  # where all values before it are paper

        def logits(own_I: Tensor) -> Tensor:
            x = sums + self.decoder.around.embed(own_I) @ own_weight
            values_IV = guided(head(x.unflatten(-1, (self.num_own, -1))), inputs["guidance"])
            return values_IV.masked_fill((own_I[:-1] == 0).all() & ruled_out, float("-inf"))

        def again(own_I: Tensor, going: Tensor) -> tuple[Tensor, Tensor]:
            drawn_I = draw(logits(own_I), uniform_I)
            return drawn_I, (drawn_I != own_I)[:-1].any()

        start = torch.zeros(self.num_own, dtype=torch.long), torch.tensor(True)
        own_I, _ = torch.while_loop(lambda own_I, going: going.clone(), again, start)
        return own_I, logits(own_I)


STEPS: dict[type[GenerativeModel], Any] = {DDPM: DenoiseStep, Flash: DenoiseStep, Scan: ScanStep}


def export(model: GenerativeModel, name: str, path: Path) -> None:
    """Write the step of a model's drawing as an ONNX file.

    Raises:
        ValueError: the family has no export, or the extra [export] is not installed.
    """
    family = family_of(model.config)
    if type(model) not in STEPS:
        known = ", ".join(other for other, kinds in FAMILIES.items() if kinds[1] in STEPS)
        raise ValueError(f"{name} is of the family {family}, which has no export: {known} have one")
    try:
        import onnxscript  # noqa: F401
    except ModuleNotFoundError:
        needs = "export needs onnx and onnxscript: pip install 'mnist-transformer[export]'"
        raise ValueError(needs) from None
    step = STEPS[type(model)](model).eval()
    passes = torch.export.Dim("passes", min=1, max=2)
    shapes = {key: {PASSES[key]: passes} if key in PASSES else None for key in step.inputs}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of operators not used here
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            step, kwargs={"inputs": step.inputs}, input_names=list(step.inputs),
            output_names=step.outputs, dynamic_shapes={"inputs": shapes}, opset_version=OPSET,
            verbose=False,
        )  # fmt: skip
    assert program is not None
    about = {"format": FORMAT, "name": name, "family": family, **step.about}
    program.model.metadata_props["mnist_transformer"] = json.dumps(about)
    write_atomic(path, program.model_proto.SerializeToString())
