"""Runs that start from weights: what is loaded, what is said of it, what is refused."""

import functools
import json
import shutil

import jax
import jobs
import numpy as np
import pytest

from configs import pretrain
from unipt_jax import encoder, loop, start, tree
from unipt_jax.data import tokenizers
from unipt_jax.errors import UserError
from unipt_jax.models import unipt

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# As `jobs.SMALL` has them; the file's grid of patches is 2x4, the run's is 3x2.
TOWER = dict(
    hidden_size=96, num_hidden_layers=1, num_attention_heads=4, intermediate_size=384
)
STILL = ("--config.lr=0.0", "--config.steps=1")  # an update that changes nothing


@pytest.fixture(scope="module")
def folders(persons, tmp_path_factory):
    """Folders of a ViT and a BERT as transformers writes them."""
    place = tmp_path_factory.mktemp("sources")
    tokenizer = tokenizers.load(persons / "tokenizer")
    torch.manual_seed(0)
    vit = transformers.ViTModel(
        transformers.ViTConfig(**TOWER, image_size=(32, 32), patch_size=(16, 8))
    )
    bert = transformers.BertForMaskedLM(
        transformers.BertConfig(
            **TOWER, vocab_size=len(tokenizer), max_position_embeddings=64
        )
    )
    with torch.no_grad():  # zeros and ones, as biases and scales begin, hide errors
        for x in [*vit.parameters(), *bert.parameters()]:
            x.add_(0.02 * torch.randn(x.shape))
    vit.save_pretrained(place / "vit")
    bert.save_pretrained(place / "bert")
    return place


def flags(folders) -> list[str]:
    return [
        f"--config.init.image={folders / 'vit'}",
        f"--config.init.text={folders / 'bert'}",
    ]


def config_of(**init):
    """The config of `jobs.SMALL`, with these sources."""
    config = pretrain.get_config("quickstart").unlock()
    config.model.image.update(height=48, width=16, layers=1)
    config.model.text.layers = 1
    config.init.update(init)
    return config


def model_of(config, persons):
    return encoder.build_model(config, tokenizers.load(persons / "tokenizer"))


def expected(folders) -> dict[str, np.ndarray]:
    """Some of our parameters, from the files by transformers and torch alone."""
    vit = transformers.ViTModel.from_pretrained(folders / "vit").state_dict()
    bert = transformers.BertForMaskedLM.from_pretrained(folders / "bert").state_dict()
    bert_block = "bert.encoder.layer.0"
    [query] = [
        k for k in vit if ".0." in k and k.endswith(("query.weight", "q_proj.weight"))
    ]
    kernel = vit["embeddings.patch_embeddings.projection.weight"]
    positions = vit["embeddings.position_embeddings"][0]
    grid = positions[1:].reshape(1, 2, 4, 96).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(3, 2), mode="bicubic")
    grid = grid[0].permute(1, 2, 0).reshape(6, 96)
    found = {
        "image/class_token": vit["embeddings.cls_token"],
        "image/position_embedding": torch.cat([positions[:1], grid]),
        "image/patch_embedding/kernel": kernel.permute(2, 3, 1, 0).reshape(-1, 96),
        "image/block_0/attention/query/kernel": vit[query].T,
        "image/norm/scale": vit["layernorm.weight"],
        "text/token_embedding/embedding": bert[
            "bert.embeddings.word_embeddings.weight"
        ],
        "text/block_0/mlp/fc2/kernel": bert[f"{bert_block}.output.dense.weight"].T,
        "text/block_0/mlp_norm/bias": bert[f"{bert_block}.output.LayerNorm.bias"],
        "mlm_head/dense/kernel": bert["cls.predictions.transform.dense.weight"].T,
        "mlm_head/bias": bert["cls.predictions.bias"],
    }
    return {path: x.numpy() for path, x in found.items()}


def params_of(run) -> dict[str, np.ndarray]:
    return arrays(encoder.load(run).params)


def arrays(params) -> dict[str, np.ndarray]:
    return {path: np.asarray(x) for path, x in tree.flatten(params).items()}


def equal(found: dict, wanted: dict) -> None:
    """To the bit, and no parameter more or less."""
    assert found.keys() == wanted.keys()
    for path, x in wanted.items():
        np.testing.assert_array_equal(found[path], x, path)


@pytest.fixture(scope="module")
def still(launcher, folders, tmp_path_factory):
    """The run directory and output of a run from the folders that stays there."""
    workdir = tmp_path_factory.mktemp("still") / "run"
    code, output = launcher.run(workdir, *flags(folders), *STILL)
    assert code == 0, output
    return workdir, output


def test_the_parameters_at_step_0_are_those_of_the_files(still, folders):
    found = params_of(still[0])
    for path, x in expected(folders).items():
        if path == "image/position_embedding":  # interpolated: another rounding
            np.testing.assert_array_equal(found[path][0], x[0])
            np.testing.assert_allclose(found[path], x, rtol=0, atol=1e-6)
        else:
            np.testing.assert_array_equal(found[path], x, path)


def test_what_no_source_holds_is_as_random_as_without_sources(still, persons):
    config = config_of()
    model = model_of(config, persons)
    init = jax.jit(functools.partial(unipt.initialise, model))
    random = arrays(init(jax.random.key(config.seed)))
    found = params_of(still[0])
    same = {p for p in found if np.array_equal(found[p], random[p])}
    rest = {"image_projection", "text_projection", "log_scale"}
    assert same == {p for p in found if p.split("/")[0] in rest}


def test_the_printed_choices_say_what_was_loaded_left_out_and_resized(still, folders):
    lines = still[1].splitlines()
    lines = {
        key: value.strip()
        for key, _, value in (x.strip().partition("  ") for x in lines)
    }
    image, text = lines["initial image"], lines["initial text"]
    assert str(folders / "vit") in image and "transformers ViT" in image
    assert "left out: pooler (2)" in image
    assert "position embeddings 2x4 -> 3x2, bicubic" in image
    assert str(folders / "bert") in text and "transformers BERT" in text
    assert "left out" not in text and "->" not in text
    assert lines["initial rest"] == "projections random"


@pytest.mark.parametrize("devices, fsdp", [(1, 1), (8, 1), (8, 8), (8, 4)])
def test_any_mesh_holds_the_same_parameters(devices, fsdp, still, folders, persons):
    config = config_of(image=str(folders / "vit"), text=str(folders / "bert"))
    model = model_of(config, persons)
    mesh = jax.make_mesh(
        (devices // fsdp, fsdp),
        ("data", "fsdp"),
        axis_types=(jax.sharding.AxisType.Auto,) * 2,
        devices=jax.devices()[:devices],
    )
    state, _ = loop.initial_state(model, loop.make_optimiser(config, 4), 0, mesh)
    found = start.read(config.init, model, tokenizers.load(persons / "tokenizer"))
    params = start.put(state.params, found)
    for leaf, before in zip(
        jax.tree.leaves(params), jax.tree.leaves(state.params), strict=True
    ):
        assert leaf.sharding == before.sharding and leaf.dtype == before.dtype
    if fsdp > 1:
        kernel = tree.flatten(params)["image/block_0/mlp/fc1/kernel"]
        assert not kernel.is_fully_replicated
    equal(arrays(params), params_of(still[0]))


@pytest.mark.slow
def test_a_run_resumes_when_its_sources_are_gone(launcher, folders, tmp_path):
    sources, undisturbed = tmp_path / "sources", tmp_path / "undisturbed"
    shutil.copytree(folders, sources)
    more = [*flags(sources), "--config.every.save=20", "--config.keep=2"]
    code, output = launcher.run(undisturbed, *more)
    assert code == 0, output
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    shutil.rmtree(workdir / "checkpoints" / "40")
    shutil.rmtree(sources)
    code, output = launcher.run(workdir, *more)
    assert code == 0, output
    assert "resumes after step 20" in output and "initial" not in output
    assert jobs.losses(workdir) == jobs.losses(undisturbed)
    equal(params_of(workdir), params_of(undisturbed))


def test_a_run_killed_in_its_first_save_starts_from_its_sources_again(
    launcher, folders, still, tmp_path
):
    workdir = tmp_path / "run"
    shutil.copytree(still[0], workdir)
    # As orbax leaves it: it is renamed to "1" when it is whole.
    checkpoints = workdir / "checkpoints"
    (checkpoints / "1").rename(checkpoints / "1.orbax-checkpoint-tmp")
    code, output = launcher.run(workdir, *flags(folders), *STILL)
    assert code == 0, output
    assert "initial image" in output
    equal(params_of(workdir), params_of(still[0]))


@pytest.fixture(scope="module")
def trained(launcher, tmp_path_factory):
    """A run directory whose best checkpoint, of step 30, is not its last, of 40."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    more = ["--config.evaluate.val=val", "--config.every.evaluate=10"]
    code, output = launcher.run(workdir, *more, "--config.keep=9")
    assert code == 0, output
    for step in (10, 20, 30, 40):
        file = workdir / "checkpoints" / str(step) / "metrics" / "metrics"
        scores = json.loads(file.read_text())
        file.write_text(json.dumps(scores | {"rank1": 90.0 + (step == 30)}))
    return workdir


@pytest.fixture(scope="module")
def successor(launcher, trained, tmp_path_factory):
    """The run directory and output of a run from that run that stays there."""
    workdir = tmp_path_factory.mktemp("successor") / "run"
    code, output = launcher.run(workdir, f"--config.init.model={trained}", *STILL)
    assert code == 0, output
    return workdir, output


def test_a_run_starts_from_another_run_s_best_checkpoint(successor, trained):
    workdir, output = successor
    assert (
        f"{trained} step 30 (unipt_jax export)" in output
        and "initial rest" not in output
    )
    assert jobs.losses(workdir)[1] < 0.8 * jobs.losses(trained)[1]
    best = arrays(encoder.load(trained, checkpoint="30").params)
    equal(params_of(workdir), best)


def test_a_run_starts_from_another_run_at_another_size(launcher, trained, tmp_path):
    size = ["--config.model.image.height=96", "--config.model.image.width=32"]
    code, output = launcher.run(
        tmp_path / "run", f"--config.init.model={trained}", *STILL, *size
    )
    assert code == 0, output
    assert "position embeddings 3x2 -> 6x4, bicubic" in output
    assert jobs.losses(tmp_path / "run")[1] < 0.9 * jobs.losses(trained)[1]
    found, best = params_of(tmp_path / "run"), params_of(trained)
    assert found.pop("image/position_embedding").shape == (25, 96)
    del best["image/position_embedding"]
    equal(found, best)


def test_a_run_is_found_by_the_name_of_the_home_folder(trained, monkeypatch):
    monkeypatch.setenv("HOME", str(trained.parent))
    source = start.open_any("~/run")
    assert source.grid == (3, 2) and "image.class_token" in source.tensors


def test_one_tower_of_a_run_is_taken_and_the_rest_left_out(trained, persons):
    config = config_of(image=str(trained))
    words = tokenizers.load(persons / "tokenizer")
    [(field, taken)] = start.read(config.init, model_of(config, persons), words).items()
    best = params_of(trained)
    assert field == "image"
    equal(taken.params, {k: x for k, x in best.items() if k.startswith("image/")})
    assert len(taken.left_out) == len(best) - len(taken.params)


def test_a_run_with_another_vocabulary_is_refused(trained, persons, tmp_path):
    words = (persons / "tokenizer" / "vocab.txt").read_text().splitlines()
    words[-1], words[-2] = words[-2], words[-1]  # as many, but in another order
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    config = config_of(model=str(trained))
    other = tokenizers.load(tmp_path)
    with pytest.raises(UserError, match="another tokenizer than config.tokenizer"):
        start.read(config.init, model_of(config, persons), other)


def refusal(persons, **init) -> str:
    config, words = config_of(**init), tokenizers.load(persons / "tokenizer")
    with pytest.raises(UserError) as caught:
        start.read(config.init, model_of(config, persons), words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_model_and_a_tower_together_are_refused(tower, folders, trained, persons):
    said = refusal(persons, model=str(trained), **{tower: str(folders / "vit")})
    assert "fills both towers" in said and str(trained) in said


@pytest.mark.parametrize(
    "field, allowed",
    [("resize", "bicubic, bilinear_align_corners"), ("distillation", "keep, drop")],
)
def test_unknown_choices_are_refused_with_those_there_are(
    field, allowed, folders, persons
):
    for image in (str(folders / "vit"), ""):
        said = refusal(persons, image=image, **{field: "nearest"})
        assert f"init.{field} 'nearest' is not one of {allowed}" in said


def test_towers_the_wrong_way_round_are_refused(folders, persons):
    said = refusal(persons, image=str(folders / "bert"), text=str(folders / "vit"))
    assert str(folders / "bert") in said and "does not fit" in said
    assert len(said) < 4000


def test_a_source_that_does_not_fit_leaves_nothing_behind(launcher, folders, tmp_path):
    workdir = tmp_path / "runs" / "one"
    code, output = launcher.run(
        workdir, *flags(folders), "--config.model.image.layers=2"
    )
    assert code == 1 and "Traceback" not in output, output
    [said] = [x for x in output.splitlines() if x.startswith("error: ")]
    assert str(folders / "vit") in said and "16 missing" in said
    assert "init.keep_init" in said
    assert not workdir.parent.exists()


@pytest.mark.slow
@pytest.mark.parametrize("start_of", ["still", "successor"])
def test_two_processes_start_as_one_does(
    start_of, launcher, folders, trained, request, tmp_path
):
    one, _ = request.getfixturevalue(start_of)
    model = [f"--config.init.model={trained}"]
    init = {"still": flags(folders), "successor": model}[start_of]
    for process in launcher.start_two(tmp_path / "run", *init, *STILL, devices=1):
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output
    # the batch is summed in another order
    first = jobs.losses(tmp_path / "run")[1]
    np.testing.assert_allclose(first, jobs.losses(one)[1], rtol=1e-6)
    equal(params_of(tmp_path / "run"), params_of(one))
