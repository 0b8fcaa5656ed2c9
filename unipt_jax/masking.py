"""Which words a masked language model must guess: token ids in, masked ids out.

Runs on the device from a key. Devlin et al. (NAACL 2019), section 3.1 and appendix A.
"""

import jax
import jax.numpy as jnp


def slots(length: int, rate: float) -> int:
    """The most places of a text of `length` tokens that `mask_tokens` can choose."""
    return max(1, round(rate * max(length - 2, 1)))


def mask_tokens(
    key: jax.Array,
    tokens: jax.Array,
    *,
    special: tuple[int, ...],
    mask_id: int,
    vocabulary: int,
    rate: float = 0.15,
    continuation: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Chooses `rate` of each text's tokens and hides them by BERT's 80/10/10 rule.

    Of a text with n tokens that are not special, round(rate * n) are chosen, at least
    one: an exact share (BERT's own rule) rather than a coin for each, so that
    `slots(L, rate)` places hold every choice. Of the chosen, 80% become `mask_id`, 10%
    a random token, 10% stay.

    tokens: (B, L). special: ids never chosen: padding first, then [CLS], [SEP]. continuation:
    (V,) True for pieces that continue a word; given, whole words are chosen, in random
    order as long as they fit into the share (none, where every word is longer).
    Returns masked tokens (B, L), and places, targets, weights (B, M): where the chosen
    tokens lie, what they were, and 1.0 where the slot is used.
    """
    b, length = tokens.shape
    m = slots(length, rate)
    choose_key, rule_key, random_key = jax.random.split(key, 3)
    allowed = ~jnp.isin(tokens, jnp.array(special))
    count = allowed.sum(-1)
    # Looked up, not computed: float32 on the device would round some shares otherwise.
    shares = [min(n, slots(n + 2, rate)) for n in range(length + 1)]
    share = jnp.array(shares)[count]
    score = jax.random.uniform(choose_key, (b, length))
    if continuation is None:
        _, places = jax.lax.top_k(jnp.where(allowed, score, -1.0), m)  # (B, M)
        used = jnp.arange(m) < share[:, None]
    else:
        continues = jnp.asarray(continuation)[tokens]
        chosen = _whole_words(score, allowed, share, continues)
        _, places = jax.lax.top_k(chosen, m)
        used = jnp.arange(m) < chosen.sum(-1)[:, None]
    targets = jnp.take_along_axis(tokens, places, axis=1)
    rule = jax.random.uniform(rule_key, (b, m))
    other = jax.random.randint(random_key, (b, m), 0, vocabulary - 1)
    other += other >= special[0]  # any token but padding, which would hide the place
    hidden = jnp.where(rule < 0.8, mask_id, jnp.where(rule < 0.9, other, targets))
    hidden = jnp.where(used, hidden, targets)
    masked = tokens.at[jnp.arange(b)[:, None], places].set(hidden, unique_indices=True)
    return masked, places, targets, used.astype(jnp.float32)


def _whole_words(score, allowed, share, continues):
    """(B, L) 1 for the pieces of randomly ordered words that together fit the share."""
    continues &= allowed
    # A word is its first piece and the pieces that continue it: all take its number.
    word = jnp.cumsum(~continues, axis=1) - 1
    score = jnp.where(allowed, jnp.take_along_axis(score, word, axis=1), -1.0)
    rows = jnp.arange(score.shape[0])[:, None]
    sizes = jnp.zeros_like(word).at[rows, word].add(allowed.astype(word.dtype))
    first = allowed & ~continues
    order = jnp.argsort(jnp.where(first, -score, 2.0), axis=1)  # words, best first

    def take(left, place):  # one word a text at a time: taken where it still fits
        index = place[:, None]
        is_word = jnp.take_along_axis(first, index, 1)[:, 0]
        number = jnp.take_along_axis(word, index, 1)[:, 0]
        size = jnp.take_along_axis(sizes, number[:, None], 1)[:, 0]
        fits = is_word & (size <= left)
        return left - jnp.where(fits, size, 0), (number, fits)

    _, (numbers, fits) = jax.lax.scan(take, share, order.T)
    taken = jnp.zeros(score.shape, bool).at[rows, numbers.T].max(fits.T)
    return (jnp.take_along_axis(taken, word, axis=1) & allowed).astype(jnp.int32)
