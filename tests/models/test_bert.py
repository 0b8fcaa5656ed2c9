"""Claims on the text tower and the MLM head, against transformers' BERT."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import PAD, VOCABULARY, apply, arrays, quick_jit, random_params, texts

from unipt_jax.models import bert, draws, layers

TOWER = dict(
    vocabulary=VOCABULARY, positions=20, features=16, layers=2, heads=4, hidden=24
)
TOKENS = texts([10, 1, 5], 12)  # padded to 12, two rows with padding


def tower(**changes):
    return bert.Bert(**(TOWER | changes))


@functools.cache
def tower_params():
    return random_params(tower(), TOKENS, TOKENS != PAD, None)


@functools.cache
def head_params(tied=True):
    embedding = tower_params()["token_embedding"]["embedding"]
    features = np.ones((1, 16), np.float32)
    return random_params(bert.MlmHead(VOCABULARY, tied), features, embedding)


def torch_state():
    """Our parameters by the names of transformers' BertForMaskedLM."""
    torch = pytest.importorskip("torch")
    p, head = arrays(tower_params()), arrays(head_params())
    state = {
        f"bert.embeddings.{theirs}_embeddings.weight": p[f"{ours}_embedding/embedding"]
        for theirs, ours in (
            ("word", "token"),
            ("position", "position"),
            ("token_type", "type"),
        )
    }
    dense = {
        "attention.self.query": "attention/query",
        "attention.self.key": "attention/key",
        "attention.self.value": "attention/value",
        "attention.output.dense": "attention/out",
        "intermediate.dense": "mlp/fc1",
        "output.dense": "mlp/fc2",
    }
    norms = {"embeddings.LayerNorm": "embedding_norm"}
    for i in range(TOWER["layers"]):
        layer = f"encoder.layer.{i}"
        norms[f"{layer}.attention.output.LayerNorm"] = f"block_{i}/attention_norm"
        norms[f"{layer}.output.LayerNorm"] = f"block_{i}/mlp_norm"
        for theirs, ours in dense.items():
            kernel = p[f"block_{i}/{ours}/kernel"]
            state[f"bert.{layer}.{theirs}.weight"] = kernel.T
            state[f"bert.{layer}.{theirs}.bias"] = p[f"block_{i}/{ours}/bias"]
    for theirs, ours in norms.items():
        state[f"bert.{theirs}.weight"] = p[f"{ours}/scale"]
        state[f"bert.{theirs}.bias"] = p[f"{ours}/bias"]
    state |= {
        "cls.predictions.bias": head["bias"],
        "cls.predictions.decoder.bias": head["bias"],
        "cls.predictions.decoder.weight": p["token_embedding/embedding"],
        "cls.predictions.transform.dense.weight": head["dense/kernel"].T,
        "cls.predictions.transform.dense.bias": head["dense/bias"],
        "cls.predictions.transform.LayerNorm.weight": head["norm/scale"],
        "cls.predictions.transform.LayerNorm.bias": head["norm/bias"],
    }
    return {k: torch.tensor(np.ascontiguousarray(v)) for k, v in state.items()}


@functools.cache
def by_transformers():
    """BertModel's features and BertForMaskedLM's logits of TOKENS."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
    )
    theirs = transformers.BertForMaskedLM(config)
    theirs.load_state_dict(torch_state())  # strict: every tensor, once
    theirs.eval()
    inputs = dict(
        input_ids=torch.tensor(TOKENS, dtype=torch.long),
        attention_mask=torch.tensor(TOKENS != PAD, dtype=torch.long),
    )
    with torch.no_grad():
        features = theirs.bert(**inputs).last_hidden_state
        return features.numpy(), theirs(**inputs).logits.numpy()


def features_of(tokens, **changes):
    args = tokens, tokens != PAD, None
    return apply(tower(**changes), tower_params(), None, *args)


def test_tower_equals_bert_model_on_padded_texts():
    # Normalised features of size 1 after two blocks in float32.
    expected, _ = by_transformers()
    np.testing.assert_allclose(features_of(TOKENS), expected, rtol=0, atol=1e-5)


def test_tied_head_equals_bert_for_masked_lm():
    features, expected = by_transformers()
    embedding = tower_params()["token_embedding"]["embedding"]
    logits = bert.MlmHead(VOCABULARY).apply(
        {"params": head_params()}, features, embedding
    )
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


def test_untied_head_multiplies_by_a_kernel_of_its_own():
    features, expected = by_transformers()
    embedding = tower_params()["token_embedding"]["embedding"]
    params = dict(head_params())
    params["kernel"] = embedding.T
    head = bert.MlmHead(VOCABULARY, tied=False)
    assert set(head_params(False)) == {"dense", "norm", "bias", "kernel"}
    logits = head.apply({"params": params}, features, np.zeros_like(embedding))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


def test_head_gives_float32_logits_from_16_bit_features():
    features, expected = by_transformers()
    embedding = tower_params()["token_embedding"]["embedding"]
    logits = bert.MlmHead(VOCABULARY, dtype=jnp.bfloat16).apply(
        {"params": head_params()}, jnp.asarray(features, jnp.bfloat16), embedding
    )
    assert logits.dtype == jnp.float32
    error = np.sqrt(np.mean((np.asarray(logits) - expected) ** 2))
    assert 1e-4 < error / np.sqrt(np.mean(expected**2)) < 0.02


def test_padding_changes_no_feature_of_a_word():
    short = features_of(TOKENS[1:2, :6])
    long = features_of(np.pad(TOKENS[1:2], ((0, 0), (0, 8))))
    # Two widths are two programs: sums in another order.
    np.testing.assert_allclose(long[:, :3], short[:, :3], rtol=0, atol=2e-6)


def test_dropout_acts_where_bert_has_it(monkeypatch):
    seen = []

    def record(key, shape, rate, rows):
        seen.append((shape, rate))
        return jnp.ones(shape, bool)

    monkeypatch.setattr(draws, "kept", record)
    monkeypatch.setattr(layers, "kept", record)
    rngs = {"dropout": jax.random.key(0)}
    for rows in (np.arange(len(TOKENS)), None):
        tower(attention_dropout=0.2, layers=1).apply(
            {"params": tower_params()}, TOKENS, TOKENS != PAD, rows, rngs=rngs
        )
    assert seen == [
        ((3, 12, 16), 0.1),  # the sum of embeddings, normalised
        ((3, 4, 12, 12), 0.2),  # attention weights
        ((3, 12, 16), 0.1),  # attention's output
        ((3, 12, 16), 0.1),  # the MLP's output
    ]


def test_remat_changes_neither_value_nor_gradient_with_dropout_on():
    rngs = {"dropout": jax.random.key(1, impl="rbg")}  # compiles fast

    def run(remat):
        module = tower(remat=remat, layers=1)

        def loss(params):
            rows = np.arange(len(TOKENS))
            y = module.apply({"params": params}, TOKENS, TOKENS != PAD, rows, rngs=rngs)
            return (y[:, 1:] * y[:, :-1]).mean()

        return quick_jit(jax.value_and_grad(loss))(tower_params())

    value, grads = run("none")
    for remat in ("block", "dots"):
        again, more = run(remat)
        np.testing.assert_allclose(again, value, rtol=1e-6)
        # The same arithmetic, perhaps fused in another way.
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6),
            grads,
            more,
        )


def test_bfloat16_is_near_float32_and_only_near():
    exact = features_of(TOKENS)
    half = features_of(TOKENS, dtype=jnp.bfloat16)
    assert half.dtype == jnp.bfloat16
    error = np.sqrt(np.mean((half.astype(np.float32) - exact) ** 2))
    # 8 bits round by up to 2^-9 of the value, at each of some ten stages.
    assert 1e-4 < error / np.sqrt(np.mean(exact**2)) < 0.03


def test_a_text_longer_than_the_positions_is_refused():
    tokens = np.full((1, 21), 5, np.int32)
    with pytest.raises(ValueError, match="texts of 21 tokens; the text tower holds 20"):
        features_of(tokens)
