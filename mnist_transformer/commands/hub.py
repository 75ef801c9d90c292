"""hub push and hub pull."""

from pathlib import Path
from shlex import quote
from typing import Annotated

from tyro.conf import Positional, arg

from mnist_transformer.commands.common import PROG, Model
from mnist_transformer.utils.terminal import say

Repo = Annotated[str, arg(metavar="OWNER/NAME", help="A repository on the Hugging Face Hub.")]


def push(
    model: Annotated[Positional[Model], arg(metavar="MODEL")],
    repo: Positional[Repo],
    card: Path | None = None,
    private: bool = False,
) -> None:
    """Publish a model's weights with a card. Log in first: `hf auth login`, or set HF_TOKEN.

    Args:
        card: A model card in Markdown; otherwise one is made from what the checkpoint records.
        private: Make a repository that only its owner sees.
    """
    from mnist_transformer.models import hub, loading

    if card is not None and not card.is_file():
        raise ValueError(f"card {card} is not a file, expected one of Markdown")
    weights = loading.find_weights(model)
    text = make_card(weights, repo) if card is None else card.read_text(encoding="utf-8")
    say(f"published {hub.push(weights, repo, text, private=private)}")


def pull(repo: Positional[Repo], out: Path | None = None) -> None:
    """Download a published model. `--model hf://OWNER/NAME` does it for any verb.

    Args:
        out: The file to write; otherwise NAME.safetensors.
    """
    from mnist_transformer.models import checkpoint, loading
    from mnist_transformer.utils.files import write_atomic

    out = out or Path(f"{repo.partition('@')[0].rpartition('/')[2]}.safetensors")
    if out.exists():
        raise ValueError(f"{out} exists: name another with --out")
    weights = loading.find_weights(f"hf://{repo}")
    checkpoint.read_notes(weights)
    write_atomic(out, weights.read_bytes())
    say(f"saved {out}")


def make_card(weights: Path, repo: str) -> str:
    """A model card in Markdown from what a checkpoint records; errors as ``read_info``."""
    from huggingface_hub import ModelCardData

    from mnist_transformer.evaluation.tables import markdown
    from mnist_transformer.models import checkpoint, hub
    from mnist_transformer.training.info import read_info

    data = checkpoint.load(weights).config.data
    told = {k: v for k, v in vars(read_info(weights)).items() if v is not None and k != "curve"}
    rows = [(name.replace("_", " "), str(value)) for name, value in told.items()]
    head = ModelCardData(library_name=PROG, tags=["image-generation"])
    return f"""---
{head.to_yaml()}
---

# {repo.rpartition("/")[2]}

```bash
{PROG} draw {quote(data.class_names[0])} --model {hub.PREFIX}{repo}
```

{markdown(["training", ""], rows, num_text=2)}
Data: {data.name}, images of {" x ".join(map(str, data.shape))} values. Licence: {data.licence}.
"""
