"""Two tokens that no file of a run may hold, and the search for them."""

import json
import sqlite3

from pyarrow import parquet

HUB, KEY = "hf_markedHubTokenOfThisVeryTestAlone", "sk-marked0Judge1Token2Of3This4Very5Test"
SECRETS = (HUB, KEY)


def contents(folder):
    """Yield every file of a folder by name, as its bytes and as whatever its format hides."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        yield path.name, path.read_bytes()
        if path.suffix == ".parquet":
            yield path.name, json.dumps(parquet.read_table(path).to_pylist(), default=str).encode()
        if path.suffix == ".sqlite":
            with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
                yield path.name, "\n".join(db.iterdump()).encode()


def leaks(folder, printed="", secrets=SECRETS):
    """Return where a secret stands: the names of files, and `printed`."""
    found = [name for name, content in [*contents(folder), ("printed", printed.encode())]
             if any(secret.encode() in content for secret in secrets)]  # fmt: skip
    return sorted(set(found))
