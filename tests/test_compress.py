"""Images compressed by a model's probabilities come back to the last pixel, or not at all."""

import gzip
import math
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import TINY, make_scans, make_spec, moved, random_model
from PIL import Image

from mnist_transformer import cli
from mnist_transformer.data import idx, load_dataset, raw
from mnist_transformer.models import checkpoint, codec
from mnist_transformer.networks.entropy import Coder

pytest.importorskip("constriction")

COLOUR = make_spec(8, 3, levels=16, channels=3, background=None)
MODELS = {
    "patch": TINY["patch"],
    "patch in colour": replace(TINY["patch"], data=COLOUR, num_logistics=3),
    "patch over all levels": replace(TINY["patch"], data=make_spec(8, 3)),
    "pixel": TINY["pixel"],
    "scan": TINY["scan"],
    "prompted": TINY["prompted"],
}


def quiet(*arguments: object) -> None:
    pass


@pytest.fixture(autouse=True)
def few_scans(monkeypatch):
    monkeypatch.setattr("mnist_transformer.models.scan.load_scans", make_scans)


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    for name, config in MODELS.items():
        checkpoint.save(moved(config), folder / name)
    return {name: str(folder / name) for name in MODELS}


def some_images(model: str, count: int = 5) -> torch.Tensor:
    """What it drew, noise, and blank images; of a model of scans, images that have one as well."""
    config = MODELS[model]
    drawn = moved(config).sample([0] * count, range(count))
    noise = torch.randint(0, config.data.num_levels, drawn.shape, dtype=torch.uint8)
    known = make_scans().images if model in ("scan", "prompted") else drawn[:0]
    return torch.cat([drawn, noise, 0 * noise, known])


encode, decode = partial(codec.encode, report=quiet), partial(codec.decode, report=quiet)


def round_trip(values: np.ndarray, path: str) -> bytes:
    content = encode(values, (), path)
    again, names = decode(content, "FILE", note=pytest.fail, model=path)
    assert np.array_equal(again, values)
    assert (again.dtype, names) == (np.uint8, ())
    return content


@pytest.mark.parametrize("model", MODELS)
def test_every_image_comes_back(model, paths):
    images = some_images(model).numpy()
    content = round_trip(images, paths[model])
    assert len(content) < 1.01 * images.size
    for few in (images[:1], images[5:6], images[10:11], images[:0]):
        round_trip(few, paths[model])


@pytest.mark.parametrize("model", ["patch", "patch in colour", "pixel"])
def test_the_code_has_the_size_that_the_likelihood_says(model):
    coder = random_model(MODELS[model])
    images = coder.sample([0] * 40, range(40))
    with torch.inference_mode():
        encoder, cond = Coder(), coder.check_cond(None, 40)
        assert torch.equal(coder.code(encoder, cond, [images]), images)
        code = encoder.finish()
        assert torch.equal(coder.code(Coder(code), cond, ()), images)
        bits = coder.nll(images, None).sum().item() / math.log(2)
    assert bits - 1 <= 8 * len(code) <= 1.01 * bits + 8


def test_no_code_of_symbols_is_longer_than_it_must_be():
    draw = np.random.default_rng(0)
    for count in range(1, 400):
        chance = torch.from_numpy(draw.beta(0.3, 0.3, count)).clamp(1e-3, 1 - 1e-3)
        logits = torch.stack([(1 - chance).log(), chance.log()], 1)
        symbols = torch.from_numpy(draw.random(count)).lt(chance).long()
        writer = Coder()
        writer.code(logits, symbols)
        code = writer.finish()
        bits = -logits.gather(1, symbols[:, None]).sum().item() / math.log(2)
        assert 8 * (len(code) - 1) <= bits + 1  # of a point in an interval of 2^-bits
        assert torch.equal(Coder(code).code(logits, 0 * symbols), symbols)


def test_a_scan_is_coded_where_there_is_one(paths):
    images = make_scans().images
    images[1, 0, 14, 14] ^= 1
    header, _ = codec._open(encode(images.numpy(), (), paths["scan"]), "FILE")
    assert header.not_coded in ((), (1,), tuple(range(6)))
    model = moved(TINY["scan"]).eval()
    is_coded, scan, side = model.source(images)
    assert is_coded.tolist() == [True, False, *[True] * 4]
    with torch.inference_mode():
        encoder, cond = Coder(), model.check_cond(None, 5)
        assert torch.equal(model.code(encoder, cond, [scan, side]), images[is_coded])
        decoded = model.code(Coder(encoder.finish()), cond, ())
    assert torch.equal(decoded, images[is_coded])


def test_blocks_are_coded_apart(paths, monkeypatch):
    monkeypatch.setattr(codec, "BLOCK", 4)
    images = some_images("patch over all levels").numpy()[1:11]  # 4 drawn, 5 of noise, 1 blank
    content = round_trip(images, paths["patch over all levels"])
    header, _ = codec._open(content, "FILE")
    assert header.not_coded[:4] == (4, 5, 6, 7)


def test_processes_write_the_same_file(paths, monkeypatch):
    monkeypatch.setattr(codec, "BLOCK", 5)
    images = some_images("patch").numpy()
    alone = encode(images, (), paths["patch"])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert encode(images, (), paths["patch"]) == alone


def test_the_shipped_model_codes_an_image_in_few_bytes():
    content = round_trip(make_scans().images.numpy(), "mnist-scan")
    assert len(content) < 6 * 60
    for image in make_scans().images[:2].numpy():
        assert len(round_trip(image[None], "mnist-scan")) <= 60
    for cpu in ("AVX2", "AVX512"):
        usual = codec.Header("mnist-scan", "2.13.0+cpu", cpu, (1, 28, 28), lengths=(0,))
        assert len(codec._deflate(codec._json(usual))) <= 5


@pytest.mark.parametrize("shape", [(1, 28, 28), (0, 28, 28), (3, 28, 28)])
def test_no_file_grows_by_more_than_a_hundredth(shape):
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    content = round_trip(noise, "mnist-scan")
    assert len(content) <= 1.01 * len(idx.header(shape) + noise.tobytes())


def test_any_byte_flipped_or_cut_is_one_sentence(paths):
    wrong = r"^FILE (begins with|is truncated or damaged)"
    coded = encode(some_images("patch").numpy(), (), paths["patch"])
    pictures = encode(some_images("patch").numpy()[:1], ("0.png",), paths["patch"])
    levels = "patch over all levels"
    plain = encode(some_images(levels).numpy()[6:7], (), paths[levels])
    assert not codec._open(plain, "FILE")[0].model
    for content in (coded, pictures, plain):
        for place in range(len(content)):
            flipped = bytearray(content)
            flipped[place] ^= 1 << place % 8
            for damaged in (bytes(flipped), content[:place]):
                with pytest.raises(ValueError, match=wrong):
                    decode(damaged, "FILE", note=quiet, model=None)


def test_another_version_is_named():
    with pytest.raises(ValueError, match=r"FILE begins with b'mt.x01', .* format 2 of compress"):
        decode(b"mt\x01" + bytes(9), "FILE", note=quiet, model=None)


def test_a_header_of_something_else_is_refused():
    nest = b"[" * 100_000
    for header in (nest, b"[]", b'{"axes":[1000000,1000000]}', b"{}", b'{"model":3}', b'{"who":1}'):
        content = codec._deflate(header) + bytes(4)
        with pytest.raises(ValueError, match="FILE has a header that compress did not write"):
            decode(codec.MAGIC + codec._crc(content) + content, "FILE", note=quiet, model=None)


def test_a_header_that_does_not_fit_the_model_is_refused(paths, monkeypatch):
    monkeypatch.setattr(codec, "MAX_BYTES", 1_000)  # also of the header itself
    weights = codec._crc(Path(paths["patch"]).read_bytes())[:2]
    for change in (
        {"axes": (9, 8, 9)},
        {"axes": (5,)},
        {"names": tuple("abcdefghijklmnop")},  # more bytes of images than are allowed
        {"axes": (3, 8, 8), "not_coded": (3,)},
    ):
        header = codec.Header("patch", *codec._here(), **change)
        content = codec._deflate(codec._json(header)) + weights
        with pytest.raises(ValueError, match="FILE has a header that does not fit"):
            decode(codec.MAGIC + codec._crc(content) + content, "FILE", paths["patch"], note=quiet)


def test_a_content_that_is_not_compress_s_is_refused(paths):
    header = codec.Header("patch", *codec._here(), axes=(3, 8, 8), lengths=(4,))
    weights = codec._crc(Path(paths["patch"]).read_bytes())[:2]
    content = codec._deflate(codec._json(header)) + weights + b"\xff" * 9
    with pytest.raises(ValueError, match="FILE has content that compress did not write"):
        decode(codec.MAGIC + codec._crc(content) + content, "FILE", paths["patch"], note=quiet)


def test_other_numbers_are_an_error_and_never_other_pixels(paths, monkeypatch):
    images = some_images("patch").numpy()[:5]
    content = encode(images, (), paths["patch"])
    assert codec._open(content, "FILE")[0].not_coded == ()
    notes: list[str] = []
    monkeypatch.setattr(codec, "_here", lambda: ("1.0", "ABACUS"))
    again, _ = decode(content, "FILE", note=notes.append, model=paths["patch"])
    assert np.array_equal(again, images)
    assert len(notes) == 1
    assert "trying with torch 1.0 with ABACUS" in notes[0]
    code = Coder.code
    monkeypatch.setattr(Coder, "code", lambda self, x, y: code(self, x * 0.9, y))
    with pytest.raises(ValueError, match="FILE: images 1 to 5 do not decode to their checksum"):
        decode(content, "FILE", note=quiet, model=paths["patch"])


def test_the_model_must_be_the_one_that_wrote(paths, tmp_path):
    content = encode(some_images("patch").numpy()[:5], (), paths["patch"])
    with pytest.raises(ValueError, match="unknown model 'patch'"):
        decode(content, "FILE", note=quiet, model=None)
    other = tmp_path / "other"
    checkpoint.save(random_model(TINY["patch"]), other)
    with pytest.raises(ValueError, match=r"FILE does not belong to the weights .*of patch that"):
        decode(content, "FILE", note=quiet, model=str(other))


# --- the verbs ---


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_files_keep_their_bytes(pack, paths, own_folder, capsys):
    images = some_images("patch").numpy()[:, 0]
    plain = idx.header(images.shape) + images.tobytes()
    Path("in").write_bytes(pack(plain))
    model = "--model", paths["patch"]
    assert run("compress", "in", "--out", "small", *model) == 0
    assert "saved small: 15 images, 960 bytes of pixels as" in capsys.readouterr().out
    assert run("compress", "in", "--out", "small", *model) == 0  # ours may be replaced
    assert run("compress", "small", "--out", "in", *model) == 2
    assert run("decompress", "small", "--out", "out", *model) == 0
    assert Path("out").read_bytes() == plain
    assert run("decompress", "small", "--out", "out", *model) == 2
    assert run("decompress", "in", "--out", "other", *model) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [error.split()[1] for error in errors] == ["in", "out", "in"]


def test_colours_may_come_last(paths, own_folder):
    images = some_images("patch in colour").permute(0, 2, 3, 1).numpy()
    plain = idx.header(images.shape) + images.tobytes()
    Path("in").write_bytes(plain)
    model = "--model", paths["patch in colour"]
    assert run("compress", "in", "--out", "small", *model) == 0
    assert run("decompress", "small", "--out", "out", *model) == 0
    assert Path("out").read_bytes() == plain


def test_pictures_keep_their_pixels(paths, own_folder, capsys, monkeypatch):
    images = some_images("patch").numpy()[:, 0]
    places = [Path(f"in/{number % 2}/{number}.{end}") for number, end in enumerate(["png", "bmp"])]
    for image, place in zip(images, places, strict=False):
        place.parent.mkdir(parents=True)
        Image.fromarray(image).save(place)
    Path("in/.git").mkdir()
    Path("in/.git/HEAD").write_text("not a picture")
    model = "--model", paths["patch"]
    assert run("compress", "in", "--out", "small", *model) == 0
    assert run("decompress", "small", "--out", "out", *model) == 0
    for image, place in zip(images, places, strict=False):
        with Image.open(Path("out", *place.parts[1:]).with_suffix(".png")) as picture:
            assert np.array_equal(np.asarray(picture), image)
    before = set(Path().iterdir())
    with monkeypatch.context() as full:
        full.setattr(raw, "save_png", mock.Mock(side_effect=[None, OSError(28, "disk is full")]))
        assert run("decompress", "small", "--out", "other", *model) == 2
    assert set(Path().iterdir()) == before
    Image.new("RGB", (8, 8)).save("in/colour.png")
    assert run("compress", "in", "--out", "small", *model) == 2
    assert "colour.png has mode, size and frames ('RGB', (8, 8), 1)" in capsys.readouterr().err
    Path("in/colour.png").unlink()
    frames = [Image.new("L", (8, 8), level) for level in (0, 9)]
    frames[0].save("in/frames.tiff", save_all=True, append_images=frames[1:])
    assert run("compress", "in", "--out", "small", *model) == 2
    assert "frames.tiff has mode, size and frames ('L', (8, 8), 2)" in capsys.readouterr().err


def test_a_parquet_file_keeps_its_pixels(own_folder, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from io import BytesIO

    from pyarrow import parquet

    images = np.zeros((3, 32, 32, 3), np.uint8)
    images[:, 8:16, 8:16] = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3))
    files = [BytesIO() for _ in images]
    for image, file in zip(images, files, strict=True):
        Image.fromarray(image).save(file, "PNG")
    pictures = [{"bytes": file.getvalue()} for file in files]
    parquet.write_table(pyarrow.table({"img": pictures, "label": [1, 2, 3]}), "in.parquet")
    data = make_spec(32, 3, channels=3)
    checkpoint.save(replace(TINY["patch"], data=data, patch_size=8).build(), "model")
    assert run("compress", "in.parquet", "--out", "small", "--model", "./model") == 0
    assert run("decompress", "small", "--out", "out", "--model", "./model") == 0
    assert np.array_equal(idx.read(Path("out")), images.transpose(0, 3, 1, 2))


def test_what_cannot_be_compressed_is_one_sentence(paths, own_folder, capsys, monkeypatch):
    Path("labels").write_bytes(idx.header((3,)) + bytes(3))
    Path("images").write_bytes(idx.header((1, 28, 28)) + bytes(784))
    Path("folder").mkdir()
    for arguments, message in {
        ("nothing",): "No such file",
        ("labels",): "the images are labels, expected 1x28x28 for this model",
        ("folder",): "folder has 0 pictures",
        ("images", "--model", paths["patch"]): "the images are 28x28, expected 1x8x8",
        ("images", "--model", "mnist-var"): "a model of the kind Var codes no images",
        ("images", "--model", "mnist-cnn"): "it does not draw",
    }.items():
        assert run("compress", *arguments, "--out", "small") == 2
        (error,) = capsys.readouterr().err.splitlines()
        assert message in error
    os.mkfifo("pipe")
    Path("small").write_bytes(encode(make_scans().images[:1].numpy(), (), "mnist-scan"))
    for arguments, message in {
        ("compress", "pipe", "--out", "other"): "pipe is not a file",
        ("decompress", "pipe", "--out", "other"): "pipe is not a file",
        ("compress", "images", "--out", "pipe"): "pipe exists",
        ("compress", "images", "--out", "labels/small"): "labels",
        ("decompress", "small", "--out", "labels/images"): "labels",
        ("compress", "images", "--out", "/proc/small"): "/proc/small: ",
    }.items():
        assert run(*arguments) == 2
        (error,) = capsys.readouterr().err.splitlines()
        assert error.startswith(f"mnist-transformer: {message}")
    monkeypatch.setitem(__import__("sys").modules, "constriction", None)
    for arguments in (("compress", "images"), ("decompress", "small")):
        assert run(*arguments, "--out", "other") == 2
        assert "pip install 'mnist-transformer[compress]'" in capsys.readouterr().err


def test_names_that_lead_out_of_the_folder_are_refused(paths, own_folder):
    content = encode(some_images("patch").numpy()[:1], ("../out.png",), paths["patch"])
    Path("small").write_bytes(content)
    assert run("decompress", "small", "--out", "in", "--model", paths["patch"]) == 2
    assert not Path("out.png").exists()


# --- 500 images, and all of them in experiments/compress.py ---


def test_500_digits_come_back(tmp_path, monkeypatch):
    monkeypatch.undo()
    images = load_dataset("mnist").test.spaced(500).images
    assert len(round_trip(images[:20].numpy(), "mnist-scan")) < 20 * 45
    path = tmp_path / "model"
    checkpoint.save(moved(replace(TINY["patch"], data=make_spec(28, 3), patch_size=14)), path)
    for block in images.split(codec.BLOCK):  # whatever deflate would make of them
        code, _ = codec._code((path, len(block), (block.numpy(),), None))
        _, again = codec._code((path, len(block), (), code))
        assert np.array_equal(again, block)


def test_500_images_in_colour_come_back(paths):
    images = moved(MODELS["patch in colour"]).sample([0] * 500, range(500))
    content = round_trip(images.numpy(), paths["patch in colour"])
    assert codec._open(content, "FILE")[0].not_coded == ()
