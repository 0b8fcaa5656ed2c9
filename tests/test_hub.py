"""Weights by hub id: from the cache without a network, else from a hub.

Each look-up is a process of its own: the hub's library reads its environment once.
"""

import contextlib
import functools
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import time

import jobs
import numpy as np
import pytest
import safetensors.numpy

NAME = "persons/vit"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
CONFIG = b'{"image_size": 32, "patch_size": 8}'
FILES = {
    "README.md": b"# a model",
    "config.json": CONFIG,
    "model.safetensors": safetensors.numpy.save(WEIGHTS),
    "onnx/model.onnx": b"large",
    "preprocessor_config.json": b'{"image_mean": [0.5, 0.5, 0.5]}',
    "pytorch_model.bin": b"large too",
    "tf_model.h5": b"large as well",
    "tokenizer.json": b"{}",
}
LOOK_UP = """
import json, sys
from unipt_jax import sources
from unipt_jax.errors import UserError
try:
    source = sources.open_source(sys.argv[1])
except UserError as error:
    print(json.dumps({"error": str(error)}))
else:
    tensors = {name: x.tolist() for name, x in source.tensors.items()}
    folder, files = str(source.folder), sorted(source.configs)
    found = {"tensors": tensors, "folder": folder, "configs": files}
    print(json.dumps(found | {"grid": source.grid}))
"""


def look_up(home, name=NAME, **environment: str) -> dict:
    """What `open_source` finds or says, in a process with that home of the cache."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    options = {"HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LOOK_UP, name],
        cwd=jobs.ROOT,
        env=kept | options | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


offline = functools.partial(look_up, HF_HUB_OFFLINE="1")


def cached(home, files: dict[str, bytes], name=NAME):
    """A cache as the hub's library lays it out; returns the snapshot's folder."""
    place = home / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = place / "snapshots" / COMMIT
    for folder in (place / "refs", place / "blobs", snapshot):
        folder.mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    for file, content in files.items():
        blob = hashlib.sha256(content).hexdigest()
        (place / "blobs" / blob).write_bytes(content)
        (snapshot / file).symlink_to(f"../../blobs/{blob}")
    return snapshot


def chosen(*names: str) -> dict[str, bytes]:
    return {name: FILES[name] for name in names}


def is_the_model(found: dict) -> None:
    assert found.get("tensors") == {k: x.tolist() for k, x in WEIGHTS.items()}, found


def asks_for_a_folder(said: str, name=NAME) -> None:
    """Names the files, and where to put them, in one sentence."""
    assert f"'{name}' is neither a file or folder here" in said
    for part in ("model.safetensors", "pytorch_model.bin", "config.json", "tokenizer"):
        assert part in said
    assert "put them into one folder and give that folder" in said
    assert "\n" not in said and len(said) < 500


def test_offline_the_cache_gives_weights_and_config(tmp_path):
    folder = cached(tmp_path, chosen("model.safetensors", "config.json"))
    found = offline(tmp_path)
    is_the_model(found)
    assert found["folder"] == str(folder) and found["grid"] == [4, 4]


def test_offline_the_cache_may_lie_elsewhere(tmp_path):
    cached(tmp_path / "a", chosen("model.safetensors"))
    is_the_model(offline(tmp_path / "b", HF_HUB_CACHE=str(tmp_path / "a" / "hub")))


def test_offline_an_id_without_an_organisation(tmp_path):
    cached(tmp_path, chosen("model.safetensors"), name="bert-tiny")
    is_the_model(offline(tmp_path, "bert-tiny"))


def test_offline_the_cache_may_hold_shards(tmp_path):
    part = "model-00001-of-00001.safetensors"
    index = json.dumps({"weight_map": {"a.weight": part}}).encode()
    files = {"model.safetensors.index.json": index}
    cached(tmp_path / "a", files | {part: FILES["model.safetensors"]})
    is_the_model(offline(tmp_path / "a"))
    cached(tmp_path / "b", files)
    said = offline(tmp_path / "b")["error"]
    assert f"names {part}, which" in said and "fetch what is missing" in said


def test_offline_without_a_cache_names_the_files_to_fetch(tmp_path):
    asks_for_a_folder(offline(tmp_path)["error"])


def test_offline_a_cached_tokenizer_is_no_model(tmp_path):
    cached(tmp_path, chosen("tokenizer.json", "config.json"))
    asks_for_a_folder(offline(tmp_path)["error"])


@pytest.mark.parametrize("name", ["a..b", "a/b--c", "-a", "a/b.", "a/" + "b" * 96])
def test_names_that_no_hub_id_has(name, tmp_path):
    asks_for_a_folder(offline(tmp_path, name)["error"], name)


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's protocol as a download needs. The server has the state."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0]
        model = self.server.model
        self.server.asked.append((self.command, path))
        if path == f"/api/models/{NAME}/tree/main" or path.endswith(f"/tree/{COMMIT}"):
            files = [
                {"type": "file", "path": k, "size": len(v), "oid": "0" * 40}
                for k, v in model.items()
            ]
            self.answer(json.dumps(files).encode())
        elif path in (f"/api/models/{NAME}", f"/api/models/{NAME}/revision/main"):
            info = {"id": NAME, "modelId": NAME, "sha": COMMIT}
            info["siblings"] = [{"rfilename": file} for file in model]
            self.answer(json.dumps(info).encode())
        elif path.startswith(f"/{NAME}/resolve/"):
            file = path.split("/", 5)[5]
            if self.server.gated:
                self.answer(b"", 403, {"X-Error-Code": "GatedRepo"})
            elif file in model:
                self.answer(model[file])
            else:
                self.answer(b"", 404, {"X-Error-Code": "EntryNotFound"})
        else:
            self.answer(b"", 401, {"X-Error-Code": "RepoNotFound"})

    def answer(self, content: bytes, status=200, headers=()) -> None:
        self.send_response(status)
        etag = hashlib.sha1(content).hexdigest()
        common = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
        common["Content-Length"] = str(len(content))
        for key, value in (common | dict(headers)).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass

    @classmethod
    @contextlib.contextmanager
    def serving(cls, model: dict[str, bytes], gated=False):
        """A running server, with `asked` and the environment that leads to it."""
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), cls)
        server.model, server.gated, server.asked = model, gated, []
        server.address = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def fetched(server) -> set[str]:
    """The files of the model that were sent."""
    start = f"/{NAME}/resolve/"
    paths = [p for command, p in server.asked if command == "GET"]
    return {p.split("/", 5)[5] for p in paths if p.startswith(start)}


def test_online_one_form_of_the_weights_is_fetched_and_kept(tmp_path):
    with Hub.serving(FILES) as hub:
        found = look_up(tmp_path, **hub.address)
        is_the_model(found)
        wanted = {"config.json", "model.safetensors", "preprocessor_config.json"}
        assert fetched(hub) == wanted
        assert found["configs"] == ["config.json", "preprocessor_config.json"]
        hub.asked.clear()
        is_the_model(look_up(tmp_path, **hub.address))
        assert not fetched(hub)
    begin = time.monotonic()
    is_the_model(look_up(tmp_path, **hub.address))  # the hub is down
    assert time.monotonic() - begin < 15  # no waiting for a hub that does not answer
    is_the_model(offline(tmp_path))


def test_online_a_bin_is_fetched_where_there_is_nothing_better(tmp_path):
    torch = pytest.importorskip("torch")
    file = tmp_path / "pytorch_model.bin"
    torch.save({k: torch.from_numpy(x) for k, x in WEIGHTS.items()}, file)
    files = {"tf_model.h5": b"large", "config.json": CONFIG, file.name: b""}
    with Hub.serving(files | {file.name: file.read_bytes()}) as hub:
        is_the_model(look_up(tmp_path, **hub.address))
        assert fetched(hub) == {"config.json", "pytorch_model.bin"}


def test_online_all_shards_of_one_form_are_fetched(tmp_path):
    part = "model-00001-of-00001.safetensors"
    index = json.dumps({"weight_map": {"a.weight": part}}).encode()
    files = {"model.safetensors.index.json": index, part: FILES["model.safetensors"]}
    others = {"model.fp16.safetensors": b"", "pytorch_model-00001-of-00001.bin": b""}
    others["pytorch_model.bin.index.json"] = b""
    with Hub.serving(files | others) as hub:
        is_the_model(look_up(tmp_path, **hub.address))
        assert fetched(hub) == set(files)


def test_online_a_cached_tokenizer_does_not_stand_for_the_model(tmp_path):
    cached(tmp_path, chosen("tokenizer.json"))
    with Hub.serving(FILES) as hub:
        is_the_model(look_up(tmp_path, **hub.address))


def test_online_a_model_without_weights_that_are_known(tmp_path):
    with Hub.serving(chosen("README.md", "tf_model.h5")) as hub:
        said = look_up(tmp_path, **hub.address)["error"]
    assert f"the hub's {NAME} has none of model.safetensors" in said
    assert not fetched(hub)


def test_online_a_model_that_is_not_there(tmp_path):
    with Hub.serving(FILES) as hub:
        said = look_up(tmp_path, "persons/other", **hub.address)["error"]
    asks_for_a_folder(said, "persons/other")
    assert "RepositoryNotFoundError" in said


def test_online_a_model_whose_files_are_not_for_everyone(tmp_path):
    with Hub.serving(FILES, gated=True) as hub:
        said = look_up(tmp_path, **hub.address)["error"]
    asks_for_a_folder(said)
    assert "GatedRepoError" in said
