"""Files of weights and states: exact, atomic, and one sentence for whatever is wrong."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from helpers import RECIPE
from safetensors.torch import load_file, save_file

from mnist_transformer.models import checkpoint
from mnist_transformer.utils import trees
from tools.ship import ship


@pytest.fixture
def model():
    torch.manual_seed(0)
    return RECIPE.model.build()


@pytest.fixture
def saved(model, tmp_path):
    path = tmp_path / "model.safetensors"
    checkpoint.save(model, path, recipe="tiny", images="12")
    return path


def header(path):
    size = int.from_bytes(path.read_bytes()[:8], "little")
    return json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]


def rewritten(path, **changes):
    """The same tensors under a changed header, with a checksum that fits."""
    tensors, metadata = load_file(path), {**header(path), **changes}
    metadata["crc32"] = str(trees.checksum(tensors, metadata))
    save_file(tensors, path, metadata)
    return path


def test_load_gives_back_the_same_weights_config_and_notes(model, saved):
    loaded = checkpoint.load(saved)
    assert loaded.config == model.config
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert checkpoint.read_notes(saved) == {"recipe": "tiny", "images": "12"}


def test_load_leaves_the_random_generator_alone(saved):
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    checkpoint.load(saved)
    assert torch.equal(torch.rand(1), expected)


def test_bf16_halves_the_file_and_loads_as_rounded_float32(model, saved, tmp_path):
    small = tmp_path / "small.safetensors"
    ship(saved, small)
    assert checkpoint.read_notes(small) == checkpoint.read_notes(saved)
    assert small.stat().st_size < 0.7 * saved.stat().st_size
    for name, tensor in checkpoint.load(small).state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, model.state_dict()[name].bfloat16().float())


def test_state_is_bit_exact(tmp_path):
    tree = {
        "step": 3,
        "seconds": 0.1 + 0.2,
        "none": None,
        "list": [{"a/b": torch.tensor(float("nan"))}, {}, True],
        "optimizer": {"0": {"step": torch.tensor(7.0), "m": torch.randn(2, 3).bfloat16()}},
        "empty": torch.empty(0, 4, dtype=torch.int64),
    }
    trees.save_state(tmp_path / "s", tree)
    loaded = trees.load_state(tmp_path / "s")
    assert loaded.keys() == tree.keys()
    assert (loaded["step"], loaded["seconds"], loaded["none"]) == (3, 0.1 + 0.2, None)
    assert loaded["list"][0]["a/b"].isnan()
    assert loaded["list"][1:] == [{}, True]
    assert torch.equal(loaded["optimizer"]["0"]["m"], tree["optimizer"]["0"]["m"])
    assert loaded["optimizer"]["0"]["step"].shape == ()
    assert loaded["empty"].shape == (0, 4)
    assert loaded["empty"].dtype == torch.int64


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
def test_a_state_that_is_read_leaves_its_room_once_deleted(tmp_path):
    trees.save_state(tmp_path / "state", {"x": torch.zeros(1000)})
    tree = trees.load_state(tmp_path / "state")
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    assert not tree["x"].any()


def test_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere.* does not exist, expected"):
        checkpoint.load(tmp_path / "nowhere")


def test_folder_in_place_of_a_file(tmp_path):
    with pytest.raises(ValueError, match="cannot be read, expected"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_file(saved, kept):
    saved.write_bytes(saved.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"model.safetensors cannot be read, expected a whole"):
        checkpoint.load(saved)


def test_flipped_bit_in_the_tensors(saved):
    content = bytearray(saved.read_bytes())
    content[-3] ^= 1
    saved.write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged: .* expected checksum"):
        checkpoint.load(saved)


def test_every_changed_byte_of_the_header_is_damage(saved):
    """A digit of the config, a letter of the notes, a tensor's name: each is under the checksum."""
    content = saved.read_bytes()
    size = int.from_bytes(content[:8], "little")
    for place in range(8, 8 + size, 7):
        changed = bytearray(content)
        changed[place] ^= 1
        saved.write_bytes(changed)
        with pytest.raises(ValueError, match=r"damaged|cannot|is of format|has no"):
            checkpoint.load(saved)


def test_foreign_files(tmp_path, saved):
    foreign = tmp_path / "foreign"
    foreign.write_bytes(b"PK\3\4 this is a pickle in a zip, and long enough for a header")
    with pytest.raises(ValueError, match="foreign cannot be read"):
        checkpoint.load(foreign)
    save_file({"weight": torch.zeros(2)}, foreign)
    with pytest.raises(ValueError, match="format None, expected"):
        checkpoint.load(foreign)
    with pytest.raises(ValueError, match="expected 'mnist-transformer state 2'"):
        trees.load_state(saved)
    with pytest.raises(ValueError, match="format None, expected"):
        checkpoint.read_notes(foreign)


def test_unknown_family(saved):
    with pytest.raises(ValueError, match="family is 'gan', expected one of patch, scan"):
        checkpoint.load(rewritten(saved, family="gan"))


def test_unknown_and_refused_config(saved):
    config = json.loads(header(saved)["config"])
    with pytest.raises(ValueError, match="refuses: wings unknown, expected the fields"):
        checkpoint.load(rewritten(saved, config=json.dumps({**config, "wings": 2})))
    nine = {**config, "data": {**config["data"], "shape": [1, 9, 9]}}
    with pytest.raises(ValueError, match="PatchConfig refuses: image_size is 9"):
        checkpoint.load(rewritten(saved, config=json.dumps(nine)))
    nameless = {**config, "data": {"name": "mnist"}}
    with pytest.raises(ValueError, match=r"PatchConfig refuses: .*missing.*'shape'"):
        checkpoint.load(rewritten(saved, config=json.dumps(nameless)))
    with pytest.raises(ValueError, match="no readable config in its header, expected"):
        checkpoint.load(rewritten(saved, config="{"))


def test_another_shape(saved):
    config = json.loads(header(saved)["config"])
    with pytest.raises(ValueError, match=r"has \(.*\) for tensor .*, expected \("):
        checkpoint.load(rewritten(saved, config=json.dumps({**config, "dim": 32})))
    with pytest.raises(ValueError, match=r"has nothing for tensor .*, expected"):
        checkpoint.load(rewritten(saved, config=json.dumps({**config, "depth": 2})))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"depth": 10**9}, r"more than twice the \d+ tensors of the file"),
        ({"dim": 2**20}, r"a weight of .*1048576.* is more than the [\d,]+ numbers of the file"),
        ({"dim": 2**60}, "PatchConfig refuses: "),
        ({"margin": 10**9}, "margin is 1000000000, expected 1 to 16"),
        ({"num_heads": 0}, "num_heads is 0, expected 1 or more"),
        ({"num_heads": -1}, "num_heads is '-1', expected a whole number of 0 or more"),
        ({"num_heads": True}, "num_heads is 'True', expected a whole number"),
        ({"num_heads": 1.0}, r"num_heads is '1\.0', expected a whole number"),
        ({"dropout": float("nan")}, "dropout is 'nan', expected a finite number"),
        ({"dropout": 10**400}, "dropout is '1000.*', expected a finite number"),
        ({"dropout": None}, "dropout is 'None', expected a finite number"),
        ({"positions": ["rope"]}, "positions is .*, expected str"),
        ({"data": None}, "data is 'None', expected DataSpec"),
        ({"data": {"shape": [1, 10**6, 10**6]}}, "shape is .* 262,144 together at most"),
        ({"data": {"shape": [1, 8]}}, "shape is .*, expected tuple"),
        ({"data": {"class_names": 7}}, "class_names is '7', expected tuple"),
        ({"data": {"background": 0.5}}, r"background is '0\.5', expected a whole number"),
    ],
    ids=str,
)
def test_a_config_is_checked_before_anything_is_allocated(saved, changes, sentence):
    config = json.loads(header(saved)["config"])
    if isinstance(changes.get("data"), dict):
        changes = {"data": config["data"] | changes["data"]}
    with pytest.raises(ValueError, match=sentence):
        checkpoint.load(rewritten(saved, config=json.dumps(config | changes)))


@pytest.mark.parametrize("classes", [10**9, "many", [3]])
def test_a_config_of_format_1_is_checked_too(saved, classes):
    config = json.dumps({"num_classes": classes})
    tensors = load_file(saved)
    old = {"format": "mnist-transformer checkpoint 1", "family": "pixel", "config": config}
    save_file(tensors, saved, {**old, "crc32": str(trees.checksum(tensors, None))})
    with pytest.raises(ValueError, match=r"class_names is .*, expected"):
        checkpoint.load(saved)


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(model, saved, bad):
    model.decoder.gate.output.bias.data[0] = bad
    checkpoint.save(model, saved)
    with pytest.raises(
        ValueError, match=r"number in tensor decoder.gate.output.bias that is not finite"
    ):
        checkpoint.load(saved)


@pytest.mark.parametrize("nest", ["[", '{"a":'])
def test_a_nest_without_end_is_no_config(saved, nest):
    with pytest.raises(ValueError, match="has no readable config in its header"):
        checkpoint.load(rewritten(saved, config=nest * 100_000))


def no_space(descriptor):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_full_disk_leaves_the_old_file_and_no_other(model, saved, monkeypatch):
    before = saved.read_bytes()
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(model, saved, recipe="newer")
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_folder_that_is_not_there_is_made(model, tmp_path):
    checkpoint.save(model, tmp_path / "no" / "model.safetensors")
    assert (tmp_path / "no" / "model.safetensors").is_file()
    with pytest.raises(ValueError, match=r"'a/a.* is nested too deep, expected fewer folders"):
        checkpoint.save(model, "a/" * 2000 + "model.safetensors")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"File exists|Not a directory"):
        checkpoint.save(model, tmp_path / "file" / "model.safetensors")
