"""folders.py: what a folder's data is, whatever it is packed in, and never what its fingerprint passes over."""

import bz2
import gzip
import json
import lzma

import pyarrow
import pytest
from builders import prompt_row
from datasets import DatasetDict

from nbutils.core.errors import InputError
from nbutils.core.records import PROMPTS, dataset
from nbutils.files import identity, owned
from nbutils.files.sources import fingerprint, read

CARD = "---\nconfigs:\n- config_name: default\n  data_files: {}\n---\n"


def put(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def row(text):
    return json.dumps({"text": text}) + "\n"


# ---- H: data that changes unseen

ASIDE = [
    ".cache/x.jsonl", ".git/x.jsonl", "__pycache__/x.jsonl", ".cache/deep/x.jsonl", "./.cache/x.jsonl",
    ".cache//x.jsonl", "././.git/x.jsonl", "run.json", "data/run.json", "manifest.json", "data/manifest.json",
    "x.jsonl.lock", "x.draft",
    "data/x.seal", ".cache/*.jsonl", "__pycache__/*", ".git/**", "metrics.json", "./metrics.json", "figures/x.png",
]  # fmt: skip


@pytest.mark.parametrize("pattern", ASIDE)
def test_a_card_names_no_data_that_a_fingerprint_passes_over(tmp_path, pattern):
    (tmp_path / "README.md").write_text(CARD.format(f"'{pattern}'"))
    name = pattern.replace("**", "x.jsonl").replace("*.jsonl", "x.jsonl").replace("/*", "/x.jsonl")
    put(tmp_path, "metrics.json", "{}")
    put(tmp_path, name, row("old"))
    if pattern.endswith(("metrics.json", ".png")):  # of a stage
        owned.record(tmp_path)
    before = fingerprint(str(tmp_path))
    with pytest.raises(InputError, match="is no place for data: a change of it would not be seen") as caught:
        read(str(tmp_path))
    assert "\n" not in str(caught.value)
    put(tmp_path, name, row("new"))
    assert fingerprint(str(tmp_path)) == before, "else it could be read"


@pytest.mark.parametrize("pattern", identity.ASIDE)
def test_nothing_that_is_set_aside_is_read(tmp_path, pattern):
    name = pattern.replace("*", "x.jsonl")
    (tmp_path / "README.md").write_text(CARD.format(f"'{name}'"))
    put(tmp_path, name, row("old"))
    with pytest.raises(InputError, match="is no place for data"):
        read(str(tmp_path))


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        (["figures/x.jsonl"], "figures/*.jsonl"),
        (["figures/x.jsonl", "metrics.json"], "figures/*.jsonl"),
        (["figures/deep/x.jsonl", "metrics.json", "params.json"], "**/x.jsonl"),
        (["grafici.json", "run.json", "manifest.json"], "*.json"),
        (["dati/uno.json", "dati/manifest.json", "metrics.json"], "**/*.json"),
        (["metrics.json"], "*.json"),  # of no stage
        (["params.json"], "params.json"),
        (["data/x.jsonl", ".cache/y.jsonl", ".git/z.jsonl"], "**/*.jsonl"),
        (["data/x.jsonl", "__pycache__/y.jsonl"], "**"),
        ([".data/x.jsonl"], ".data/x.jsonl"),
        (["cache/x.jsonl"], "cache/*"),
        (["runs/run.jsonl"], "runs/*.jsonl"),
    ],
)
def test_what_a_fingerprint_sees_is_read(tmp_path, names, pattern):
    (tmp_path / "README.md").write_text(CARD.format(f"'{pattern}'"))
    for name in names:
        put(tmp_path, name, f"[{row(name)}]" if name.endswith(".json") else row(name))
    assert read(str(tmp_path)) == [{"text": names[0]}]
    before = fingerprint(str(tmp_path))
    put(tmp_path, names[0], row("new"))
    assert fingerprint(str(tmp_path)) != before


@pytest.mark.parametrize("stage", [False, True])
def test_a_folder_without_a_card_may_hold_its_data_in_its_figures(tmp_path, stage):
    put(tmp_path, "metrics.json", "{}")
    put(tmp_path, "figures/a.png", "p")
    if stage:
        owned.record(tmp_path)
    put(tmp_path, "figures/x.jsonl", row("old"))
    assert read(str(tmp_path)) == [{"text": "old"}]
    before = fingerprint(str(tmp_path))
    put(tmp_path, "figures/a.png", "another")
    put(tmp_path, "metrics.json", '{"hours": 2}')
    assert (fingerprint(str(tmp_path)) == before) == stage
    put(tmp_path, "figures/x.jsonl", row("new"))
    assert fingerprint(str(tmp_path)) != before
    assert read(str(tmp_path)) == [{"text": "new"}]


@pytest.mark.parametrize("about", ["run.json", "manifest.json", "metrics.json", "params.json"])
@pytest.mark.parametrize("card", ["", CARD.format("'*.json'")])
def test_json_that_describes_a_folder_is_left_out_and_told(tmp_path, caplog, about, card):
    put(tmp_path, "corsa.json", json.dumps([{"text": "uno"}]))
    put(tmp_path, about, json.dumps({"text": "di che cosa si tratta"}))
    if card:
        put(tmp_path, "README.md", card)
    assert read(str(tmp_path)) == [{"text": "uno"}]
    assert caplog.messages == [f"{tmp_path}: not read, since by their names they describe the folder: {about}"]


@pytest.mark.parametrize("names", [["run.json"], ["manifest.json", "notes.lock"], ["dati/metrics.json", "README.md"]])
def test_data_that_is_called_like_a_description_is_read_by_its_own_name(tmp_path, names):
    for name in names:
        put(tmp_path, name, json.dumps([{"text": "uno"}]))
    with pytest.raises(InputError, match=r"holds no data beside what describes a folder: .*; if that is the data, na"):
        read(str(tmp_path))
    assert read(str(tmp_path / names[0])) == [{"text": "uno"}]


@pytest.mark.parametrize("name", [".cache/data-00000-of-00001.arrow", "__pycache__/d.arrow", "x.draft"])
def test_what_save_to_disk_wrote_lies_not_aside(tmp_path, name):
    whole = dataset([prompt_row("Ciao?")], PROMPTS)
    whole.save_to_disk(tmp_path / "one")
    state = json.loads((tmp_path / "one/state.json").read_text())
    (tmp_path / "one" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "one" / state["_data_files"][0]["filename"]).rename(tmp_path / "one" / name)
    (tmp_path / "one/state.json").write_text(json.dumps(state | {"_data_files": [{"filename": name}]}))
    with pytest.raises(InputError, match="is no place for data"):
        read(str(tmp_path / "one"))
    DatasetDict({"train": whole}).save_to_disk(tmp_path / "dict")
    (tmp_path / "dict/train").rename(tmp_path / "dict/.cache")
    (tmp_path / "dict/dataset_dict.json").write_text('{"splits": [".cache"]}')
    with pytest.raises(InputError, match="is no place for data"):
        read(str(tmp_path / "dict"), split=".cache")


# ---- packed files

PACKERS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress,
           "zst": lambda data: bytes(pyarrow.Codec("zstd").compress(data))}  # fmt: skip


@pytest.mark.parametrize("ending", PACKERS)
@pytest.mark.parametrize("card", ["", "---\nlicense: mit\n---\n", CARD.format("'harmless-base/*'"),
                                  CARD.format("'harmless-base/train.jsonl.{}'")])  # fmt: skip
def test_a_folder_as_it_lies_on_the_hub_is_read_packed_as_it_is(tmp_path, ending, card):
    put(tmp_path, ".gitattributes", "*.gz filter=lfs\n")
    put(tmp_path, f"harmless-base/train.jsonl.{ending}", PACKERS[ending]((row("perché?") + row("why?")).encode()))
    if not card.endswith("*'\n---\n"):
        put(tmp_path, f"harmless-base/test.jsonl.{ending}", PACKERS[ending](row("prova").encode()))
    if card:
        put(tmp_path, "README.md", card.replace("{}", ending))
    assert read(str(tmp_path)) == [{"text": "perché?"}, {"text": "why?"}]
    assert read(str(tmp_path), split="train[:1]") == [{"text": "perché?"}]
    if "configs" not in card:
        assert read(str(tmp_path), split="test") == [{"text": "prova"}]


@pytest.mark.parametrize(
    ("kind", "text"), [("csv", "text\nuno\ndue\n"), ("json", '[{"text": "uno"}, {"text": "due"}]')]
)
def test_other_kinds_are_read_packed_too(tmp_path, kind, text):
    put(tmp_path, f"rows.{kind}.gz", gzip.compress(text.encode()))
    assert read(str(tmp_path)) == [{"text": "uno"}, {"text": "due"}]


def test_of_a_file_and_its_packed_copy_one_is_read(tmp_path):
    put(tmp_path, "train.jsonl", row("plain"))
    put(tmp_path, "train.jsonl.gz", gzip.compress(row("packed").encode()))
    assert read(str(tmp_path)) == [{"text": "plain"}]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ["data.zip"],
            "it has data.zip; expected files that end in .parquet, .jsonl, .csv, .json, the last three also",
        ),
        (["train.txt", "LICENSE", "README.md"], "it has train.txt; expected"),
        (["train.jsonl.lz4", "test.jsonl.lz4"], "it has test.jsonl.lz4, train.jsonl.lz4; expected"),
        (["train.parquet.gz"], "it has train.parquet.gz; expected"),
        (["dati.xlsx", "licenza/LICENSE.txt"], "it has dati.xlsx; expected"),
        (["README.md"], "is no stage folder with a dataset '' (it has: none); run that stage first"),
        ([".gitattributes"], "is no stage folder with a dataset '' (it has: none); run that stage first"),
        ([], "is no stage folder with a dataset '' (it has: none); run that stage first"),
    ],
)
def test_a_folder_without_data_is_told_what_it_holds(tmp_path, names, said):
    for name in names:
        put(tmp_path, name, "x")
    with pytest.raises(InputError) as caught:
        read(str(tmp_path))
    assert said in str(caught.value)
