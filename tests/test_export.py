"""The export job: the same model in PyTorch, alone, and never half of a folder."""

import errno
import functools
import importlib.util
import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import helpers
import jobs
import numpy as np
import pytest
import rundirs
from PIL import Image

import unipt_jax
from configs import export as export_config
from unipt_jax import export
from unipt_jax.data import tokenizers
from unipt_jax.errors import UserError

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")
pytest.importorskip("transformers")

PGU = dict(parts=3, layers=2, heads=6, head_width=5, hidden=10, features=7)
LEARNED = dict(temperature="learned", mlm_output="untied", pool_padding=True)
SHORT = dict(layers=1)
PROJECTED = dict(pgu=PGU | dict(tokens="projected"), retrieval="both")
TOWER = dict(pgu=PGU | dict(tokens="tower", layers=1), retrieval="pgu")
KINDS = {
    "bert": ("vit_b16", dict(image=dict(patch=(8, 4)))),
    "deit": ("deit_s16", LEARNED | dict(bias="learned")),
    "pgu_both": ("vit_b16", PROJECTED | dict(image=SHORT, text=SHORT)),
    "pgu_tower": ("vit_b16", TOWER | dict(image=SHORT, text=SHORT | dict(features=16))),
    "clip": ("clip_b16", {}),  # its images are 48x16
}
WITH_HEADS = ("bert", "deit")  # tied, untied
EACH = [(kind, False) for kind in KINDS] + [(kind, True) for kind in WITH_HEADS]
WEIGHTS = "model.safetensors"
FILES = {"config.json", WEIGHTS, "modeling_unipt.py", "parity.json", "vocab.txt"}
FILES |= {"tokenizer.json", "tokenizer_config.json"}


def config(run, **fields):
    """The export job's config."""
    out = export_config.get_config()
    out.update(model=str(run), **fields)
    return out


class Made:
    """Runs of each kind, opened, and their exports: each is made once."""

    def __init__(self, folder, words, pairs):
        self.folder, self.words, self.pairs = folder, words, pairs

    @functools.cache  # noqa: B019  one object for the whole file
    def run(self, kind):
        tower, changes = KINDS[kind]
        place = self.pairs if kind == "clip" else self.words
        folder = self.folder / f"run_{kind}"
        tokenizer = tokenizers.load(place)
        rundirs.make_run(folder, rundirs.section(tower, **changes), tokenizer)
        return folder

    @functools.cache  # noqa: B019
    def encoder(self, kind):
        return unipt_jax.load(self.run(kind))

    def export(self, kind, heads=False):
        return self._export(kind, heads)

    @functools.cache  # noqa: B019
    def _export(self, kind, heads):
        folder = self.folder / f"export_{kind}_{heads}"
        export.run(config(self.run(kind), heads=heads), str(folder))
        return folder


@pytest.fixture(scope="module")
def made(persons, clip_vocabulary, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    return Made(folder, persons / "tokenizer", clip_vocabulary)


def twin_of(folder):
    """The exported network, by the file in its folder."""
    file = folder / "modeling_unipt.py"
    spec = importlib.util.spec_from_file_location("exported", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(folder)


def parity(folder):
    return json.loads((folder / "parity.json").read_text())


def assert_same_bits(found, expected):
    """Two mappings from names to float32 arrays."""
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert found[name].dtype == x.dtype == np.float32, name
        np.testing.assert_array_equal(
            found[name].view(np.uint32), x.view(np.uint32), name, strict=True
        )


@pytest.mark.parametrize("kind", KINDS)
def test_parity_is_the_difference_of_both_encoders(kind, made):
    encoder, folder = made.encoder(kind), made.export(kind)
    twin, found = twin_of(folder), {}
    items_of = dict(image=export.pictures(encoder), text=list(export.SENTENCES))
    for name, items in items_of.items():
        ours = getattr(encoder, f"encode_{name}")(items)
        theirs = getattr(twin, f"encode_{name}")(items).numpy()
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        assert np.ptp(ours, axis=0).max() > 0.03  # the items are told apart
        found[name] = float(np.abs(ours - theirs).max())
    assert parity(folder)["by_tower"] == found
    assert parity(folder)["max_abs_diff"] == max(found.values())
    # float32 sums of some dozens of terms, in another order, of unit vectors
    assert 0 < max(found.values()) <= 2e-6


@pytest.mark.parametrize("kind", KINDS)
def test_load_of_an_export_equals_load_of_the_run_to_the_bit(kind, made):
    run, opened = made.encoder(kind), unipt_jax.load(made.export(kind))
    pictures, texts = export.pictures(run), list(export.SENTENCES)
    assert_same_bits(
        dict(a=opened.encode_image(pictures), b=opened.encode_text(texts)),
        dict(a=run.encode_image(pictures), b=run.encode_text(texts)),
    )


@pytest.mark.parametrize(("kind", "heads"), EACH)
def test_jax_to_pytorch_to_jax_is_the_identity(kind, heads, made, tmp_path):
    folder = tmp_path / "export"
    shutil.copytree(made.export(kind, heads), folder)
    state = {k: x.contiguous() for k, x in twin_of(folder).state_dict().items()}
    (folder / WEIGHTS).unlink()
    safetensors_torch.save_file(state, folder / WEIGHTS)
    left = parity(folder)["left_out"]
    expected = helpers.arrays(made.encoder(kind).params)
    found = helpers.arrays(unipt_jax.load(folder).params)
    assert_same_bits(found, {k: x for k, x in expected.items() if k not in left})


def torch_name(path):
    name, _, leaf = path.rpartition("/")
    leaf = "weight" if leaf in ("kernel", "scale", "embedding") else leaf
    name = re.sub(r"block_(\d+)", r"blocks/\1", f"{name}/{leaf}")
    return name.strip("/").replace("/", ".")


@pytest.mark.parametrize(("kind", "heads"), EACH)
def test_left_out_names_exactly_what_the_file_lacks(kind, heads, made):
    folder, params = made.export(kind, heads), helpers.arrays(made.encoder(kind).params)
    listed, held = parity(folder), safetensors_torch.load_file(folder / WEIGHTS)
    left, lost = listed["left_out"], ("logit_bias", *["mlm_head/"] * (not heads))
    head = {path for path in params if path.startswith("mlm_head/")}
    assert bool(head) == (kind != "clip")
    assert sorted(left) == sorted(p for p in params if p.startswith(lost))
    assert held.keys() == {torch_name(path) for path in params if path not in left}
    assert listed["tensors"] == len(held)
    assert json.loads((folder / "config.json").read_text())["left_out"] == left


@pytest.mark.parametrize("kind", WITH_HEADS)
def test_the_head_goes_along_and_gives_the_same_logits(kind, made):
    encoder, twin = made.encoder(kind), twin_of(made.export(kind, True))
    features = np.random.default_rng(0).standard_normal((7, 12), np.float32)
    ours = helpers.apply(encoder.model, encoder.params, "mlm_logits", features)
    with torch.no_grad():
        theirs = twin.mlm_logits(torch.tensor(features)).numpy()
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="has no mlm_head"):
        twin_of(made.export(kind)).mlm_logits(torch.tensor(features))


def test_an_export_of_an_export_is_the_same(made, tmp_path):
    first = made.export("pgu_both")
    export.run(config(first), str(tmp_path / "second"))
    assert parity(tmp_path / "second")["left_out"] == []
    for name in ("model.safetensors", "tokenizer.json", "modeling_unipt.py"):
        assert (tmp_path / "second" / name).read_bytes() == (first / name).read_bytes()


ALONE = """
import sys
BLOCKED = {"jax", "jaxlib", "flax", "transformers", "unipt_jax"}
class Blocked:
    def find_spec(self, name, *_):
        if name.split(".")[0] in BLOCKED:
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
import importlib, json, pathlib
import numpy as np
from PIL import Image
inputs, *folders = map(pathlib.Path, sys.argv[1:])
pictures = [Image.open(file) for file in sorted(inputs.glob("picture*"))]
texts = json.loads((inputs / "texts.json").read_text())
found = {}
for folder in folders:
    sys.path.insert(0, str(folder))
    import modeling_unipt
    assert pathlib.Path(modeling_unipt.__file__).parent == folder
    model = modeling_unipt.load(folder)
    found[f"{folder.name}.image"] = model.encode_image(pictures).numpy()
    found[f"{folder.name}.text"] = model.encode_text(texts).numpy()
    del sys.modules["modeling_unipt"]
assert not BLOCKED & sys.modules.keys()
np.savez(inputs / "found.npz", **found)
"""


def test_the_folder_alone_gives_the_runs_embeddings(made, tmp_path):
    inputs, rng = tmp_path, np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 256, (61, 23, 3), np.uint8))
    deep = Image.fromarray(rng.integers(0, 65536, (61, 23), np.uint16))
    colours.save(inputs / "picture0.png")
    colours.convert("CMYK").save(inputs / "picture1.jpg")
    colours.convert("CMYK").save(inputs / "picture2.tiff")
    deep.save(inputs / "picture3.png")
    texts = ["", "a man in a red coat", "a very long black bag " * 300, "\U0001f642"]
    (inputs / "texts.json").write_text(json.dumps(texts))
    folders = {kind: made.export(kind) for kind in KINDS}
    command = [sys.executable, "-P", "-c", ALONE, inputs, *folders.values()]
    done = subprocess.run(command, cwd="/", capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    found = np.load(inputs / "found.npz")
    pictures = [Image.open(file) for file in sorted(inputs.glob("picture*"))]
    assert [p.mode for p in pictures] == ["RGB", "CMYK", "CMYK", "I;16"]
    for kind, folder in folders.items():
        encoder, name = made.encoder(kind), folder.name
        images, words = encoder.encode_image(pictures), encoder.encode_text(texts)
        # as for parity.json, on other pictures
        np.testing.assert_allclose(found[f"{name}.image"], images, rtol=0, atol=2e-6)
        np.testing.assert_allclose(found[f"{name}.text"], words, rtol=0, atol=2e-6)


# --- targets -------------------------------------------------------------------------


def tree(folder):
    """Every file below, with its content."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.fixture
def old(made, tmp_path):
    """A target with an earlier export in it, that has what the next one leaves out."""
    shutil.copytree(made.export("bert", True), tmp_path / "place" / "target")
    return tmp_path / "place" / "target"


def assert_untouched(old, made):
    """The earlier export is as it was, and nothing lies beside it."""
    assert tree(old) == tree(made.export("bert", True))
    assert [p.name for p in old.parent.iterdir()] == ["target"]


def assert_replaced(old, made):
    """The new export is there, and nothing lies beside it."""
    assert set(tree(old)) == FILES
    assert parity(old)["left_out"] == parity(made.export("bert"))["left_out"] != []
    assert (old / WEIGHTS).read_bytes() == (made.export("bert") / WEIGHTS).read_bytes()
    assert [p.name for p in old.parent.iterdir()] == ["target"]


def test_an_existing_target_is_refused_and_with_overwrite_replaced(made, old):
    (old / "stale.txt").write_text("of the old export")
    before = tree(old)
    with pytest.raises(UserError, match=f"{old} exists; give another --workdir, or"):
        export.run(config(made.run("bert")), str(old))
    assert tree(old) == before
    export.run(config(made.run("bert"), overwrite=True), str(old))
    assert_replaced(old, made)


def test_a_link_to_an_export_stays_and_the_export_is_replaced(made, old, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(old)
    for _ in range(2):
        export.run(config(made.run("bert"), overwrite=True), str(link))
        assert link.is_symlink()
        assert_replaced(old, made)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "place"]


@pytest.mark.parametrize("content", [{}, {"a.txt": b"1", "config.json": b"{}"}])
def test_what_no_export_wrote_is_never_replaced(content, made, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    for name, data in content.items():
        (target / name).write_bytes(data)
    with pytest.raises(UserError, match="no folder that an export wrote, so it is not"):
        export.run(config(made.run("bert"), overwrite=True), str(target))
    assert [p.name for p in tmp_path.iterdir()] == ["target"]
    assert tree(target) == content


def differs(by):
    """The comparison finds this difference between the text towers."""

    def spoil(patch):
        layout = export.LAYOUTS["unipt"]

        def spoilt(*args):
            out = layout(*args)
            out["by_tower"]["text"] = by
            return out

        patch.setitem(export.LAYOUTS, "unipt", spoilt)

    return spoil


def full(patch):
    def write_half(self, data):
        with self.open("wb") as stream:
            stream.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    patch.setattr(pathlib.Path, "write_bytes", write_half)


def not_renamed(patch):
    rename = pathlib.Path.rename

    def refuse(self, target):
        if self.name.endswith(".partial"):
            raise OSError(errno.EACCES, "Permission denied", str(self))
        return rename(self, target)

    patch.setattr(pathlib.Path, "rename", refuse)


def interrupted(patch):
    def stop(*_):
        raise KeyboardInterrupt

    patch.setattr(export, "_finish", stop)


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "overwrite"])
@pytest.mark.parametrize(
    "fail", [differs(2e-4), differs(float("nan")), full, not_renamed, interrupted]
)
def test_an_export_that_fails_leaves_all_as_it_was(
    fail, fresh, made, old, tmp_path, monkeypatch
):
    fail(monkeypatch)
    target = tmp_path / "new" / "target" if fresh else old
    with pytest.raises((UserError, OSError, KeyboardInterrupt)):
        export.run(config(made.run("bert"), overwrite=not fresh), str(target))
    monkeypatch.undo()
    assert_untouched(old, made)
    assert not fresh or list(target.parent.iterdir()) == []


def killed_between_the_renames(old):
    """The one moment without a target: the old one is away, the new not yet there."""
    shutil.copytree(old, old.with_name(".target.partial"))
    old.rename(old.with_name(".target.old"))


def test_after_a_kill_between_the_renames_the_old_export_comes_back(made, old):
    killed_between_the_renames(old)
    with pytest.raises(UserError, match="exists; give another"):
        export.run(config(made.run("bert")), str(old))
    assert tree(old) == tree(made.export("bert", True))
    old.rename(old.with_name(".target.old"))
    with pytest.raises(UserError, match="no checkpoint 'newest'"):
        wrong = dict(overwrite=True, checkpoint="newest")
        export.run(config(made.run("bert"), **wrong), str(old))
    assert_untouched(old, made)


def test_after_a_kill_between_the_renames_the_same_command_ends_well(made, old):
    killed_between_the_renames(old)
    export.run(config(made.run("bert"), overwrite=True), str(old))
    assert_replaced(old, made)


def test_after_a_kill_before_the_old_one_is_deleted_it_is_deleted(made, old):
    shutil.copytree(old, old.with_name(".target.old"))
    (old.with_name(".target.old") / "config.json").unlink()  # deletion had begun
    export.run(config(made.run("bert"), overwrite=True), str(old))
    assert_replaced(old, made)


# Of the folder under way, what is there when the process is killed.
MOMENTS = ("", WEIGHTS, "modeling_unipt.py", "parity.json")


def kill_when(process, file):
    """Kills the process when it has made that file, or has ended."""
    begin, end = time.time(), time.monotonic() + 120

    def made():
        try:
            return file.stat().st_ctime >= begin  # else an earlier kill left it
        except FileNotFoundError:
            return False

    while not made() and process.poll() is None:
        assert time.monotonic() < end, "it neither got there nor ended"
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_killed_at_any_moment_no_target_is_half_and_none_is_lost(made, launcher, old):
    fresh, killed, before = old.with_name("fresh"), 0, tree(old)
    new = (made.export("bert") / WEIGHTS).read_bytes()
    flags = ["--config=configs/export.py", f"--config.model={made.run('bert')}"]
    flags += ["--config.overwrite=True"]
    for target, moment in zip((fresh, old, old, old), MOMENTS, strict=True):
        command = [sys.executable, "-m", "unipt_jax.main", *flags]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        options = dict(cwd=jobs.ROOT, env=launcher.environment()) | pipes
        process = subprocess.Popen([*command, f"--workdir={target}"], **options)
        killed += kill_when(
            process, target.with_name(f".{target.name}.partial") / moment
        )
        if target.exists():  # whole: the old one, or already the new one
            assert set(tree(target)) == FILES
            assert tree(target) == before or (target / WEIGHTS).read_bytes() == new
        else:
            assert target == fresh or tree(old.with_name(".target.old")) == before
    assert killed >= 3  # the last may have ended before it was hit
    code, output = launcher.run_job(*flags, f"--workdir={old}")
    assert code == 0, output
    export.run(config(made.run("bert")), str(fresh))
    for target in (fresh, old):
        assert set(tree(target)) == FILES
        assert (target / WEIGHTS).read_bytes() == new
    assert sorted(p.name for p in old.parent.iterdir()) == ["fresh", "target"]
