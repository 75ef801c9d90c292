"""Around a hole: masks, pictures from anywhere, which digit it may be, and the verb."""

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import (
    PRINT_PEAK,
    SPACES,
    TINY_PATCH,
    all_images,
    make_spec,
    needs_proc,
    random_model,
)
from PIL import ExifTags, Image, ImageDraw, PngImagePlugin

from mnist_transformer import cli
from mnist_transformer.data import pictures
from mnist_transformer.models import checkpoint, inpaint
from mnist_transformer.options import Keep
from mnist_transformer.utils.images import FORMATS

pytestmark = pytest.mark.usefixtures("own_folder")


def photograph(size: tuple[int, int] = (200, 120)) -> Image.Image:
    """A dark stroke on white paper, with the noise of a camera."""
    picture = Image.new("RGB", size, (235, 240, 230))
    ImageDraw.Draw(picture).line((size[0] // 2, 20, size[0] // 2, size[1] - 20), "black", 14)
    noise = np.random.default_rng(0).normal(0, 4, (size[1], size[0], 3))
    return Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))


def read_picture(path: Path, size: int) -> tuple[torch.Tensor, list[str]]:
    """A picture file as the verb reads it for a model of digits, and the changes made."""
    picture, turned = pictures.open_picture(path)
    image, changes = pictures.to_image(picture, size, str(path))
    return image, turned + changes


@pytest.mark.parametrize(("name", "hidden"), [("top", 0.5), ("left", 0.5), ("center", 0.25)])
def test_named_holes(name, hidden):
    keep = inpaint.hole(name, 28)
    assert keep.shape == (1, 28, 28)
    assert (~keep).double().mean() == hidden
    assert not torch.equal(
        keep, inpaint.hole({"top": "bottom", "left": "right"}.get(name, "top"), 28)
    )


def test_a_random_hole_hides_its_share_and_follows_its_seed():
    keep = inpaint.hole("random:0.25", 28, seed=1)
    assert (~keep).sum() == 196
    assert torch.equal(keep, inpaint.hole("random:0.25", 28, seed=1))
    assert not torch.equal(keep, inpaint.hole("random:0.25", 28, seed=2))


def test_an_image_of_the_right_size_is_left_as_it_is():
    levels = np.zeros((28, 28), dtype=np.uint8)
    levels[5:20, 10:14] = 200
    levels[5, 10] = 3
    Image.fromarray(levels).save("digit.png")
    image, changes = read_picture(Path("digit.png"), 28)
    assert np.array_equal(image[0].numpy(), levels)
    assert changes == []


def test_a_digit_that_we_drew_comes_back_as_it_was():
    torch.manual_seed(0)
    model = TINY_PATCH.build()
    # Little ink: else an untrained model's noise is on most of the border, which is no paper.
    torch.nn.init.constant_(model.decoder.gate.output.bias, -2)
    checkpoint.save(model, Path("tiny.safetensors"), recipe="mnist-patch")
    assert cli.main(["draw", "7", "--model", "tiny.safetensors"]) == 0
    image, changes = read_picture(Path("7.png"), 28)
    drawn = cli.mnist_transformer.load("tiny.safetensors", "cpu").sample([7], [0])[0]
    assert torch.equal(image, drawn)
    assert [change.split()[0] for change in changes] == ["scaled"]


INVERTED = "inverted, since the paper is lighter than the ink"
SCALED, CLEANED = "scaled from 200x120 to 28x28", "brought to full contrast on black paper"


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_photograph_becomes_light_on_black(suffix):
    photograph().save(f"photo.{suffix}")
    image, changes = read_picture(Path(f"photo.{suffix}"), 28)
    assert changes == ["made grey", INVERTED, SCALED, CLEANED]
    assert image.max() > 200
    assert (image[0, :, :8] == 0).all()  # paper, without its noise
    assert (image[0, 10:18, 12:16] > 100).any(1).all()


def seven(paper: np.ndarray | float, ink: float) -> np.ndarray:
    """Levels (280, 280) of a 7 on paper (280, 280), or of one level."""
    stroke = Image.new("L", (280, 280))
    ImageDraw.Draw(stroke).line([(80, 60), (200, 60), (120, 230)], 255, 24)
    share = np.asarray(stroke) / 255
    return paper * (1 - share) + ink * share


def test_paper_is_black_however_it_is_lit():
    across = np.linspace(0, 1, 280)[None]
    plain, _ = pictures.to_image(Image.fromarray(seven(255, 0).astype(np.uint8)), 28)
    for lit in (seven(200 + 40 * across, 20), seven(90 + 40 * across.T, 20), seven(20, 135)):
        image, changes = pictures.to_image(Image.fromarray(lit.astype(np.uint8)), 28)
        assert changes[-1] == CLEANED
        assert ((image > 0) == (plain > 0)).double().mean() > 0.98
        assert image.max() > 250
    small = Image.fromarray(seven(235, 120).astype(np.uint8)).resize((28, 28), Image.Resampling.BOX)
    image, changes = pictures.to_image(small, 28)
    assert changes == [INVERTED, CLEANED]
    assert ((image > 0) == (plain > 0)).double().mean() > 0.98


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        (seven(0, 40000).astype(np.uint16), "brought from levels of 0 to 40000 to 0 to 255"),
        (seven(0, 1).astype(np.float32), "brought from levels of 0 to 1 to 0 to 255"),
    ],
)
def test_more_than_256_levels_are_brought_to_256(levels, words):
    image, changes = pictures.to_image(Image.fromarray(levels), 28)
    expected, _ = pictures.to_image(Image.fromarray(seven(0, 255).astype(np.uint8)), 28)
    assert changes[0] == words
    assert (image.int() - expected.int()).abs().max() <= 2


@pytest.mark.parametrize(("ink", "page"), [(255, "black"), (0, "white")])
def test_transparent_is_paper(ink, page):
    picture = Image.new("RGBA", (28, 28), (0, 0, 0, 0))
    ImageDraw.Draw(picture).rectangle((10, 5, 14, 20), (ink, ink, ink, 255))
    image, changes = pictures.to_image(picture, 28)
    assert changes == [f"laid on a {page} page"] + ([INVERTED] if page == "white" else [])
    assert image[0, 10, 12] == 255
    assert image[0, 0, 0] == 0


def test_what_a_file_says_of_itself_is_told():
    turned = Image.fromarray(seven(0, 255).astype(np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned.save("turned.png", exif=exif)
    turned.save("moving.gif", save_all=True, append_images=[Image.new("L", turned.size, 90)])
    assert read_picture(Path("turned.png"), 28)[1][0] == "turned upright"
    assert read_picture(Path("moving.gif"), 28)[1][0] == "taken from its first frame"


def png(size: int, bits: int, kind: int, rows: bytes, *others: bytes) -> bytes:
    """A PNG file's content with further chunks before its pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", size, size, bits, kind, 0, 0, 0)
    parts = (head, *others, b"IDAT" + zlib.compress(rows, 1), b"IEND")
    chunks = (struct.pack(">I", len(x) - 4) + x + struct.pack(">I", zlib.crc32(x)) for x in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_a_transparent_level_of_16_bits_changes_nothing():
    levels = seven(np.linspace(0, 9000, 280)[None], 60_000).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in levels)
    Path("plain.png").write_bytes(png(280, 16, 0, rows))
    Path("clear.png").write_bytes(png(280, 16, 0, rows, b"tRNS" + struct.pack(">H", 0)))
    plain, clear = (read_picture(Path(f"{x}.png"), 28) for x in ("plain", "clear"))
    assert torch.equal(plain[0], clear[0])
    assert plain[1] == clear[1]


@needs_proc
@pytest.mark.parametrize(("bits", "kind", "channels"), [(8, 6, 4), (16, 0, 1)])
def test_a_large_picture_takes_little_memory(bits, kind, channels):
    row = b"\0" + bytes(7000 * channels * bits // 8)
    Path("large.png").write_bytes(png(7000, bits, kind, row * 7000))
    script = (
        "from pathlib import Path\n"
        "from mnist_transformer.data import pictures\n"
        "pictures.open_picture(Path('large.png'))\n"
        f"{PRINT_PEAK}"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 800_000  # kB


def test_a_large_picture_is_the_small_one():
    levels = np.kron(seven(0, 255), np.ones((10, 10))).astype(np.uint8)
    Image.fromarray(levels).save("large.png")
    Image.fromarray(seven(0, 255).astype(np.uint8)).save("small.png")
    large, small = (read_picture(Path(f"{x}.png"), 28) for x in ("large", "small"))
    assert large[1][0] == "reduced 2 times, from 2800x2800"
    assert (large[0].int() - small[0].int()).abs().max() <= 2


def read_or_named(path: Path) -> bool:
    """Whether the file is read, or refused by a sentence that names it."""
    try:
        pictures.open_picture(path)
    except ValueError as error:
        return str(error).startswith(f"{path} ")
    return True


def test_no_exif_stops_a_picture(recwarn):
    exif = Image.Exif()
    exif.update({ExifTags.Base.Orientation: 6, ExifTags.Base.XResolution: 1.5})
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExposureTime] = 0.01
    photograph().save("photo.jpg", exif=exif)
    whole = Path("photo.jpg").read_bytes()
    turned = read_picture(Path("photo.jpg"), 28)[0]
    assert not torch.equal(turned, pictures.to_image(photograph(), 28)[0])
    random, start = np.random.default_rng(0), whole.index(b"Exif\0\0") + 6
    for _ in range(300):
        content = bytearray(whole)
        places = random.integers(start, start + len(exif.tobytes()) - 6, random.integers(1, 9))
        for place in places:
            content[place] = random.choice((0, 1, 255, random.integers(256)))
        Path("photo.jpg").write_bytes(content)
        assert read_or_named(Path("photo.jpg"))
    assert not recwarn


@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_file_is_a_picture_or_a_sentence(kind, recwarn):
    photograph((40, 30)).save("whole", kind)
    random, whole = np.random.default_rng(1), Path("whole").read_bytes()
    for _ in range(60):
        content = bytearray(whole)
        for place in random.integers(len(content), size=random.integers(1, 9)):
            content[place] = random.choice((0, 1, 255, random.integers(256)))
        Path("mutated").write_bytes(content[: random.integers(len(content) // 2, 2 * len(content))])
        assert read_or_named(Path("mutated"))
    assert not recwarn


def test_a_mask_is_white_where_the_hole_is():
    mask = Image.new("L", (56, 56))
    ImageDraw.Draw(mask).rectangle((0, 0, 27, 55), 255)
    mask.save("mask.png")
    keep = pictures.read_mask(Path("mask.png"), 28, (56, 56))
    assert torch.equal(keep, inpaint.hole("left", 28))
    clear = Image.new("RGBA", (56, 56), (255, 255, 255, 0))
    ImageDraw.Draw(clear).rectangle((0, 0, 27, 55), "white")
    clear.save("clear.png")
    assert torch.equal(pictures.read_mask(Path("clear.png"), 28, (56, 56)), keep)


def test_a_mask_has_the_shape_of_its_picture():
    mask = Image.new("L", (100, 60))
    ImageDraw.Draw(mask).rectangle((50, 0, 99, 59), 255)
    mask.save("mask.png")
    keep = pictures.read_mask(Path("mask.png"), 28, (200, 120))
    assert keep[0, :, :14].all()
    assert not keep[0, 6:22, 14:].any()
    with pytest.raises(ValueError, match=r"mask\.png has 100x60 pixels, expected a square or"):
        pictures.read_mask(Path("mask.png"), 28, (120, 120))


def test_a_photograph_is_cropped_and_keeps_its_colours():
    data = make_spec(8, 2, channels=3, background=None)
    picture = Image.new("RGB", (32, 16), "blue")
    ImageDraw.Draw(picture).rectangle([12, 0, 19, 15], "red")
    image, changes = pictures.to_image_of(data, picture)
    assert image.shape == (3, 8, 8)
    assert image[0, 0].tolist() == [0, 0, 255, 255, 255, 255, 0, 0]
    assert image[2, 0].tolist() == [255, 255, 0, 0, 0, 0, 255, 255]
    assert changes == ["cropped to the square at its centre", "scaled from 32x16 to 8x8"]
    small = Image.fromarray(image.permute(1, 2, 0).numpy())
    again, changes = pictures.to_image_of(data, small.resize((80, 80), Image.Resampling.NEAREST))
    assert torch.equal(again, image)
    grey, _ = pictures.to_image_of(make_spec(8, 2, background=None), picture)
    assert grey.shape == (1, 8, 8)
    assert grey[0, 0].tolist() == [29, 29, 76, 76, 76, 76, 29, 29]
    mask = Image.new("L", (32, 16))
    ImageDraw.Draw(mask).rectangle([12, 0, 19, 15], 255)
    mask.save("mask.png")
    keep = pictures.read_mask(Path("mask.png"), 8, (32, 16), crop=True)
    assert torch.equal(keep[0], image[2] == 255)


def test_class_posterior_is_bayes_rule():
    model = random_model(SPACES["four pixels"])
    images = all_images(model.config)[::9]
    posterior = inpaint.class_posterior(model, images)
    with torch.no_grad():
        likelihood = torch.stack(
            [(-model.nll(images, [c] * len(images)).double()).exp() for c in (0, 1)], dim=1
        )
    expected = likelihood / likelihood.sum(1, keepdim=True)
    torch.testing.assert_close(posterior.double(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["four pixels", "patches of two levels"])
def test_nats_of_pixels_add_up_to_the_image_s(name):
    model = random_model(SPACES[name])
    images = all_images(model.config)[::7][:50]
    with torch.no_grad():
        nats = model.pixel_nats(images, torch.zeros(len(images), dtype=torch.long))
        torch.testing.assert_close(nats.sum((1, 2)), model.nll(images, [0] * len(images)))
    assert nats.shape == images[:, 0].shape


def test_the_last_half_s_nats_are_its_conditional_likelihood():
    """Raster order: the top half does not see the bottom, so its nats do not change with it."""
    model = random_model(SPACES["patches of two levels"])
    images = torch.randint(0, 2, (8, 1, 4, 4), dtype=torch.uint8)
    other = images.clone()
    other[:, :, 2:] = torch.randint(0, 2, (8, 1, 2, 4), dtype=torch.uint8)
    labels = torch.zeros(8, dtype=torch.long)
    with torch.no_grad():
        top, same = (model.pixel_nats(x, labels)[:, :2].sum((1, 2)) for x in (images, other))
    torch.testing.assert_close(top, same)


def test_the_verb_completes_a_photograph(tiny_checkpoint, capsys):
    photograph().save("photo.jpg")
    flags = ["--model", str(tiny_checkpoint), "--num-particles", "2", "--n", "2", "--gif"]
    flags += ["--top-k", "9", "--top-p", "0.9"]
    assert cli.main(["inpaint", "photo.jpg", "--hole", "bottom", *flags]) == 0
    said = capsys.readouterr().out
    assert f"photo.jpg was {INVERTED}" in said
    assert "it may be a " in said
    assert "saved photo-inpainted.png" in said
    with Image.open("photo-inpainted.png") as picture:
        assert picture.mode == "RGB"
        assert "top_k=9, top_p=0.9" in picture.info["Description"]
    with Image.open("photo-inpainted.gif") as movie:
        assert movie.n_frames > 1


def test_the_verb_keeps_what_the_mask_keeps(tiny_checkpoint):
    model = cli.mnist_transformer.load(tiny_checkpoint, "cpu")
    image = torch.randint(0, 256, (1, 28, 28), dtype=torch.uint8)
    keep = inpaint.hole("center", 28)
    *_, last = inpaint.complete(model, image, keep, n=3, label=4, seed=5)
    kept = keep.expand(3, -1, -1, -1)
    assert torch.equal(last[kept], image.expand(3, -1, -1, -1)[kept])
    alone = model.sample([4], [6], keep=Keep(image[None], keep[None]))
    assert torch.equal(last[1:2], alone)


def png_header(width: int, height: int) -> bytes:
    """The beginning of a file that claims to be that large."""
    parts = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0), b"IDAT"
    chunks = (struct.pack(">I", len(x) - 4) + x + struct.pack(">I", zlib.crc32(x)) for x in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("photo.jpg", "expected either --hole or --mask"),
        ("photo.jpg --hole top --mask black.png", "expected either --hole or --mask"),
        ("photo.jpg --hole middle", "hole is 'middle', expected one of top"),
        ("photo.jpg --hole random:2", "hole is 'random:2', expected random:SHARE"),
        ("photo.jpg --hole random", "hole is 'random', expected random:SHARE"),
        ("photo.jpg --hole top --n 0", "n is 0"),
        ("photo.jpg --hole top --label 10", "unknown class '10'; nearest: "),
        ("photo.jpg --hole top --num-particles 0", "num_particles is 0"),
        ("photo.jpg --hole top --num-particles 999", "n is 8 with 999 particles each, expected at"),
        ("photo.jpg --hole top --guidance 2", "guidance is 2.0, expected 1 where no class is"),
        ("photo.jpg --hole top --top-p 2", "top_p is 2"),
        ("photo.jpg --hole top --sampler heun", "Patch does not use sampler"),
        ("photo.jpg --hole top --seed 4294967290", "seed is 4294967297"),
        ("photo.jpg --mask black.png", "black.png hides no pixel of 28x28"),
        ("photo.jpg --mask tall.png", "tall.png has 28x56 pixels, expected a square or the shape"),
        ("black.png --hole top", "black.png is blank, expected a digit"),
        ("narrow.png --hole top", "narrow.png has 40000x1 pixels, expected at most 10"),
        ("narrow.png --mask narrow.png", "narrow.png has 40000x1 pixels, expected at most"),
        ("large.png --hole top", "large.png has over 50,000,000 pixels"),
        ("huge.png --hole top", "huge.png has over 50,000,000 pixels"),
        ("bomb.png --hole top", "bomb.png is damaged: "),
        ("photo.jpg --mask missing.png", "missing.png: No such file"),
        ("missing.png --hole top", "missing.png: No such file"),
        ("text.png --hole top", "text.png is not a picture, expected a PNG or JPEG file"),
        ("half.jpg --hole top", "half.jpg is damaged"),
        ("empty.tif --hole top", "empty.tif is damaged: "),
        (". --hole top", "Is a directory"),
    ],
)
def test_a_mistake_is_one_sentence(command, message, tiny_checkpoint, capsys):
    photograph().save("photo.jpg")
    Image.new("L", (28, 28)).save("black.png")
    Image.new("L", (28, 56), 255).save("tall.png")
    Image.new("L", (40_000, 1), 255).save("narrow.png")
    Path("large.png").write_bytes(png_header(60_000, 900))
    Path("huge.png").write_bytes(png_header(60_000, 60_000))
    note = PngImagePlugin.PngInfo()
    note.add_text("Comment", " " * 2**21, zip=True)
    photograph().save("bomb.png", pnginfo=note)
    Path("text.png").write_text("no picture")
    photograph().save("whole.jpg")
    content = Path("whole.jpg").read_bytes()
    Path("half.jpg").write_bytes(content[: len(content) // 2])
    photograph().save("empty.tif")
    tiff = Path("empty.tif").read_bytes()
    (first,) = struct.unpack("<I", tiff[4:8])
    end = first + 2 + 12 * struct.unpack("<H", tiff[first : first + 2])[0]
    second = struct.pack("<I", len(tiff)) + tiff[end + 4 :] + struct.pack("<HI", 0, 0)
    Path("empty.tif").write_bytes(tiff[:end] + second)  # a directory without entries
    flags = ["--model", str(tiny_checkpoint)]
    assert cli.main(["inpaint", *command.split(), *flags]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert not Path("photo-inpainted.png").exists()
