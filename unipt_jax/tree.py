"""Parameter paths ("image/block_0/fc1/kernel") and first-match rules over them."""

import hashlib
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np


def path_of(key_path: tuple) -> str:
    """JAX's key path -> names joined by "/"."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def flatten(tree: Any) -> dict[str, Any]:
    """Path -> leaf, in the tree's order."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {path_of(key_path): leaf for key_path, leaf in leaves}


def digest(tree: Any) -> str:
    """SHA-256 in hex of all leaves and their paths, whatever order the tree has.

    All of every leaf must be on this process's devices.
    """
    out = hashlib.sha256()
    for path, leaf in sorted(flatten(tree).items()):
        out.update(path.encode())
        out.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8))
    return out.hexdigest()


def assign(tree: Any, rules: Sequence[tuple[str, Any]]) -> Any:
    """Replaces each leaf by the value of the first rule whose pattern its path has.

    rules: (regular expression searched in the path, value), the first match wins.
    Raises ValueError that lists every leaf no rule matches and every rule that matches
    no leaf: a rule that does nothing is a typing error.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    paths = [path_of(key_path) for key_path, _ in leaves]
    hits = [
        [i for i, (pattern, _) in enumerate(rules) if re.search(pattern, path)]
        for path in paths
    ]
    missed = [path for path, hit in zip(paths, hits, strict=True) if not hit]
    used = {i for hit in hits for i in hit}
    unused = [pattern for i, (pattern, _) in enumerate(rules) if i not in used]
    if missed or unused:
        raise ValueError(
            f"rules do not fit the parameters: no rule for {missed or 'none'}, "
            f"nothing matched by {unused or 'none'}"
        )
    return jax.tree_util.tree_unflatten(structure, [rules[hit[0]][1] for hit in hits])
