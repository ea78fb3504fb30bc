"""No token gets out: not into a file of a run, not onto the screen, whatever fails; none is taken as a parameter."""

import json
import os
import sqlite3
import subprocess
import sys

import pytest
import servers
import tiny
import yaml
from builders import response
from pyarrow import parquet
from test_pipeline import QUESTIONS, grades, judge_file, shown, write_jsonl, write_profile

from nbutils import engines, judges, params
from nbutils.engines.api import ApiEngine
from nbutils.errors import InputError
from nbutils.settings import read_options

HUB, KEY = "hf_markedHubTokenOfThisVeryTestAlone", "sk-marked0Judge1Token2Of3This4Very5Test"
SECRETS = (HUB, KEY)


def environment(**more):
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_TOKEN": HUB, "JUDGE_KEY": KEY} | more


def run_profile(profile, run_dir, **more):
    """Run a profile with both tokens in the environment; returns the exit status and all that was printed."""
    command = [sys.executable, "-m", "nbutils.run", str(profile), str(run_dir)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(**more), timeout=280, check=False)
    return done.returncode, done.stdout + done.stderr


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


def graded(body):
    return grades(*(1 + len(text) % 5 for text in shown(body)))


def pairs_file(path):
    rows = [{"question": q, "chosen": f"Risposta lunga e buona: {q}", "rejected": "No."} for q in QUESTIONS]
    return write_jsonl(path, rows)


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """All four stages with a judge that wants its token; what is pushed nowhere is left in the folder."""
    home = tmp_path_factory.mktemp("secrets")
    model = str(tiny.make(home / "model", "qwen3"))
    sampling = "temperature: 0.9, top_p: 1.0, max_tokens: 24"
    prompts = write_jsonl(home / "prompts.jsonl", [{"prompt": f"{q} {q[::-1]}"} for q in QUESTIONS])
    held = write_jsonl(home / "held.jsonl", [{"prompt": f"{i} cose su {i * 7}?"} for i in range(4)])
    (home / "training.yaml").write_text(
        yaml.safe_dump({"max_length": 512, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1,
                        "max_steps": 2, "lora_r": 2})
    )  # fmt: skip
    with servers.ChatServer(graded) as server:
        judge = judge_file(home / "judge.yaml", server.url, key_variable="JUDGE_KEY", orders=1, gate_rows=0)
        stages = {
            "01_rerank": {"dataset": pairs_file(home / "pairs.jsonl"), "judge": judge, "min_chosen": 0.0,
                          "min_margin": 0.0},
            "02_sample": {"prompts": prompts, "prompt_column": "prompt", "exclude": "", "model": model, "n_samples": 2,
                          "sampling": sampling},
            "03_judge": {"judge": judge, "min_chosen": 0.0, "min_margin": 0.0, "language": ""},
            "04_dpo": {"model": model, "training": str(home / "training.yaml"), "judge": judge, "eval_prompts": held,
                       "prompt_column": "prompt", "sampling": sampling},
        }  # fmt: skip
        status, printed = run_profile(write_profile(home / "profile", stages), home / "runs" / "marked")
    assert status == 0, printed
    return home / "runs", printed, server


@pytest.mark.slow
def test_a_whole_run_leaves_no_token_behind(road):
    runs, printed, server = road
    assert set(server.tokens) == {KEY}, "the judge was asked with its token, and with nothing else"
    names = {name for name, _ in contents(runs)}
    wanted = {"store.sqlite", "run.json", "params.json", "metrics.json", "README.md", "04_dpo.ipynb", "training.csv"}
    assert wanted | {"adapter_model.safetensors"} <= names
    assert any(name.endswith(".parquet") for name in names)
    assert any(name.endswith(".png") for name in names)
    assert leaks(runs, printed) == []


def test_the_search_finds_a_token_wherever_it_stands(tmp_path):
    with sqlite3.connect(tmp_path / "a.sqlite") as db:
        db.execute("CREATE TABLE t (x TEXT)")
        db.execute("INSERT INTO t VALUES (?)", (KEY,))
    import pandas as pd

    pd.DataFrame({"x": [response(HUB)] * 100}).to_parquet(tmp_path / "b.parquet", compression="zstd")
    (tmp_path / "c.png").write_bytes(b"\x00" + HUB.encode())
    (tmp_path / "d.txt").write_text("nothing")
    assert leaks(tmp_path, f"x {KEY}") == ["a.sqlite", "b.parquet", "c.png", "printed"]


ECHO = servers.Answer(
    status=401, raw=json.dumps({"error": {"message": f"wrong token {KEY} {HUB}"}}), headers={"X-Token": KEY}
)


@pytest.mark.slow
def test_a_server_that_repeats_the_token_gets_it_into_no_notebook(tmp_path):
    with servers.ChatServer([ECHO]) as server:
        judge = judge_file(tmp_path / "judge.yaml", server.url, key_variable="JUDGE_KEY")
        values = {"dataset": pairs_file(tmp_path / "pairs.jsonl"), "judge": judge}
        profile = write_profile(tmp_path / "profile", {"01_rerank": values})
        status, printed = run_profile(profile, tmp_path / "runs" / "a", JUDGE_KEY=f"{KEY}\n")
    assert status == 1
    assert "answered 401: the token is missing or wrong; set JUDGE_KEY" in printed
    assert set(server.tokens) == {KEY}
    assert "InputError" in (tmp_path / "runs" / "a" / "01_rerank.ipynb").read_text()
    assert leaks(tmp_path / "runs", printed) == []


def ask(server, **options):
    engine = ApiEngine(server, "m", key_variable="JUDGE_KEY", wait=0.001, **options)
    return list(engine.generate([engines.Request(({"role": "user", "content": "hi"},))], seed=0))


def test_a_server_that_closes_or_is_not_there_gets_the_token_into_no_message(monkeypatch, caplog):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with servers.ChatServer([servers.Answer(drop=True)]) as server:
        assert ask(server.url) == []
    assert ask(server.url) == [], "nobody listens there any more"
    assert "failed 8 times" in caplog.text
    assert KEY not in caplog.text


def test_a_token_with_the_end_of_its_line_is_sent_without(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", f" {KEY}\r\n")
    with servers.ChatServer() as server:
        assert len(ask(server.url)) == 1
    assert server.tokens == [KEY]


@pytest.mark.parametrize("inside", ["\n", "\x00", "è"])
def test_a_token_that_no_header_can_carry_is_refused_without_being_shown(monkeypatch, inside):
    monkeypatch.setattr(os, "environ", {"JUDGE_KEY": f"{KEY}{inside}{KEY}"})
    with pytest.raises(InputError, match=r"^JUDGE_KEY holds a character that no token has; copy the token") as caught:
        ask("http://127.0.0.1:1/v1")
    assert KEY not in str(caught.value)


TOKENS = (HUB, KEY, f"https://judge:{KEY}@host/v1", "http://me:word@host/v1", "http://host/v1?api_key=word", f"a/{HUB}")


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize("name", ["dataset", "judge", "push_to_hub", "no_such_name"])
def test_a_token_as_a_parameter_is_refused_by_name_and_not_shown(name, token):
    with pytest.raises(InputError, match=rf"^01_rerank: {name} looks like an access token or a password") as caught:
        params.validate("01_rerank", {name: token})
    assert token not in str(caught.value)
    assert "word@" not in str(caught.value)


@pytest.mark.parametrize("value", ["a/hf_experiment_of_a_long_name_2026", "task-this-is-the-name-of-a-folder",
                                   "http://127.0.0.1:8000/v1", "org/name:config@train[-300:]", "KEY",
                                   "org/sk-SlovakBERTFinetunedOnNews2024", "https://h/v1?monkey=1",
                                   "https://example.org, contact@me.it"])  # fmt: skip
def test_a_path_an_address_or_the_name_of_a_variable_is_no_token(value):
    params.refuse_tokens("01_rerank", {"dataset": value})


@pytest.mark.parametrize("key", ["key_variable", "server", "token"])
@pytest.mark.parametrize("token", TOKENS)
def test_a_token_in_a_judge_file_is_refused_by_name_and_not_shown(tmp_path, key, token):
    path = judge_file(tmp_path / "mine.yaml", "http://127.0.0.1:1/v1", **{key: token})
    with pytest.raises(
        InputError, match=rf"^judge file mine: {key} looks like an access token or a password"
    ) as caught:
        judges.read_file(path)
    assert token not in str(caught.value)


def test_a_token_in_a_training_file_is_refused_by_name_and_not_shown(tmp_path):
    (tmp_path / "training.yaml").write_text(f"hub_token: {HUB}\n")
    with pytest.raises(InputError, match=r"training.yaml: hub_token looks like an access token") as caught:
        read_options(str(tmp_path / "training.yaml"))
    assert HUB not in str(caught.value)
