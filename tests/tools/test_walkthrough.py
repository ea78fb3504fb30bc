"""walkthrough.py: the pages of a run, here of the real notebooks with outputs that were written by hand."""

import base64
import hashlib
import itertools
import os
import re
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_markdown_cell, new_output
from pages import CAPTION, ELSEWHERE, executed

from nbutils.core.errors import InputError
from nbutils.files.sources import CHECKOUT
from nbutils.params import STEMS
from tools import walkthrough

PAGES = ["index.html", *(f"{stem}.html" for stem in STEMS)]


def change(run_dir, stem, edit):
    book = nbformat.read(run_dir / f"{stem}.ipynb", as_version=4)
    edit(book)
    nbformat.write(book, run_dir / f"{stem}.ipynb")


@pytest.fixture
def run_dir(tmp_path):
    for stem in STEMS:
        executed(stem, tmp_path / "x")
    return tmp_path / "x"


@pytest.fixture(scope="module")
def docs(tmp_path_factory):
    where = tmp_path_factory.mktemp("walkthrough")
    for stem in STEMS:
        executed(stem, where / "x")
    walkthrough.publish(where / "x", where / "docs")
    return where / "docs"


@pytest.fixture(params=PAGES)
def page(docs, request):
    return BeautifulSoup((docs / request.param).read_text(), "html.parser")


def test_a_page_loads_nothing_and_runs_nothing(page):
    assert page(["script", "iframe", "object", "embed"]) == []
    loads = [tag.get("src") or tag["href"] for tag in page(["img", "link", "source"])]
    assert [address for address in loads if not address.startswith("data:")] == []
    assert "url(" not in str(page.style)
    assert "@import" not in str(page.style)
    assert not any(name.startswith("on") for tag in page(True) for name in tag.attrs)


def test_a_page_forbids_the_browser_all_but_its_own_style_and_figures(page):
    policy, dns, referrer = (
        page.head.find("meta", names)["content"]
        for names in (
            {"http-equiv": "Content-Security-Policy"},
            {"http-equiv": "x-dns-prefetch-control"},
            {"name": "referrer"},
        )
    )
    digest = base64.b64encode(hashlib.sha256(page.style.string.encode()).digest()).decode()
    assert policy.split("; ") == [
        "default-src 'none'", "img-src data:", f"style-src 'sha256-{digest}'", "base-uri 'none'", "form-action 'none'",
    ]  # fmt: skip
    assert (dns, referrer) == ("off", "no-referrer")
    assert page.head.find(["link", "style"]).find_previous("meta", {"http-equiv": "Content-Security-Policy"})
    assert not page(style=True), "the policy would not let it through"


def test_a_figure_keeps_seven_tenths_of_its_width(docs, page):
    rules = re.findall(r'figure img\[width="(\d+)"\] \{ min-width: (\d+)px; \}', page.style.string)
    assert rules == [("200", "140")]
    assert {image["width"] for image in page("img")} <= {"200"}


def test_a_page_is_made_for_phones_and_screen_readers(page):
    assert page.html["lang"] == "en"
    assert page.find("meta", {"name": "viewport"})["content"] == "width=device-width, initial-scale=1"
    levels = [int(tag.name[1]) for tag in page(re.compile(r"^h\d$"))]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    ids = [tag["id"] for tag in page(id=True)]
    assert len(set(ids)) == len(ids)
    assert page.body.a["href"] == "#main"
    assert all(table.parent["class"] == ["box"] and table.parent["tabindex"] == "0" for table in page("table"))


def test_every_figure_has_its_caption_as_alternative_text_too(page):
    captions = [(image["alt"], image.find_parent("figure").figcaption.get_text()) for image in page("img")]
    assert set(captions) == ({(CAPTION, CAPTION)} if page.footer.nav else set())


def test_links_lead_to_pages_places_on_them_or_outside(docs, page):
    for link in page("a"):
        target, _, place = link["href"].partition("#")
        if target.startswith("https://"):
            continue
        there = BeautifulSoup((docs / target).read_text(), "html.parser") if target else page
        assert not place or there.find(id=place), link
    if page.footer.nav:
        assert "the kit" in page.main.get_text()
        assert "the kit" not in [link.get_text() for link in page("a")], "a file that is not published is plain text"
        assert page.main.find("a", string="more")["href"] == "#More"


def test_nothing_of_the_machine_that_executed_the_run_remains(docs, page):
    text = str(page)
    assert f"{ELSEWHERE}/" not in text
    assert str(Path.home()) + "/" not in text
    assert str(walkthrough.CHECKOUT) not in text
    assert str(docs.parent) not in text


@pytest.mark.parametrize("name", PAGES)
def test_the_pages_in_the_repository_are_whole_and_of_no_machine(name):
    page = BeautifulSoup((walkthrough.CHECKOUT / "docs" / name).read_text(), "html.parser")
    test_a_page_loads_nothing_and_runs_nothing(page)
    test_a_page_is_made_for_phones_and_screen_readers(page)
    assert all(image["alt"] == image.find_parent("figure").figcaption.get_text() for image in page("img"))
    assert len(page("img")) >= (2 if page.footer.nav else 0)
    places = re.findall(r"(?<![\w.~])/(?:home|root|tmp|work|Users|usr|opt)/\S*", page.get_text())
    assert places == []


def test_a_page_leads_to_the_one_before_and_the_one_after_and_to_its_sections(docs):
    page = BeautifulSoup((docs / "02_sample.html").read_text(), "html.parser")
    assert [link["href"] for link in page.footer("a")] == ["01_rerank.html", "03_judge.html"]
    assert page.header.find("a", {"aria-current": "page"})["href"] == "02_sample.html"
    sections = [tag.get_text() for tag in page.main(["h2", "h3"])]
    assert [link.get_text() for link in page.find("nav", "contents")("a")] == sections
    assert "executed by papermill 2.7.0 on 2026-01-02, in 10 seconds" in page.footer.get_text()


def test_the_index_tells_the_run_and_links_all_notebooks_with_their_first_paragraph(docs):
    page = BeautifulSoup((docs / "index.html").read_text(), "html.parser")
    assert [link["href"] for link in page.select("h3 a")] == [f"{stem}.html" for stem in STEMS]
    assert "the run x" in page.main.get_text().replace("\n", " ")
    assert "Many preference datasets were made cheaply" in page.find("section").p.get_text()


def test_what_a_cell_gave_is_shown_as_a_reader_needs_it(docs):
    page = BeautifulSoup((docs / "03_judge.html").read_text(), "html.parser")
    printed, noise = (page.find("pre", name).get_text() for name in ("stdout", "stderr"))
    assert printed == f"kept in ., runs/x/03_judge, not in {ELSEWHERE}-2\n"
    assert noise == "~/.cache and params\nsite-packages/a.py:1: red\nasking: 99%\n"
    assert page.find("span", "ansi-red-fg").get_text() == "red"
    (table,) = (t for t in page("table") if t.get_text() == "1")
    assert not table(attrs={"style": True})
    assert page.find("b", string="bold")
    label = page.find("p", "label", string="Parameters of this run")
    assert label.find_next("pre").get_text() == '# Parameters\nrun_dir = "runs/x"\n'
    assert "if" in {word.get_text() for word in page("span", "k")}, "code has classes for its colours"


def test_formulas_are_mathml_and_no_latex_is_left(docs):
    page = BeautifulSoup((docs / "04_dpo.html").read_text(), "html.parser")
    (loss,) = page("math", display="block")
    assert len(loss("mfrac")) == 2
    assert [tag.get_text() for tag in loss("mi")][:4] == ["L", "log", "σ", "β"]
    assert len(page("math")) > 8
    prose = " ".join(tag.get_text() for tag in page.main("p"))
    assert "$" not in prose
    assert "\\" not in prose


def test_the_same_run_gives_the_same_bytes_and_other_files_stay(run_dir, tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "guide.html").write_text("mine")
    walkthrough.publish(run_dir, docs)
    first = {path.name: path.read_bytes() for path in docs.iterdir()}
    assert sorted(first) == sorted([*PAGES, "guide.html"])
    assert first["guide.html"] == b"mine"
    (docs / "index.html").write_text((docs / "index.html").read_text() + "old")
    walkthrough.publish(run_dir, docs)
    assert {path.name: path.read_bytes() for path in docs.iterdir()} == first


def test_somebody_elses_page_is_not_replaced(run_dir, tmp_path):
    (tmp_path / "02_sample.html").write_text("mine")
    with pytest.raises(InputError, match=r"02_sample.html is not a page of the walkthrough"):
        walkthrough.publish(run_dir, tmp_path)
    assert not (tmp_path / "index.html").exists()


def test_a_full_disk_leaves_the_old_pages_and_no_drafts(run_dir, tmp_path, monkeypatch):
    docs = tmp_path / "docs"
    walkthrough.publish(run_dir, docs)
    before = {path: path.read_bytes() for path in docs.iterdir()}
    change(run_dir, "01_rerank", lambda book: book.cells.append(new_markdown_cell("New.")))
    write = Path.write_text

    def refuse(path, *given, **options):
        if "03_judge" in path.name:
            write(path, "half")
            raise OSError(28, "No space left on device")
        return write(path, *given, **options)

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(InputError, match=r"cannot write to .*docs \(No space left on device\)"):
        walkthrough.publish(run_dir, docs)
    assert {path: path.read_bytes() for path in docs.iterdir()} == before


def fail(book):
    book.cells[5].outputs = [new_output("error", ename="InputError", evalue="no", traceback=[])]


def stop(book):
    book.cells[5].execution_count = None


def by_hand(book):
    del book.metadata["papermill"]


def no_figure(book):
    for cell in (cell for cell in book.cells if cell.cell_type == "code"):
        cell["outputs"] = [o for o in cell.outputs if "image/png" not in o.get("data", {})]


def no_caption(book):
    for output in (o for cell in book.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})):
        output.metadata = {}


def no_png(book):
    output = next(o for cell in book.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {}))
    output.data["image/png"] += '" onerror="alert(1)'


def no_time(book):
    book.metadata.papermill = {"version": "2", "duration": "long"}


def no_metadata(book):
    book.metadata.papermill = ["2.7.0"]


def image_from_elsewhere(book):
    book.cells.append(new_markdown_cell("![a](https://a.org/a.png)"))


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        (fail, "02_sample.ipynb stopped with InputError; finish the run"),
        (stop, "02_sample.ipynb was not executed to its end"),
        (by_hand, "02_sample.ipynb was not executed by papermill"),
        (no_figure, r"02_sample.ipynb does not show .*lengths.png"),
        (no_caption, r"02_sample.ipynb shows a figure without a caption"),
        (no_png, r"02_sample.ipynb does not show .*.png"),
        (no_time, "02_sample.ipynb was not executed by papermill"),
        (no_metadata, "02_sample.ipynb was not executed by papermill"),
        (image_from_elsewhere, "02_sample: the image https://a.org/a.png is not part of the notebook"),
    ],
)
def test_a_notebook_that_is_not_whole_is_refused_and_nothing_is_written(run_dir, tmp_path, edit, fault):
    change(run_dir, "02_sample", edit)
    with pytest.raises(InputError, match=fault):
        walkthrough.publish(run_dir, tmp_path / "docs")
    assert not (tmp_path / "docs").exists()


def test_a_run_without_a_notebook_or_a_stage_is_refused_with_one_line(run_dir, tmp_path, capsys):
    os.rename(run_dir / "04_dpo", tmp_path / "away")
    assert walkthrough.main([str(run_dir), str(tmp_path / "docs")]) == 1
    assert re.fullmatch(r"error: there is no stage folder .*04_dpo; finish the run .* first\n", capsys.readouterr().err)
    (run_dir / "03_judge.ipynb").write_text("<html>")
    assert walkthrough.main([str(run_dir), str(tmp_path / "docs")]) == 1
    assert "03_judge.ipynb is not a notebook" in capsys.readouterr().err
    (run_dir / "01_rerank.ipynb").unlink()
    assert walkthrough.main([str(run_dir), str(tmp_path / "docs")]) == 1
    assert re.fullmatch(r"error: there is no .*01_rerank.ipynb; finish the run .* first\n", capsys.readouterr().err)


CODE = '{"cell_type": "code", "metadata": {}, "source": "x", "execution_count": 1, "outputs": [{"output_type": "x"}]}'


@pytest.mark.parametrize(
    "content",
    [
        f'{{"cells": [{CODE}], "metadata": {{}}, "nbformat": 4, "nbformat_minor": 4}}',
        "",
        "{}",
        "[]",
        "null",
        "<html>",
        '{"cells": 1, "nbformat": 4}',
        "[" * 200_000,
        '{"nbformat": 99, "cells": []}',
        b"\xff\0",
    ],
)
def test_a_file_that_is_no_notebook_is_one_line(run_dir, tmp_path, content):
    path = run_dir / "03_judge.ipynb"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=r"03_judge\.ipynb is not a notebook"):
        walkthrough.publish(run_dir, tmp_path / "docs")


def test_a_notebook_that_no_browser_would_show_is_not_read(run_dir, tmp_path):
    with (run_dir / "03_judge.ipynb").open("ab") as file:
        file.truncate(10 * 2**30)
    with pytest.raises(InputError, match=r"03_judge\.ipynb is larger than 50 MiB"):
        walkthrough.publish(run_dir, tmp_path / "docs")


def test_the_command_says_where_to_begin_and_what_is_left_out(run_dir, tmp_path, capsys):
    assert walkthrough.main([str(run_dir), str(tmp_path / "docs")]) == 0
    said = capsys.readouterr()
    assert said.out == f"done: 5 pages, begin with {tmp_path / 'docs' / 'index.html'}\n"
    assert said.err.splitlines()[0] == (
        "01_rerank: outputs hold elements that no page of ours has, left out: script (1)"
    )


def test_the_pages_that_come_with_the_kit_are_known_as_ours():
    for path in (CHECKOUT / "docs").glob("*.html"):
        assert f'content="{walkthrough.GENERATOR}"' in path.read_text(encoding="utf-8"), path.name
