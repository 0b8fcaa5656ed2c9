"""The built wheel, alone in a folder, works from another folder."""

import os
import subprocess
import sys
import zipfile

import jobs
import pytest

pytest.importorskip("build", reason="building a wheel needs the `build` package")

USE = """
import sys
import data_prep.build, unipt_jax.main
from unipt_jax.captions import reading
assert unipt_jax.__file__.startswith(sys.argv[1]), unipt_jax.__file__
assert len(reading.read().templates) >= 456
encoder = unipt_jax.load(sys.argv[2])
print(encoder.encode_text(["a man in a red coat"]).shape)
"""


@pytest.mark.slow
def test_wheel_is_used_from_another_folder(persons, cache, tmp_path):
    run, wheel, site = tmp_path / "run", tmp_path / "wheel", tmp_path / "site"
    code, output = jobs.Launcher(persons, cache).run(run)
    assert code == 0, output
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(wheel)]
    built = subprocess.run(
        command, cwd=jobs.ROOT, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr
    [file] = wheel.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        names = {name.split("/")[0] for name in archive.namelist()}
        assert "data_prep/synthetic/clip/model.safetensors" in archive.namelist()
        archive.extractall(site)
    assert {n for n in names if "dist-info" not in n} == {"unipt_jax", "data_prep"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", USE, str(site), str(run)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("(1, 128)")
