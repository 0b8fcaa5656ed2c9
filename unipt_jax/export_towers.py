"""A model's towers in others' layouts: transformers, timm, OpenAI's CLIP.

Enters: an `Encoder` and an empty folder. Leaves: the files in it, and what was written,
left out and compared.
"""

import dataclasses
import importlib.util
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from unipt_jax import transfer, tree, weights
from unipt_jax.data import transforms
from unipt_jax.encoder import Encoder
from unipt_jax.errors import UserError
from unipt_jax.models import clip, vit


@dataclasses.dataclass(frozen=True)
class Samples:
    """What both networks are shown: pixels (B, H, W, 3) uint8 and texts."""

    pixels: np.ndarray
    texts: tuple[str, ...]


def arrays(encoder: Encoder) -> dict[str, np.ndarray]:
    """Path -> float32 array of every parameter."""
    return {path: np.asarray(x) for path, x in tree.flatten(encoder.params).items()}


def write(folder: pathlib.Path, tensors: Mapping[str, np.ndarray], config: Any) -> None:
    """model.safetensors and config.json, into a folder that is made if need be."""
    folder.mkdir(exist_ok=True)
    # transformers asks for the metadata. Not save_file: it hides the file from others.
    content = safetensors.numpy.save(dict(tensors), metadata={"format": "pt"})
    (folder / "model.safetensors").write_bytes(content)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _part(
    params: Mapping[str, np.ndarray], prefixes: tuple[str, ...], encoder, layout
) -> dict[str, np.ndarray]:
    """Their tensors for the parts of ours that begin so."""
    ours = {p: x for p, x in params.items() if p.startswith(prefixes)}
    tensors, left = transfer.to_theirs(ours, layout, encoder.model.image.patch)
    if left:
        raise UserError(
            f"the layout of {layout.name} has no place for {', '.join(left)} of "
            f"{encoder.name}; use --config.layout=unipt"
            + (" or openai" if isinstance(encoder.model.text, clip.ClipText) else "")
        )
    return tensors


def _tower(tower: Any) -> dict[str, Any]:
    """A tower's sizes in transformers' words."""
    return dict(
        hidden_size=tower.features,
        num_hidden_layers=tower.layers,
        num_attention_heads=tower.heads,
        intermediate_size=tower.hidden,
        hidden_act=tower.activation,
        layer_norm_eps=tower.norm_eps,
    )


def hf(
    encoder: Encoder, folder: pathlib.Path, heads: bool, samples: Samples
) -> dict[str, Any]:
    """`image/` for ViTModel or DeiTModel and `text/` for BertModel, or a CLIPModel."""
    params, model = arrays(encoder), encoder.model
    if isinstance(model.text, clip.ClipText):
        return _hf_clip(encoder, folder, params, samples)
    kind = "deit" if model.image.distillation else "vit"
    image = _part(params, ("image/",), encoder, weights.VIT)
    write(folder / "image", image, _vit_config(model.image, kind))
    _write_processor(folder / "image", encoder)
    head = model.mlm_output if heads else "none"
    layouts = dict(none=weights.BERT, tied=weights.BERT_MLM, untied=weights.BERT_UNTIED)
    parts = ("text/",) if head == "none" else ("text/", "mlm_head/")
    text = _part(params, parts, encoder, layouts[head])
    if head == "untied":  # transformers has this bias twice there, and misses neither
        text["cls.predictions.bias"] = text["cls.predictions.decoder.bias"]
    name = "BertModel" if head == "none" else "BertForMaskedLM"
    write(folder / "text", text, _bert_config(encoder, name))
    encoder.tokenizer.save(folder / "text")
    return dict(
        by_tower=_compare_hf(encoder, folder, kind, samples, head != "none"),
        tensors=len(image) + len(text),
        left_out=[p for p in params if not p.startswith(("image/", *parts))],
    )


def _vit_config(image: vit.ViT, kind: str) -> dict[str, Any]:
    return _tower(image) | dict(
        model_type=kind,
        architectures=["DeiTModel" if kind == "deit" else "ViTModel"],
        hidden_dropout_prob=image.dropout,
        attention_probs_dropout_prob=image.attention_dropout,
        image_size=[image.height, image.width],
        patch_size=_one(image.patch),
        num_channels=3,
        qkv_bias=True,
    )


def _one(pair: tuple[int, int]) -> int | list[int]:
    return pair[0] if pair[0] == pair[1] else list(pair)


def _bert_config(encoder: Encoder, architecture: str) -> dict[str, Any]:
    text = encoder.model.text
    return _tower(text) | dict(
        model_type="bert",
        architectures=[architecture],
        vocab_size=text.vocabulary,
        max_position_embeddings=text.positions,
        type_vocab_size=2,
        hidden_dropout_prob=text.dropout,
        attention_probs_dropout_prob=text.attention_dropout,
        pad_token_id=encoder.tokenizer.pad,
        tie_word_embeddings=encoder.model.mlm_output != "untied",
    )


def _write_processor(folder: pathlib.Path, encoder: Encoder) -> None:
    """How pictures come to the tower, for transformers' image processors."""
    height, width = encoder.size
    config = dict(
        image_processor_type="ViTImageProcessor",
        do_convert_rgb=True,
        do_resize=True,
        size=dict(height=height, width=width),
        resample=3,  # bicubic
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=list(encoder.mean),
        image_std=list(encoder.std),
    )
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(config, indent=2) + "\n")


def _features(encoder: Encoder, samples: Samples) -> tuple[np.ndarray, ...]:
    """Normalised pixels, their token features; token ids, what is no padding, theirs."""
    stats = dict(mean=encoder.mean, std=encoder.std)
    pixels = np.asarray(transforms.normalise(samples.pixels, **stats))
    ids, _ = encoder.tokenizer.encode(samples.texts, encoder.lengths[-1])
    tokens, model = encoder.pad(ids), encoder.model

    def see(params: Any) -> tuple[jax.Array, ...]:
        variables = {"params": params}
        image = model.apply(variables, pixels, None, method=lambda m, *a: m.image(*a))
        text = model.apply(variables, tokens, None, method="text_features")
        return image, text, model.apply(variables, tokens, method="real")

    image, text, real = map(np.asarray, jax.jit(see)(encoder.params))
    return pixels.transpose(0, 3, 1, 2), image, tokens, real, text


def _compare_hf(
    encoder: Encoder, folder: pathlib.Path, kind: str, samples: Samples, head: bool
) -> dict[str, float]:
    """The largest difference of a token's features from transformers', by tower.

    head: compare the logits of the MLM head too.
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # of heads that are not asked for
    seer = {"vit": transformers.ViTModel, "deit": transformers.DeiTModel}[kind]
    options = dict(add_pooling_layer=False)
    seer = seer.from_pretrained(folder / "image", **options).eval()
    reader = transformers.BertModel.from_pretrained(folder / "text", **options).eval()
    pixels, image, tokens, real, text = _features(encoder, samples)
    inputs = dict(
        input_ids=torch.from_numpy(tokens.astype(np.int64)),
        attention_mask=torch.from_numpy(real.astype(np.int64)),
    )
    with torch.no_grad():
        seen = seer(torch.tensor(pixels)).last_hidden_state.numpy()
        read = reader(**inputs).last_hidden_state.numpy()
    found = dict(
        image=float(np.abs(seen - image).max()),
        text=float(np.abs(read - text)[real].max()),
    )
    if head:
        whole = transformers.BertForMaskedLM.from_pretrained(folder / "text").eval()
        with torch.no_grad():
            logits = whole(**inputs).logits.numpy()
        variables = {"params": encoder.params}
        ours = encoder.model.apply(variables, text, method="mlm_logits")
        found["mlm_head"] = float(np.abs(logits - ours)[real].max())
    return found


def _check_clip(encoder: Encoder) -> None:
    """Raises UserError for CLIP's towers used in a way that no CLIP's config can say."""
    model = encoder.model
    if model.pool != "token" or not model.image.pre_norm:
        raise UserError(
            f"{encoder.name} is no CLIP as others know it (pool is '{model.pool}', "
            f"image.pre_norm is {model.image.pre_norm}); use --config.layout=unipt"
        )


def _with_scale(encoder: Encoder, params: dict[str, np.ndarray]) -> dict:
    """With CLIP's logit scale, which others ask for even if it was never learned."""
    scale = encoder.model.apply({"params": encoder.params}, method="scale")
    return {"log_scale": np.log(np.asarray(scale, np.float32))} | params


def _hf_clip(
    encoder: Encoder, folder: pathlib.Path, params: dict, samples: Samples
) -> dict[str, Any]:
    import torch
    import transformers

    _check_clip(encoder)
    model, tokenizer = encoder.model, encoder.tokenizer
    size, patch = encoder.size, model.image.patch
    if size[0] != size[1] or patch[0] != patch[1]:
        raise UserError(
            f"transformers' CLIP knows square images alone, {encoder.name} takes "
            f"{size[0]}x{size[1]}; use --config.layout=unipt or openai"
        )
    text = _tower(model.text) | dict(
        vocab_size=model.text.vocabulary,
        max_position_embeddings=model.text.positions,
        bos_token_id=tokenizer.cls,
        eos_token_id=tokenizer.sep,
        pad_token_id=tokenizer.pad,
    )
    config = dict(
        model_type="clip",
        architectures=["CLIPModel"],
        projection_dim=model.embedding,
        text_config=text | dict(projection_dim=model.embedding),
        vision_config=_tower(model.image)
        | dict(image_size=size[0], patch_size=patch[0], projection_dim=model.embedding),
    )
    parts = tuple(p for p in params if not p.startswith("mlm_head/"))
    whole = _with_scale(encoder, params)
    tensors = _part(whole, (*parts, "log_scale"), encoder, weights.CLIP)
    write(folder, tensors, config)
    _write_processor(folder, encoder)
    tokenizer.save(folder)
    theirs = transformers.CLIPModel.from_pretrained(folder).eval()
    pixels, _, tokens, real, _ = _features(encoder, samples)
    with torch.no_grad():
        out = theirs(
            input_ids=torch.from_numpy(tokens.astype(np.int64)),
            attention_mask=torch.from_numpy(real.astype(np.int64)),
            pixel_values=torch.tensor(pixels),
        )
    ours = _embed(encoder, samples, tokens)
    names = ("image", "text")
    found = (out.image_embeds.numpy(), out.text_embeds.numpy())
    return dict(
        by_tower={
            name: float(np.abs(a - b).max())
            for name, a, b in zip(names, ours, found, strict=True)
        },
        tensors=len(tensors),
        left_out=[p for p in params if p not in parts],
    )


def _embed(encoder: Encoder, samples: Samples, tokens: np.ndarray):
    def see(params: Any) -> tuple[jax.Array, jax.Array]:
        stats = dict(mean=encoder.mean, std=encoder.std)
        pixels = transforms.normalise(samples.pixels, **stats)
        apply = encoder.model.apply
        variables = {"params": params}
        image = apply(variables, pixels, method="encode_image")
        return image, apply(variables, tokens, method="encode_text")

    return map(np.asarray, jax.jit(see)(encoder.params))


def _read_back(encoder: Encoder, folder: pathlib.Path, parts: tuple[str, ...]) -> float:
    """The largest difference between the file that was written and the parameters."""
    wanted = {p: x for p, x in arrays(encoder).items() if p.startswith(parts)}
    with safetensors.safe_open(folder / "model.safetensors", "np") as tensors:
        names = list(tensors.keys())
        held = {name: tensors.get_tensor(name) for name in names}
    taken = transfer.to_ours(
        held,
        {path: x.shape for path, x in wanted.items()},
        transfer.Geometry.of(encoder.model.image),
        source=str(folder),
        options=transfer.Options(grid=transfer.Geometry.of(encoder.model.image).grid),
    )
    return float(np.max([np.abs(taken.params[p] - x).max() for p, x in wanted.items()]))


def timm(
    encoder: Encoder, folder: pathlib.Path, heads: bool, samples: Samples
) -> dict[str, Any]:
    """The image tower, for timm.create_model("local-dir:FOLDER") or its state dict."""
    params, image = arrays(encoder), encoder.model.image
    tensors = _part(params, ("image/",), encoder, weights.TIMM)
    height, width = encoder.size
    second = image.distillation
    name = "vit_base_patch16_224"
    if second:
        name = "deit_base_distilled_patch16_224"
    elif image.pre_norm:  # CLIP's
        name = "vit_base_patch16_clip_224"
    config = dict(
        architecture=name,
        num_classes=0,
        num_features=image.features,
        pretrained_cfg=dict(
            input_size=[3, height, width],
            fixed_input_size=True,
            interpolation="bicubic",
            crop_pct=1.0,
            crop_mode="squash",
            mean=list(encoder.mean),
            std=list(encoder.std),
            num_classes=0,
            first_conv="patch_embed.proj",
            classifier=["head", "head_dist"] if second else "head",
        ),
        model_args=dict(
            img_size=[height, width],
            patch_size=_one(image.patch),
            embed_dim=image.features,
            depth=image.layers,
            num_heads=image.heads,
            mlp_ratio=image.hidden / image.features,
            act_layer=image.activation,
        ),
    )
    write(folder, tensors, config)
    compared = {"tensors": _read_back(encoder, folder, ("image/",))}
    if importlib.util.find_spec("timm"):
        compared["image"] = _compare_timm(encoder, folder, samples)
    return dict(
        by_tower=compared,
        tensors=len(tensors),
        left_out=[p for p in params if not p.startswith("image/")],
    )


def _compare_timm(encoder: Encoder, folder: pathlib.Path, samples: Samples) -> float:
    import timm as library
    import torch

    theirs = library.create_model(f"local-dir:{folder}", pretrained=True).eval()
    pixels, image, *_ = _features(encoder, samples)
    with torch.no_grad():
        seen = theirs.forward_features(torch.tensor(pixels)).numpy()
    return float(np.abs(seen - image).max())


def openai(
    encoder: Encoder, folder: pathlib.Path, heads: bool, samples: Samples
) -> dict[str, Any]:
    """A CLIP under OpenAI's names, which open_clip and IRRA-like code read."""
    params, model = arrays(encoder), encoder.model
    if not isinstance(model.text, clip.ClipText):
        raise UserError(
            f"{encoder.name} has no CLIP towers; use --config.layout=unipt, hf or timm"
        )
    _check_clip(encoder)
    parts = tuple(p for p in params if not p.startswith("mlm_head/"))
    whole = _with_scale(encoder, params)
    tensors = _part(whole, (*parts, "log_scale"), encoder, weights.OPENAI)
    config = dict(
        embed_dim=model.embedding,
        quick_gelu=model.image.activation == "quick_gelu",
        vision_cfg=dict(
            image_size=list(encoder.size),
            layers=model.image.layers,
            width=model.image.features,
            patch_size=_one(model.image.patch),
            head_width=model.image.features // model.image.heads,
        ),
        text_cfg=dict(
            context_length=model.text.positions,
            vocab_size=model.text.vocabulary,
            width=model.text.features,
            heads=model.text.heads,
            layers=model.text.layers,
        ),
    )
    write(folder, tensors, config)
    (folder / "config.json").rename(folder / "open_clip_config.json")
    stats = dict(mean=list(encoder.mean), std=list(encoder.std))
    text = json.dumps(dict(model_cfg=config, preprocess_cfg=stats), indent=2)
    (folder / "open_clip_config.json").write_text(text + "\n")
    encoder.tokenizer.save(folder)
    return dict(
        by_tower={"tensors": _read_back(encoder, folder, parts)},
        tensors=len(tensors),
        left_out=[p for p in params if p not in parts],
    )
