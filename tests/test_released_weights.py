"""A checkpoint of the released UniPT code fills the preset that is named after it."""

import re

import foreign
import helpers
import numpy as np
import pytest
from foreign import assert_near, same, tensor

from configs import pretrain
from unipt_jax import sources, start, transfer, weights
from unipt_jax.models import unipt

torch, transformers = foreign.torch, foreign.transformers

NEAR = 1e-5  # as in test_weights: features of size 1 to 4, from small towers


def released_pair(tower):
    """The preset's config, shrunk; tensors as that code names them; their towers."""
    config = pretrain.get_config(f"released,{tower}").unlock()
    sizes = foreign.tower(70), foreign.tower(71)
    second = config.model.image.distillation
    config.model.image.update(sizes[0] | dict(height=48, width=16, patch=(8, 8)))
    config.model.text.update(sizes[1] | dict(positions=20))
    config.model.update(embedding=10, dtype="float32")
    vit = foreign.TimmVit(sizes[0], (4, 4), 8, distilled=second)
    text = foreign.bert_config(sizes[1])
    bert = transformers.BertModel(text, add_pooling_layer=False)
    towers = foreign.randomise(vit, 1), foreign.randomise(bert, 2)
    return config, foreign.released(*towers, 10), *towers


@pytest.mark.parametrize("tower", ["vit_b16", "deit_s16"])
def test_a_checkpoint_of_the_released_code_fills_its_preset(tower, tmp_path):
    config, tensors, vit, bert = released_pair(tower)
    state = {name: torch.tensor(x) for name, x in tensors.items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "last.ckpt")
    model = unipt.build(
        config.model.to_dict(), vocabulary=foreign.VOCABULARY, **foreign.IDS
    )
    source = sources.open_source(tmp_path / "last.ckpt")
    options = dict(ignore=tuple(config.init.ignore), resize=config.init.resize)
    found = foreign.take(source.tensors, model, **options)
    assert found.layout == "released UniPT" and not found.kept
    assert found.params.keys() == start.shapes(model).keys()
    assert found.notes == ("position embeddings 4x4 -> 6x2, bilinear_align_corners",)
    own = r"^(transformer\.(patch|cls|dist_|pos|blocks|norm)|text_model|..._proj|mlm_)"
    left = [n for n in tensors if not re.search(own, n)]
    assert found.left_out == tuple(sorted(left)) and len(left) == 11
    for theirs, ours in (
        ("img_proj.weight", "image_projection/kernel"),
        ("txt_proj.weight", "text_projection/kernel"),
        ("txt_proj.bias", "text_projection/bias"),
        ("mlm_score.transform.dense.weight", "mlm_head/dense/kernel"),
        ("mlm_score.transform.LayerNorm.weight", "mlm_head/norm/scale"),
        ("mlm_score.decoder.weight", "mlm_head/kernel"),
        ("mlm_score.bias", "mlm_head/bias"),
    ):
        np.testing.assert_array_equal(found.params[ours], tensors[theirs].T)
    params = foreign.traverse_util.unflatten_dict(found.params, sep="/")
    resize(vit, (4, 4), (6, 2), mode="bilinear", align_corners=True)
    assert_released_towers(model, params, vit, bert, config.model.image.norm_eps)


def resize(vit, old, new, **how):
    """timm's position embeddings at another grid, by PyTorch's interpolation."""
    table = vit.pos_embed[0].detach()
    prefix = len(table) - old[0] * old[1]
    patches = table[prefix:].T.reshape(1, -1, *old)
    patches = torch.nn.functional.interpolate(patches, new, **how)[0].flatten(1).T
    vit.pos_embed = torch.nn.Parameter(torch.cat([table[:prefix], patches])[None])


def assert_released_towers(model, params, vit, bert, norm_eps):
    for module in vit.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = norm_eps
    pixels, tokens = helpers.pixels(2, 0, 48, 16), foreign.BERT_TOKENS
    seen = foreign.run(vit, tensor(pixels))
    assert_near(foreign.image_features(model, params, pixels), seen, NEAR)
    said = foreign.read(bert, tokens, foreign.real()).last_hidden_state
    assert_near(foreign.text_features(model, params, tokens), said, NEAR)


def test_every_extra_of_the_released_code_is_ignored_by_default():
    _, tensors, *_ = released_pair("vit_b16")
    assert weights.detect(tensors, ()) is weights.RELEASED
    for name in tensors:
        known = weights.RELEASED.part(name) is not None
        ignored = any(re.search(p, name) for p in foreign.IGNORE)
        assert known != ignored, name


@pytest.mark.parametrize("tower", ["vit_b16", "deit_s16"])
def test_a_released_checkpoint_there_and_back_is_the_identity_to_the_bit(tower):
    config, tensors, *_ = released_pair(tower)
    config.model.image.width = 32
    config.model.image.height = 32  # the grid of the file
    section = config.model.to_dict()
    model = unipt.build(section, vocabulary=foreign.VOCABULARY, **foreign.IDS)
    taken = foreign.take(tensors, model)
    written, left = transfer.to_theirs(taken.params, weights.RELEASED, (8, 8))
    assert not left and not taken.notes
    same(written, {n: x for n, x in tensors.items() if n not in taken.left_out})
    same(foreign.take(written, model, ignore=()).params, taken.params)
