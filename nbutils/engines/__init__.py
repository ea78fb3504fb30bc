"""What turns messages into text: the policy, a local judge, a judge over the network; and the store of all replies.

Engines: `transformers` in this process, on any GPU or CPU; `vllm` in worker processes, one per GPU; or the URL of an
OpenAI-compatible server. All are used through `answer`, which asks nothing twice.
"""

from nbutils.core.sampling import Sample, Sampling
from nbutils.engines.asking import answer
from nbutils.engines.loading import load
from nbutils.engines.protocol import Engine, Reply, Request
from nbutils.engines.store import Store

__all__ = ["Engine", "Reply", "Request", "Sample", "Sampling", "Store", "answer", "load"]
