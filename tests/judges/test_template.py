"""judges/template.py: what a template declares, and that text in a slot stays text."""

from importlib import resources

import pytest

from nbutils.core.errors import InputError
from nbutils.judges.template import Template, read_template

HEAD = "---\nreply: json\nscale: [1, 5]\n---\n"
BODY = "<<{nonce}>> {prompt} {responses} {format}"


@pytest.fixture
def mine(tmp_path):
    """Write a template; return its path."""

    def write(content):
        (tmp_path / "mine.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(tmp_path / "mine.txt")

    return write


KIT = {
    "rating_en": ("json", 1, 5),
    "rating_it": ("json", 1, 5),
    "reference_en": ("json", 1, 5),
    "reference_it": ("json", 1, 5),
    "verdict_en": ("verdict", 1, 5),
    "verdict_it": ("verdict", 1, 5),
}


def test_the_templates_of_the_kit_declare_how_the_judge_replies_and_on_which_scale():
    names = {p.name.removesuffix(".txt") for p in (resources.files("nbutils") / "templates").iterdir()}
    read = {name: read_template(name) for name in names}
    assert {name: (t.reply, t.low, t.high) for name, t in read.items()} == KIT


@pytest.mark.parametrize("name", KIT)
def test_a_template_of_the_kit_shows_everything_judged_between_markers(name):
    text = read_template(name).text
    assert "<<{nonce}>>" in text.split("{prompt}")[0], "told of the markers that the prompt and each response bring"
    assert text.index("<<{nonce}>>") < text.index("{prompt}") < text.index("{responses}")
    assert not text.startswith("---")


@pytest.mark.parametrize(
    ("head", "reply", "low", "high"),
    [("reply: json\nscale: [0, 9]", "json", 0, 9), ("reply: rating\nscale: [1, 10]", "rating", 1, 10)],
)
def test_an_own_file_works_by_its_path(mine, head, reply, low, high):
    body = 'Reply like {format}, not {"score": 1}: <<{nonce}>> {prompt} {responses}'
    assert read_template(mine(f"---\n{head}\n---\n{body}")) == Template(body, reply, low, high)


def test_an_own_file_may_come_from_windows(mine):
    content = b"\xef\xbb\xbf" + (HEAD + BODY).replace("\n", "\r\n").encode()
    assert read_template(mine(content)).text == BODY


def test_a_verdict_needs_no_slot_for_its_format(mine):
    assert read_template(mine("---\nreply: verdict\n---\n{nonce} {prompt} {responses}")).reply == "verdict"


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("{nonce} {prompt} {responses}", r"missing slot \{format\}$"),
        ("{nonce} {responses} {format}", r"missing slot \{prompt\}$"),
        ("{format} {count}", r"missing slot \{nonce\}, \{prompt\}, \{responses\}$"),
        (BODY + " {promt} {scale}", r"unknown slot \{promt\}, \{scale\}; known are count, format, nonce, "),
        (BODY + " {response_1}", r"unknown slot \{response_1\}; "),
        (BODY + " {Prompt}", r"unknown slot \{Prompt\}; "),
    ],
)
def test_missing_and_unknown_slots_are_named(mine, body, fault):
    with pytest.raises(InputError, match=rf"template \S+mine.txt: {fault}"):
        read_template(mine(HEAD + body))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (BODY, "expected a head between two lines '---' with `reply` and `scale`"),
        ("", "expected a head"),
        (f"---\n---\n{BODY}", "expected a head"),
        (f"---\nreply: json\nscale: [1, 5]\n{BODY}", "expected a head"),
        (f"---\n# nothing\n---\n{BODY}", "head: "),
        (f"---\n- json\n---\n{BODY}", "head: "),
        (f"---\nscale: [1, 5]\n---\n{BODY}", "reply: Field required"),
        (f"---\nreply: xml\nscale: [1, 5]\n---\n{BODY}", "reply: .*'json', 'rating' or 'verdict'"),
        (f"---\nreply: json\nscale: [1, 5]\nscales: 2\n---\n{BODY}", "scales: Extra inputs"),
        (f"---\nreply: json\n---\n{BODY}", "reply json takes a scale, e.g"),
        (f"---\nreply: rating\n---\n{BODY}", "reply rating takes a scale, e.g"),
        (f"---\nreply: verdict\nscale: [1, 5]\n---\n{BODY}", "reply verdict takes no scale"),
        (f"---\nreply: json\nscale: [5, 1]\n---\n{BODY}", "scale: .*the first number should be below the second"),
        (f"---\nreply: json\nscale: [1, 1]\n---\n{BODY}", "scale: .*the first number should be below the second"),
        (f"---\nreply: json\nscale: [1, 5.5]\n---\n{BODY}", "scale.1: "),
        (f"---\nreply: json\nscale: [1, 2, 3]\n---\n{BODY}", "scale: "),
        (f"---\nreply: json\nscale: 5\n---\n{BODY}", "scale: "),
        (f"---\nreply: [json\n---\n{BODY}", "its head is no YAML"),
        (b"---\nreply: verdict\n---\nperch\xe9 {nonce} {prompt} {responses}", "is not UTF-8"),
    ],
)
def test_a_faulty_file_is_refused_in_one_line_that_names_it(mine, content, fault):
    with pytest.raises(InputError, match=rf"\Atemplate \S+mine.txt:? [^\n]*{fault}[^\n]*\Z"):
        read_template(mine(content))


def test_a_name_that_is_no_template_is_refused():
    with pytest.raises(InputError, match="template: 'ratin_en' is neither a file nor a template of the kit"):
        read_template("ratin_en")


def test_text_in_a_slot_is_never_expanded_a_second_time():
    values = {"prompt": "{responses}", "responses": "{nonce} {format} {0} {prompt}", "nonce": "NONCE"}
    assert Template("{nonce}: {prompt} | {responses}", "json", 1, 5).fill(values) == (
        "NONCE: {responses} | {nonce} {format} {0} {prompt}"
    )


@pytest.mark.parametrize(
    ("reply", "shown"),
    [
        ("json", '{"feedback_1": "...", "score_1": <3-7>, "feedback_2": "...", "score_2": <3-7>}'),
        ("rating", "[[3-7]]\n[[3-7]]"),
        ("verdict", "[[A>>B]], [[A>B]], [[A=B]], [[B>A]] or [[B>>A]]"),
    ],
)
def test_the_reply_to_show_holds_every_response(reply, shown):
    assert Template("", reply, 3, 7).skeleton(2) == shown


def test_a_server_is_asked_to_allow_nothing_but_the_levels_feedback_first():
    schema = Template("", "json", 2, 4).schema(1)["json_schema"]["schema"]
    assert list(schema["properties"].items()) == [
        ("feedback_1", {"type": "string"}),
        ("score_1", {"type": "integer", "enum": [2, 3, 4]}),
    ]
    assert (schema["required"], schema["additionalProperties"]) == (["feedback_1", "score_1"], False)
    assert [Template("", reply, 1, 5).schema(2) for reply in ("rating", "verdict")] == [None, None]


@pytest.mark.parametrize(
    ("head", "fault"),
    [
        ("reply: json\nscale: [1, 1000000000000]", "a scale has at most 1,001 levels"),
        ("when: 2001-99-99", "when: Extra inputs"),
    ],
)
def test_a_head_that_cannot_be_meant_is_refused(tmp_path, head, fault):
    (tmp_path / "any.txt").write_text(f"---\n{head}\n---\n{{nonce}}{{prompt}}{{responses}}{{format}}")
    with pytest.raises(InputError, match=fault):
        read_template(str(tmp_path / "any.txt"))
