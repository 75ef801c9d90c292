"""The models and the runtime of the page that draws digits in the browser (docs/draw).

    python -m tools.page [FOLDER]    # by default build/docs/draw, which `make site` serves

The folder gets the models that docs/draw/models.json names, as ONNX, and ONNX Runtime for the web
from npm. A plain file server can serve it with docs/draw. Large files are packed by gzip, which
the page unpacks.
"""

import gzip
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import onnx
import torch

from mnist_transformer.models.export import export
from mnist_transformer.models.loading import load
from mnist_transformer.utils.terminal import exit_code, say

ROOT = Path(__file__).parent.parent
MODELS = ROOT / "docs" / "draw" / "models.json"
RUNTIME = "onnxruntime-web@1.30.0"  # MIT licence
SHA512 = (
    "ab4cbe26baedba45d2cec05610c71c55fa97db92d19a8b171c5f8269126683ca"
    "590a5cdc57bb2f35ce2b298de32f4d956fb42644c0ecd528a0a91e025c07ca61"
)
MODULE, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
MAX_BYTES = 15_000_000  # of the page in all


def build(folder: Path) -> None:
    """Put the page into a folder."""
    shutil.copytree(MODELS.parent, folder, dirs_exist_ok=True)
    for name in ("vendor", "models"):
        (folder / name).mkdir(exist_ok=True)
    vendor(folder / "vendor")
    for name in json.loads(MODELS.read_text(encoding="utf-8")):
        path = folder / "models" / f"{name}.onnx"
        export(load(name, "cpu"), name, path)
        pack(path, halved(onnx.load(path)).SerializeToString())
        path.unlink()
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if total > MAX_BYTES:
        raise ValueError(f"the page has {total:,} bytes, expected {MAX_BYTES:,} at most")
    say(f"saved {folder}: {total:,} bytes")


def vendor(folder: Path) -> None:
    """The runtime, as npm packs it. Raises ValueError where npm is missing or fails."""
    if (npm := shutil.which("npm")) is None:
        raise ValueError(f"npm is missing: {RUNTIME}, which the page draws with, comes from it")
    with tempfile.TemporaryDirectory() as temporary:
        command = [npm, "pack", RUNTIME, "--prefer-offline", "--silent"]
        done = subprocess.run(command, cwd=temporary, capture_output=True, text=True)
        packed = [*Path(temporary).glob("*.tgz")]
        if done.returncode or not packed:
            raise ValueError(f"npm has no {RUNTIME}: {done.stderr.strip() or 'no file came'}")
        if (found := hashlib.sha512(packed[0].read_bytes()).hexdigest()) != SHA512:
            raise ValueError(f"{RUNTIME} has the SHA-512 {found}, expected {SHA512}")
        with tarfile.open(packed[0]) as tar:
            for name in (MODULE, WASM):
                member = tar.extractfile(f"package/dist/{name}")
                assert member is not None
                if name == WASM:
                    pack(folder / name, member.read())
                else:
                    (folder / name).write_bytes(member.read())


def pack(path: Path, content: bytes) -> None:
    """Write the content, gzipped, under the name with .gz; the bytes are always the same."""
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content, 9, mtime=0))


def halved(model: Any) -> Any:
    """An ONNX model with its weights in bfloat16 where that loses nothing, as in shipped ones."""
    graph, casts = model.graph, []
    for tensor in graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.raw_data) < 4096:
            continue
        weights = torch.frombuffer(bytearray(tensor.raw_data), dtype=torch.float32)
        half = weights.bfloat16()
        if not torch.equal(half.float(), weights):
            continue
        tensor.raw_data = half.view(torch.uint8).numpy().tobytes()
        tensor.data_type, name = onnx.TensorProto.BFLOAT16, tensor.name
        tensor.name = f"{name}.half"
        to_float = {"to": onnx.TensorProto.FLOAT}
        casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], **to_float))
    nodes = [*casts, *graph.node]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return model


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "docs" / "draw"
    sys.exit(exit_code("tools.page", lambda: build(folder)))
