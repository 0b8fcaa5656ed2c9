"""Claims on opening a model that was exported."""

import numpy as np
import rundirs

import unipt_jax
from configs import export as config_of_export
from unipt_jax import export, tree
from unipt_jax.data import tokenizers


def test_a_grid_with_as_many_patches_as_a_square_comes_back_as_it_was(
    persons, tmp_path
):
    # 8x2 patches are as many as 4x4: taken for those, they would be resized.
    tokenizer = tokenizers.load(persons / "tokenizer")
    section = rundirs.section("vit_b16", image=dict(height=64, width=16))
    params = rundirs.make_run(tmp_path / "run", section, tokenizer)
    config = config_of_export.get_config().unlock()
    config.model = str(tmp_path / "run")
    export.run(config, str(tmp_path / "export"))
    found = tree.flatten(unipt_jax.load(tmp_path / "export").params)
    wanted = params["image"]["position_embedding"]
    np.testing.assert_array_equal(found["image/position_embedding"], wanted)
