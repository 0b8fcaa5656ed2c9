"""Weights across: nothing is lost, nothing is guessed, positions are PyTorch's."""

import functools
import re
import tempfile

import foreign
import helpers
import numpy as np
import pytest
from foreign import arrays, same, take

from unipt_jax import sources, start, transfer, tree, weights
from unipt_jax.errors import UserError

torch, transformers = foreign.torch, foreign.transformers
PATCH = (8, 4)

# --- position embeddings -------------------------------------------------------------

MODES = {
    "bicubic": dict(mode="bicubic", align_corners=False),
    "bilinear_align_corners": dict(mode="bilinear", align_corners=True),
}
GRIDS = [((24, 24), (24, 8)), ((14, 14), (24, 8)), ((24, 8), (14, 14))]
GRIDS += [((1, 1), (3, 2)), ((5, 3), (1, 1)), ((2, 9), (7, 2))]
GRIDS += [
    (tuple(grids[:2]), tuple(grids[2:]))
    for grids in np.random.default_rng(0).integers(1, 30, (8, 4)).tolist()
]


@pytest.mark.parametrize("method", MODES)
@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_resized_positions_equal_torchs_interpolation(old, new, method):
    rng = np.random.default_rng(1)
    for prefix in range(3):
        table = rng.standard_normal((prefix + old[0] * old[1], 5))
        patches = torch.tensor(table[prefix:]).T.reshape(1, 5, *old)
        patches = torch.nn.functional.interpolate(patches, new, **MODES[method])
        expected = patches[0].reshape(5, -1).T.numpy()
        ours = transfer.resize_positions(table, prefix, old, new, method)
        np.testing.assert_array_equal(ours[:prefix], table[:prefix])
        # Both in float64; torch has its factors of the grid, 24/14 say, rounded.
        np.testing.assert_allclose(ours[prefix:], expected, rtol=0, atol=2e-14)
        single = table.astype(np.float32)
        ours = transfer.resize_positions(single, prefix, old, new, method)
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours[prefix:], expected, rtol=0, atol=5e-7)


@pytest.mark.parametrize("method", MODES)
def test_positions_of_the_same_grid_stay_to_the_bit(method):
    table = np.random.default_rng(2).standard_normal((2 + 15, 3)).astype(np.float32)
    same_table = transfer.resize_positions(table, 2, (5, 3), (5, 3), method)
    np.testing.assert_array_equal(same_table, table, strict=True)


def test_a_grid_that_the_number_of_positions_cannot_tell_is_taken_from_the_options():
    theirs, model, parts = network("timm")  # 4x4 in the file, 2x8 in truth
    tensors = arrays(theirs)
    found = take(tensors, model, *parts, grid=(2, 8)).params[transfer.POSITIONS]
    table = tensors["pos_embed"][0]
    expected = transfer.resize_positions(table, 1, (2, 8), (4, 4))
    np.testing.assert_array_equal(found, expected)
    tall = model.clone(image=model.image.clone(height=40))
    with pytest.raises(UserError, match="1 misshapen: image/position_embedding"):
        take(tensors, tall, *parts, grid=(3, 5))


# --- there and back ------------------------------------------------------------------


@functools.cache
def network(name):
    """A network of theirs without heads; our pair; the parts of ours that it fills."""
    image, text = foreign.tower(1, 2), foreign.tower(2, 2)
    grid = dict(height=32, width=16, patch=PATCH)
    second = name in ("DeiT", "timm distilled")
    bert = text | dict(positions=20)
    pairs = dict(image=image | grid | dict(distillation=second), text=bert)
    if name in ("ViT", "DeiT"):
        config = getattr(transformers, f"{name}Config")
        config = foreign.vit_config(config, image, [32, 16], list(PATCH))
        theirs = getattr(transformers, f"{name}Model")(config, add_pooling_layer=False)
        return foreign.randomise(theirs), foreign.dual(**pairs), ("image",)
    if name.startswith("timm"):
        theirs = foreign.TimmVit(image, (4, 4), PATCH, second)
        return foreign.randomise(theirs), foreign.dual(**pairs), ("image",)
    if name == "BERT":
        theirs = foreign.bert_config(text)
        theirs = transformers.BertModel(theirs, add_pooling_layer=False)
        model = foreign.dual(**pairs, mlm_output="none")
        return foreign.randomise(theirs), model, ("text",)
    if name.startswith("MLM"):
        kind = name.split()[1]
        config = foreign.bert_config(text, tie_word_embeddings=kind == "tied")
        theirs = foreign.randomise(transformers.BertForMaskedLM(config))
        theirs.cls.predictions.bias.data = theirs.cls.predictions.decoder.bias.data
        model = foreign.dual(**pairs, mlm_output=kind)
        return theirs, model, ("text", "mlm_head")
    return clip_network(name, image, text)


def clip_network(name, image, text):
    if name == "OpenAI":
        theirs = foreign.OpenAiClip(image, text, (4, 4), PATCH, 10)
        image = image | dict(height=32, width=16, patch=PATCH)
        return foreign.randomise(theirs), foreign.clip(image, text, embedding=10), ()
    vision, words = foreign.clip_configs(image, text, 32, 8, 10)
    image = image | dict(height=32, width=32, patch=(8, 8))
    model = foreign.clip(image, text, embedding=10)
    if name == "CLIP":
        return foreign.clip_model(vision, words), model, ()
    side, projected = name.split()[1], name.endswith("projection")
    kind = "Vision" if side == "image" else "Text"
    kind = f"CLIP{kind}Model" + "WithProjection" * projected
    theirs = getattr(transformers, kind)(vision if side == "image" else words)
    parts = (side, f"{side}_projection") if projected else (side,)
    return foreign.randomise(theirs), model, parts


NAMES = ["ViT", "DeiT", "timm", "timm distilled", "BERT", "MLM tied", "MLM untied"]
NAMES += ["CLIP", "OpenAI", "CLIP image", "CLIP text"]
NAMES += ["CLIP image with projection", "CLIP text with projection"]
FILELESS = ("timm", "timm distilled", "OpenAI")  # one set of names, on disk as well


def tensors_of(theirs, saved):
    if not saved:
        return arrays(theirs)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return dict(sources.open_source(folder).tensors)


@pytest.mark.parametrize(
    ("name", "saved"),
    [(n, False) for n in NAMES] + [(n, True) for n in NAMES if n not in FILELESS],
)
def test_ours_to_theirs_and_back_is_the_identity_to_the_bit(name, saved):
    theirs, model, parts = network(name)
    tensors = tensors_of(theirs, saved)
    taken = take(tensors, model, *parts, ignore=())
    layout = weights.detect(tensors, ())
    written, left = transfer.to_theirs(taken.params, layout, model.image.patch)
    assert not left and layout.name == taken.layout
    repeats = {n: original for n, original in layout.copies if n not in written}
    same(written, {n: x for n, x in tensors.items() if n not in repeats})
    again = take(written, model, *parts, ignore=())
    same(again.params, taken.params)
    if not saved:  # strict: exactly these names and shapes
        repeats = {n: written[o] for n, o in repeats.items()}
        state = {n: torch.tensor(x) for n, x in (written | repeats).items()}
        theirs.load_state_dict(state)


@pytest.mark.parametrize("untied", [False, True])
@pytest.mark.parametrize("second", [False, True])
def test_our_export_there_and_back_is_the_identity_to_the_bit(second, untied):
    changes = dict(height=24, width=16, distillation=second, layers=2)
    more = dict(mlm_output="untied", temperature="learned") if untied else {}
    model, params = helpers.build(image=changes, **more)
    params = helpers.arrays(params)
    layout = weights.ours_in_torch(params)
    tensors, left = transfer.to_theirs(params, layout, model.image.patch)
    assert not left and weights.detect(tensors, params).name == "unipt_jax export"
    taken = take(tensors, model, ignore=())
    assert not (taken.notes or taken.kept or taken.left_out)
    same(taken.params, params)


@pytest.mark.parametrize("name", ["timm", "BERT", "CLIP", "ViT"])
def test_what_a_layout_has_no_name_for_is_told(name):
    theirs, _, parts = network(name)
    layout = weights.detect(arrays(theirs), ())
    _, params = helpers.build(mlm_output="untied")
    params = helpers.arrays(params)
    _, left = transfer.to_theirs(params, layout, PATCH)
    covered = parts or ("image", "text", "image_projection", "text_projection")
    other = [path for path in params if path.split("/")[0] not in covered]
    assert set(other) <= set(left) and any("mlm_head" in path for path in left)


# --- strictly ------------------------------------------------------------------------

LAYER = re.compile(r"^(.*?(?:layers?|blocks)\.)(\d+)(\..*)$")


def refusal(tensors, model, *parts, **options):
    """What a user is told, on one line."""
    with pytest.raises(UserError) as caught:
        take(tensors, model, *parts, **options)
    said = str(caught.value)
    assert "\n" not in said
    return said


def layer(tensors, number):
    """One tower's names in the block of that number."""
    found = filter(None, map(LAYER.match, sorted(tensors)))
    found = [m for m in found if int(m[2]) == number]
    return [m.string for m in found if m[1] == found[0][1]]


def path_of(layout, name):
    """Our first path for a name of theirs in the first block."""
    rows = {row.theirs.replace("{i}", "0"): row.ours[0] for row in layout.rows}
    return rows[name].replace("{i}", "0")


@pytest.mark.parametrize("name", NAMES)
def test_every_fault_is_named_in_one_message(name):
    theirs, model, parts = network(name)
    tensors = arrays(theirs)
    layout = weights.detect(tensors, ())
    first, last = layer(tensors, 0), layer(tensors, 1)
    missing = next(n for n in first if re.search(r"(norm|ln_|Norm).*weight$", n))
    wrong = next(n for n in first if re.search(r"(fc1|c_fc|intermediate).*bias$", n))
    tensors[wrong] = np.append(tensors[wrong], np.float32(0))
    more = {LAYER.sub(r"\g<1>2\3", n): tensors[n] for n in last}
    more["surprise.weight"] = np.zeros(2, np.float32)
    del tensors[missing]
    said = refusal(tensors | more, model, *parts)
    assert said.startswith(f"the test ({layout.name}) does not fit: ")
    assert f"1 missing: {missing} -> {path_of(layout, missing)};" in said
    assert f"{len(more)} unused: " in said and len(more) > 12 - 4 * ("qkv" in said)
    for each, x in more.items():
        assert f"{each} {x.shape}" in said
    hidden = len(tensors[wrong])
    assert (
        f"1 misshapen: {path_of(layout, wrong)} is ({hidden},) there, "
        f"({hidden - 1},) here."
    ) in said


def test_faults_of_our_own_export_are_named_too():
    model, params = helpers.build(image=dict(layers=2))
    params = helpers.arrays(params)
    layout = weights.ours_in_torch(params)
    tensors, _ = transfer.to_theirs(params, layout, model.image.patch)
    tensors["image.blocks.2.norm1.bias"] = tensors.pop("image.blocks.1.norm1.bias")
    tensors["image.norm.bias"] = np.zeros(3, np.float32)
    said = refusal(tensors, model)
    assert "1 missing: image.blocks.1.norm1.bias -> image/block_1/norm1/bias;" in said
    assert "1 unused: image.blocks.2.norm1.bias (16,);" in said
    assert "1 misshapen: image/norm/bias is (3,) there, (16,) here." in said


@pytest.mark.parametrize("name", NAMES)
def test_one_layer_fewer_is_missing_tensor_for_tensor(name):
    theirs, model, parts = network(name)
    tensors = arrays(theirs)
    gone = layer(tensors, 1)
    said = refusal({n: x for n, x in tensors.items() if n not in gone}, model, *parts)
    assert "missing: " in said and "unused: " not in said and "misshapen" not in said
    for each in gone:
        assert f"{each} -> " in said


def misshapen(x):
    """The tensor in shapes that it should not have."""
    if not x.ndim:
        yield np.stack([x, x])  # a single number is taken in any other shape
        return
    yield x[None]
    yield x.ravel() if x.ndim > 1 else x[:, None]
    yield x.ravel()[0].reshape(())
    yield x[:0]
    for axis in range(x.ndim):
        yield np.concatenate([x, np.take(x, [0], axis)], axis)
        if x.shape[axis] > 1:
            yield np.delete(x, 0, axis)


@pytest.mark.parametrize("name", ["DeiT", "timm", "MLM tied", "CLIP", "OpenAI"])
def test_a_tensor_of_any_other_shape_is_refused_by_name(name):
    theirs, model, parts = network(name)
    tensors = arrays(theirs)
    layout = weights.detect(tensors, ())
    repeats = dict(layout.copies)
    wanted, geometry = start.shapes(model), transfer.Geometry.of(model.image)
    wanted = {p: s for p, s in wanted.items() if not parts or p.split("/")[0] in parts}
    for each in [n for n in tensors if not re.search(r"\.1\.", n)]:
        for x in misshapen(tensors[each]):
            with pytest.raises(UserError) as caught:
                transfer.to_ours(tensors | {each: x}, wanted, geometry, source="file")
            named = each if each in repeats else path_of(layout, each)
            assert named in str(caught.value)


def test_keep_init_allows_what_it_names_and_nothing_else():
    theirs, model, parts = network("BERT")
    tensors = arrays(theirs)
    del tensors["embeddings.position_embeddings.weight"]
    path = "text/position_embedding/embedding"
    taken = take(tensors, model, *parts, keep_init=("^text/position",))
    assert taken.kept == (path,) and path not in taken.params
    del tensors["embeddings.LayerNorm.bias"]
    said = refusal(tensors, model, *parts, keep_init=("^text/position",))
    assert "1 missing: embeddings.LayerNorm.bias -> text/embedding_norm/bias." in said
    assert path not in said
    # What is there is taken, whatever may stay; and it must fit.
    taken = take(arrays(theirs), model, *parts, keep_init=("",))
    assert not taken.kept and len(taken.params) == len(tensors) + 2
    narrow = arrays(theirs)
    narrow["embeddings.LayerNorm.bias"] = np.zeros(3, np.float32)
    assert "1 misshapen" in refusal(narrow, model, *parts, keep_init=("",))


def test_ignore_allows_what_it_names_and_nothing_else():
    theirs, model, parts = network("timm")
    extra = {f"head.{n}": np.zeros(2, np.float32) for n in ("weight", "bias")}
    tensors = arrays(theirs) | extra
    assert take(tensors, model, *parts, ignore=(r"^head\.",)).left_out == (
        "head.bias",
        "head.weight",
    )
    said = refusal(tensors, model, *parts, ignore=(r"^head\.bias$",))
    assert "1 unused: head.weight (2,)." in said and "head.bias" not in said


def test_parts_that_are_not_asked_for_are_left_out_and_told():
    theirs, model, _ = network("OpenAI")
    taken = take(arrays(theirs), model, "image", ignore=())
    assert all(path.startswith("image/") for path in taken.params)
    assert {"token_embedding.weight", "visual.proj"} <= set(taken.left_out)
    assert len(taken.left_out) + len(take(arrays(theirs), model, "image").params) > 40


@pytest.mark.parametrize("more", [1, 3])
def test_tokens_added_to_the_vocabulary_start_as_the_mean_of_the_others(more):
    theirs, model, parts = network("BERT")
    tensors = arrays(theirs)
    name = "embeddings.word_embeddings.weight"
    full = tensors[name]
    tensors[name] = short = full[:-more]
    assert f"1 misshapen: {transfer.TOKENS} is" in refusal(tensors, model, *parts)
    taken = take(tensors, model, *parts, extend=True)
    table = taken.params[transfer.TOKENS]
    np.testing.assert_array_equal(table[:-more], short)
    mean = short.astype(np.float64).mean(0).astype(np.float32)
    np.testing.assert_array_equal(table[-more:], np.tile(mean, (more, 1)))
    assert taken.notes[0].startswith(f"{more} added to the vocabulary")
    tensors[name] = np.concatenate([full, full[:more]])  # longer: never cut
    assert "1 misshapen" in refusal(tensors, model, *parts, extend=True)


# --- DeiT's second token -------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "plain"), [("DeiT", "ViT"), ("timm distilled", "timm")]
)
def test_a_second_token_is_refused_by_a_tower_without_and_the_remedy_works(name, plain):
    theirs, with_second, parts = network(name)
    model = network(plain)[1]
    said = refusal(arrays(theirs), model, *parts)
    assert "init.distillation=drop" in said
    assert "1 unused: " in said and "dist" in said.split("1 unused: ")[1][:30]
    assert "1 misshapen: image/position_embedding is (18, " in said
    whole = take(arrays(theirs), with_second, *parts).params
    dropped = take(arrays(theirs), model, *parts, distillation="drop").params
    table = np.delete(whole[transfer.POSITIONS], 1, 0)
    second = "image/distillation_token"
    same(
        dropped,
        {p: x for p, x in whole.items() if p != second} | {transfer.POSITIONS: table},
    )
    # A tower that has the token keeps it.
    same(take(arrays(theirs), with_second, *parts, distillation="drop").params, whole)


def test_a_tower_with_a_second_token_starts_from_a_file_without():
    theirs, _, parts = network("ViT")
    model = network("DeiT")[1]
    assert "1 missing: embeddings.distillation_token" in refusal(
        arrays(theirs), model, *parts
    )
    taken = take(arrays(theirs), model, *parts, keep_init=("distillation_token",))
    table = arrays(theirs)["embeddings.position_embeddings"][0]
    expected = np.concatenate([table[:1], table[:1], table[1:]])
    np.testing.assert_array_equal(taken.params[transfer.POSITIONS], expected)
    assert taken.kept == ("image/distillation_token",) and len(taken.notes) == 1


# --- names and numbers ---------------------------------------------------------------


def test_unknown_names_are_answered_with_the_known_layouts():
    _, model, _ = network("ViT")
    said = refusal({"conv1.weight": np.zeros(1), "fc.bias": np.zeros(1)}, model)
    assert "the test: the names of its 2 tensors (conv1.weight, fc.bias ...)" in said
    for layout in weights.LAYOUTS:
        assert said.count(layout.name) == 1
    assert "unipt_jax exports" in said


@pytest.mark.parametrize("before", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_prefixes_and_buffers_are_no_part_of_a_name(before):
    theirs, model, parts = network("BERT")
    tensors = {before + name: x for name, x in arrays(theirs).items()}
    tensors[f"{before}embeddings.position_ids"] = np.arange(20)[None]
    same(
        take(tensors, model, *parts, ignore=()).params,
        take(arrays(theirs), model, *parts).params,
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bit_files_become_float32_parameters(dtype, tmp_path):
    theirs, model, parts = network("DeiT")
    state = {n: x.to(getattr(torch, dtype)) for n, x in theirs.state_dict().items()}
    save = pytest.importorskip("safetensors.torch").save_file
    save(state, tmp_path / "model.safetensors")
    tensors = sources.open_source(tmp_path).tensors
    expected = {n: x.float().numpy() for n, x in state.items()}
    found = take(tensors, model, *parts).params
    assert all(x.dtype == np.float32 for x in found.values())
    same(found, take(expected, model, *parts).params)


@pytest.mark.parametrize("field", ["distillation", "resize"])
def test_an_option_that_is_none_is_answered_with_those_that_are(field):
    with pytest.raises(UserError, match=f"init.{field} 'nothing' is not one of .*, "):
        transfer.Options(**{field: "nothing"})


def test_start_puts_what_was_taken_in_place_of_the_random():
    theirs, model, parts = network("timm")
    found = {"image": take(arrays(theirs), model, *parts)}
    params = helpers.random_like(lambda key: foreign.unipt.initialise(model, key))
    placed = start.put(helpers.jax.tree.map(helpers.jax.numpy.asarray, params), found)
    expected = helpers.arrays(params) | found["image"].params
    same(helpers.arrays(placed), expected)
    assert tree.flatten(placed).keys() == start.shapes(model).keys()
