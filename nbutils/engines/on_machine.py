"""What the engines that run a model on this machine have in common."""

from collections.abc import Mapping
from typing import Any

from nbutils import models
from nbutils.engines.protocol import Engine, Tally
from nbutils.models import weights


class OnMachine(Engine):
    """An engine with the model's tokenizer at hand."""

    def _set_up(self, model: str, path: str, adapter: str, template: Mapping[str, Any] | None) -> str:
        """Look at model and adapter, load the tokenizer, and begin the identity; return the adapter's folder.

        Args:
            model: as the user named it.
            path: its folder.
            template: arguments of the chat template, e.g. {"enable_thinking": False}.

        Raises:
            InputError: if the model has no tokenizer for chats, or the adapter was trained on another base.
        """
        adapter = models.check_adapter(path, adapter) if adapter else ""
        self.tokenizer = models.load_tokenizer(path)
        self.context = models.context_length(path)
        self.stop_ids = models.stop_ids(path, self.tokenizer)
        self.special_tokens = models.special_tokens(self.tokenizer)
        self.chat_template_kwargs = dict(template or {})
        self.tally = Tally()
        self.identity = {
            "model": weights.plain(model),
            "weights": models.weights_digest(path),
            "adapter": models.weights_digest(adapter) if adapter else "",
            "chat_template_kwargs": self.chat_template_kwargs,
        }
        return adapter
