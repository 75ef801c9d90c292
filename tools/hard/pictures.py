"""Pictures with random damage, as a user's folder or an upload may bring them."""

import io
import random
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from mnist_transformer.data import pictures
from tools.hard import Figures, Lines

SLOW_SECONDS = 10.0


def originals() -> dict[str, bytes]:
    """A digit in every format that is read; by format."""
    grey = Image.new("L", (120, 140), 250)
    ImageDraw.Draw(grey).line([(30, 30), (90, 36), (60, 120)], fill=10, width=12, joint="curve")
    colour, exif = grey.convert("RGB"), Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"  # turned, and by whom
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    found = {}
    for name, picture, options in (
        ("PNG", colour, {}),
        ("PNG, 16 bits", deep, {}),
        ("PNG, palette", colour.quantize(8), {"transparency": 0}),
        ("JPEG, EXIF", colour, {"exif": exif}),
        ("GIF, 2 frames", grey, {"save_all": True, "append_images": [grey.rotate(5)]}),
        ("BMP", colour, {}),
        ("TIFF", colour, {"compression": "tiff_lzw"}),
        ("WEBP", colour, {}),
    ):
        content = io.BytesIO()
        picture.save(content, name.partition(",")[0], **options)
        found[name] = content.getvalue()
    return found


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, a part lost, or a part repeated."""
    damaged = bytearray(content)
    kind, place = rng.randrange(4), rng.randrange(len(content))
    length = 1 + min(int(rng.expovariate(1 / 40)), len(content) - place)
    if kind == 0:
        del damaged[place:]
    elif kind == 1:
        del damaged[place : place + length]
    elif kind == 2:
        damaged[place:place] = damaged[place : place + length]
    for _ in range(rng.randrange(1, 20) if kind == 3 else rng.randrange(2)):
        # Most formats keep what matters in the first bytes.
        end = rng.choice([64, 400, len(damaged)])
        if damaged:
            damaged[rng.randrange(min(end, len(damaged)))] = rng.randrange(256)
    return bytes(damaged)


def many_pictures(number: int, folder: Path, seed: int = 0) -> Lines:
    """Read so many mutated pictures of all formats together."""
    rng, formats = random.Random(seed), originals()
    for at, (name, content) in enumerate(formats.items()):
        found, slowest = Counter[str](), 0.0
        tries = (number + at) // len(formats)
        path = folder / f"picture.{name.partition(',')[0].lower()}"
        for _ in range(tries):
            path.write_bytes(mutated(content, rng))
            begun = time.monotonic()
            try:
                picture, _ = pictures.open_picture(path)
                pictures.to_image(picture, 28, str(path))
                found["read"] += 1
            except ValueError as error:
                sentence = path.name in str(error) and "\n" not in str(error)
                found["refused" if sentence else "no sentence"] += 1
            except Exception:  # noqa: BLE001 - any exception is counted
                found["no sentence"] += 1
            slowest = max(slowest, time.monotonic() - begun)
        counts: Figures = {"pictures": tries}
        counts |= {kind: found[kind] for kind in ("read", "refused", "no sentence")}
        counts["over 10 s"] = int(slowest > SLOW_SECONDS)
        yield {"format": name}, counts
