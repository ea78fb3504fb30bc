"""The notebooks themselves, headless: from a source dataset to an adapter, with a tiny model and scripted judges."""

import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import servers
import tiny
import yaml
from datasets import load_dataset
from road import (
    DATA,
    QUESTIONS,
    WORDS,
    by_human_marks,
    judge_file,
    metrics,
    read_jsonl,
    run_process,
    run_profile,
    stored,
    write_jsonl,
    write_profile,
)
from tokens import HUB, KEY, contents, leaks

from nbutils import params, run
from nbutils.core import records
from nbutils.files import sources
from nbutils.files.sources import CHECKOUT
from nbutils.judges import people

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the folder with third-party data is not beside the checkout")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.make(tmp_path_factory.mktemp("models") / "tiny", "qwen3"))


@pytest.fixture(scope="module")
def italian(tmp_path_factory, model):
    """The Italian road: 267 real pairs through 01, Italian prompts through 02 and 03, a few steps of 04."""
    if not DATA.is_dir():
        pytest.skip("the folder with third-party data is not beside the checkout")
    home = tmp_path_factory.mktemp("italian")
    rows = read_jsonl(DATA / "preferences/shroom_it_pairs_267.jsonl.gz")
    sampling = "temperature: 0.9, top_p: 1.0, max_tokens: 40"
    with servers.ChatServer(by_human_marks) as server:
        judge = judge_file(home / "people.yaml", server.url, key_variable="JUDGE_API_KEY")
        (home / "training.yaml").write_text(
            yaml.safe_dump({"max_length": 2048, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1,
                            "max_steps": 4, "lora_r": 2})
        )  # fmt: skip
        profile = write_profile(
            home / "profile",
            {
                "01_rerank": {"dataset": write_jsonl(home / "pairs.jsonl", rows), "judge": judge, "min_chosen": 0.0,
                              "max_rows": 0},
                "02_sample": {"prompts": str(DATA / "prompts/vicuna_it_80.jsonl"), "prompt_column": "text",
                              "max_prompts": 24, "exclude": "", "model": model, "sampling": sampling},
                "03_judge": {"judge": judge, "min_chosen": 0.0, "language": ""},
                "04_dpo": {"model": model, "max_pairs": 20, "training": str(home / "training.yaml"), "judge": judge,
                           "eval_prompts": write_jsonl(home / "held.jsonl", [{"prompt": q} for q in QUESTIONS]),
                           "prompt_column": "prompt", "sampling": sampling},
            },
        )  # fmt: skip
        first = run_profile(profile, home / "runs" / "it", HF_TOKEN=HUB, JUDGE_API_KEY=KEY)
        assert first.returncode == 0, first.stderr
        calls = len(server.calls)
        second = run_profile(profile, home / "runs" / "it", HF_TOKEN=HUB, JUDGE_API_KEY=KEY)
        assert len(server.calls) == calls
    assert set(server.tokens) == {KEY}, "the judge was asked with its token, and with nothing else"
    return home / "runs" / "it", first, second


def test_italian_pairs_come_out_as_the_people_marked_them(italian):
    run_dir, _, _ = italian
    assert metrics(run_dir, "01_rerank")["verdicts"] == {"kept": 96, "swapped": 8, "tie": 163}


def test_every_stage_says_its_time_and_an_unchanged_one_is_skipped(italian):
    _, first, second = italian
    assert re.findall(r"^(\w+)  \d+ s$", first.stdout, re.MULTILINE) == list(params.STEMS)
    assert re.findall(r"^(\w+)  unchanged, skipped$", second.stdout, re.MULTILINE) == list(params.STEMS)


def test_every_configuration_loads_as_plain_dataset(italian):
    run_dir, _, _ = italian
    expected = {"01_rerank": ["pairs", "judged"], "02_sample": ["samples"], "03_judge": ["pairs", "judged"],
                "04_dpo": ["evaluation_held"]}  # fmt: skip
    for stem, configs in expected.items():
        for config in configs:
            loaded = load_dataset(str(run_dir / stem), config, split="train")
            rows = sources.read(stem, config, run_dir=run_dir)
            assert repr(loaded.to_list()) == repr(rows), "repr, since NaN equals nothing"


def test_on_policy_pairs_come_from_the_policy_and_its_prompts(italian):
    run_dir, _, _ = italian
    pairs = sources.read_checked("03_judge", "pairs", records.PAIRS, run_dir=run_dir)
    assert len(pairs) > 5
    assert {pair["origin"] for pair in pairs} == {"on_policy"}
    assert {tuple(pair["chat_template_kwargs"].items()) for pair in pairs} == {(("enable_thinking", False),)}


def test_training_leaves_an_adapter_a_log_and_a_proof(italian):
    run_dir, _, _ = italian
    folder = run_dir / "04_dpo"
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    assert (folder / "training.csv").read_text().count("\n") >= 4
    proof = metrics(run_dir, "04_dpo")["proof"]["held"]
    assert proof["prompts"] == len(QUESTIONS)
    assert sum(proof["verdicts"].values()) == proof["answers"] == 3 * len(QUESTIONS)
    assert {p.name for p in (folder / "figures").iterdir()} == {"training.png", "before_after.png"}


def test_what_people_chose_is_taken_up_by_the_same_command_which_asks_and_trains_nothing(italian):
    run_dir, _, _ = italian
    before = metrics(run_dir, "04_dpo")
    for stem in ("03_judge", "04_dpo"):
        path = people.path_of(stem, run_dir)
        sheet = pd.read_csv(path, dtype=str, keep_default_na=False)
        assert len(sheet) > 5
        sheet.assign(label="1").to_csv(path, index=False)
    # the judge's server is gone
    done = run_profile(run_dir.parents[1] / "profile", run_dir, HF_TOKEN=HUB, JUDGE_API_KEY=KEY)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^(\w+)  \d+ s, since inputs changed$", done.stdout, re.MULTILINE) == ["03_judge", "04_dpo"]
    judged = metrics(run_dir, "03_judge")["people"]
    assert set(judged) >= {"agreement", "decided agreement", "kappa"}
    assert judged["agreement"]["rows"] > 5
    proof = metrics(run_dir, "04_dpo")["proof"]["held"]["people"]
    assert proof["labels"] > 5
    assert proof["corrected"] is None
    assert "fewer than 30 are too few to correct it" in (run_dir / "04_dpo/README.md").read_text()
    assert metrics(run_dir, "04_dpo")["training"] == before["training"], "its seconds, too"


@pytest.mark.parametrize("stem", params.STEMS)
def test_notebook_runs_alone_with_papermill_from_any_folder(stem, italian, model, tmp_path):
    run_dir, _, _ = italian
    judged = {"judge": "verifier"}
    demo = CHECKOUT / "params" / "english"
    checks = str(write_jsonl(tmp_path / "few.jsonl", read_jsonl(demo / "heldout.jsonl")[:6]))
    given = {
        "01_rerank": judged | {"dataset": str(demo / "off_policy.jsonl"), "prompt_column": "prompt"},
        "02_sample": {"prompts": checks, "prompt_column": "prompt", "exclude": "", "model": model,
                      "sampling": "max_tokens: 8", "chat_template_kwargs": ""},
        "03_judge": judged | {"samples": str(run_dir / "02_sample"), "language": ""},
        "04_dpo": judged | {"off_policy": "", "on_policy": str(run_dir / "03_judge"), "model": model,
                            "eval_prompts": checks, "prompt_column": "prompt", "sampling": "max_tokens: 8",
                            "training": str(run_dir.parent.parent / "training.yaml")},
    }[stem]  # fmt: skip
    options = [word for name, value in given.items() for word in ("-r", name, value)]
    out = [tmp_path / "out.ipynb", "-k", "python3", "-r", "run_dir", tmp_path / "run"]
    done = run_process("papermill", run.notebook(stem), *out, *options, cwd=tmp_path)
    if stem == "03_judge":  # the Italian prompts carry no checks: the rules say so instead of guessing
        assert "judge verifier cannot check: no checks" in done.stderr
        assert not (tmp_path / "run" / stem).exists(), "no half-written folder"
    else:
        assert done.returncode == 0, done.stderr[-2000:]
        assert (tmp_path / "run" / stem / "metrics.json").is_file()


@pytest.mark.nightly
def test_a_judge_that_fails_in_the_proof_costs_neither_adapter_nor_samples(italian, model, tmp_path):
    run_dir, _, _ = italian
    held = write_jsonl(tmp_path / "held.jsonl", [{"prompt": q} for q in QUESTIONS[:4]])
    values = {"off_policy": "", "on_policy": str(run_dir / "03_judge"), "model": model, "eval_prompts": held,
              "prompt_column": "prompt", "sampling": "max_tokens: 8", "merge": True,
              "training": str(run_dir.parent.parent / "training.yaml"), "judge": str(tmp_path / "judge.yaml"),
              "run_dir": str(tmp_path / "runs" / "one")}  # fmt: skip
    options = [word for name, value in values.items() for word in ("-p", name, value)]
    command = ["papermill", run.notebook("04_dpo"), tmp_path / "out.ipynb", "-k", "python3", *options]
    with servers.ChatServer(lambda body: servers.Answer("no such token", status=401)) as server:
        judge_file(tmp_path / "judge.yaml", server.url)
        failed = run_process(*command)
    assert "InputError: " in failed.stderr
    assert "401" in failed.stderr
    work = tmp_path / "runs" / "one" / "work" / "04_dpo"
    weights = work / "adapter" / "adapter_model.safetensors"
    trained, samples = weights.read_bytes(), set(stored(tmp_path / "runs" / "one"))
    checkpoints = {path: path.stat().st_mtime_ns for path in work.glob("*/checkpoint-*/*")}
    assert checkpoints
    assert not (tmp_path / "runs" / "one" / "04_dpo").exists()
    with servers.ChatServer(by_human_marks) as server:
        judge_file(tmp_path / "judge.yaml", server.url)
        done = run_process(*command)
    assert done.returncode == 0, done.stderr[-2000:]
    folder = tmp_path / "runs" / "one" / "04_dpo"
    assert (folder / "adapter" / "adapter_model.safetensors").read_bytes() == trained
    assert {path: path.stat().st_mtime_ns for path in checkpoints} == checkpoints, "nothing was trained again"
    new = set(stored(tmp_path / "runs" / "one")) - samples
    assert 0 < len(server.calls) <= len(new) <= 2 * 3 * 4, "two orders of three answers to four prompts, at most"
    assert "warning was raised" in (folder / "adapter" / "README.md").read_text()
    assert (folder / "merged" / "model.safetensors").is_file()
    assert not (folder / "merged" / "adapter_config.json").exists()


def test_a_whole_run_leaves_no_token_behind(italian):
    run_dir, *ended = italian
    names = {name for name, _ in contents(run_dir.parent)}
    wanted = {"store.sqlite", "run.json", "params.json", "metrics.json", "README.md", "04_dpo.ipynb", "training.csv"}
    assert wanted | {"adapter_model.safetensors"} <= names
    assert any(name.endswith(".parquet") for name in names)
    assert any(name.endswith(".png") for name in names)
    assert leaks(run_dir.parent, "".join(one.stdout + one.stderr for one in ended)) == []


def test_papermill_help_explains_every_parameter():
    for stem in params.STEMS:
        text = run_process("papermill", "--help-notebook", run.notebook(stem)).stdout
        assert all(
            re.search(rf"^  {name}: \w+ \(default", text, re.MULTILINE) for name in params.MODELS[stem].model_fields
        )


def kill_midway(profile, run_dir, ready):
    """Start the command and kill -9 it and its kernel as soon as `ready` holds."""
    command = [sys.executable, "-m", "nbutils.run", str(profile), str(run_dir)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    while not ready():
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.02)
    kernels = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    for pid in (process.pid, *map(int, kernels)):
        os.kill(pid, signal.SIGKILL)
    process.wait()


@pytest.mark.nightly
def test_judging_killed_in_the_middle_asks_only_what_is_missing(tmp_path):
    log = tmp_path / "calls.jsonl"
    rows = [
        {"question": q, "chosen": f"Risposta buona {q}", "rejected": f"Risposta cattiva {q}"} for q in QUESTIONS * 4
    ]
    rows = [row | {"question": f"{row['question']} ({i})"} for i, row in enumerate(rows)]
    with servers.serving("road:slow_grades", log=log) as url:
        stage = {
            "dataset": write_jsonl(tmp_path / "pairs.jsonl", rows),
            "judge": judge_file(tmp_path / "judge.yaml", url),
        }
        profile = write_profile(tmp_path / "profile", {"01_rerank": stage})
        run_dir = tmp_path / "runs" / "killed"
        kill_midway(profile, run_dir, lambda: len(stored(run_dir)) >= 30)
        safe = len(stored(run_dir))
        assert safe < 2 * len(rows), "killed too late to test anything"
        asked = len(servers.logged(log))
        done = run_profile(profile, run_dir)
    assert "02_sample stopped" in done.stderr or done.returncode, "the profile has no prompts for 02"
    wanted = 2 * len(rows) + 40  # both orders, and the trial's repeats
    assert len(stored(run_dir)) == wanted
    assert len(servers.logged(log)) - asked == wanted - safe
    judged = sources.read_checked("01_rerank", "judged", records.JUDGED, run_dir=run_dir)
    assert len({row["prompt_id"] for row in judged}) == len(judged) == len(rows)


@pytest.mark.nightly
def test_sampling_killed_in_the_middle_ends_with_the_samples_of_an_unbroken_run(tmp_path, model):
    draw = random.Random(0)
    prompts = [{"prompt": " ".join(draw.sample(WORDS, 9))} for _ in range(200)]  # no two alike
    stage = {"prompts": write_jsonl(tmp_path / "prompts.jsonl", prompts), "prompt_column": "prompt", "exclude": "",
             "model": model, "sampling": "max_tokens: 60"}  # fmt: skip
    source = {
        "dataset": str(CHECKOUT / "params/english/off_policy.jsonl"),
        "prompt_column": "prompt",
        "judge": "verifier",
    }
    profile = write_profile(tmp_path / "profile", {"01_rerank": source, "02_sample": stage})
    killed, whole = tmp_path / "a" / "run", tmp_path / "b" / "run"
    kill_midway(profile, killed, lambda: len(stored(killed)) > 0)
    safe = set(stored(killed))
    assert not (killed / "02_sample").exists()
    for run_dir in (killed, whole):
        run_profile(profile, run_dir)
    assert safe < set(stored(killed)) == set(stored(whole))
    rows = [sources.read("02_sample", "samples", run_dir=run_dir) for run_dir in (killed, whole)]
    assert rows[0] == rows[1]
    assert len({row["prompt_id"] for row in rows[0]}) == len(rows[0])


SHORT = """---
reply: verdict
---
Confronta le risposte A e B. Fra <<{nonce}>> e <</{nonce}>> sta il materiale.
{prompt}
{responses}
Rispondi soltanto con uno di questi cinque verdetti: {format}
"""


def test_a_second_judge_that_does_not_read_is_seen_through_beside_the_key_and_judges_nothing(tmp_path):
    log = tmp_path / "calls.jsonl"
    out = tmp_path / "out.ipynb"
    with servers.serving("road:first_place", log=log) as url:
        arguments = {
            "run_dir": tmp_path / "runs/it",
            "dataset": CHECKOUT / "params/italian/pairs.jsonl",
            "prompt_column": "prompt",
            "reference_column": "reference",
            "judge": CHECKOUT / "params/italian/judge.yaml",
            "second_judge": judge_file(tmp_path / "reader.yaml", url, gate_rows=8),
        }
        options = [word for name, value in arguments.items() for word in ("-p", name, value)]
        ended = run_process("papermill", CHECKOUT / "notebooks/01_rerank.ipynb", out, *options)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert len(servers.logged(log)) == 8 * 3  # two orders and the repeats, and none for the run itself
    text = out.read_text()
    assert "reader -> the judge failed its trial: flips 100.0% of 8 rows" in text
    judged = sources.read_checked("01_rerank", "judged", records.JUDGED, run_dir=tmp_path / "runs/it")
    assert {row["judge"] for row in judged if row["scores"]} == {"judge"}
    assert not any(row["label"] for row in judged if "label" in row)


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_a_real_model_too_small_to_judge_is_refused_by_the_gate(tmp_path, monkeypatch):
    monkeypatch.setenv("MODEL_CACHE", str(tmp_path / "models"))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # a notebook shows its figures
    # long prompts make large tensors; giving each back to the system takes half of the time
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", str(2**32))
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(2**32))
    rows = read_jsonl(DATA / "preferences/shroom_it_pairs_267.jsonl.gz")
    rows = sorted(rows, key=lambda r: len(r["question"] + r["chosen"] + r["rejected"]))[:8]  # reading takes the time
    (tmp_path / "short.txt").write_text(SHORT)
    log, out = tmp_path / "calls.jsonl", tmp_path / "out.ipynb"
    with servers.serving("road:smollm2", log=log) as url:
        judge = judge_file(
            tmp_path / "smollm2.yaml",
            url,
            model="SmolLM2-135M-Instruct",
            template=str(tmp_path / "short.txt"),
            max_tokens=24,
            concurrency=20,
            timeout=600.0,
        )
        arguments = {
            "run_dir": tmp_path / "runs/it",
            "dataset": write_jsonl(tmp_path / "pairs.jsonl", rows),
            "judge": judge,
        }
        options = [word for name, value in arguments.items() for word in ("-p", name, value)]
        ended = run_process("papermill", CHECKOUT / "notebooks/01_rerank.ipynb", out, *options, timeout=850)
    assert re.search(r"InputError: the judge failed its trial: unparsed [\d.]+% of 8 rows", ended.stderr)
    assert not (tmp_path / "runs/it/01_rerank").exists()
    asked = [json.loads(line)["messages"][0]["content"] for line in log.read_text().splitlines()]
    assert sum(rows[0]["question"] in text for text in asked) >= 3  # two orders and a repeat
    cells = {cell["id"]: cell for cell in json.loads(out.read_text())["cells"]}
    assert any("image/png" in output.get("data", {}) for output in cells["gate"]["outputs"]), "the figures are shown"
    assert cells["run"]["outputs"] == [], "the run itself was not started"


def fails(tmp_path, stages):
    """Run a profile that must fail at once; return its one sentence, what is known of a Hub id offline left out."""
    base = {"01_rerank": {"dataset": str(CHECKOUT / "params/english/off_policy.jsonl"), "prompt_column": "prompt",
                          "judge": "verifier"}}  # fmt: skip
    merged = {stem: base.get(stem, {}) | stages.get(stem, {}) for stem in base | stages}
    done = run_profile(write_profile(tmp_path / "profile", merged), tmp_path / "run")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines(keepends=True)
    said = [line for line in lines if "its commit cannot be told without the network" not in line]
    assert len(said) == 1, done.stderr
    return said[0]


@pytest.mark.parametrize(
    ("stages", "sentence"),
    [
        ({"02_sample": {"temprature": 1}}, "temprature is unknown"),
        ({"04_dpo": {"learning_rate": "5e-7", "beta": "x"}}, "2 wrong parameter(s): learning_rate is '5e-7'"),
        ({"02_sample": {"n_samples": 1}}, "n_samples is 1"),
    ],
)
def test_wrong_parameter_stops_the_command_before_the_first_stage(stages, sentence, tmp_path):
    assert sentence in fails(tmp_path, stages)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"chosen_column": "better"}, "row 0 has no column 'better'"),
        ({"dataset": "nowhere.jsonl"}, "there is no file or folder nowhere.jsonl"),
        ({"dataset": "nobody/nothing"}, "dataset 'nobody/nothing' (split 'train') cannot be loaded"),
        ({"judge": "rating_it"}, "HF_TOKEN is not set"),
    ],
)
def test_wrong_input_stops_the_stage_in_one_sentence_and_leaves_no_folder(values, sentence, tmp_path):
    said = fails(tmp_path, {"01_rerank": values})
    assert sentence in said
    assert said.rstrip().endswith(f"to go on: python -m nbutils.run {tmp_path / 'profile'} {tmp_path / 'run'}")
    assert not (tmp_path / "run" / "01_rerank").exists()


def test_misspelt_parameter_given_to_papermill_stops_the_notebook(tmp_path):
    out = [tmp_path / "out.ipynb", "-k", "python3", "-r", "run_dir", tmp_path / "run"]
    done = run_process("papermill", run.notebook("01_rerank"), *out, "-p", "min_margn", "0.5")
    assert done.returncode != 0
    assert "min_margn is unknown" in done.stderr


@pytest.mark.nightly
def test_training_without_a_pair_points_at_the_drop_report(tmp_path, model):
    prompts = read_jsonl(CHECKOUT / "params/english/prompts.jsonl")[:4]
    done = run_profile(
        write_profile(
            tmp_path / "profile",
            {
                "01_rerank": {"dataset": str(CHECKOUT / "params/english/off_policy.jsonl"), "prompt_column": "prompt",
                              "judge": "verifier"},
                "02_sample": {"prompts": write_jsonl(tmp_path / "few.jsonl", prompts), "prompt_column": "prompt",
                              "exclude": "", "model": model, "sampling": "max_tokens: 30"},
                "03_judge": {"judge": "verifier", "min_chosen": 1.0, "language": ""},
                "04_dpo": {"model": model, "off_policy": "", "judge": "verifier",
                           "eval_prompts": str(tmp_path / "few.jsonl"), "prompt_column": "prompt"},
            },
        ),
        tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 1
    assert "03_judge holds no rows in 'pairs'; see the drop report" in done.stderr
    assert list(load_dataset(str(tmp_path / "run" / "03_judge"), "pairs", split="train", streaming=True)) == []


def readme_commands():
    blocks = re.findall(r"^```\n(.*?)^```", (CHECKOUT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.startswith(("make ", ".venv/"))]


def test_every_make_target_in_the_readme_exists():
    makefile = (CHECKOUT / "Makefile").read_text()
    made = [command[1:] for command in readme_commands() if command[0] == "make"]
    targets = {word for words in made for word in words if "=" not in word}
    assert {"demo", "test", "test-vllm", "run", "lint", "bench-judge", "bench-sample"} <= targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_the_papermill_command_in_the_readme_works(tmp_path):
    (command,) = [c for c in readme_commands() if c[0].endswith("papermill")]
    places = {"out.ipynb": str(tmp_path / "out.ipynb"), "runs/mine": str(tmp_path / "mine")}
    done = run_process("papermill", *[places.get(word, word) for word in command[1:]], cwd=CHECKOUT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "mine" / "01_rerank" / "metrics.json").is_file()
