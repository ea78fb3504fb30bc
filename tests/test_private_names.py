"""Names of other libraries that they do not promise to keep: each is in the table, and one that is gone is named."""

import ast
import importlib
import inspect
import re
from importlib.metadata import version

import pytest
from packaging.requirements import Requirement

from nbutils.files.sources import CHECKOUT

# module, name in it, and which module of ours would fail or do something else without it
TABLE = [
    ("accelerate.state", "AcceleratorState._shared_state", "nbutils.training.settings"),
    ("accelerate.state", "GradientState._shared_state", "nbutils.training.settings"),
    ("accelerate.state", "PartialState._shared_state", "nbutils.training.settings"),
    ("accelerate.utils", "broadcast_object_list", "nbutils.training.reference, nbutils.training.loop"),
    ("accelerate.utils", "gather_object", "nbutils.training.reference"),
    ("huggingface_hub.hf_api", "RepoFile", "nbutils.files.hub"),
    ("huggingface_hub.utils", "validate_repo_id", "nbutils.files.hub, nbutils.proof.card"),
    ("if_verifiable.common", "evaluate_instructions", "nbutils.judges.verifier"),
    ("if_verifiable.ifeval.instructions_registry", "INSTRUCTION_DICT", "nbutils.judges.verifier"),
    ("nbconvert.filters.markdown_mistune", "IPythonRenderer", "tools.lessons"),
    ("nbconvert.filters.markdown_mistune", "MarkdownWithMath", "tools.lessons"),
    ("papermill.iorw", "load_notebook_node", "tools.kaggle"),
    ("papermill.iorw", "write_ipynb", "tools.kaggle"),
    ("papermill.parameterize", "parameterize_notebook", "tools.kaggle"),
    ("peft.helpers", "disable_input_dtype_casting", "nbutils.training.simulate"),
    ("py3langid.langid", "LanguageIdentifier", "nbutils.core.texts"),
    ("py3langid.langid", "MODEL_FILE", "nbutils.core.texts"),
    ("torch", "UntypedStorage._cdata", "nbutils.training.simulate"),
    ("torch", "ops.aten._local_scalar_dense.default", "nbutils.training.simulate"),
    ("torch._subclasses.fake_tensor", "FakeTensorMode", "nbutils.training.simulate"),
    ("torch.utils._python_dispatch", "TorchDispatchMode", "nbutils.training.simulate"),
    ("torch.utils._pytree", "tree_leaves", "nbutils.training.simulate"),
    ("transformers", "Trainer._load_from_checkpoint", "nbutils.training.loop"),
    ("transformers", "Trainer._prepare_inputs", "nbutils.training.reference"),
    ("transformers", "Trainer._save", "nbutils.training.patches"),
    ("transformers", "Trainer._save_rng_state", "nbutils.training.patches"),
    ("transformers", "Trainer.get_optimizer_cls_and_kwargs", "nbutils.training.settings"),
    ("transformers.quantizers.base", "get_keys_to_not_convert", "nbutils.training.simulate"),
    ("transformers.quantizers.quantizers_utils", "should_convert_module", "nbutils.training.simulate"),
    ("transformers.training_args", "OptimizerNames", "nbutils.training.settings"),
    ("trl", "DPOTrainer._precompute_ref_logps", "nbutils.training.patches"),
    ("trl", "DPOTrainer._prepare_dataset", "nbutils.training.simulate"),
    ("trl", "DPOTrainer.compute_ref_log_probs", "nbutils.training.reference"),
    ("trl.kernels", "ChunkedLogProbFunction.backward", "nbutils.training.simulate"),
    ("trl.kernels", "ChunkedLogProbFunction.forward", "nbutils.training.simulate"),
    ("trl.kernels.chunked_logprob", "_addmm_fp32", "nbutils.training.simulate"),
    ("trl.kernels.chunked_logprob", "_backward_tile", "nbutils.training.simulate"),
    ("trl.kernels.chunked_logprob", "_forward_tile", "nbutils.training.simulate"),
    ("trl.trainer.dpo_trainer", "hash_module", "nbutils.training.patches"),
    ("trl.trainer.utils", "_use_triton", "nbutils.training.patches"),
]
# vllm's stands in an environment of its own (make test-vllm); a config's own commit is looked up with a default
ELSEWHERE = {"LoRARequest", "_commit_hash", "_name_or_path"}
# with each library's first minor version that was never tried: what is private may be gone there
UNTRIED = {
    "transformers": "5.24.0", "trl": "1.17.0", "peft": "0.22.0", "accelerate": "1.16.0", "datasets": "5.3.0",
    "huggingface_hub": "2.5.0", "papermill": "2.8.0", "if-verifiable": "0.2.0", "py3langid": "0.5.0",
}  # fmt: skip
FILES = sorted([*(CHECKOUT / "nbutils").rglob("*.py"), *(CHECKOUT / "tools").rglob("*.py")])


@pytest.mark.parametrize(("module", "name", "used_in"), TABLE, ids=lambda value: value)
def test_a_private_name_is_still_there(module, name, used_in):
    place = importlib.import_module(module)
    for part in name.split("."):
        assert hasattr(place, part), f"{module}.{name} is gone, which {used_in} uses"
        place = getattr(place, part)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("_precompute_ref_logps", ["self", "dataset", "name", "batch_size"]),
        ("_save", ["self", "output_dir", "state_dict"]),
        ("_save_rng_state", ["self", "output_dir"]),
        ("_load_from_checkpoint", ["self", "resume_from_checkpoint"]),
    ],
)
def test_a_private_method_that_is_replaced_takes_what_it_took(name, parameters):
    from trl import DPOTrainer

    assert list(inspect.signature(getattr(DPOTrainer, name)).parameters)[: len(parameters)] == parameters


def private_names():
    """What nbutils touches with a leading underscore and does not define: attributes, texts that name one, imports."""
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in FILES]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    own |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    own |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    own |= {node.target.id for node in nodes if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}
    found = {node.attr for node in nodes if isinstance(node, ast.Attribute)} - own
    found |= {
        call.func.attr
        for call in nodes
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and "super()" in ast.unparse(call.func)
    }
    quoted = {"getattr", "patch.object"}
    found |= {
        arg.value
        for call in nodes
        if isinstance(call, ast.Call) and ast.unparse(call.func) in quoted
        for arg in call.args
        if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
    }
    imported = [node for node in nodes if isinstance(node, ast.ImportFrom) and "._" in f".{node.module}"]
    found |= {alias.name for node in imported for alias in node.names if not (node.module or "").startswith("nbutils")}
    public = {"_asdict", "_fields", "_exit"}  # documented in spite of their underscore
    return {
        n for n in found if not re.fullmatch(r"__\w+__", n) and (n.startswith("_") or n in _from(imported))
    } - public


def _from(imported):
    return {alias.name for node in imported for alias in node.names} - {"annotations"}


@pytest.mark.parametrize(("module", "name", "used_in"), TABLE, ids=lambda value: value)
def test_the_table_says_where_a_private_name_is_used(module, name, used_in):
    last = name.rpartition(".")[2] if not name.startswith(("ops.", "Chunked")) else name.rpartition(".")[0]
    for place in used_in.split(", "):
        text = (CHECKOUT / f"{place.replace('.', '/')}.py").read_text(encoding="utf-8")
        assert last in text, f"{place} does not touch {name}"


def test_every_private_name_that_the_package_touches_is_in_the_table():
    known = {part for _, name, _ in TABLE for part in name.split(".")} | ELSEWHERE
    assert private_names() - known == set()
    assert {"_shared_state", "_cdata", "_save_rng_state", "FakeTensorMode"} <= private_names()  # the search finds some


def test_the_requirements_stop_before_what_was_never_tried_and_leave_kaggles_torch_alone():
    lines = (CHECKOUT / "requirements.txt").read_text().splitlines()
    needs = {r.name: r.specifier for r in map(Requirement, (line for line in lines if line and line[0] != "#"))}
    for name, untried in UNTRIED.items():
        assert untried not in needs[name], f"requirements.txt lets {name} {untried} in"
        assert version(name) in needs[name]
    assert [v for v in ("2.9.0", "2.10.0", "2.13.0", "2.14.0") if v in needs["torch"]] == ["2.10.0", "2.13.0", "2.14.0"]
