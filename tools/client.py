"""Kaggle's own client, asked what it thinks of a folder; it signs in nowhere and sends nothing."""

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nbutils.core.errors import InputError

KERNEL, DATASET = "kernel-metadata.json", "dataset-metadata.json"  # the client's names


def check(folder: Path) -> Any:
    """Return the request that the installed Kaggle client would send for a folder, after all checks of its own.

    The client's `kernels_push` or `dataset_create_new` runs with nobody at the other end: nothing leaves the machine,
    and no credentials are read.

    Raises:
        InputError: with the client's objection; what it would only print as a warning is one too.
    """
    with _no_credentials():
        client: Any = import_module("kaggle.api.kaggle_api_extended")
    sent: list[Any] = []

    def record(request: Any) -> Any:
        sent.append(request)
        return SimpleNamespace(error="")

    def unknown(dataset: str) -> Any:
        raise client.HTTPError(f"there is no dataset {dataset}")

    api = client.KaggleApi()
    api.config_values = {api.CONFIG_NAME_USER: ""}
    server = SimpleNamespace(
        kernels=SimpleNamespace(kernels_api_client=SimpleNamespace(save_kernel=record)),
        datasets=SimpleNamespace(dataset_api_client=SimpleNamespace(create_dataset=record)),
    )
    api.build_kaggle_client = lambda: nullcontext(server)
    api.dataset_status = unknown
    api._upload_blob = lambda path, *_: Path(path).name
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            if (folder / DATASET).is_file():
                api.dataset_create_new(str(folder), quiet=True, dir_mode="zip")
            else:
                api.kernels_push(str(folder))
    except (ValueError, KeyError, IndexError) as error:
        raise InputError(f"{folder}: Kaggle's client refuses it: {error}") from None
    if said.getvalue().strip():
        raise InputError(f"{folder}: Kaggle's client warns: {said.getvalue().strip()}")
    return sent[-1]


@contextmanager
def _no_credentials() -> Iterator[None]:
    """Hide Kaggle's credentials: its client signs in when it is imported, over the network, if it finds any."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory() as home, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        for name in before:
            if name.startswith("KAGGLE_"):
                del os.environ[name]
        os.environ |= {"HOME": home, "KAGGLE_CONFIG_DIR": home}
        try:
            yield
        finally:
            os.environ.clear()
            os.environ |= before
