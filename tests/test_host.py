"""Claims on what a process asks of its host."""

import jax
import pytest

from unipt_jax import host

FIELDS = ("jax_compilation_cache_dir", "jax_compilation_cache_max_size")
FIELDS += ("jax_persistent_cache_min_compile_time_secs",)


@pytest.fixture
def nowhere(monkeypatch):
    """jax without a place for compiled programs; as it was before, afterwards."""
    before = {name: getattr(jax.config, name) for name in FIELDS}
    jax.config.update(FIELDS[0], None)
    yield monkeypatch
    for name, value in before.items():
        jax.config.update(name, value)


def test_compiled_programs_are_kept_in_the_users_cache(nowhere, tmp_path):
    nowhere.setenv("XDG_CACHE_HOME", str(tmp_path))
    host.keep_compiled()
    folder = tmp_path / "unipt_jax" / "compiled"
    assert jax.config.jax_compilation_cache_dir == str(folder) and folder.is_dir()


def test_a_cache_that_the_environment_names_is_left_as_it_is(nowhere, tmp_path):
    nowhere.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update(FIELDS[0], "elsewhere")
    host.keep_compiled()
    assert jax.config.jax_compilation_cache_dir == "elsewhere"
    assert not list(tmp_path.iterdir())


def test_nothing_is_kept_where_the_cache_cannot_be_written(nowhere, tmp_path):
    (tmp_path / "file").touch()
    nowhere.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    host.keep_compiled()
    assert jax.config.jax_compilation_cache_dir is None
