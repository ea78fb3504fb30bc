"""Preference tuning of a small language model on a free GPU: what the four notebooks call.

The layers, bottom up (an upper one may import a lower one, never the reverse):

    secrets                                what is masked and refused, below all that speaks
    errors records stats verdicts          pure: rows, scores, verdicts, intervals
    disk files owned                       strangers' files within bounds; folders with a manifest
    printed conversations                  pure: prompts and answers of every shape, row by row
    pairs prompts params                   pure: selection, validation
    seals mounts                           what a run left, what may be taken of attached inputs
    identity store sources stages          files: replies, datasets, stage folders
    bounded weights models engines judges  models, adapters and servers
    training evaluation plots              what the notebooks show
    notebook run                           opening a stage inside a notebook; all four headless
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
