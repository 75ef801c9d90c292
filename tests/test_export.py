"""Exported steps against PyTorch: onnxruntime draws with them what the models draw."""

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY, moved

from mnist_transformer import cli
from mnist_transformer.data import scans
from mnist_transformer.models import checkpoint, ddpm
from mnist_transformer.models.export import export
from mnist_transformer.networks.diffusion import to_signed, to_uint8
from mnist_transformer.networks.drawing import Noise
from mnist_transformer.options import Keep, Sampling

onnx = pytest.importorskip("onnx", reason="needs onnx: the extra [export]")
pytest.importorskip("onnxscript", reason="needs onnxscript: the extra [export]")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")

LARGEST = 3e-4  # difference of logits and pixels from PyTorch's; the largest seen is 3e-5
NUMPY = {"float": np.float32, "int32": np.int32, "uint8": np.uint8, "bool": np.bool_}


class Exported:
    """A family's tiny model, and its step in onnxruntime."""

    def __init__(self, family: str, folder: Path) -> None:
        self.model, self.path = moved(TINY[family]).eval(), folder / f"{family}.onnx"
        export(self.model, family, self.path)
        self.session = onnxruntime.InferenceSession(self.path)
        metadata = self.session.get_modelmeta().custom_metadata_map
        self.about = json.loads(metadata["mnist_transformer"])
        self.dtypes = {node.name: NUMPY[node.type[7:-1]] for node in self.session.get_inputs()}

    def run(self, **inputs: object) -> dict[str, torch.Tensor]:
        feeds = {name: np.asarray(value, self.dtypes[name]) for name, value in inputs.items()}
        names = [node.name for node in self.session.get_outputs()]
        outputs = map(torch.as_tensor, self.session.run(names, feeds))
        return dict(zip(names, outputs, strict=True))

    def classes(self, label: int, guidance: float) -> list[int]:
        return [label] if guidance == 1 else [label, self.model.num_classes]


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported("scan", tmp_path_factory.mktemp("scan"))


@pytest.fixture(scope="module", params=["ddpm", "flash"])
def denoising(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(request.param, tmp_path_factory.mktemp(request.param))


def test_without_guidance_no_pass_is_made_in_vain(denoising: Exported, scan: Exported) -> None:
    for exported in (denoising, scan):
        shapes = {node.name: node.shape for node in exported.session.get_inputs()}
        assert shapes["classes"] == ["passes"]
        graph = onnx.load(exported.path).graph
        fixed = {tensor.name for tensor in graph.initializer}
        assert not [n for n in graph.node if n.op_type == "Expand" and n.input[1] in fixed]


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_scans_are_drawn_as_pytorch_draws_them(scan: Exported, guidance: float) -> None:
    model, patch, how = scan.model, scan.model.patch, Sampling(guidance=guidance)
    around, largest, num_drawn = patch.decoder.around, 0.0, 0
    for seed in range(4):
        label, noise = seed % 3, Noise([seed])
        expected = torch.from_numpy(model.scans([label], [seed], how).square(0))
        side_uniform, uniform = noise.uniform(1)[0], noise.uniform(1, *scan.about["uniform"])
        canvas, cache = torch.zeros(scan.about["canvas"]), torch.zeros(scan.about["cache"])
        classes = scan.classes(label, guidance)
        cache, at, steps = cache[:, :, :, : len(classes)], around.num_patches, []
        while not steps or at < around.num_patches:
            out = scan.run(
                patch=[at],
                canvas=canvas,
                cache=cache,
                length=len(steps),
                classes=classes,
                guidance=guidance,
                side_uniform=side_uniform,
                uniform=uniform[0, 0],
            )
            cache[len(steps)], canvas = out["added"].flatten(0, -1).view_as(cache[0]), out["drawn"]
            steps.append((at, out))
            at = out["next_patch"].item()
        side = out["side"].item()
        place = scans.square(side, len(canvas))
        assert torch.equal(canvas[place, place], expected)
        # The same logits follow from the finished scan, all at once.
        with torch.no_grad():
            packed = patch.decoder.lay_out(canvas[None, None])
            passes = [patch.logits(packed, torch.tensor([[label, side, 0]])) for label in classes]
            gates_BP, values_NIV = (
                x[-1] + guidance * (x[0] - x[-1]) for x in zip(*passes, strict=True)
            )
            values_NIV = patch.decoder.not_blank(values_NIV, packed.own_NI)
        for index, (at, out) in enumerate(steps):
            if index:
                finite = values_NIV[index - 1].isfinite()
                assert torch.equal(out["values"].isfinite(), finite)
                differ = (out["values"] - values_NIV[index - 1])[finite].abs().max().item()
                largest = max(largest, differ)
            first = (at + 1) % (around.num_patches + 1)
            seen = slice(first, out["next_patch"].item() + 1)
            differ = (out["gates"] - gates_BP[0])[seen].abs()
            largest = max([largest, *differ.tolist()])
        num_drawn += len(steps) - 1
    print(f"largest difference of logits: {largest:.1e} in {num_drawn} patches")
    assert num_drawn > 8
    assert largest < LARGEST


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("keeps", [False, True])
def test_images_are_denoised_as_pytorch_does(
    denoising: Exported, guidance: float, keeps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if guidance != 1 and not denoising.about["guides"]:
        pytest.skip("it takes no guidance")
    # The exported step computes in float32.
    monkeypatch.setattr(ddpm, "fast_autocast", lambda device: nullcontext())
    model, classes, noise = denoising.model, denoising.classes(1, guidance), Noise([5])
    shape = model.image_shape
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (1, *shape), generator=generator, dtype=torch.uint8)
    mask = (torch.rand(1, 1, *shape[1:], generator=generator) < 0.5) & keeps
    predictions, inner = [], model.denoise

    def denoise(*inputs: torch.Tensor) -> torch.Tensor:
        output = inner(*inputs)
        predictions.append(output[-1] + guidance * (output[0] - output[-1]))
        return output

    with monkeypatch.context() as patch, torch.inference_mode():
        patch.setattr(model, "denoise", denoise)
        keep = Keep(images, mask) if keeps else None
        options = Sampling(guidance=guidance), keep
        expected = list(model.sample_steps(torch.tensor([1]), Noise([5]), *options))
    expected = expected[-sum(r == s or s == 0 for _, s, r in times_of(denoising, keeps)) :]

    x, largest, number, drawn = noise.normal(*shape), 0.0, 0, []
    for t, s, r in times_of(denoising, keeps):
        # Random numbers in the order of ``sample_steps``.
        normal = [
            noise.normal(*shape) if used else torch.zeros_like(x)
            for used in (keeps and s > 0, r > s)
        ]
        out = denoising.run(
            x=x,
            times=[t, s, r],
            classes=classes,
            guidance=guidance,
            kept=to_signed(images),
            mask=mask,
            normal=torch.cat(normal),
        )
        differ = (out["prediction"][0] - predictions[number]).abs().max().item()
        x, largest, number = out["x_r"], max(largest, differ), number + 1
        if s == 0 or r == s:
            drawn.append(out["x_s"])
    print(f"largest difference of pixels in [-1, 1]: {largest:.1e} in {number} steps")
    assert number == len(predictions)
    assert largest < LARGEST
    for canvas, x_s in zip(expected, drawn, strict=True):  # at most from one grey level to the next
        assert (canvas.int() - to_uint8(x_s).int()).abs().max() <= 1


def times_of(denoising: Exported, keeps: bool) -> list[list[float]]:
    return denoising.about["times_around" if keeps else "times"]


def test_a_model_without_an_export_gets_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint.save(moved(TINY["pixel"]), tmp_path / "a.safetensors")
    assert cli.main(["export", str(tmp_path / "a.safetensors"), "--out", "a.onnx"]) == 2
    assert "is of the family pixel, which has no export" in capsys.readouterr().err


def test_an_export_is_an_onnx_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "mnist-scan", "--out", str(tmp_path / "a.pt")]) == 2
    assert "expected a name in .onnx" in capsys.readouterr().err
