"""The engine that a parameter names; one that runs a model loads torch only here."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nbutils.core.errors import InputError
from nbutils.core.sampling import ENGINES, check_name
from nbutils.engines.protocol import Engine
from nbutils.files import sources

log = logging.getLogger(__name__)


def load(
    name: str,
    model: str,
    *,
    cache: Path,
    adapter: str = "",
    chat_template_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> Engine:
    """Return the engine a parameter names: `transformers`, `vllm`, or the URL of an OpenAI-compatible server.

    `auto` is vLLM where it can run, found out by starting it, otherwise transformers; the reason is logged.

    Args:
        cache: folder for converted models.
        options: what only one engine takes: batch_size and four_bit of transformers, workers of vLLM, limits of
            `api.ApiEngine`.

    Raises:
        InputError: if the name is none of these, or the engine cannot run here.
    """
    check_name(name)
    adapter = sources.located(adapter)
    options |= {"chat_template_kwargs": dict(chat_template_kwargs or {})}
    if name not in ENGINES:
        if adapter:
            raise InputError(
                "adapter: a server samples the model it was started with; start it with the adapter instead"
            )
        from nbutils.engines.api import ApiEngine

        return ApiEngine(name, model, **options)
    if name in ("auto", "vllm"):
        from nbutils.engines.vllm import VllmEngine

        try:
            engine = VllmEngine(model, cache=cache, adapter=adapter, **_without(options, "batch_size"))
            if name == "vllm":
                return engine
            engine.start()
            log.info("engine: vllm %s on %s", engine.version, engine.device.reason)
            return engine
        except InputError as error:
            if name == "vllm":
                raise
            log.info("engine: transformers, because %s", error)
    from nbutils.engines.local import TransformersEngine
    from nbutils.models.preflight import pick_device

    return TransformersEngine(model, device=pick_device(), cache=cache, adapter=adapter, **options)


def _without(options: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != name}
