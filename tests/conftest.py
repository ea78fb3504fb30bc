"""What every test runs under: no network, no display, caches in a folder of their own."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

_caches = tempfile.mkdtemp(prefix="nbutils-tests-")
atexit.register(shutil.rmtree, _caches, ignore_errors=True)
# before datasets, huggingface_hub or matplotlib are imported: they read these once
os.environ |= {
    "HF_HOME": _caches,
    "HF_DATASETS_CACHE": f"{_caches}/datasets",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "MPLBACKEND": "Agg",
    "TOKENIZERS_PARALLELISM": "false",
}
for name in ("HF_TOKEN", "KAGGLE_KERNEL_RUN_TYPE"):
    os.environ.pop(name, None)

# collecting it would put its folder on sys.path, and a stand-in for vLLM is no vLLM
collect_ignore = ["helpers"]

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

from nbutils.engines.store import Store  # noqa: E402
from nbutils.files import mounts, seals  # noqa: E402

# a timed test on a shared machine lies
settings.register_profile("shared", deadline=None, max_examples=60)
settings.load_profile("shared")


@pytest.fixture
def store(tmp_path):
    """An empty reply store."""
    opened = Store(tmp_path / "store.sqlite")
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory) -> Path:
    """Folder of a tiny random Llama with SmolLM2's chat template."""
    import tiny  # loads torch

    return tiny.make(tmp_path_factory.mktemp("tiny") / "llama", "llama")


@pytest.fixture(scope="session")
def tiny_qwen(tmp_path_factory) -> Path:
    """Folder of a tiny random Qwen3 with Qwen3's chat template."""
    import tiny

    return tiny.make(tmp_path_factory.mktemp("tiny") / "qwen3", "qwen3")


@pytest.fixture
def with_key(tmp_path_factory, monkeypatch) -> bytes:
    """The key of a user whose package `make kaggle` wrote."""
    path = tmp_path_factory.mktemp("package") / seals.KEY_FILE.name
    path.write_text("0a" * 32 + "\n")
    monkeypatch.setattr(seals, "KEY_FILE", path)
    return seals.key()


@pytest.fixture
def inputs(tmp_path, monkeypatch) -> Path:
    """The folder in which inputs are attached, as on Kaggle."""
    monkeypatch.setattr(mounts, "MOUNTS", tmp_path / "input")
    monkeypatch.setattr(mounts, "_told", set())
    monkeypatch.delenv(mounts.NAMED, raising=False)
    (tmp_path / "input").mkdir()
    return tmp_path / "input"
