"""Weights of every kind of file: what is sound is read, the rest is one sentence."""

import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from unipt_jax import sources
from unipt_jax.errors import UserError

torch = pytest.importorskip("torch")
save_torch = pytest.importorskip("safetensors.torch").save_file

RNG = np.random.default_rng(0)
WEIGHTS = {
    "a.weight": RNG.standard_normal((3, 2)).astype(np.float32),
    "a.bias": RNG.standard_normal(3).astype(np.float32),
    "steps": np.array([7], np.int64),
}


def in_torch(weights=WEIGHTS):
    return {name: torch.from_numpy(x.copy()) for name, x in weights.items()}


def equal_weights(found) -> None:
    assert found.keys() == WEIGHTS.keys()
    for name, x in WEIGHTS.items():
        np.testing.assert_array_equal(found[name], x, strict=True)


def refusal(name) -> str:
    """What a user is told: one sentence that names the file, on one line."""
    with pytest.raises(UserError) as caught:
        sources.open_source(name)
    said = str(caught.value)
    assert "\n" not in said and "\x1b" not in said and len(said) < 700, said
    return said


def sharded(folder: pathlib.Path, form: str) -> pathlib.Path:
    """WEIGHTS over two files and an index. form: "safetensors" or "bin"."""
    stem = {"safetensors": "model", "bin": "pytorch_model"}[form]
    parts = [f"{stem}-{i}-of-00002.{form}" for i in ("00001", "00002")]
    places = dict(zip(WEIGHTS, (parts[0], parts[1], parts[1]), strict=True))
    for part in parts:
        held = {n: x for n, x in WEIGHTS.items() if places[n] == part}
        if form == "safetensors":
            safetensors.numpy.save_file(held, folder / part)
        else:
            torch.save(in_torch(held), folder / part)
    index = folder / f"{stem}.{form}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


def model_folder(folder: pathlib.Path, config=None) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(WEIGHTS, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_folder_gives_its_tensors_and_its_configs(tmp_path):
    folder = model_folder(tmp_path, {"image_size": 224, "patch_size": 16})
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5]}')
    (folder / "tokenizer.json").write_text("not looked at")
    source = sources.open_source(folder)
    equal_weights(source.tensors)
    assert source.name == str(folder) and source.folder == folder
    assert source.configs["preprocessor_config.json"] == {"image_mean": [0.5]}
    assert source.grid == (14, 14)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_an_index_gives_the_tensors_of_all_its_files(form, tmp_path):
    index = sharded(tmp_path, form)
    equal_weights(sources.open_source(tmp_path).tensors)
    equal_weights(sources.open_source(index).tensors)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_an_index_without_one_of_its_files_names_it(form, tmp_path):
    sharded(tmp_path, form)
    [second] = tmp_path.glob("*-00002-of*")
    second.unlink()
    said = refusal(tmp_path)
    assert second.name in said and "00001-of" not in said and "fetch" in said


@pytest.mark.parametrize(
    "place",
    ["../outside.bin", "/outside.bin", "sub/outside.bin", "..", "", 5, None]
    + ["pytorch_model.bin.index.json"],
)
def test_an_index_reads_nothing_but_weights_beside_it(place, tmp_path):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for outside in (tmp_path, folder / "sub"):
        torch.save(in_torch(), outside / "outside.bin")
    if place == "/outside.bin":
        place = str(tmp_path / "outside.bin")
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"a.weight": place}}))
    said = refusal(folder)
    assert f"names '{place}'" in said and "fetch the model again" in said


@pytest.mark.parametrize(
    "content", ["[1]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "[" * 10**5]
)
def test_an_index_that_is_none(content, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    assert "fetch it again" in refusal(tmp_path)


WRAPPINGS = {
    "pytorch_model.bin": lambda x: x,
    "weights.pt": lambda x: {"state_dict": x, "epoch": 3},
    "weights.pth": lambda x: {"model": x, "optimizer": {"state": {}}, "lr": 1e-3},
    "weights.ckpt": lambda x: {
        "state_dict": x,
        "hyper_parameters": {"lr": 1e-3, "sizes": [1, (2, 3)], "name": "vit"},
        "pytorch-lightning_version": "2.0",
        "callbacks": {},
        "loops": None,
    },
    "twice.pt": lambda x: {"model": {"module": x}},
}


@pytest.mark.parametrize("name", WRAPPINGS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
def test_pytorch_files_as_trainers_wrap_them(name, zipped, tmp_path):
    content = WRAPPINGS[name](in_torch())
    torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
    equal_weights(sources.open_source(tmp_path).tensors)
    equal_weights(sources.open_source(tmp_path / name).tensors)


def test_parameters_that_want_gradients_are_read(tmp_path):
    module = torch.nn.Linear(2, 3)
    torch.save(dict(module.named_parameters()), tmp_path / "weights.pt")
    found = sources.open_source(tmp_path).tensors
    np.testing.assert_array_equal(found["weight"], module.weight.detach().numpy())


@pytest.mark.parametrize("form", ["safetensors", "pt"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_floats_become_float32(dtype, form, tmp_path):
    x = torch.tensor([1.5, -0.00390625, 3.0e4]).to(getattr(torch, dtype))
    file = tmp_path / f"model.{form}"
    if form == "pt":
        torch.save({"x": x}, file)
    else:
        save_torch({"x": x}, file)
    found = sources.open_source(tmp_path).tensors["x"]
    np.testing.assert_array_equal(found, x.float().numpy(), strict=True)


def test_bfloat16_needs_nothing_that_another_module_imported(tmp_path):
    file = tmp_path / "model.safetensors"
    save_torch({"x": torch.ones(2, dtype=torch.bfloat16)}, file)
    code = (
        "import sys; from unipt_jax import sources; "
        f"print(sources.open_source({str(file)!r}).tensors['x']); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[1. 1.]", done.stderr


def test_eight_bit_floats_are_refused(tmp_path):
    x = torch.ones(2).to(torch.float8_e4m3fn)
    save_torch({"x": x}, tmp_path / "model.safetensors")
    assert "convert them to float32" in refusal(tmp_path)


class Harmful:
    """Unpickled, it makes a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
def test_a_pickle_that_runs_code_does_not_run_it(suffix, zipped, tmp_path):
    made, file = tmp_path / "made", tmp_path / f"weights{suffix}"
    content = {"state_dict": in_torch(), "more": Harmful(made)}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    said = refusal(file)
    assert not made.exists()
    assert "wants to run code" in said and "torch.save(torch.load(" in said
    torch.load(file, weights_only=False)  # what it would have done
    assert made.exists()


def follow(said: str, folder: pathlib.Path) -> pathlib.Path:
    """Does what a refusal advises; returns the file that it makes."""
    [command] = re.findall(r"in Python with (.+) and give", said)
    code = [sys.executable, "-c", f"import torch; {command}"]
    subprocess.run(code, cwd=folder, check=True)
    return folder / "weights.pt"


def test_the_remedy_for_a_pickle_works(tmp_path):
    file = tmp_path / "weights.ckpt"
    content = {"state_dict": in_torch(), "args": argparse.Namespace(lr=1)}
    torch.save(content, file)
    equal_weights(sources.open_source(follow(refusal(file), tmp_path)).tensors)


def test_a_torchscript_archive_is_refused_and_the_remedy_works(tmp_path, recwarn):
    module = torch.nn.Linear(2, 3)
    file = tmp_path / "script.pt"
    torch.jit.save(torch.jit.script(module), file)
    recwarn.clear()
    said = refusal(file)
    assert not recwarn.list
    assert "is a TorchScript archive" in said
    found = sources.open_source(follow(said, tmp_path)).tensors
    np.testing.assert_array_equal(found["weight"], module.weight.detach().numpy())


def itself() -> dict:
    content: dict = {}
    content["model"] = content
    return content


@pytest.mark.parametrize(
    "content, said",
    [
        ([torch.ones(2)], "holds no tensors by name"),
        (torch.ones(2), "holds no tensors by name"),
        ({"state_dict": {}}, "holds no tensors by name"),
        ({"state_dict": None}, "holds no tensors by name"),
        ({"lr": 1.0}, "holds no tensors by name"),
        (itself(), "holds no tensors by name"),
        ({"x": torch.eye(2).to_sparse()}, "x has no plain numbers"),
        ({"x": torch.ones(2, device="meta")}, "x has no plain numbers"),
    ],
)
def test_pytorch_files_without_plain_tensors(content, said, tmp_path):
    torch.save(content, tmp_path / "weights.pt")
    assert said in refusal(tmp_path)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 345\n"


@pytest.mark.parametrize("name", ["model.safetensors", "weights.pt", "weights.bin"])
@pytest.mark.parametrize(
    "content",
    [b"", b"\n", POINTER.encode(), b"<html>404</html>", bytes(range(256)) * 9],
    ids=["empty", "newline", "lfs pointer", "html", "bytes"],
)
def test_files_that_are_something_else(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    for given in (tmp_path, tmp_path / name):
        said = refusal(given)
        assert name in said and "fetch it again" in said
        assert "weights_only" not in said and "trust" not in said


@pytest.mark.parametrize("form", ["safetensors", "zip", "old"])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.99])
def test_truncated_files(form, share, tmp_path):
    many = {f"layer{i}": RNG.standard_normal(64).astype("f") for i in range(64)}
    file = tmp_path / ("model.safetensors" if form == "safetensors" else "model.pt")
    if form == "safetensors":
        safetensors.numpy.save_file(many, file)
    else:
        torch.save(in_torch(many), file, _use_new_zipfile_serialization=form == "zip")
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    said = refusal(tmp_path)
    assert str(file) in said and "fetch it again" in said


@pytest.mark.parametrize(
    "content",
    ["[]", "5", "null", '"x"', "", "{", "\xff", "[" * 10**5, "{'a': 1}"],
)
def test_a_config_that_is_no_object(content, tmp_path):
    model_folder(tmp_path)
    (tmp_path / "config.json").write_text(content, "latin-1")
    said = refusal(tmp_path)
    assert "config.json" in said and "fetch it again" in said


GRIDS = [
    ({}, None),
    ({"image_size": 224}, None),
    ({"image_size": None, "patch_size": 16}, None),
    ({"image_size": [384, 128], "patch_size": 16}, (24, 8)),
    ({"image_size": [384, 128], "patch_size": [16, 8]}, (24, 16)),
    ({"vision_config": {"image_size": 224, "patch_size": 32}}, (7, 7)),
    ({"vision_config": None, "image_size": 32, "patch_size": 16}, (2, 2)),
    ({"vision_config": "x"}, None),
    ({"model": {"image": {"height": 96, "width": 32, "patch": [16, 8]}}}, (6, 4)),
    ({"model": {}}, None),
    ({"model": {"image": "vit"}}, None),
    ({"model": "vit", "image_size": 32, "patch_size": 8}, (4, 4)),
]


@pytest.mark.parametrize("config, grid", GRIDS)
def test_the_grid_that_a_config_tells(config, grid, tmp_path):
    assert sources.open_source(model_folder(tmp_path, config)).grid == grid


@pytest.mark.parametrize(
    "size, patch",
    [
        ("big", 16),
        (224, 0),
        (224, -16),
        ([1, 2, 3], 16),
        ([], 16),
        (224, [16]),
        ({"height": 3}, 16),
        (True, 16),
        (float("inf"), 16),
        ([[2, 2], 2], 16),
    ],
)
def test_sizes_that_are_none_are_shown(size, patch, tmp_path):
    config = {"image_size": size, "patch_size": patch}
    source = sources.open_source(model_folder(tmp_path, config))
    with pytest.raises(UserError) as caught:
        _ = source.grid
    said = str(caught.value)
    assert f"image_size {size!r} and patch_size {patch!r}" in said
    assert str(tmp_path / "config.json") in said and "correct the file" in said


def test_safetensors_are_preferred_and_need_no_torch(tmp_path, monkeypatch):
    model_folder(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
    monkeypatch.setitem(sys.modules, "torch", None)  # its import fails
    equal_weights(sources.open_source(tmp_path).tensors)


def test_pytorch_files_without_torch_say_what_to_install(tmp_path, monkeypatch):
    torch.save(in_torch(), tmp_path / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    said = refusal(tmp_path)
    assert "pip install" in said and ".safetensors" in said


def test_two_files_of_weights_must_be_chosen_from(tmp_path):
    for name in ("one.pt", "two.pt"):
        torch.save(in_torch(), tmp_path / name)
    said = refusal(tmp_path)
    assert "one.pt, two.pt" in said and "give one file" in said
    equal_weights(sources.open_source(tmp_path / "two.pt").tensors)


def test_a_folder_by_the_name_of_a_file_is_no_file(tmp_path):
    (tmp_path / "step5.ckpt").mkdir()
    torch.save(in_torch(), tmp_path / "weights.pt")
    equal_weights(sources.open_source(tmp_path).tensors)


def test_an_empty_folder(tmp_path):
    said = refusal(tmp_path)
    assert str(tmp_path) in said and "model.safetensors" in said and "(none)" in said


def test_a_file_of_another_kind(tmp_path):
    file = tmp_path / "model.onnx"
    file.write_bytes(b"x")
    assert ".safetensors, .pt, .pth, .bin, .ckpt" in refusal(file)


@pytest.mark.parametrize(
    "name",
    ["/nowhere/at/all", "./here", "weights.pt", "runs/best.safetensors", "a/b/c", "~"]
    + ["~/none", "~nobody/x", "two words", "a//b", "dir/", "*"],
)
def test_a_path_that_does_not_exist(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    said = refusal(name)
    shown = pathlib.Path(os.path.expanduser(name))
    assert f"there is no file or folder {shown};" in said
    assert "google/vit-base-patch16-384" in said


def test_the_home_folder_and_relative_paths(tmp_path, monkeypatch):
    model_folder(tmp_path / "home" / "vit")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    equal_weights(sources.open_source("~/vit").tensors)
    monkeypatch.chdir(tmp_path)
    for name in ("home/vit", "./home/vit", "home/vit/", "home/vit/model.safetensors"):
        equal_weights(sources.open_source(name).tensors)


def test_a_folder_hides_the_hub_id_of_its_name(tmp_path, monkeypatch):
    model_folder(tmp_path / "google" / "vit-base-patch16-384")
    monkeypatch.chdir(tmp_path)
    equal_weights(sources.open_source("google/vit-base-patch16-384").tensors)


def test_links_are_followed_as_the_hub_cache_needs(tmp_path):
    sharded(tmp_path, "safetensors")
    (tmp_path / "config.json").write_text('{"image_size": 32, "patch_size": 8}')
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(f for f in tmp_path.iterdir() if f.is_file())):
        shutil.move(file, blobs / f"blob{number}")
        (snapshot / file.name).symlink_to(f"../../blobs/blob{number}")
    for name in (snapshot, snapshot / "model.safetensors.index.json"):
        source = sources.open_source(name)
        equal_weights(source.tensors)
        assert source.grid == (4, 4)


def test_a_link_to_nowhere(tmp_path):
    (tmp_path / "model.safetensors").symlink_to("blob")
    said = refusal(tmp_path)
    assert "model.safetensors" in said
    assert "there is no file" in refusal(tmp_path / "model.safetensors")
