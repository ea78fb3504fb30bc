"""Preference tuning of a small language model on a free GPU: what the four notebooks call.

    core      rows, pairs, scores, texts: no file, no network, no model
    files     what lies on disks and on the Hub
    models    a language model's folder, tokenizer, weights, adapters
    engines   what turns messages into text, and the store of all replies
    judges    which answer is better, and whether whoever says so can be trusted
    training  DPO, looked at before it starts and resumed after a kill
    proof     did it help?

A room imports those above it in this list and no other; `make lint` looks (pyproject.toml).
"""

__version__ = "0.1.0"

import os as _os
import tempfile as _tempfile
from pathlib import Path as _Path

# Without a home folder to write to, datasets and the Hub's client could not even read a local file: their caches go to
# the temporary folder. Here, since they look at the environment once, when they are imported.
if not _os.access(_os.path.expanduser("~"), _os.W_OK):  # noqa: PTH111 - Path.expanduser raises where nobody has a home
    _caches = _Path(_tempfile.gettempdir()) / f"nbutils-caches-{_os.getuid()}"
    _os.environ.setdefault("XDG_CACHE_HOME", str(_caches))
    _os.environ.setdefault("MPLCONFIGDIR", str(_caches / "matplotlib"))
