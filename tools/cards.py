"""Model cards: a page of markdown per shipped model, made from its recipe, checkpoint and ledger.

    python -m tools.cards runs/cards    # a folder of cards for the Hugging Face Hub

The site shows the same cards (tools/pages.py). Only the limits are written by hand, in ``CARDS``.
"""

import hashlib
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from mnist_transformer.evaluation import ledger, tables
from mnist_transformer.models import checkpoint, loading
from mnist_transformer.models.base import GenerativeModel
from mnist_transformer.options import FLAGSHIP
from mnist_transformer.prompting.asking import ReadsPrompts
from mnist_transformer.recipes import RECIPES, Recipe
from mnist_transformer.training.info import read_info
from mnist_transformer.utils import trees
from mnist_transformer.utils.terminal import exit_code, say
from tools import columns, trials
from tools.report import known, make_table

RESULTS = Path(__file__).parent.parent / "results"

# The page that explains a shipped model, and its limits.
CARDS = {
    "mnist-scan": ("scans", "Draws MNIST digits only. Its bits/dim are a bound, and it knows how "
                   "MNIST was made, as the published models do not. Guidance on top of the "
                   "guidance built in costs variety."),
    "mnist-scan-tiny": ("scans", "Draws MNIST digits only. Its bits/dim are a bound, and it knows "
                        "how MNIST was made."),
    "mnist-patch": ("patch", "Draws MNIST digits only, and knows nothing of how they were made: "
                    "mnist-scan draws better ones."),
    "mnist-pixel-3.5m": ("pixel", "Slow: 784 steps per digit. It was trained for one epoch; draw "
                         "with guidance."),
    "mnist-var": ("var", "It has no likelihood of pixels. Codes of one scale are drawn "
                  "independently of one another."),
    "mnist-vq-raster": ("var", "It has no likelihood of pixels."),
    "mnist-mar": ("mar", "It has no likelihood. An image drawn alone may differ from the same "
                  "seed in a batch by one grey level in a few pixels."),
    "mnist-ddpm": ("diffusion", "Its bits/dim are a loose bound. An image drawn alone may differ "
                   "from the same seed in a batch by one grey level in a few pixels."),
    "mnist-flash": ("flash", "It has no likelihood, and less variety than its teacher, "
                    "mnist-ddpm. An image drawn alone may differ from the same seed in a batch "
                    "by one grey level in a few pixels."),
    "mnist-prompt-scratch": ("prompting", "It understands the English of one grammar: a number "
                             "from 0 to 99 or one operation. Sums that were not in training are "
                             "its weak point. Draw with guidance."),
    "mnist-prompt-smollm2": ("prompting", "It reads but does not draw: it needs SmolLM2's "
                             "weights, and mnist-scan draws. Requests outside of the grammar "
                             "are not always refused."),
    "mnist-vqvae": ("var", "It encodes and decodes; mnist-var draws with it. A decoded digit is "
                    "blurred where the codes cannot tell more."),
    "mnist-cnn": ("results", "It judges MNIST digits only. Figures by another classifier do not "
                  "compare with its figures. It has not been tested on adversarial images."),
    "cifar10-patch": ("cifar10", "Draws photographs of 32x32 pixels whose class is seldom "
                      "recognisable. It learned from a JPEG copy of CIFAR-10, so its bits/dim "
                      "cannot be compared with published ones."),
    "cifar10-ddpm": ("cifar10", "Draws photographs of 32x32 pixels, often blurred or of no clear "
                     "class. It learned from a JPEG copy of CIFAR-10, so its figures cannot be "
                     "compared with published ones."),
    "cifar10-cnn": ("cifar10", "It judges photographs of 32x32 pixels. It learned from a copy of "
                    "CIFAR-10 as JPEG, which is lossy, so its accuracy cannot be compared with "
                    "published ones."),
}  # fmt: skip

_LINK = re.compile(r"\[([^]]*)\]\([^)]*\)")
_FRONT_MATTER = """---
license: apache-2.0
library_name: mnist-transformer
tags: [mnist, generative-model, transformer]
---

"""


@cache
def _rows() -> dict[str, ledger.Row]:
    return {row["recipe"]: row for row in known(ledger.rows(RESULTS / "ledger.jsonl"))}


def _figures(row: ledger.Row) -> Iterator[tuple[str, str]]:
    """The names and values of a row's figures."""
    metrics = row["metrics"]
    if "bits_per_dim" in metrics:
        yield "test bits/dim", tables.bits(row)
        yield "validation bits/dim", tables.number(metrics["bits_per_dim_val"], 3)
    for found in metrics.get("drawn", ()):
        at = f"at guidance {found['guidance']:g}"
        yield f"class agreement {at}, %", tables.percent(found["agreement"])
        yield f"fd_cnn {at}", tables.plus_minus(found["fd_cnn"])
        yield f"exact copies of training images {at}", str(found["copies"]["exact"])
    if "floor" in metrics:
        yield "fd_cnn of real training images", tables.plus_minus(metrics["floor"]["fd_cnn"])
    for batch, speed in metrics.get("images_per_second", {}).items():
        yield f"images per second, {batch} at once", tables.number(speed, 1)
    if "accuracy" in metrics:
        yield "test accuracy, %", tables.number(metrics["accuracy"], 2, scale=100)
    if "reconstruction" in metrics:
        decoded = metrics["reconstruction"]
        agreement = tables.number(decoded["agreement"], 2, scale=100)
        yield "class agreement of decoded test images, %", agreement
        yield "fd_cnn of decoded test images", tables.number(decoded["fd_cnn"], 3)
    yield "measured", f"{row['date'][:10]}, {columns.device(row)}, torch {row['torch']}"


def _settings(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The settings of a checkpoint's config, those of the configs inside it too."""
    for name, value in config.items():
        if isinstance(value, dict) and name != "data":
            yield from ((f"{name}.{inner}", text) for inner, text in _settings(value))
        elif name not in ("data", "image_size", "num_classes") and value is not None:
            yield name, str(value)


def _training(recipe: Recipe, weights: Path) -> Iterator[tuple[str, str]]:
    info = read_info(weights)
    yield "recipe", f"`mnist-transformer train {recipe.name}`"
    for name in ("images_seen", "steps"):
        yield name.replace("_", " "), f"{getattr(info, name):,}"
    yield "minutes", tables.number(info.seconds, 0, scale=1 / 60)
    yield "seed", str(info.seed)
    yield "torch", str(info.torch)
    yield "batch size of the recipe", str(recipe.batch_size)
    yield "learning rates of the recipe", f"{recipe.muon_lr:g} (Muon), {recipe.adamw_lr:g} (AdamW)"


def _measured(name: str) -> str:
    """The table of a model's figures: its row's, or those by kind of prompt."""
    if name in _rows():
        return _table(_figures(_rows()[name]))
    rows = {
        recipe: row
        for recipe, row in _rows().items()
        if row["metrics"].get("settings", {}).get("system") == name
    }
    return trials.table(rows, "prompting")


def _table(rows: Iterable[tuple[str, str]]) -> str:
    return tables.markdown(["", ""], rows, num_text=2)


def _pictures(name: str) -> str:
    """A model's samples, a drawing and its loss, as far as they exist."""
    shown = (("samples.png", "digits drawn"), ("drawing.gif", "drawing"), ("loss.png", "loss"))
    return "".join(
        f"![{name}: {alt}](../../results/{name}/{file})\n\n"
        for file, alt in shown
        if (RESULTS / name / file).is_file()
    )


def card(name: str, *, on_site: bool) -> str:
    """The card of a shipped model as markdown; on the site it has pictures and links."""
    recipe, weights = RECIPES[name], loading.find_weights(name)
    page, limits = CARDS[name]
    with torch.device("meta"):
        model = recipe.model.build()
    config = trees.header(trees.read_metadata(weights, checkpoint.KIND), "config", weights)
    parameters = _rows()[name]["parameters"] if name in _rows() else model.num_parameters
    likelihood = {"exact": "exact", "bound": "an upper bound", None: "none"}[model.likelihood]
    data, content = recipe.model.data, weights.read_bytes()
    if isinstance(model, ReadsPrompts):
        use = f'mnist-transformer ask "twice 21" --model {name}'
    elif isinstance(model, GenerativeModel):
        use = f"mnist-transformer draw 3 --model {name}"
    else:
        use = f"mnist-transformer list {name}"
    facts = (
        ("file", f"`{weights.name}`, safetensors, bfloat16"),
        ("bytes", f"{len(content):,}"),
        ("sha256", f"`{hashlib.sha256(content).hexdigest()}`"),
        ("licence", "Apache-2.0"),
    )
    text = f"""# {name}

{recipe.about[0].upper()}{recipe.about[1:]}. Parameters: {parameters:,}. \
Likelihood: {likelihood}.

```bash
{use}
```

{_pictures(name) if on_site else ""}## Figures

{_measured(name)}
The protocol: [docs/results.md](../results.md). How it works: [docs/{page}.md](../{page}.md).

## Limits

{limits}

## Training

{_table(_training(recipe, weights))}
## Data

{data.name}, images of {" x ".join(map(str, data.shape))} values, by {data.source}. Licence: \
{data.licence}. The last 5,000 training images are for validation. No choice used test images.

## Settings

{_table(_settings(config))}
## File

{_table(facts)}"""
    return text if on_site else _LINK.sub(r"\1", text)


def index() -> str:
    """The page in front of the cards."""
    lines = "".join(f"| [{name}]({name}.md) | {RECIPES[name].about} |\n" for name in CARDS)
    return (
        "# Models\n\nEvery model ships trained. "
        f"`{FLAGSHIP}` draws where none is named. A card says how a model was trained and "
        f"measured.\n\n| model | about |\n| --- | --- |\n{lines}\n"
        "## Choose a model\n\nThe one whose digits are nearest to real ones comes first; "
        "a model that is not in the table above is not shipped.\n\n"
        f"{make_table('models', tables.by_dataset(_rows().values())['mnist'])}"
    )


def write(folder: Annotated[Path, tyro.conf.Positional]) -> None:
    """Write the card of every shipped model into a folder, for the Hugging Face Hub."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in CARDS:
        path = folder / f"{name}.md"
        path.write_text(_FRONT_MATTER + card(name, on_site=False), encoding="utf-8")
        say(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(exit_code("tools.cards", lambda: tyro.cli(write, prog="python -m tools.cards")))
