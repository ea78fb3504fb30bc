"""What must hold of the notebooks and parameter files as text, whatever they compute."""

import ast
import itertools
import json
import re
import statistics

import nbformat
import papermill
import pytest

from nbutils import params, run
from nbutils.files.sources import CHECKOUT

NOTEBOOKS = {stem: CHECKOUT / "notebooks" / f"{stem}.ipynb" for stem in params.STEMS}
PROFILES = sorted({path.parent for path in (CHECKOUT / "params").glob("*/0*.yaml")})
each = pytest.mark.parametrize("stem", params.STEMS)


def read(stem):
    return nbformat.read(NOTEBOOKS[stem], as_version=4)


def code_cells(stem):
    return [cell for cell in read(stem).cells if cell.cell_type == "code"]


@each
def test_notebook_is_valid_and_names_its_kernel(stem):
    notebook = read(stem)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z][a-z-]*", name) for name in ids), "readable ids give stable diffs"


@each
def test_nothing_generated_is_committed(stem):
    for cell in code_cells(stem):
        assert cell.outputs == []
        assert cell.execution_count is None
        assert "injected-parameters" not in cell.metadata.get("tags", [])
    text = NOTEBOOKS[stem].read_text()
    assert "papermill" not in json.loads(text)["metadata"]
    assert not re.search(r"/(home|Users|root|work)/", text), "a path of somebody's machine"


@each
def test_first_code_cell_alone_holds_the_parameters_as_literals_with_help(stem):
    cells = code_cells(stem)
    assert ["parameters" in cell.metadata.get("tags", []) for cell in cells] == [True] + [False] * (len(cells) - 1)
    for line, node in zip(cells[0].source.splitlines(), ast.parse(cells[0].source).body, strict=True):
        assert isinstance(node, ast.AnnAssign), line
        assert type(ast.literal_eval(node.value)).__name__ == node.annotation.id, line
        assert len(line.partition("  # ")[2]) > 8, f"no useful help: {line}"


@each
def test_papermill_explains_every_parameter_the_model_knows(stem):
    inspected = papermill.inspect_notebook(str(NOTEBOOKS[stem]))
    assert set(inspected) == set(params.MODELS[stem].model_fields) == set(run.defaults(stem))
    assert all(parameter["help"] for parameter in inspected.values())


@each
def test_defaults_are_valid(stem):
    params.validate(stem, run.defaults(stem))


@pytest.mark.parametrize("profile", PROFILES, ids=lambda p: p.name)
def test_profile_holds_only_known_parameters_that_differ_from_the_defaults(profile, tmp_path):
    plan = run.read_profile(profile, tmp_path)
    if profile.name == "kaggle-t4":  # the whole recipe, each value with its reason
        return
    for stem, values in plan.items():
        for name, value in values.items():
            assert value != run.defaults(stem)[name], f"{profile.name}/{stem}: {name} repeats the default"


@each
def test_notebook_has_the_size_of_a_lesson(stem):
    cells = read(stem).cells
    lines = [len(cell.source.splitlines()) for cell in code_cells(stem)]
    assert 25 <= len(cells) <= 45
    assert sum(lines) <= (240 if stem == "04_dpo" else 200)
    assert max(lines[1:]) <= 25  # the first has a line for each parameter
    assert statistics.median(lines) <= (11 if stem == "04_dpo" else 9)  # its calls take many arguments
    for cell in code_cells(stem)[1:]:
        assert max(map(len, cell.source.splitlines())) <= 80, cell.id


@each
def test_prose_introduces_every_code_cell(stem):
    for before, cell in itertools.pairwise(read(stem).cells):
        assert cell.cell_type == "markdown" or before.cell_type == "markdown", cell.id


@each
def test_notebook_asks_nothing_and_hides_nothing(stem):
    source = "\n".join(cell.source for cell in code_cells(stem))
    for word in ("input(", "notebook_login", "get_ipython", "trust_remote_code", "TODO", "hf_"):
        assert word not in source
    assert not re.search(r"^\s*[!%]", source, re.MULTILINE), "shell magics"


def test_setup_is_the_same_cell_everywhere():
    assert len({next(c.source for c in code_cells(stem) if c.id == "setup") for stem in params.STEMS}) == 1


@each
def test_title_numbers_the_notebook_and_links_lead_somewhere(stem):
    text = [cell.source for cell in read(stem).cells if cell.cell_type == "markdown"]
    assert text[0].startswith(f"# {int(stem[:2])}. ")
    links = re.findall(r"\]\(([^)#]+)\)", "\n".join(text))
    assert links
    assert all((CHECKOUT / "notebooks" / link).exists() for link in links)
