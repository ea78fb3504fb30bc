import string
import subprocess
import sys
import time

import pytest
from builders import real
from hypothesis import example, given
from hypothesis import strategies as st

from nbutils.core.texts import language, loops

# real-looking cases; each loop is what a small model was seen to do
LOOPS = {
    "sentence": "Roma è una città molto bella. " * 8,
    "sentence at the end": "Il Po nasce dal Monviso e attraversa la pianura. " + "È un fiume molto lungo. " * 12,
    "sentence in the middle": "Certo! " + "È un fiume molto lungo. " * 12 + "Spero di esserti stato utile, a presto.",
    "numbered list": "\n".join(f"{i}. Parla in modo calmo e rilassato." for i in range(1, 11)),
    "two items in turn": "- Ruler\n- Pen\n" * 15,
    "one word": "Le domande sono tre" + ", ma" * 60,
    "one letter": "q\n" * 300,
    "one word without spaces": "ha" * 100,
    "exclamation marks, as from a number format that overflows": "!" * 400,
    "emoji": "Ciao 😀" + "😀" * 200,
    "paragraph": ("First we preheat the oven to 180 degrees. Then we butter the tin.\n\nNext, mix the flour.\n\n") * 5,
    "hashtags": "Summer is here! " + "#GameDevTools " * 20,
    "JSON that never closes": '{"skills": [' + '"Perception", "Survival", "Deception", ' * 8,
    "Chinese without spaces": "宇宙的扩张" * 40,
    "a unit that holds a repetition itself": "I love you so much, my dear. I love you so much, my dear friend. " * 12,
    "case and punctuation change": "Never again. NEVER AGAIN! never, again; Never again... " * 6,
}

SOUND = {
    "empty": "",
    "short": "No, no, no, no, no!",
    "refrain": "\n".join(
        f"{verse}\nOh che bel castello, marcondirondirondello,\noh che bel castello, marcondirondirondà.\n"
        for verse in (
            "Il nostro è ancor più bello,",
            "E noi lo bruceremo,",
            "E noi lo spegneremo,",
            "E noi lo rifaremo,",
        )
    ),
    "chorus of four": "Let it be, let it be, let it be, let it be.\nWhisper words of wisdom, let it be.\n",
    "list with one stem": "\n".join(
        f"- Come {verb} il tuo tempo in modo più efficace"
        for verb in ("gestire", "misurare", "usare", "dividere", "pianificare", "proteggere", "investire", "valutare")
    ),
    "days": "\n".join(f"Day {i}: rest and eat." for i in range(1, 15)),
    "chapters": "\n".join(f"Chapter {i}" for i in range(1, 40)),
    "counting": ", ".join(map(str, range(1, 200))),
    "table of zeros": "\n".join("| 0 | 0 | 0 | 0 |" for _ in range(40)),
    "table": "| nome | età |\n|---|---|\n" + "\n".join(f"| {n} | {len(n)} |" for n in string.ascii_lowercase),
    "rule": "Titolo\n" + "=" * 200 + "\n" + "- " * 200,
    "form to fill in": "Project Name:\nProject Description:\nTechnologies Used:\n\n" * 3,
    "code": "\n".join(f"if x == {i}:\n    return values[{i}] + offset" for i in range(10)),
    "multiplication": "\n".join(f"7 x {i} = {7 * i}" for i in range(1, 30)),
    "said twice": "Il Po è il fiume più lungo d'Italia e attraversa quattro regioni del Nord prima del delta. " * 2,
    "three copies": "Dutch is also used in many fields, such as science, technology and business. " * 3,
}


@pytest.mark.parametrize("text", LOOPS.values(), ids=LOOPS)
def test_a_text_that_repeats_itself_without_end_loops(text):
    assert loops(text)


@pytest.mark.parametrize("text", SOUND.values(), ids=SOUND)
def test_lists_refrains_tables_and_short_texts_do_not_loop(text):
    assert not loops(text)


@given(st.text(st.characters(exclude_categories=["Nd"]), max_size=40).filter(lambda t: any(map(str.isalpha, t))))
@example("```a")
@example("a\u0301ß ")
def test_whatever_holds_a_letter_loops_when_it_is_said_often_enough(text):
    assert loops(text * 200)
    assert loops(f"Certo, ecco la risposta: {text * 200}")


@given(st.text(st.characters()))  # lone surrogates included
@example("\ud83d" * 60)
@example("`" * 60)
def test_any_text_is_told_about_without_an_error_and_always_the_same(text):
    assert loops(text) == loops(text)
    assert language(text) == language(text)
    assert language(text) == "" or len(language(text)) == 2


@pytest.mark.parametrize(
    "text",
    ["".join(chr(97 + i * i % 23) for i in range(100_000)), "\n" * 100_000, "1. \n" * 25_000, "` " * 50_000],
    ids=["letters", "lines", "numbers", "ticks"],
)
def test_a_hundred_thousand_characters_take_no_longer_than_their_share(text):
    start = time.process_time()
    loops(text)
    language(text)
    assert time.process_time() - start < 5  # 0.1 s where it was measured; something quadratic takes minutes


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Il Po nasce dal Monviso, attraversa la pianura e sfocia nel mare Adriatico.", "it"),
        ("The river rises in the Alps, crosses the plain and reaches the sea near Venice.", "en"),
        ("El río nace en los Alpes, atraviesa la llanura y desemboca en el mar cerca de Venecia.", "es"),
        ("Der Fluss entspringt in den Alpen und mündet bei Venedig in das Meer.", "de"),
        ("Il Po nasce dal Monviso.", ""),
        ("", ""),
        (
            "Ecco il codice che hai chiesto, con una breve spiegazione:\n```\nfor the in range(of): print(this)\n```",
            "it",
        ),
        ("```\nThis is only a comment in some code that never ends and is in English", ""),
        ("https://en.wikipedia.org/wiki/The_longest_rivers_of_the_world_by_length", ""),
        ('{"iPhone": 8.5, "Samsung Galaxy": 8.3, "Google Pixel": 7.8}', ""),
        ("1234567890 " * 10, ""),
    ],
)
def test_the_language_is_told_of_prose_that_is_long_enough(text, code):
    assert language(text) == code


@given(st.sampled_from([*LOOPS.values(), *SOUND.values()]), st.text(" \n\t\r"))
def test_blanks_at_the_end_change_no_language(text, blanks):
    assert language(text + blanks) == language(text)


@pytest.mark.parametrize("length", [40, 41])
def test_nothing_is_told_of_forty_characters(length):
    text = "Il Po nasce dal Monviso e sfocia nel mare"[:length]
    assert len(text) == length
    assert bool(language(text)) == (length > 40)


def test_the_detector_is_loaded_when_it_is_first_needed():
    code = "import nbutils.core.texts, sys; sys.exit('py3langid' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("prompts/ifeval_it_541.jsonl", "prompt"),
        ("prompts/vicuna_it_80.jsonl", "text"),
        ("prompts/vicuna_it_100_other.jsonl", "query"),
    ],
)
def test_real_italian_prompts_are_told_to_be_italian(name, column):
    told = [language(row[column]) for row in real(name) if len(row[column].strip()) > 40]
    assert told.count("it") / len(told) >= 0.98
    assert set(told) <= {"it", ""}, "what cannot be told is kept, what is told is right"


def test_real_answers_in_italian_are_never_taken_for_another_language():
    rows = real("preferences/shroom_it_pairs_267.jsonl.gz")
    # 16 answers are in English, read one by one, most of them abstracts under an Italian question
    texts = [row[side].strip() for row in rows for side in ("chosen", "rejected")]
    told = [language(text) for text in texts if len(text) > 40]
    assert (told.count("en"), set(told) - {"it", "en", ""}) == (16, set())
    assert told.count("it") / (len(told) - 16) >= 0.98


def test_real_answers_in_english_are_told_to_be_english():
    texts = [s["output"] for row in real("samples/falcon7b_100x5.jsonl.gz") for s in row["samples"]]
    told = [language(text) for text in texts if len(text.strip()) > 40]
    # five Spanish answers to a Spanish question, five to a Hebrew one
    assert {code: told.count(code) for code in set(told) - {"en", ""}} == {"es": 5, "he": 5}
    assert told.count("en") / (len(told) - 10) >= 0.98


@pytest.mark.parametrize(
    ("name", "columns", "others"),
    [
        # read: six answers to two requests for a translation into French
        ("preferences/pandalm_999.json", ("response1", "response2"), {"fr": 6}),
        ("preferences/mtbench_human_200.json", ("output_1", "output_2"), {}),
    ],
)
def test_whatever_language_is_told_of_a_real_english_answer_is_right(name, columns, others):
    texts = [row[column] for row in real(name) for column in columns if isinstance(row[column], str)]
    told = [language(text) for text in texts if len(text.strip()) > 40]
    assert {code: told.count(code) for code in set(told) - {"en", ""}} == others
    # what cannot be told, by a look at forty of them, is lists of names, tables, forms, JSON and code
    assert told.count("en") / len(told) >= 0.83


def test_of_real_answers_only_those_that_loop_are_said_to():
    falcon = [s["output"] for row in real("samples/falcon7b_100x5.jsonl.gz") for s in row["samples"]]
    italian = [row[s] for row in real("preferences/shroom_it_pairs_267.jsonl.gz") for s in ("chosen", "rejected")]
    people = [row[s] for row in real("preferences/mtbench_human_200.json") for s in ("output_1", "output_2")]
    assert not any(map(loops, falcon)), "read: none of them loops"
    assert [text[-12:] for text in italian if loops(text)] == [", ma, ma, ma"]
    # read: seven different answers, each of which says the same until it is cut off or its list is full
    starts = ("Gross dom", "Here is t", "Machine l", "Exothermi", "The react", "Thomas is", "The Alps ")
    assert {text[:9] for text in people if loops(text)} == set(starts)
    by_model = {}
    for row in real("samples/ifeval_en_3models.jsonl.gz"):
        by_model.setdefault(row["model"], []).append(loops(row["response"]))
    # read: all but one are loops; that one is a rap which says "it's a scam" twelve times and goes on
    assert {name.partition("__")[2][:12]: sum(hits) for name, hits in by_model.items()} == {
        "Qwen2.5-1.5B": 61,
        "Qwen2.5-7B-I": 8,
        "aya-23-8B": 11,
    }
