"""reach.py: what a stage's result depends on, and what may change without a stage running again."""

import json

import pytest

from nbutils import run
from nbutils.files import reach
from nbutils.params import STEMS

PACKAGED = {
    "__init__.py": "",
    "top.py": "from nbutils.room import a",
    "apart.py": "import nbutils.room.b",
    "room/__init__.py": "from nbutils.room.face import name",
    "room/face.py": "name = 1",
    "room/a.py": "def load():\n    from nbutils.room.late import heavy\n    return heavy",
    "room/b.py": "import json",
    "room/late.py": "from nbutils.other import c as d",
    "room/words.txt": "ciao",
    "other/__init__.py": "",
    "other/c.py": "",
    "other/e.py": "",
    "judges/__init__.py": "",
    "judges/it.yaml": "kind: llm",
    "templates/it.txt": "{prompt}",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "nbutils"
    for name, text in PACKAGED.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(reach, "PACKAGE", folder)
    return folder


ROOM = {"__init__.py", "room/__init__.py", "room/face.py", "room/words.txt"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import json, os.path\nprint(1)", set()),
        ("import nbutils", {"__init__.py"}),
        ("import nbutils.room.b as b", ROOM | {"room/b.py"}),
        ("from nbutils.room import name", ROOM),
        ("from nbutils import room", ROOM),
        ("if True:\n    from nbutils import apart", ROOM | {"apart.py", "room/b.py"}),
        ("from nbutils import top", ROOM | {"top.py", "room/a.py", "room/late.py", "other/__init__.py", "other/c.py"}),
        (
            "from nbutils.judges import load",
            {"__init__.py", "judges/__init__.py", "judges/it.yaml", "templates/it.txt"},
        ),
        ("from nbutils import gone", {"__init__.py"}),
        ("import nbutilsx", set()),
    ],
)
def test_what_is_imported_counts_and_what_that_imports_too(package, text, expected):
    assert {str(path.relative_to(package)) for path in reach.reached(text)} == expected


def of(stem):
    cells = json.loads(run.notebook(stem).read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return {str(path.relative_to(reach.PACKAGE)) for path in reach.reached(text)}


@pytest.mark.parametrize("stem", STEMS)
def test_a_notebook_reaches_its_rooms_and_no_other(stem):
    found = of(stem)
    always = {"params.py", "notebook.py", "files/stage.py", "engines/store.py", "engines/vllm_worker.py"}
    assert found >= always | {"judges/rating_it.yaml", "templates/rating_it.txt"}
    assert not found & {"run.py", "launch.py", "files/reach.py"}
    assert {name.partition("/")[0] for name in found} >= {"training", "proof"} or stem != "04_dpo"
    assert not [name for name in found if name.startswith(("training/", "proof/"))] or stem == "04_dpo"
