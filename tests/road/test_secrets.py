"""No token gets out: not into a file of a run, not onto the screen, whatever fails; none is taken as a parameter."""

import base64
import json
import logging
import os
import re
import sqlite3
import sys
import time
from urllib.parse import quote

import datasets
import pytest
import servers
from builders import response
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from road import QUESTIONS, judge_file, run_profile, write_jsonl, write_profile
from tokens import HUB, KEY, leaks

from nbutils import engines, judges, params
from nbutils.core import errors, secrets
from nbutils.core.errors import InputError
from nbutils.engines.api import ApiEngine
from nbutils.engines.asking import answer
from nbutils.files.stage import Stage
from nbutils.training.settings import read_options


def pairs_file(path):
    rows = [{"question": q, "chosen": f"Risposta lunga e buona: {q}", "rejected": "No."} for q in QUESTIONS]
    return write_jsonl(path, rows)


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


@pytest.mark.nightly
def test_a_server_that_repeats_the_token_gets_it_into_no_notebook(tmp_path):
    with servers.ChatServer([ECHO]) as server:
        judge = judge_file(tmp_path / "judge.yaml", server.url, key_variable="JUDGE_API_KEY")
        values = {"dataset": pairs_file(tmp_path / "pairs.jsonl"), "judge": judge}
        profile = write_profile(tmp_path / "profile", {"01_rerank": values})
        ended = run_profile(profile, tmp_path / "runs" / "a", HF_TOKEN=HUB, JUDGE_API_KEY=f"{KEY}\n")
    status, printed = ended.returncode, ended.stdout + ended.stderr
    assert status == 1
    assert "answered 401: the token is missing or wrong; set JUDGE_API_KEY" in printed
    assert set(server.tokens) == {KEY}
    assert "InputError" in (tmp_path / "runs" / "a" / "01_rerank.ipynb").read_text()
    assert leaks(tmp_path / "runs", printed) == []


def ask(server, **options):
    engine = ApiEngine(server, "m", key_variable="JUDGE_API_KEY", wait=0.001, **options)
    return list(engine.generate([engines.Request(({"role": "user", "content": "hi"},))], seed=0))


def test_a_server_that_closes_or_is_not_there_gets_the_token_into_no_message(monkeypatch, caplog):
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    with servers.ChatServer([servers.Answer(drop=True)]) as server:
        assert ask(server.url) == []
    assert ask(server.url) == [], "nobody listens there any more"
    assert "failed 8 times" in caplog.text
    assert KEY not in caplog.text


def test_a_token_with_the_end_of_its_line_is_sent_without(monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", f" {KEY}\r\n")
    with servers.ChatServer() as server:
        assert len(ask(server.url)) == 1
    assert server.tokens == [KEY]


@pytest.mark.parametrize("inside", ["\n", "\x00", "è"])
def test_a_token_that_no_header_can_carry_is_refused_without_being_shown(monkeypatch, inside):
    monkeypatch.setattr(os, "environ", {"JUDGE_API_KEY": f"{KEY}{inside}{KEY}"})
    with pytest.raises(
        InputError, match=r"^JUDGE_API_KEY holds a character that no token has; copy the token"
    ) as caught:
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


A, D, X = "aB3dE5gH7jK9mN1pQ", "0123456789", "f00dcafe"  # what random letters, digits and hexadecimal ones look like
MAKERS = {
    "Hugging Face": f"hf_{A * 2}", "of an organisation": f"api_org_{A * 2}", "Groq": f"gsk_{A * 3}",
    "GitHub": f"ghp_{A * 2}ab", "of an app": f"ghs_{A * 2}ab", "fine-grained": f"github_pat_{A}_{A * 2}",
    "of flags of GitLab": f"glffct-{A}{A}", "of a workspace": f"glwt-{A}{A}", "of an old runner": f"GR1348941{A}{A}",
    "for a service of Amazon": "ABIA2RGD4LMN8PQX7YZW", "Shopify": f"shpat_{X * 4}", "Supabase": f"sbp_{X * 5}",
    "LangSmith": f"lsv2_pt_{X * 4}_{X}", "Pulumi": f"pul-{X * 5}", "ElevenLabs": f"sk_{X * 6}",
    "Modal": "ak-aB3dE5gH7jK9mN1pQrS2tU",
    "Zhipu": f"{X * 4}.a1B2c3D4e5F6g7H8", "Discord": "MTA0aB3dE5gH7jK9mN1pQrS2.GhIjKl.aB3dE5gH7jK9mN1pQrS2tUvW3xY4z",
    "GitLab": f"glpat-{A}-_{A}", "of a pipeline": f"glptt-{A * 2}", "npm": f"npm_{A * 2}ab",
    "PyPI": f"pypi-AgEIcHlwaS5vcmc{A}",
    "Docker": f"dckr_pat_{A}-{A}", "Replicate": f"r8_{A * 2}", "Perplexity": f"pplx-{A * 3}",
    "Fireworks": f"fw_{A * 2}",
    "NVIDIA": f"nvapi-{A}-{A}_{A}", "xAI": f"xai-{A * 4}", "OpenAI": f"sk-{A * 3}", "of a project": f"sk-proj-{A}-_{A}",
    "of a service": f"sk-svcacct-{A}_{A}", "Anthropic": f"sk-ant-api03-{A}-{A}_AA", "OpenRouter": f"sk-or-v1-{X * 8}",
    "DeepSeek": f"sk-{X * 4}", "Google": f"AIzaSy{A * 2}", "of a login": f"ya29.a0{A}-{A}",
    "secret of a client": f"GOCSPX-{A}-{A}",
    "Amazon": "AKIAIOSFODNN7EXAMPLE", "for hours": "ASIAY34FZKBOKMUTVV7A",
    "secret of Amazon": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "Slack": f"xoxb-{D}-{D}-{A}", "of a user": f"xoxp-{D}-{A}", "of an app of Slack": f"xapp-1-{A}-{D}-{X}",
    "Slack's address": f"https://hooks.slack.com/services/T0000/B0000/{A}", "Stripe": f"sk_live_{A}",
    "restricted": f"rk_test_{A}",
    "SendGrid": f"SG.{A}AbCdE.{A}{A}", "Databricks": f"dapi{X * 4}", "HashiCorp": f"hvs.{A}{A}",
    "Kaggle": f"KGAT_{X * 4}",
    "Telegram": f"{D}:AA{A * 2}", "Mistral": "q7Zt3KpXw9Lb2NvR5sYd8Hc1Jf6Gm4Ta",
    "Cohere": "Xk29fLmQp7RtVw3ZbNc8Hd1Js5Gy6Ua4eTi0oPqR",
    "a JSON web token": f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.{A}",
    "encrypted": f"eyJhbGciOiJSU0EifQ.{A}.{A}.{A}.{A}",
    "a private key": f"-----BEGIN OPENSSH PRIVATE KEY-----\n{A}", "of RSA": "-----BEGIN RSA PRIVATE KEY-----",
    "a header": f"Authorization: Bearer {A}", "another": f"x-api-key: {X * 4}",
    "of a page": "Basic bWU6cGFyb2xhLWQnb3JkaW5l", "of nobody": "basic OmFCM2RFNWdIN2pLOQ==",
    "a user of an address": f"https://{A}@github.com/org/name", "a password": "postgres://me:word@db/x",
    "a key in an address": "https://host/v1?api-key=abc", "a signature": "https://bucket/x?X-Amz-Signature=abc",
    "of Azure": "https://b/x?sv=1&sig=abc", "short": "https://h/v1?x=1&tok=abc", "shorter": "https://h/v1?auth=abc",
    "a pass": "https://h/v1?pass=abc", "a token of the web": "https://h/v1?jwt=abc",
    "in a fragment": "https://host/#access_token=abc",
    "storage": f"DefaultEndpointsProtocol=https;AccountKey={A * 3}==",
    "Grafana": f"glsa_{A}{A[:15]}_{X}", "of its cloud": f"glc_{A * 3}",
    "Postman": "PMAK-64b1f0c29a7de30012c4e5a8-0f4c8e2b7a19d3655e20bd9174ac3f86e1",
    "New Relic": "NRAK-7HZQ2M9XK4TB0W6RJ8PV3C5DYNG", "Neon": "napi_x7k2q9m4t1w8z3b6n0v5c2h7j4l9p1r6s3d8f0g5",
    "RubyGems": "rubygems_4b7f19c03e8d2a65f0917cbe34d8a2605f1b9e7c83d4062a",
    "Firecrawl": "fc-7c3e19a04f8b2d6590e1a7c4b3f8d206", "Mailgun": "key-3ax6xnjp29jd6fds4gc373sgvjxteol0",
    "Twilio": "SK7c3e19a04f8b2d6590e1a7c4b3f8d206", "Alibaba": "LTAI5tK7mQ2xV9bN4cR8wZ3p",
    "Square": "sq0atp-7KmQ2xV9bN-4cR8wZ3pT1y", "of an app of Square": f"sq0csp-{A}_{A}",
    "Supabase, new": f"sb_secret_{A}_{X}", "of nobody we know": "acme_7KmQ2xV9bN4cR8wZ3pT1yHs6",
    "with what it is for": "volta-live-Zk81mQv0LxR7tB3nYp5cWd92", "in one more": "pat_eu1_9fKq27LmXv0TzR4bWc8YhN3s",
    "Hugging Face's letters": "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",
}  # fmt: skip


BELOW = ("OpenAI", "DeepSeek", "secret of Amazon", "of nobody we know", "with what it is for", "in one more")


@pytest.mark.parametrize(
    "place", ["{}", "model {} for us", "usa {} per favore", "a,{}", "\n{}\n", "'{}'", "run/{}", "x={}"]
)
@pytest.mark.parametrize("maker", MAKERS)
def test_what_makers_hand_out_is_told_by_its_form(maker, place):
    if place == "run/{}" and maker in BELOW:
        pytest.skip("could be a name below its owner")
    assert secrets.found(place.format(MAKERS[maker]))
    assert MAKERS[maker] not in secrets.hidden(place.format(MAKERS[maker]))


@pytest.mark.parametrize("value", ["meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3-4B-Instruct-2507-FP8",
    "zai-org/GLM-4.5-Air",
    "xai-org/grok-1", "nvidia/Llama-3_3-Nemotron-Super-49B-v1_5", "google/gemma-3n-E4B-it-litert-preview",
    "unsloth/gpt-oss-20b-GGUF",
    "TheBloke/MetaLlama31Instruct8BQuantizedGGUFQ4KM",
    "HuggingFaceTB/SmolLM2-135M-Instruct@12fd25f77366fa6b3b4b768ec3050bf629380bac",
    "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "9F86D081884C7D659A2FEAA0C55AD015A3BF4F1B2B0B822C",
    "123e4567-e89b-12d3-a456-426614174000", "efederici/evol-dpo-ita@train[-300:]",
    "/kaggle/input/my-notebook/01_rerank/pairs",
    "runs/Esperimento2024DiPrimaveraConTantePaginePerTutti",
    "/home/me/projects/ModelName7B/checkpoint1200/adapterFinal2",
    "temperature: 0.8, top_p: 0.95, max_tokens: 512", "Rispondi in italiano, con parole tue.",
    "You are a bearer of good news, basically.",
    "basic internationalization of the Qwen3-4B-Instruct-2507", "The key is to be brief; token by token.",
    "glm-4-9b-chat-hf-with-a-long-name-of-2024", "sk-learn-intelex",
    "https://huggingface.co/datasets/org/name/resolve/main/data.parquet", "git@github.com:org/name.git",
    "params/english/off_policy.jsonl",
    "eyJafjallajokull-volcano-2010.photos", "xoxo-love", "npm_config_cache", "hf_dataset_of_mine", "AKIA",
    "HF_TOKEN", "MY_SERVER_TOKEN", "hf_italianquestionsandanswers", "hf_ItalianQuestionsAndAnswers",
    "org/hf_domandeerispostedimatematica2024", "fw_ragionamentiinlinguaitaliana2", "jina_embeddingsmultilinguale5large",
    "A basic understanding2000wordsandmore of Italian", "basic vocabolario2024ditremilaparole, poi esercizi",
    "Basic internazionalizzazione2024 e BASIC programmazione1980modernissima",
    "key-domandeerispostedistoriaitaliana", "SKonferenzaDiMilanoDel2024PerTutti", "prove-esperimento2024conventipagine",
    "run-12fd25f77366fa6b3b4b768ec3050bf629380bac", "run_01ARZ3NDEKTSV4RRFFQ69G5FAV", "LTAI e le sue chiavi",
    "sha256-9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "napi_node_addon_examples_2024",
    "glsa-del-mare-di-sicilia-2024-02", "qwen-Qwen3VL8BInstructAWQ4bit", "model-DeepSeekR1DistillQwen14BGGUF",
    "italian-dpo-IntelOrcaTradottoDaGPT4Turbo2024"])  # fmt: skip
def test_ordinary_names_and_texts_are_no_tokens(value):
    assert not secrets.found(value)
    assert secrets.hidden(value) == value


@pytest.mark.parametrize("text", ["sk-" * 100_000, "eyJ-" * 100_000, "://" + "a:" * 200_000, "://:" * 100_000,
    "a" * 400_000, "Aa1" * 150_000,
                                  "https://" * 50_000, "?" + "a_" * 200_000, "bearer " * 60_000, "glpat-" * 60_000,
                                  "-----BEGIN " * 40_000])  # fmt: skip
def test_no_text_takes_long_to_look_through(text):
    started = time.process_time()
    secrets.found(text)
    secrets.hidden(text)
    assert time.process_time() - started < 4


LONG = "hf_i0VpEBOWfbZAVaBSo63bbH6xnAbnBEoonC"
AWS = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYzEXAMPLEKe9"


def lines(text, width):
    return [text[i : i + width] for i in range(0, len(text), width)]


FORMS = {
    "as it is": LONG, "the first half": LONG[:20], "the second": LONG[-18:], "a third": LONG[14:26],
    "capitals": LONG.upper(),
    "small letters": LONG.lower(), "in lines": "\n".join(lines(LONG, 5)), "letter by letter": " ".join(LONG),
    "with dashes": "-".join(LONG),
    "with invisible code points": "\u200b".join(LONG), "two texts": f'"{LONG[:18]}" + "{LONG[18:]}"',
    "in two cells": f"| {LONG[:19]} | {LONG[19:]} |",
    "with percent codes": quote(AWS, safe=""), "all percent codes": "".join(f"%{byte:02X}" for byte in LONG.encode()),
    "hexadecimal": LONG.encode().hex(), "in Python": "".join(f"\\x{byte:02x}" for byte in LONG.encode()),
    "in JSON": json.dumps({"said": f"è {AWS}"}).replace("/", "\\/"),
    "all in JSON": "".join(f"\\u{ord(c):04x}" for c in LONG),
    "lines in JSON": json.dumps("\n".join(lines(LONG, 12))), "base64": base64.b64encode(LONG.encode()).decode(),
    "a header in base64": base64.b64encode(f"me:{LONG}".encode()).decode(),
    "a sentence in base64": base64.b64encode(f"my {LONG} !".encode()).decode(),
    "base64 for an address": base64.urlsafe_b64encode(f"{AWS}".encode()).decode(),
    "base64 in lines": "\n".join(lines(base64.b64encode(LONG.encode()).decode(), 20)),
    "decimal entities": "".join(f"&#{ord(c)};" for c in LONG), "a list of bytes": str(list(LONG.encode())),
    "hexadecimal entities": "".join(f"&#x{ord(c):x};" for c in LONG),
    "hexadecimal numbers": ", ".join(f"0x{byte:02x}" for byte in LONG.encode()),
    "code points": " ".join(f"U+{ord(c):04X}" for c in LONG), "long escapes": "".join(f"\\U{ord(c):08x}" for c in LONG),
    "octal with zeros": "".join(f"\\{byte:03o}" for byte in AWS.encode()),
    "octal": "".join(f"\\{byte:o}" for byte in AWS.encode()),
    "percent codes of percent codes": "".join(f"%25{byte:02x}" for byte in AWS.encode()),
    "base64 twice": base64.b64encode(base64.b64encode(LONG.encode())).decode(),
    "a sentence in base64 twice": base64.b64encode(b"so: " + base64.b64encode(f"la chiave {AWS}".encode())).decode(),
    "base32": base64.b32encode(LONG.encode()).decode(),
    "a sentence in base32": base64.b32encode(f"è {AWS}".encode()).decode(),
    "lines in HTML": "<br>".join(lines(LONG, 8)), "lines in XHTML": "<br />".join(lines(AWS, 6)),
    "cells in HTML": "".join(f"<td>{part}</td>" for part in lines(LONG, 7)),
    "unbreakable spaces": "&nbsp;".join(LONG), "invisible entities": "&#8203;".join(AWS),
    "entities of entities": "&amp;nbsp;".join(LONG), "tags with attributes": "".join(
        f'<b class="x{n}" data-n=\'{n}\'>{c}</b>' for n, c in enumerate(LONG)),
    "comments": "<!-- e poi -->".join(AWS), "tags as text": "".join(f"&lt;i&gt;{c}&lt;/i&gt;" for c in LONG),
    "tags in JSON": "".join(f"\\u003cb\\u003e{c}\\u003c/b\\u003e" for c in AWS),
    "colours": "".join(f"\x1b[1;3{n % 8}m{c}\x1b[0m" for n, c in enumerate(LONG)),
    "colours in JSON": "".join(f"\\u001b[38;5;1{n}m{c}" for n, c in enumerate(AWS)),
    "links of a terminal": "".join(f"\x1b]8;;http://x/a\x1b\\{c}" for c in LONG),
    "of a forum": "".join(f"[color=red]{c}[/color]" for c in LONG),
    "in LaTeX": "".join(f"\\textbf{{{c}}}" for c in AWS),
    "calls": "+".join(f"chr({ord(c)})" for c in LONG),
    "characters of SQL": "||".join(f"CHAR({b})" for b in AWS.encode()),
    "base64 of hexadecimal": base64.b64encode(LONG.encode().hex().encode()).decode(),
    "of capital hexadecimal": base64.b64encode(b"x=" + AWS.encode().hex().upper().encode()).decode(),
    "hexadecimal of base64": base64.b64encode(f"è {LONG}".encode()).hex(),
    "hexadecimal twice": AWS.encode().hex().encode().hex(),
    "base64 of UTF-16": base64.b64encode(f"la {LONG}".encode("utf-16-le")).decode(),
    "of UTF-16 with a mark": base64.b64encode(AWS.encode("utf-16")).decode(),
    "of big-endian UTF-16": base64.b64encode(LONG.encode("utf-16-be")).decode(),
    "hexadecimal of UTF-16": AWS.encode("utf-16-le").hex(" "), "UTF-16 as it is": "\0".join(LONG),
    "base32 of base64": base64.b32encode(base64.b64encode(LONG.encode())).decode(),
    "base64 of percent codes": base64.b64encode(quote(LONG, safe="").encode()).decode(),
    "JavaScript's percent codes": "".join(f"%u{ord(c):04x}" for c in LONG),
    "hexadecimal list": " ".join(f"0x{b:02x}" for b in AWS.encode()),
    "hexadecimal without spaces": "".join(f"0x{b:02X}" for b in LONG.encode()),
    "wide hexadecimal": ",".join(f"0x{b:04x}" for b in LONG.encode()),
    "in CSS": " ".join(f"\\{b:x}" for b in LONG.encode()), "wide in CSS": "".join(f"\\{b:06x} " for b in AWS.encode()),
    "in a letter": "".join(f"={b:02X}" for b in LONG.encode()),
    "in Rust": "".join(f"\\u{{{b:x}}}" for b in AWS.encode()),
    "now and then": "".join(f"%{ord(c):02x}" if n % 3 else c for n, c in enumerate(LONG)),
    "signs in JSON": AWS.replace("/", "\\u002f").replace("+", "\\u002B"),
    "JSON in JSON": json.dumps("".join(f"\\u{ord(c):04x}" for c in LONG)),
    "percent codes thrice": "".join(f"%2525{b:02x}" for b in LONG.encode()),
    "after others": f"Incorrect key: {LONG}.", "twice": f"{LONG} {LONG}", "Amazon's": AWS,
}  # fmt: skip


def remains(text):
    """The most letters and digits in a row of one of the two tokens, in any of their forms, that a text still holds."""
    kept = re.sub("[^a-z0-9]", "", text.lower())
    wanted = [re.sub("[^a-z0-9]", "", form.lower()) for token in (LONG, AWS) for form in
              (token, token.encode().hex(), "".join(map(str, token.encode())),
              "".join(f"{b:o}" for b in token.encode()),
              "".join(f"25{byte:02x}" for byte in token.encode()), "".join(f"{b:03o}" for b in token.encode()),
              *(base64.b32encode(b" " * k + token.encode()).decode()[8:-8] for k in range(5)),
              *(base64.b64encode(b" " * k + base64.b64encode(b" " * j + token.encode())).decode()[8:-8]
                for k in range(3) for j in range(3)),
              *(base64.b64encode(b" " * k + token.encode()).decode() for k in range(3)))]  # fmt: skip
    return max(
        (n for n in range(1, 40) for form in wanted for i in range(len(form) - n + 1) if form[i : i + n] in kept),
        default=0,
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_known_secret_is_masked_in_whatever_form_it_comes(form, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", LONG)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f" {AWS}\n")
    clean = secrets.masked(f"Risposta: {FORMS[form]} fine.")
    assert remains(clean) < 10
    assert len(clean) == len(f"Risposta: {FORMS[form]} fine.")
    assert clean.startswith("Risposta: ")
    assert clean.endswith(" fine.")


def test_every_cut_of_a_sentence_is_made_after_masking(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", LONG)
    for before in range(60, 210):
        text = "x " * (before // 2) + LONG
        for said in (
            errors.first_line(ValueError(text)),
            errors.shown(text),
            str(InputError(text)),
            str(errors.Interrupted(text)),
        ):
            assert "hf_i0" not in said


@pytest.mark.parametrize(
    ("name", "value"),
    [("MY_TOKEN", "none"), ("MY_TOKEN", "1"), ("MY_TOKEN", "EMPTY"), ("MY_TOKEN", "token"), ("MY_API_KEY",
    "italiano"), ("PATH", "/usr/bin:/bin"),
     ("SECRETS_FOLDER", "/data/italiano/abc"), ("TOKENIZERS_PARALLELISM", "false"), ("PWD", "/home/anna/kit"),
     ("MAX_TOKENS", "123456789"),
     ("MODEL", "Qwen/Qwen3-4B-Instruct-2507"), ("NBUTILS_ALLOW", "MY_TOKEN@host"), ("TOKENIZER",
     "meta-llama/Llama-3.1-8B"), ("HOME", "/home/me")],
)  # fmt: skip
def test_short_and_ordinary_values_are_left_alone(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    text = f"Il valore {value} resta; {value}"
    assert secrets.masked(text) == text


@pytest.mark.parametrize("name", ["MY_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD", "DB_PASSWD",
    "SSH_PRIVATE_KEY", "GITHUB_TOKEN", "SESSION_COOKIE",
                                  "X_AUTH", "my_api_key", "KAGGLE_KEY", "SERVICE_CREDENTIALS", "PROXY"])  # fmt: skip
def test_what_a_variable_holds_is_masked_by_its_name_or_its_form(name, monkeypatch):
    value = f"http://me:{LONG}@proxy" if name == "PROXY" else LONG
    monkeypatch.setenv(name, value)
    assert "bZAVaB" not in secrets.masked(f"{value} {LONG}")


@given(st.text(max_size=60), st.text(max_size=60))
def test_the_text_around_a_secret_stays(before, after):
    os.environ["MARKED_TOKEN"] = LONG
    try:
        text = f"{before} {LONG} {after}"
        assert secrets.masked(text) == f"{before} {'*' * len(LONG)} {after}"
    finally:
        del os.environ["MARKED_TOKEN"]


def test_a_reply_that_repeats_the_token_is_stored_and_returned_without(store, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    said = f"Il token: {KEY[:20]}\n{KEY[20:]} e {base64.b64encode(KEY.encode()).decode()}; fine"
    with servers.ChatServer([said]) as server:
        engine = ApiEngine(server.url, "m", key_variable="JUDGE_API_KEY")
        requests = [engines.Request(({"role": "user", "content": "hi"},))]
        [asked], [again] = answer(store, engine, requests), answer(store, engine, requests)
    assert asked == again
    assert asked.samples[0].text.endswith("; fine")
    assert "Test" not in asked.samples[0].text
    assert leaks(store.path.parent) == []


def test_a_stage_is_written_without_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    stage = Stage("01_rerank", tmp_path / "run")
    rows = datasets.Dataset.from_list([{"x": "a", "y": [{"z": f"say {KEY}"}]}, {"x": "b", "y": [{"z": "è"}]}])
    stage.write({"pairs": rows}, params={"judge": KEY}, metrics={"said": {"who": [KEY]}}, summary=f"By {KEY}.")
    assert leaks(tmp_path, secrets=[KEY]) == []
    [path] = (tmp_path / "run/01_rerank/pairs").iterdir()
    assert parquet.read_table(path).to_pylist()[1] == {"x": "b", "y": [{"z": "è"}]}
    assert parquet.read_table(path).to_pylist()[0]["y"] == [{"z": f"say {'*' * len(KEY)}"}]


def test_messages_are_written_without_secrets(monkeypatch, capsys):
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    handler = logging.StreamHandler(sys.stdout)
    handler.addFilter(secrets.Filter())
    handler.emit(record := logging.LogRecord("x", 20, "f", 1, "said %s of %d", (KEY, 3), None))
    assert handler.filter(record)
    handler.emit(record)
    assert capsys.readouterr().out.endswith(f"said {'*' * len(KEY)} of 3\n")


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
