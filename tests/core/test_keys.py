"""keys: which key may go to which server, and what a request carries besides."""

import pytest
from servers import ChatServer

from nbutils import engines, judges
from nbutils.core import keys
from nbutils.core.errors import InputError
from nbutils.core.sampling import check_name
from nbutils.engines.api import ApiEngine

KEY = "marked0Judge1Token2Of3This4Very5Test"
HF = "https://router.huggingface.co/v1"
OWN = "https://gpu.mein-labor.de:8443/v1"


@pytest.mark.parametrize(
    ("variable", "server"),
    [
        ("HF_TOKEN", HF),
        ("HF_TOKEN", "https://huggingface.co/v1"),
        ("HF_TOKEN", "https://api-inference.hf.co"),
        ("HF_TOKEN", "https://ROUTER.HuggingFace.CO:443/v1/"),
        ("HUGGING_FACE_HUB_TOKEN", HF),
        ("HUGGINGFACE_API_KEY", HF),
        ("HUGGINGFACEHUB_API_TOKEN", HF),
        ("MY_HF_TOKEN", HF),
        ("OPENAI_API_KEY", "https://api.openai.com/v1"),
        ("OPENAI_API_KEY", "https://eu.api.openai.com/v1"),
        ("AZURE_OPENAI_API_KEY", "https://me.openai.azure.com/openai/v1"),
        ("MISTRAL_API_KEY", "https://api.mistral.ai/v1"),
        ("OPENROUTER_API_KEY", "https://openrouter.ai/api/v1"),
        ("ANTHROPIC_API_KEY", "https://api.anthropic.com/v1"),
        ("GEMINI_API_KEY", "https://generativelanguage.googleapis.com/v1beta/openai"),
        ("GROQ_API_KEY", "https://api.groq.com/openai/v1"),
        ("TOGETHER_API_KEY", "https://api.together.xyz/v1"),
        ("XAI_API_KEY", "https://api.x.ai/v1"),
        ("NVIDIA_API_KEY", "https://integrate.api.nvidia.com/v1"),
        ("GITHUB_TOKEN", "https://models.github.ai/inference"),
        ("MY_SERVER_TOKEN", OWN),
        ("MY_API_KEY", "https://93.184.216.34/v1"),
        ("JUDGE_API_KEY", OWN),
        ("SERVER_TOKEN", OWN),
        ("VLLM_API_KEY", "http://127.0.0.1:8000/v1"),
        ("MY_TOKEN", "http://localhost:8000/v1"),
        ("MY_TOKEN", "http://[::1]:8000/v1"),
        ("MY_TOKEN", "http://127.8.0.1/v1"),
        ("ACME_API_KEY", "https://llm.acme.it/v1"),
        ("ACME_TOKEN", "http://127.0.0.1:4000"),  # a name of nobody we know, to this machine
        ("", "http://gpu.example.org:8000/v1"),
    ],
)
def test_a_key_goes_where_it_belongs(variable, server):
    keys.check(variable, server)


@pytest.mark.parametrize(
    ("variable", "server"),
    [
        ("HF_TOKEN", "https://huggingface.co.evil.com/v1"),
        ("HF_TOKEN", "https://evil.com/huggingface.co"),
        ("HF_TOKEN", "https://nothuggingface.co/v1"),
        ("HF_TOKEN", "https://huggingface.com/v1"),
        ("HF_TOKEN", "https://hf.co.uk/v1"),
        ("HF_TOKEN", "https://xn--huggingface-8dg.co/v1"),
        ("HF_TOKEN", "https://evil.hf.space/v1"),
        ("HF_TOKEN", "https://x.endpoints.huggingface.cloud/v1"),
        ("HF_TOKEN", "https://api.openai.com/v1"),
        ("HF_TOKEN", "http://127.0.0.1:8000/v1"),
        ("HF_TOKEN", "https://localhost:8000/v1"),
        ("HUGGING_FACE_HUB_TOKEN", OWN),
        ("HUGGINGFACE_TOKEN", OWN),
        ("MY_HF_TOKEN", OWN),
        ("JUDGE_HF_TOKEN", OWN),
        ("OPENAI_API_KEY", HF),
        ("OPENAI_API_KEY", "https://openai.evil.com/v1"),
        ("OPENAI_API_KEY", "https://api.openai.com.evil.com/v1"),
        ("OPENAI_API_KEY", "https://openai.xyz/v1"),
        ("OPENAI_API_KEY", "https://api-openai.com/v1"),
        ("ANTHROPIC_API_KEY", OWN),
        ("MISTRAL_API_KEY", "https://mistral.evil/v1"),
        ("GITHUB_TOKEN", "https://models.github.io/v1"),
        ("GH_TOKEN", OWN),
        ("KAGGLE_API_TOKEN", OWN),
        ("KAGGLE_USER_SECRETS_TOKEN", "https://www.kaggle.com/v1"),
        ("KAGGLE_KERNEL_TOKEN", "http://127.0.0.1:1/v1"),
        ("AWS_SESSION_TOKEN", "https://aws.evil.com"),
        ("GITLAB_TOKEN", OWN),
        ("CI_JOB_TOKEN", OWN),
        ("SLACK_BOT_TOKEN", OWN),
        ("NPM_TOKEN", OWN),
        ("PYPI_API_TOKEN", OWN),
        ("DOCKER_TOKEN", OWN),
        ("WANDB_API_KEY", OWN),
        ("STRIPE_API_KEY", OWN),
        ("VERCEL_TOKEN", "https://vercel.evil.com/v1"),  # of a service that nobody listed
        ("TELEGRAM_BOT_TOKEN", OWN),
        ("SENDGRID_API_KEY", OWN),
    ],
)
def test_a_key_goes_nowhere_else(variable, server, monkeypatch):
    monkeypatch.setenv(variable, KEY)
    with pytest.raises(InputError, match=rf"^key_variable: {variable} does not belong to ") as caught:
        keys.check(variable, server)
    assert f"set NBUTILS_ALLOW_KEYS={variable}@" in str(caught.value)
    with pytest.raises(InputError, match="does not belong to"):
        ApiEngine(server, "m", key_variable=variable)


@pytest.mark.parametrize(
    "variable",
    ["AWS_SECRET_ACCESS_KEY", "PATH", "HOME", "DATABASE_URL", "TOKEN", "API_KEY", "_API_KEY", "my_api_key", "MY_KEY",
     "SSH_PRIVATE_KEY", "MY_TOKENS", "MY_TOKEN ", " MY_TOKEN", "MY_TOKEN\n", "MY TOKEN", "MY-TOKEN", "MY_TOKEN=x",
     "1_TOKEN", "ŁY_TOKEN"],
)  # fmt: skip
def test_a_variable_that_is_not_named_like_a_keys_is_never_sent(variable, monkeypatch):
    with pytest.raises(
        InputError, match=r"^key_variable: expected the name of a variable that ends in _API_KEY or _TO"
    ):
        keys.check(variable, "https://judge.example.org/v1")
    with pytest.raises(InputError, match=r"^key_variable: expected"):
        keys.check(variable, "http://127.0.0.1:8000/v1")


@pytest.mark.parametrize(
    ("allowed", "server", "good"),
    [
        ("HF_TOKEN@gpu.mein-labor.de", OWN, True),
        (" OTHER_TOKEN@a.b , HF_TOKEN@gpu.mein-labor.de,", OWN, True),
        ("HF_TOKEN@127.0.0.1", "http://127.0.0.1:8000/v1", True),
        ("HF_TOKEN@gpu.mein-labor.de", "https://gpu.mein-labor.de.evil.com/v1", False),
        ("HF_TOKEN@mein-labor.de", OWN, False),
        ("HF_TOKEN@*", OWN, False),
        ("HF_TOKEN", OWN, False),
        ("@gpu.mein-labor.de", OWN, False),
        ("*", OWN, False),
        ("MY_HF_TOKEN@gpu.mein-labor.de", OWN, False),
        ("HF_TOKEN@gpu.mein-labor.de", "http://gpu.mein-labor.de/v1", False),  # for all on the way to read
        ("", OWN, False),
    ],
)
def test_the_user_may_allow_a_pair(allowed, server, good, monkeypatch):
    monkeypatch.setenv("NBUTILS_ALLOW_KEYS", allowed)
    if good:
        keys.check("HF_TOKEN", server)
    else:
        with pytest.raises(InputError):
            keys.check("HF_TOKEN", server)


def test_an_allowed_pair_needs_no_name_of_a_key(monkeypatch):
    monkeypatch.setenv("NBUTILS_ALLOW_KEYS", "AWS_SECRET_ACCESS_KEY@gpu.mein-labor.de")
    keys.check("AWS_SECRET_ACCESS_KEY", OWN)


@pytest.mark.parametrize(
    "server",
    ["http://gpu.example.org:8000/v1", "http://192.168.1.5/v1", "http://0.0.0.0:8000/v1", "http://127.1/v1",
     "http://2130706433/v1", "http://0x7f.0.0.1/v1", "http://localhost.evil.com/v1", "http://localhost.localdomain/v1",
     "http://127.0.0.1.evil.com/v1", "http://[::ffff:10.0.0.1]/v1", "HTTP://router.huggingface.co/v1"],
)  # fmt: skip
def test_a_key_is_not_sent_unencrypted_but_to_this_machine(server):
    with pytest.raises(
        InputError, match=r"^server: MY_TOKEN would go to .* unencrypted, for all on the way to read; use"
    ):
        keys.check("MY_TOKEN", server)
    keys.check("", server)


@pytest.mark.parametrize(
    "address",
    ["https://huggingface.co@evil.com/v1", "https://huggingface.co:443@evil.com/v1", "https://me:word@host/v1",
     "https://token@host/v1", "https://evil.com\\@huggingface.co/v1", "https://evil.com#@huggingface.co/v1",
     "https://host/v1?api_key=word", "https://host/v1?sig=abc", "https://host/v1?X-Amz-Signature=abc",
     "https://host/v1?api-version=1", "https://host/v1#token", "https://host/v1?", "https://host/v1#",
     "https://host /v1", " https://host/v1", "https://host/v1\n", "https://ho\tst/v1", "https://ho\0st/v1",
     "https:/host/v1", "https:host", "//host/v1", "host/v1", "ftp://host/v1", "file:///etc/passwd", "https://",
     "https:///v1", "https://.host/v1", "https://host./v1", "https://a..b/v1", "https://-host", "https://host:0/v1",
     "https://host:99999/v1", "https://host:http/v1", "https://host:/v1", "https://[::1/v1", "https://::1/v1",
     "https://huggingface。co/v1", "https://huggingfаce.co/v1", "https://huggingface.co%2eevil.com", "https://ho%73t",
     "https://host\u200b.co/v1", "https://" + "a" * 300 + "/v1", "", "unix:///tmp/socket", "javascript:alert(1)"],
)  # fmt: skip
def test_an_address_is_scheme_host_port_and_path_alone(address):
    with pytest.raises(
        InputError, match=r"^server: expected scheme, host, port and path alone, like http://127"
    ) as caught:
        keys.read_server(address)
    assert "word" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("engine", ["https://huggingface.co@evil.com/v1", "https://host/v1?key=1", "https://h./v1"])
def test_the_engine_of_02_is_such_an_address_too(engine):
    with pytest.raises(InputError, match=r"^engine: expected auto, vllm, transformers or a server's URL like"):
        check_name(engine)


def test_a_judge_file_is_refused_before_its_key_is_fetched(tmp_path):
    path = tmp_path / "mine.yaml"
    start = "kind: llm\nmodel: m\ntemplate: rating_en\n"
    path.write_text(f"{start}server: https://evil.com/v1\nkey_variable: HF_TOKEN\n")
    with pytest.raises(InputError, match=r"HF_TOKEN does not belong to evil\.com"):
        judges.key_variables([str(path)])
    path.write_text(f"{start}server: https://evil.com/v1#x\n")
    with pytest.raises(InputError, match="judge file mine: server: expected scheme, host, port and path alone"):
        judges.read_file(str(path))
    path.write_text(f"{start}server: {OWN}\nkey_variable: JUDGE_API_KEY\n")
    assert judges.key_variables([str(path), "rating_it", "verifier", ""]) == {"JUDGE_API_KEY", "HF_TOKEN"}


def ask(server, **options):
    engine = ApiEngine(server, "m", key_variable="MY_TOKEN", wait=0.001, **options)
    return list(engine.generate([engines.Request(({"role": "user", "content": "hi"},))], seed=0))


def test_a_request_carries_the_key_and_nothing_of_the_environment(monkeypatch):
    marked = {
        "OPENAI_API_KEY": "marked-other-key", "OPENAI_ADMIN_KEY": "marked-admin", "OPENAI_ORG_ID": "marked-org",
        "OPENAI_PROJECT_ID": "marked-project", "OPENAI_BASE_URL": "http://127.0.0.1:9/marked",
        "OPENAI_CUSTOM_HEADERS": "X-Marked: marked\nAuthorization: Bearer marked\nHost: marked\nCookie: marked",
        "HTTP_PROXY": "http://marked:word@127.0.0.1:9", "http_proxy": "http://marked:word@127.0.0.1:9",
        "ALL_PROXY": "http://marked:word@127.0.0.1:9",
    }  # fmt: skip
    for name, value in (marked | {"MY_TOKEN": KEY}).items():
        monkeypatch.setenv(name, value)
    with ChatServer() as server:
        assert len(ask(server.url)) == 1
    [headers] = server.headers
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert headers["Host"] == server.url.removeprefix("http://").removesuffix("/v1")
    assert {name.lower() for name in headers} <= {"host", "authorization", "content-type", "content-length", "accept",
                                                  "accept-encoding", "user-agent"}  # fmt: skip
    assert "marked-" not in str(headers)
    assert "linux" not in str(headers).lower()
