"""Uploading and reading, against a Hub on this machine that breaks where it is told to."""

import hashlib
import json
import os
import re

import matplotlib.pyplot as plt
import pytest
from builders import prompt_row, scored
from hub import READER, STRANGER, WRITER, Client, FakeHub, Repository, environment

from nbutils import run
from nbutils.core.errors import InputError
from nbutils.core.pairs import build, rerank
from nbutils.core.records import PAIRS, PROMPTS, dataset
from nbutils.files import hub as uploading
from nbutils.files.sources import CHECKOUT
from nbutils.files.stage import Stage

PAIR = build([rerank(scored(["A", "B"], [[1.0, 0.5]]))])[0]
OWN = {
    "notes.md": b"my own",
    "figures/mine.svg": b"my own",
    "extra/train-00000-of-00001.parquet": b"my own rows",
    ".gitignore": b"",
}


@pytest.fixture(scope="module")
def server():
    with FakeHub() as started:
        yield started


@pytest.fixture(scope="module")
def client(server, tmp_path_factory):
    """A process with caches of its own that uploads to the server."""
    started = Client(server.url, tmp_path_factory.mktemp("home"))
    yield started
    started.close()


@pytest.fixture
def hub(server):
    """The server, empty and in order."""
    server.repositories.clear()
    server.objects.clear()
    server.ignored = ()
    server.mend()
    return server


def write(run_dir, *texts, stem="01_rerank", **extra):
    """Write a stage folder with two configurations and a figure; returns it."""
    stage = Stage(stem, run_dir)
    figure, axes = plt.subplots(figsize=(1, 1))
    stage.figure("verdicts", axes)
    plt.close(figure)
    datasets = {
        "prompts": dataset([prompt_row(text) for text in texts], PROMPTS),
        "pairs": dataset([PAIR], PAIRS),
    }
    return stage.write(datasets, params={}, metrics={"n": len(texts)}, summary="A summary.", extra=extra)


def content(folder):
    """What is to be sent of a stage folder: all but what is for this machine."""
    names = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {name: p.read_bytes() for name, p in names.items() if name not in ("manifest.json", "run.json")}


def images(card):
    return re.findall(r"!\[[^\]]*\]\(([^)]+)\)", card.decode())


def test_a_stage_folder_arrives_whole_private_and_is_counted_there(hub, client, tmp_path):
    folder = write(tmp_path, "one", "two")
    (folder / "run.json").write_text("the mark of a headless run")
    outcome, said = client("push", folder, "me/set")
    assert (outcome, said) == (
        "ok",
        f"uploaded to {hub.url}/datasets/me/set (private): 6 files, 1 rows in pairs, 2 rows in prompts",
    )
    repository = hub.repositories["dataset", "me/set"]
    assert repository.private
    assert repository.files == content(folder)
    assert images(repository.files["README.md"]) == ["figures/verdicts.png"]
    assert "figures/verdicts.png" in repository.files


STRANGERS = {
    ".env": "HF_TOKEN=hf_secret",
    "id_rsa": "-----BEGIN OPENSSH PRIVATE KEY-----",
    "store.sqlite": "replies",
    "store.sqlite-wal": "replies",
    "pairs/.env.local": "KEY=1",
    "pairs/train-0123456789ab.parquet": "rows of somebody",
    "figures/private.png": "a photograph",
    "notes/tesi.md": "appunti",
    "kept-1/README.md": "an older card",
    ".git/config": "url = https://me:token@host",
}


def test_what_the_stage_did_not_write_is_not_sent_and_counted(hub, client, tmp_path):
    folder = write(tmp_path / "run", "one")
    sent = content(folder)
    for name, text in STRANGERS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/secret.txt").write_text("secret")
    links = {"passwd": "/etc/passwd", "pairs/link.parquet": "/etc/hosts", "figures/all": "elsewhere"}
    for name, target in links.items():
        (folder / name).symlink_to(target if target.startswith("/") else tmp_path / target)
    outcome, said = client("push", folder, "me/set")
    assert outcome == "ok"
    assert said.endswith("6 files, 1 rows in pairs, 1 rows in prompts; not sent: 13 files there that the stage did not "
                         "write")  # fmt: skip
    assert hub.repositories["dataset", "me/set"].files == sent
    assert not any(b"secret" in data or b"root:" in data for data in hub.objects.values())


def relink(path):
    path.rename(path.parents[2] / "moved")
    path.symlink_to(path.parents[2] / "moved")


def relink_folder(path):
    path.parent.rename(path.parents[2] / "moved")
    path.parent.symlink_to(path.parents[2] / "moved")


@pytest.mark.parametrize(("name", "change"), [
    ("README.md", lambda p: p.write_text("# by hand")),
    ("metrics.json", lambda p: p.write_text(p.read_text() + " ")),
    ("params.json", lambda p: p.unlink()),
    ("figures/verdicts.png", relink),
    ("figures/verdicts.png", relink_folder),
    ("pairs/*.parquet", relink),
    ("pairs/*.parquet", relink_folder),
    ("prompts/*.parquet", lambda p: p.write_bytes(p.read_bytes() + b"more")),
    ("metrics.json", lambda p: (p.unlink(), p.symlink_to("/etc/passwd"))),
    ("metrics.json", lambda p: (p.unlink(), p.symlink_to("/dev/zero"))),
    ("params.json", lambda p: (p.unlink(), os.mkfifo(p))),
    ("params.json", lambda p: (p.unlink(), p.mkdir())),
])  # fmt: skip
def test_a_file_that_is_not_as_the_stage_wrote_it_is_named_and_nothing_is_sent(hub, client, tmp_path, name, change):
    folder = write(tmp_path, "one")
    (path,) = folder.glob(name)
    change(path)
    outcome, said = client("push", folder, "me/set")
    assert outcome == "refused"
    assert said.startswith(f"push_to_hub: {folder} is not as the stage wrote it: {path.relative_to(folder)}; put that")
    assert hub.objects == {}


@pytest.mark.parametrize("manifest", [
    None,
    "{}",
    '{"files": {"/etc/passwd": "x"}}',
    '{"written_by": "somebody", "files": {}}',
    "[" * 5000,
    '{"written_by": "nbutils", "files": ["README.md"]}',
])  # fmt: skip
def test_a_folder_without_a_manifest_of_ours_is_not_sent(hub, client, tmp_path, manifest):
    folder = write(tmp_path, "one")
    (folder / "manifest.json").unlink()
    if manifest is not None:
        (folder / "manifest.json").write_text(manifest)
    outcome, said = client("push", folder, "me/set")
    assert (outcome, said.partition(" of a stage")[0]) == ("refused", f"push_to_hub: {folder} has no manifest.json")
    assert hub.objects == {}


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../secret", "pairs/../../secret", "figures/../../secret", "link/secret"]
)
def test_a_manifest_that_leads_out_of_its_folder_sends_nothing_from_there(hub, client, tmp_path, name):
    folder = write(tmp_path / "run", "one")
    (tmp_path / "run/secret").write_text("secret")
    (folder / "link").symlink_to(tmp_path / "run")
    path = folder / "manifest.json"
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    path.write_text(json.dumps({"written_by": "nbutils", "files": {name: digest}}))
    assert client("push", folder, "me/set")[1].startswith(
        f"push_to_hub: {folder} is not as the stage wrote it: {name};"
    )
    assert hub.objects == {}
    assert "secret" not in str(hub.repositories)


@pytest.mark.parametrize("start", ["nothing", "an earlier run"])
@pytest.mark.parametrize("how", ["before", "after"])
def test_an_upload_cut_off_at_any_request_and_repeated_ends_complete_and_once(hub, client, tmp_path, how, start):
    old = content(write(tmp_path / "old", "one", "two", "three")) | {"gone/train-0123456789ab.parquet": b"rows"}
    folder = write(tmp_path / "new", "four")
    assert len(old.keys() - content(folder).keys()) == 2, "prompts of another hash and a configuration that is no more"
    for n in range(100):
        hub.repositories.clear()
        hub.objects.clear()
        own = {}
        if start == "an earlier run":
            own = OWN
            hub.repositories["dataset", "me/set"] = Repository(private=True)
            hub.repositories["dataset", "me/set"].commit(old | own)
        hub.mend()
        hub.fail(n, how)
        outcome, said = client("push", folder, "me/set")
        cut_off = len(hub.requests) > n
        assert outcome == ("refused" if cut_off else "ok"), (n, said)
        hub.mend()
        if cut_off:
            assert re.fullmatch(rf"push_to_hub: {folder} could not be uploaded to me/set: no connection .*", said)
            assert client("push", folder, "me/set")[0] == "ok", n
        repository = hub.repositories["dataset", "me/set"]
        assert repository.files == content(folder) | own, n
        assert len(repository.commits) == (3 if own else 2), "one commit, however often it was tried"
        if not cut_off:
            break
    assert n > 10, "the loop must have met every request of a whole upload"


def test_what_was_sent_before_the_cut_is_not_sent_again(hub, client, tmp_path):
    folder = write(tmp_path, "one")
    hub.fail(0, "before", "/commit/")
    assert client("push", folder, "me/set")[0] == "refused"
    assert sum(request.startswith("PUT") for request in hub.requests) == 3, "two tables and a figure"
    hub.mend()
    assert client("push", folder, "me/set")[0] == "ok"
    assert sum(request.startswith("PUT") for request in hub.requests) == 0


def test_a_repository_that_exists_keeps_its_visibility_and_the_notebook_says_so(hub, client, tmp_path):
    hub.repositories["dataset", "me/set"] = Repository(private=False)
    assert "datasets/me/set (public): 6 files" in client("push", write(tmp_path, "one"), "me/set")[1]
    assert not hub.repositories["dataset", "me/set"].private


def test_a_file_that_did_not_arrive_is_named(hub, client, tmp_path):
    hub.ignored = ("metrics.json",)
    outcome, said = client("push", write(tmp_path, "one"), "me/set")
    assert outcome == "refused"
    assert said.startswith("push_to_hub: me/set does not hold what was uploaded, metrics.json differ;")


def test_an_adapter_becomes_a_model_with_merged_weights_and_figures_and_replaces_older_weights(hub, client, tmp_path):
    for place in ("adapter", "merged"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "README.md").write_text(f"---\ntags: [dpo]\n---\n# {place}\n")
    (tmp_path / "adapter/adapter_model.safetensors").write_bytes(b"adapter")
    (tmp_path / "merged/model.safetensors").write_bytes(b"whole")
    folder = write(tmp_path / "run", "one", stem="04_dpo", adapter=tmp_path / "adapter", merged=tmp_path / "merged")
    hub.repositories["model", "me/model"] = Repository(private=True)
    hub.repositories["model", "me/model"].commit(
        OWN | {"model.safetensors": b"of a full tuning", "config.json": b"{}", "merged/model.safetensors": b"older"}
    )
    assert client("push", folder, "me/model") == ("ok", f"uploaded to {hub.url}/me/model (private): 6 files")
    files = hub.repositories["model", "me/model"].files
    assert files == OWN | {
        "README.md": (folder / "adapter/README.md").read_bytes(),
        "adapter_model.safetensors": b"adapter",
        "merged/README.md": (folder / "merged/README.md").read_bytes(),
        "merged/model.safetensors": b"whole",
        "figures/verdicts.png": (folder / "figures/verdicts.png").read_bytes(),
        "metrics.json": (folder / "metrics.json").read_bytes(),
    }
    assert ("dataset", "me/model") not in hub.repositories


@pytest.mark.parametrize(
    ("status", "route", "why"),
    [
        (401, "create", "the Hub does not accept the token in HF_TOKEN (HTTP 401: out of order)"),
        (403, "create", "the token in HF_TOKEN may not do that (HTTP 403: out of order)"),
        (404, "preupload", "there is no such repository, or the token in HF_TOKEN may not see it"),
        (413, "/commit/", "a file is too large for the Hub (HTTP 413"),
        (429, "/lfs/", "the Hub has had too many requests, wait some minutes (HTTP 429"),
        (500, "PUT /objects", "the Hub is out of order (HTTP 500"),
        (503, "validate-yaml", "the Hub is out of order (HTTP 503"),
        (418, "tree", "the Hub refuses (HTTP 418"),
    ],
)
def test_an_answer_that_is_an_error_becomes_one_sentence(hub, client, tmp_path, status, route, why):
    folder = write(tmp_path, "one")
    hub.fail(0, status, route)
    outcome, said = client("push", folder, "me/set")
    assert outcome == "refused"
    assert said.startswith(f"push_to_hub: {folder} could not be uploaded to me/set: {why}")
    assert said.endswith("the folder is whole on disk, so run this cell again and it sends what is missing")
    assert "\n" not in said


def test_the_token_is_cut_out_of_what_the_hub_says(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    assert uploading.reason(ValueError("bad header: Bearer hf_very_secret.")) == "bad header: Bearer **************"


def test_the_reason_behind_a_wrapped_error_is_told():
    wrapped = RuntimeError("Error while uploading 'x' to the Hub.")
    wrapped.__cause__ = ConnectionRefusedError(111, "Connection refused")
    assert uploading.reason(wrapped) == "no connection to the Hub ([Errno 111] Connection refused)"
    assert uploading.reason(json.JSONDecodeError("Expecting value", "<html>", 0)) == "the Hub's answer cannot be read"
    assert uploading.reason(RuntimeError()) == "RuntimeError"


@pytest.mark.parametrize(
    ("repository", "token", "fault"),
    [
        ("dataset", WRITER, "expected 'user/name', got 'dataset'"),
        ("me/a/b", WRITER, "expected 'user/name', got 'me/a/b'"),
        ("me/my set", WRITER, "expected 'user/name', got 'me/my set'"),
        ("me/set", "", "HF_TOKEN is not set"),
        ("me/set", "hf_made_up", "the Hub does not accept the token in HF_TOKEN (HTTP 401"),
        ("me/set", READER, "the token in HF_TOKEN may only read; create one that may write"),
        ("me/set", STRANGER, "belongs to stranger, who cannot write to me/set; expected one of stranger before"),
    ],
)
def test_an_upload_that_would_fail_is_refused_beforehand(hub, client, repository, token, fault):
    outcome, said = client("check_push", repository, token=token)
    assert outcome == "refused"
    assert said.startswith("push_to_hub: ")
    assert fault in said
    assert not token or token not in said


def test_no_upload_needs_neither_token_nor_network_and_one_that_may_passes(hub, client):
    assert client("check_push", "", token="") == ("ok", None)
    assert hub.requests == []
    assert client("check_push", "me/set") == ("ok", None)


def test_without_network_a_stage_to_be_uploaded_does_not_start(hub, client):
    hub.fail(0, "before")
    assert "could not be checked: no connection to the Hub" in client("check_push", "me/set")[1]


def test_a_private_dataset_is_read_with_its_token_and_else_refused(hub, client, tmp_path):
    folder = write(tmp_path, "one", "two")
    assert client("push", folder, "me/set")[0] == "ok"
    reader = Client(hub.url, tmp_path / "fresh")
    try:
        nobody = reader("read", "me/set:pairs", token="")
        assert nobody[0] == "refused"
        assert "'me/set' doesn't exist on the Hub or cannot be accessed" in nobody[1]
        assert nobody[1].endswith("the token in HF_TOKEN, which is not set")
        made_up = reader("read", "me/set:pairs", token="hf_made_up")[1]
        assert "the Hub does not accept the token in HF_TOKEN (HTTP 401" in made_up
        assert "hf_made_up" not in made_up
        assert "cannot be accessed" in reader("read", "me/set:pairs", token=STRANGER)[1]
        assert reader("load_dataset", "me/set", "pairs", token=READER) == ("ok", [PAIR])
        prompts = reader("load_dataset", "me/set", "prompts", token=READER)[1]
        assert [row["prompt"][0]["content"] for row in prompts] == ["one", "two"]
        assert reader("read", "me/set:pairs", token=READER) == ("ok", [PAIR])
    finally:
        reader.close()


def test_a_dataset_that_vanished_or_a_hub_that_is_away_is_one_sentence_unless_it_was_read_before(hub, client, tmp_path):
    assert "'me/other' doesn't exist on the Hub" in client("read", "me/other:pairs")[1]
    hub.fail(0, "before")
    assert "no connection to the Hub" in client("read", "me/other:pairs")[1]
    hub.mend()
    assert client("push", write(tmp_path, "one"), "me/vanishing")[0] == "ok"
    assert client("read", "me/vanishing:pairs") == ("ok", [PAIR])
    hub.repositories.clear()
    assert client("read", "me/vanishing:pairs") == ("ok", [PAIR]), "from the cache of datasets, so the run goes on"


@pytest.mark.nightly
def test_a_notebook_whose_upload_failed_keeps_its_folder_and_uploads_when_run_again(hub, tmp_path, monkeypatch):
    for name, value in environment(hub.url, tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_TOKEN", WRITER)
    values = {
        "run_dir": str(tmp_path / "run"),
        "dataset": str(CHECKOUT / "params/english/off_policy.jsonl"),
        "prompt_column": "prompt",
        "judge": "verifier",
        "push_to_hub": "me/reranked",
    }
    folder = tmp_path / "run/01_rerank"
    hub.fail(0, "after", "/commit/")
    with pytest.raises(InputError, match=r"could not be uploaded to me/reranked: no connection .* whole on disk"):
        run.execute("01_rerank", values)
    assert (folder / "README.md").is_file()
    assert not run.is_done("01_rerank", values)
    hub.mend()
    run.execute("01_rerank", values)
    assert run.is_done("01_rerank", values)
    repository = hub.repositories["dataset", "me/reranked"]
    assert repository.files == content(folder)
    assert repository.private
    executed = (tmp_path / "run/01_rerank.ipynb").read_text()
    assert f"uploaded to {hub.url}/datasets/me/reranked (private): " in executed
    assert "rows in judged" in executed
    kept = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not any(WRITER.encode() in path.read_bytes() for path in kept)


def test_two_stages_of_a_profile_cannot_share_a_repository(tmp_path):
    for stem, name in (("01_rerank", "me/pairs"), ("03_judge", "me/pairs"), ("04_dpo", "me/pairs")):
        (tmp_path / f"{stem}.yaml").write_text(f"push_to_hub: {name}\n")
    with pytest.raises(InputError, match=r"push_to_hub: me/pairs is the repository of several notebooks, of which"):
        run.read_profile(tmp_path, tmp_path / "run")
    (tmp_path / "03_judge.yaml").write_text("push_to_hub: me/own-pairs\n")
    assert run.read_profile(tmp_path, tmp_path / "run")["04_dpo"]["push_to_hub"] == "me/pairs"
