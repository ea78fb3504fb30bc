import math
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbutils.core import literals
from nbutils.core.errors import InputError
from nbutils.params import MODELS, names, read_overrides, template_kwargs, validate

EXAMPLES = {str: "x", int: 2, float: 0.5, bool: True}
SPECIAL = {
    "ties": "drop",
    "pair_strategy": "best_worst",
    "tuning": "lora",
    "sampling": "temperature: 0.8, max_tokens: 64",
    "chat_template_kwargs": "",
    "language": "it",
    "engine": "transformers",
}


def valid(stem):
    """Values that a stage accepts, by the type of each field."""
    return {
        name: SPECIAL.get(name, EXAMPLES.get(field.annotation, "x"))
        for name, field in MODELS[stem].model_fields.items()
    }


@pytest.mark.parametrize("stem", MODELS)
def test_good_values_are_taken_as_they_are(stem):
    values = valid(stem)
    assert validate(stem, values).model_dump() == values


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("learning_rate", "5e-7", "learning_rate is '5e-7': Input should be a valid number; write 5.0e-7, not 5e-7"),
        ("learning_rate", "0.1", "leave out the quotes"),
        ("learning_rate", 0.0, "learning_rate is 0.0: Input should be greater than 0"),
        ("learning_rate", True, "learning_rate is True"),
        ("learning_rate", None, "learning_rate is None"),
        ("epochs", math.inf, "epochs is inf"),
        ("epochs", math.nan, "epochs is nan"),
        ("on_policy_share", 1.5, "on_policy_share is 1.5"),
        ("seed", "1", "seed is '1'.*leave out the quotes"),
        ("seed", 1.0, "seed is 1.0"),
        ("seed", -1, "seed is -1"),
        ("max_pairs", 2.5, "max_pairs is 2.5"),
        ("run_dir", "", "run_dir is ''"),
        ("model", 7, "model is 7: Input should be a valid string"),
        ("tuning", "LoRA", "tuning is 'LoRA': Input should be 'lora', 'qlora' or 'full'"),
        ("sampling", "temprature: 1", "sampling is 'temprature: 1'.*unknown option 'temprature'"),
        ("sampling", "temperature: hot", "temperature is 'hot', expected a number"),
        ("sampling", "temperature: nan", "temperature is nan, expected 0 to 5"),
        ("sampling", "max_tokens: 0", "max_tokens is 0"),
        ("chat_template_kwargs", "enable_thinking", "chat_template_kwargs is 'enable_thinking'"),
        ("chat_template_kwargs", "a: [", r"chat_template_kwargs is 'a: \['"),
        ("learning_rat", 1e-5, "learning_rat is unknown .known: .*learning_rate"),
        (True, 1, "True"),
    ],
)
def test_a_wrong_parameter_is_named_with_its_value(name, value, fault):
    with pytest.raises(InputError, match=fault) as caught:
        validate("04_dpo", valid("04_dpo") | {name: value})
    assert "04_dpo, 1 wrong parameter(s): " in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("n_samples", 1, "n_samples is 1: Input should be greater than or equal to 2"),
        ("n_samples", 65, "n_samples is 65: Input should be less than or equal to 64"),
        (
            "sampling",
            "temperature: 0, max_tokens: 64",
            "sampling: temperature is 0, so all answers to a prompt would be the same; raise it",
        ),
        ("sampling", "top_k: 1", "sampling: top_k is 1, so all answers to a prompt would be the same; raise it"),
        ("sampling", "min_p: 0.1", "sampling: unknown option 'min_p'; known are temperature, top_p, max_tokens, top_k"),
        ("sampling", "temperature: -1", "sampling: temperature is -1.0, expected 0 to 5"),
        *(
            ("engine", name, "engine: expected auto, vllm, transformers or a server's URL like http://127.0.0.1")
            for name in ("vLLM", "transformer", "", "127.0.0.1:8000/v1", "http://", "ftp://server/v1")
        ),
    ],
)
def test_what_could_only_give_useless_samples_is_refused(name, value, fault):
    with pytest.raises(InputError) as caught:
        validate("02_sample", valid("02_sample") | {name: value})
    assert "02_sample, 1 wrong parameter(s): " in str(caught.value)
    assert fault in str(caught.value)


@pytest.mark.parametrize(
    "engine", ["auto", "vllm", "transformers", "http://127.0.0.1:8000/v1", "https://router.huggingface.co/v1"]
)
def test_an_engine_is_one_of_ours_or_a_server(engine):
    assert validate("02_sample", valid("02_sample") | {"engine": engine}).engine == engine


@pytest.mark.parametrize(
    ("eval_judge", "of"),
    [("", ["x", "x"]), ("a", ["a", "a"]), ("a, b", ["a", "b"]), ("a,a", ["a", "a"]), (" ,", ["x", "x"])],
)
def test_the_proof_has_one_judge_for_all_sets_or_one_for_each(eval_judge, of):
    given = validate("04_dpo", valid("04_dpo") | {"eval_prompts": "one.jsonl, two.jsonl", "eval_judge": eval_judge})
    assert given.proof_judges == of


@pytest.mark.parametrize("eval_judge", ["a, b", "a,b,c,d"])
def test_judges_that_are_not_as_many_as_the_sets_are_refused(eval_judge):
    values = valid("04_dpo") | {"eval_prompts": "one, two, three", "eval_judge": eval_judge}
    with pytest.raises(InputError, match=r"it names \d judges for 3 held-out sets; name one, or one for each"):
        validate("04_dpo", values)


def test_merged_weights_are_for_adapters_only():
    with pytest.raises(InputError, match="merge is True: full tuning saves whole weights anyway"):
        validate("04_dpo", valid("04_dpo") | {"tuning": "full"})
    assert not validate("04_dpo", valid("04_dpo") | {"tuning": "full", "merge": False}).merge


def test_the_proof_may_be_sampled_greedily():
    assert validate("04_dpo", valid("04_dpo") | {"sampling": "temperature: 0"}).options.temperature == 0


@pytest.mark.parametrize("language", ["IT", "ita", "it-IT", "italiano", " ", None])
def test_a_language_is_two_small_letters_or_none(language):
    assert validate("03_judge", valid("03_judge") | {"language": ""}).language == ""
    with pytest.raises(InputError, match="language is "):
        validate("03_judge", valid("03_judge") | {"language": language})


def test_every_fault_is_named_at_once():
    values = valid("02_sample") | {"n_samples": 1, "sead": 3, "seed": "3", "engine": ""}
    del values["model"]
    with pytest.raises(InputError) as caught:
        validate("02_sample", values)
    assert "5 wrong parameter(s)" in str(caught.value)
    for fault in ("n_samples is 1", "sead is unknown", "seed is '3'", "engine is ''", "model is missing"):
        assert fault in str(caught.value)


def test_a_checked_parameter_cannot_be_changed_afterwards():
    checked = validate("01_rerank", valid("01_rerank"))
    with pytest.raises(ValueError, match="frozen"):
        checked.seed = 3


@pytest.mark.parametrize(
    ("cells", "found"),
    [
        (['run_dir: str = "a"  # where\nseed: int = 1'], {"run_dir": "a", "seed": 1}),
        (['run_dir: str = "a"\nseed = 1'], {"run_dir": "a", "seed": 1}),
        (['run_dir: str = "a"', "# Parameters\nsead = 2\n"], {"run_dir": "a", "sead": 2}),
        (['run_dir: str = "a"', '# Parameters\nrun_dir = "b"\n', 'run_dir = "c"'], {"run_dir": "b"}),
        (["%matplotlib inline", "", 'run_dir: str = "a"', "other: int = 3\nx = 4"], {"run_dir": "a"}),
        (['run_dir: str = "a"\nold: int = 1', 'run_dir: str = "a"\nnew: int = 1'], {"run_dir": "a", "new": 1}),
        (['run_dir: str = "a"', '# Parameters\nrun_dir = "b"', 'run_dir: str = "a"'], {"run_dir": "a"}),
        ([], {}),
    ],
)
def test_the_values_are_those_of_the_parameter_cells_in_the_order_they_ran(cells, found):
    assert literals.given(cells) == found


def test_a_parameter_that_is_no_literal_is_named():
    with pytest.raises(InputError, match=r"seed is 1 \* x, expected a plain number or text"):
        literals.given(['run_dir: str = "a"\nseed: int = 1 * x'])


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"a: [", "is no YAML"),
        (b"- a\n- b\n", "expected 'name: value' lines, got a list"),
        (b"a: \xe9", "is not UTF-8"),
    ],
)
def test_overrides_that_are_no_parameters_are_refused(tmp_path, content, fault):
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=fault):
        read_overrides(path)


def test_overrides_are_read_and_an_empty_file_overrides_nothing(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("learning_rate: 5.0e-7\nmodel: org/è\n")
    assert read_overrides(path) == {"learning_rate": 5e-7, "model": "org/è"}
    path.write_text("# nothing\n")
    assert read_overrides(path) == {}


def test_template_arguments_have_their_yaml_types():
    assert template_kwargs("enable_thinking: false, effort: low, budget: 3") == {
        "enable_thinking": False,
        "effort": "low",
        "budget": 3,
    }
    assert template_kwargs("") == {}


@given(st.text())
def test_template_arguments_are_read_or_refused(text):
    with suppress(InputError):
        assert isinstance(template_kwargs(text), dict)


def test_names_are_split_at_commas():
    assert names(" a/b, c ,,") == ["a/b", "c"]
    assert names("") == []


def test_a_folder_and_a_lone_zero_are_no_parameters(tmp_path):
    with pytest.raises(InputError, match="is no regular file, it is a folder; name a file"):
        read_overrides(tmp_path)
    (tmp_path / "p.yaml").write_text("0")
    with pytest.raises(InputError, match="expected 'name: value' lines, got a int"):
        read_overrides(tmp_path / "p.yaml")


def test_a_value_python_cannot_make_is_named():
    with pytest.raises(InputError, match=r"seed is \{\[\]: 1\}, expected a plain number or text"):
        literals.given(["run_dir: str = 'r'\nseed: int = {[]: 1}"])
    assert literals.given(["\x00", "run_dir: str = 'r'"]) == {"run_dir": "r"}


ODD = ["a\nb", "a\0", "a\rb", "a\x1b[2J", "\x7f", "a\u2028b", "a\u202eb", "\u2066a", "\ud800", "x" * 5000, ""]


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("name", ["dataset", "split", "prompt_column", "judge", "run_dir"])
def test_a_name_is_one_line_without_control_characters(name, value):
    with pytest.raises(InputError, match=f"01_rerank, 1 wrong parameter.s.: {name} is ") as caught:
        validate("01_rerank", valid("01_rerank") | {name: value})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "value",
    ["perché/modello-è.jsonl", "un file con spazi.csv", "数据/データ", "a\u00a0b", "👩\u200d👧.csv", "x" * 4000],
)
def test_names_of_every_language_are_taken(value):
    assert validate("01_rerank", valid("01_rerank") | {"dataset": value}).dataset == value


def test_a_system_prompt_may_have_lines_but_only_characters():
    values = valid("02_sample")
    assert validate("02_sample", values | {"system_prompt": "Due righe.\n\tE poi."}).system_prompt
    for wrong in ("\0", "a\ud83d", "x" * 200_000):
        with pytest.raises(InputError, match="system_prompt is "):
            validate("02_sample", values | {"system_prompt": wrong})


@pytest.mark.parametrize(
    ("stem", "name", "value"),
    [
        ("01_rerank", "max_rows", 10**30), ("01_rerank", "max_rows", -1), ("01_rerank", "max_rows", True),
        ("02_sample", "max_prompts", 2**63), ("03_judge", "max_length_gap", 10**300), ("04_dpo", "max_pairs", 10**10),
        *((stem, "seed", seed) for stem in MODELS for seed in (2**32, -1, 10**300, True, 1.0)),
        *((stem, "time_budget_hours", hours) for stem in MODELS for hours in (math.nan, math.inf, -0.1, 1e9, True)),
        *(("04_dpo", "learning_rate", rate) for rate in (math.nan, math.inf, -math.inf, -1e-5, 1.0, 10**400)),
        *(("04_dpo", "beta", beta) for beta in (0.0, -1.0, math.nan, math.inf, 1e300)),
        *(("04_dpo", "epochs", epochs) for epochs in (0.0, 1e300, math.nan, 10**30)),
        ("01_rerank", "min_margin", math.nan), ("03_judge", "min_chosen", math.inf), ("02_sample", "n_samples", 10**9),
        *(("02_sample", "sampling", text) for text in (
            "temperature: 1, temperature: 0.5", "max_tokens: 1000000000000", "top_k: 10000001", "temperature: inf",
            "top_p: nan", f"max_tokens: {'9' * 5000}", "max_tokens: 1e9", "temperature: 0.8\0")),
        *(("02_sample", "chat_template_kwargs", text) for text in (
            "a: 1, a: 2", "a: &x 1", "a: *x", "a: !!python/none 1", f"a: {'[' * 1000}", "a: .inf", f"a: {'1' * 99}")),
    ],
)  # fmt: skip
def test_what_nobody_can_mean_is_refused_by_name(stem, name, value):
    with pytest.raises(InputError, match=rf"{stem}, 1 wrong parameter\(s\): {name} is ") as caught:
        validate(stem, valid(stem) | {name: value})
    assert len(str(caught.value)) < 400


def test_a_number_of_more_digits_than_python_prints_is_named():
    with pytest.raises(InputError, match=r"seed is .*: Input should be less than 4294967296"):
        validate("01_rerank", valid("01_rerank") | {"seed": 10**5000})
