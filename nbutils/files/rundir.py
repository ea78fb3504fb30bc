"""Where a run writes: a folder of its own, in a folder that is there for runs, since the store lies beside it.

Used by `notebook`, and by `run` and `experiments` before the first notebook starts.
"""

import os
from pathlib import Path

from nbutils.core.errors import InputError, shown
from nbutils.files.sources import CHECKOUT

# parts of a checkout, in which a run would write over the kit itself
_KIT = ("notebooks", "nbutils", "params", "docs", "tests", "bench", ".git")
_SUCH_AS = "name a folder of its own inside another one, such as runs/mine"


def resolved(name: str, base: Path) -> Path:
    """Return run_dir as an absolute path; a relative one lies in `base`.

    Raises:
        InputError: if it is no name of a folder, or a folder that a run must not fill, or whose neighbours it must not
            have: its store and its converted models lie beside it.
    """
    if not name.strip() or not name.isprintable() or "://" in name:
        raise InputError(f"run_dir is {shown(name)}, which is no path of a folder; {_SUCH_AS}")
    try:
        path = Path(os.path.normpath(base / Path(name).expanduser()))
        places = {path, path.resolve()}
        wrong = any(map(_unfit, places))
        is_file = path.exists() and not path.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # ~nobody, a loop of links, a part longer than a name may be
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise InputError(f"run_dir is {shown(name)}, which cannot be a folder ({reason}); {_SUCH_AS}") from None
    if wrong:
        raise InputError(
            f"run_dir is {shown(name)}, that is {path}: a run would write into folders there that are not its own, and "
            f"its store to {path.parent}; {_SUCH_AS}"
        )
    if is_file:
        raise InputError(f"run_dir is {shown(name)}, which is no folder; {_SUCH_AS}")
    return path


def _unfit(path: Path) -> bool:
    home, here = Path(os.path.expanduser("~")), Path.cwd()  # noqa: PTH111 - Path.home raises where nobody has a home
    if any(place.is_relative_to(path) for place in (home, home.resolve(), here, CHECKOUT)):
        return True
    if path.parent in (Path(path.anchor), home, home.resolve()):
        return True
    return (CHECKOUT / "notebooks").is_dir() and any(path.is_relative_to(CHECKOUT / part) for part in _KIT)
