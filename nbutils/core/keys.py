"""Which key may go to which server: a judge file of somebody else names both, and neither is to be trusted.

A key goes to the hosts of the service that its variable is named after, or where the user allowed it by name. Used for
judges and for a policy that a server samples.
"""

import ipaddress
import os
import re
from dataclasses import dataclass
from typing import Any

from nbutils import __version__
from nbutils.core import secrets
from nbutils.core.errors import InputError, shown

ALLOWED = "NBUTILS_ALLOW_KEYS"  # VARIABLE@host, comma-separated: pairs that the user allows
# whose key it is, by a word of the variable's name; a service that answers no chat has no host
_HUGGING_FACE = ("huggingface.co", "hf.co")
_HOSTS = {
    **dict.fromkeys(("HF", "HUGGING", "HUGGINGFACE", "HUGGINGFACEHUB"), _HUGGING_FACE),
    "OPENAI": ("openai.com", "openai.azure.com", "cognitiveservices.azure.com"),
    "AZURE": ("openai.azure.com", "cognitiveservices.azure.com", "services.ai.azure.com"),
    "ANTHROPIC": ("anthropic.com",),
    **dict.fromkeys(("GOOGLE", "GEMINI"), ("generativelanguage.googleapis.com", "aiplatform.googleapis.com")),
    **dict.fromkeys(("GITHUB", "GH"), ("models.github.ai",)),
    **dict.fromkeys(("NVIDIA", "NGC"), ("api.nvidia.com",)),
    "XAI": ("x.ai",),
    "TOGETHER": ("together.xyz", "together.ai"),
    **dict.fromkeys(("COHERE", "CO"), ("cohere.com", "cohere.ai")),
    "DASHSCOPE": ("dashscope.aliyuncs.com", "dashscope-intl.aliyuncs.com"),
    **{
        name: (host,)
        for name, host in {
            "MISTRAL": "mistral.ai", "OPENROUTER": "openrouter.ai", "GROQ": "groq.com", "DEEPSEEK": "deepseek.com",
            "FIREWORKS": "fireworks.ai", "CEREBRAS": "cerebras.ai", "SAMBANOVA": "sambanova.ai", "DEEPINFRA":
            "deepinfra.com", "PERPLEXITY": "perplexity.ai", "NEBIUS": "nebius.com", "NOVITA": "novita.ai",
            "HYPERBOLIC": "hyperbolic.xyz", "MOONSHOT": "moonshot.ai", "ZAI": "z.ai", "MINIMAX": "minimax.io",
            "SCALEWAY": "scaleway.ai",
        }.items()
    },
    **dict.fromkeys(("AWS", "KAGGLE", "GITLAB", "CI", "NPM", "PYPI", "DOCKER", "SLACK", "WANDB", "STRIPE"), ()),
}  # fmt: skip
# what the variable of a server of one's own is called
_OWN = ("MY", "JUDGE", "SERVER", "LLM", "VLLM")
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*_(?:API_KEY|TOKEN)")
_SERVER = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?|\[[0-9a-f:.]{2,45}\])(?::(?P<port>\d{1,5}))?"
    r"(?P<path>(?:/[\w.~!$'()*+,=:%-]*)*)",
    re.IGNORECASE | re.ASCII,
)


@dataclass(frozen=True)
class Server:
    """What matters of a server's address."""

    encrypted: bool
    host: str  # in small letters

    @property
    def local(self) -> bool:
        """Whether it can only be this machine."""
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host == "localhost"

    def belongs_to(self, domain: str) -> bool:
        """Return whether the host is a domain or lies below it."""
        return self.host == domain or self.host.endswith(f".{domain}")


def read_server(address: str) -> Server:
    """Read the base URL of a server.

    Raises:
        InputError: if it is none, or carries a user, a query or a fragment; without showing what may be a secret.
    """
    found = _SERVER.fullmatch(address)
    if not found or int(found["port"] or 1) not in range(1, 65536) or ".." in found["host"]:
        what = "it carries more than that" if re.search("[@?#]", address) else f"got {shown(address)}"
        raise InputError(
            f"server: expected scheme, host, port and path alone, like http://127.0.0.1:8000/v1, {what}; a key belongs "
            "into an environment variable, which `key_variable` in a judge file names"
        )
    return Server(found["scheme"].lower() == "https", found["host"].lower())


def check(variable: str, address: str) -> None:
    """Check that a key may go to a server, by the names of both; an empty variable is no key.

    Raises:
        InputError: if the address is none, the variable is not named like a key's or belongs to another host, or
            anybody on the way could read the key.
    """
    server = read_server(address)
    if not variable:
        return
    allowed = {pair.strip() for pair in os.environ.get(ALLOWED, "").split(",")}
    allow = f"if it really should go there, set {ALLOWED}={variable}@{server.host} in the environment"
    if not server.encrypted and not server.local:
        raise InputError(
            f"server: {variable} would go to {server.host} unencrypted, for all on the way to read; use https, or a "
            "tunnel to 127.0.0.1"
        )
    if f"{variable}@{server.host}" in allowed:
        return
    if not _VARIABLE.fullmatch(variable):
        raise InputError(
            f"key_variable: expected the name of a variable that ends in _API_KEY or _TOKEN, got {shown(variable)}; "
            f"{allow}"
        )
    words = variable.split("_")
    known = [word for word in words if word in _HOSTS]
    if known:
        good = any(server.belongs_to(domain) for word in known for domain in _HOSTS[word])
    else:
        good = server.local or words[0] in _OWN or words[0].lower() in server.host.split(".")[-2:-1]
    if not good:
        raise InputError(
            f"key_variable: {variable} does not belong to {server.host}; {allow}, or keep the key for it in a variable "
            "of its own like MY_SERVER_API_KEY"
        )


def read_key(variable: str, address: str) -> str:
    """Return the key to send to a server, `none` for one that wants none.

    Raises:
        InputError: as `check`, or if the variable is not set or cannot be sent.
    """
    check(variable, address)
    key = os.environ.get(variable, "").strip() if variable else "none"  # pasted with the end of its line
    if not (key.isascii() and key.isprintable()):  # the client's own error would show it
        raise InputError(f"{variable} holds a character that no token has; copy the token once more")
    if not key:
        raise InputError(
            f"the server {address} wants a token and {variable} is not set; set it in the environment "
            "(on Kaggle: add it as a secret and attach it to the notebook)"
        )
    if variable:
        secrets.register(key)
    return key


def alone(address: str, key: str) -> dict[str, Any]:
    """Return options of an HTTP client that sends the key and all requests to this server, and no more than them.

    Proxies of the environment are used where the connection is encrypted; what is for this machine stays on it.
    """

    async def bare(request: Any) -> None:
        """Leave out what `openai` takes from variables of its own: organisation, project, headers, this machine."""
        kept = {
            name: request.headers[name] for name in ("Content-Length", "Accept-Encoding") if name in request.headers
        }
        request.headers.clear()
        request.headers.update(
            kept
            | {
                "Host": request.url.netloc.decode(),
                "Authorization": f"Bearer {key}",
                "Content-Type": "application/json",
                "Accept": "application/json",
                "User-Agent": f"nbutils/{__version__}",
            }
        )

    encrypted = read_server(address).encrypted
    return {"follow_redirects": False, "trust_env": encrypted, "event_hooks": {"request": [bare]}}
