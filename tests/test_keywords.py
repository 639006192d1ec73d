"""The keyword lists and the fast search, against MMedLM's rule written down plainly and against real text."""

import csv
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lib import filters, sources, world

EXAMS = {"ja": ("igakuqa", "2018"), "ru": ("rumeddanet", "train"), "fr": ("frenchmedmcqa", "validation"), "es": ("headqa", "validation_es")}
SPACES = "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2009\u2028\u2029\u202f\u205f\u3000"
WORDS = ("anan", "ananananana", "pain", "chest pain", "a", "heart failure", "heart", "treatmentment", "İstanbul fever", "сердце", "сердечного", "x y",
         "血压", "高血压", "压高血压高")

SCRIPT = {"en": "A-Za-zÀ-ɏ", "fr": "A-Za-zÀ-ɏ", "es": "A-Za-zÀ-ɏ", "ru": "Ѐ-ӿ", "zh": "㐀-鿿", "ja": "ぁ-ヿ㐀-鿿々"}


def is_long(word, language):
    return language in ("zh", "ja") or len(word) > 10 or (len(word) > 5 and len(word.split()) > 1)


def published_hits(text, language, keywords):
    """MMedLM's filter.py, written down again: every keyword looked for in turn."""
    lower, unique, covered = text.lower(), 0, 0
    tokens = lower.split()
    for keyword in {keyword.lower() for keyword in keywords}:
        found = lower.count(keyword) if is_long(keyword, language) else tokens.count(keyword)
        unique, covered = unique + (found > 0), covered + found * len(keyword)
    return unique, covered / max(1, len(text))


def real_texts(data, language):
    """Real medical text of a language: answers of MedQuAD, the rationales of MedS-Ins' outputs, exam items ten by ten."""
    if language == "en":
        return [record["text"] for record in sources.load_corpus(data, ["medquad"])[:600]]
    if language == "zh":
        with open(next((data / "outputs_medsins" / "examples").glob("*.csv")), encoding="utf-8", newline="") as stream:
            cells = [cell for row in csv.reader(stream) for cell in row]
        return [cell for cell in cells if len(re.findall("[一-鿿]", cell)) > len(cell) / 2 and not re.search("[ぁ-ヿ]", cell)]
    name, split = EXAMS[language]
    items = [" ".join([item["question"], item["context"] or "", *item["options"].values()]) for item in sources.load_exam(data, name, split=split)]
    return ["\n".join(items[i:i + 10]) for i in range(0, len(items), 10)]


@pytest.fixture(params=world.LANGUAGES)
def language(request):
    return request.param


# --- the lists ---

def test_the_table_is_whole(language):
    words = filters.default_keywords(language)
    assert len(words) == len(set(words)) == 200
    assert list(world.read_table("keywords.csv")[0]) == list(world.LANGUAGES)
    for word in words:
        assert word == " ".join(word.lower().split())
        assert re.fullmatch(rf"[{SCRIPT[language]}\- ]+", word), "only letters of the language's script"


def test_a_list_has_words_for_both_rules(language):
    long = [word for word in filters.default_keywords(language) if is_long(word, language)]
    assert len(long) == 200 if language in ("zh", "ja") else 40 <= len(long) <= 100


def test_general_text_is_not_medical_and_chapters_are(language):
    """By the published thresholds; a page of the world is shorter than a real one, so ten are one here."""
    known = world.load_world(number_of_diseases=25)
    general = [page["text"] for page in world.general_text(known, language, documents=200, seed=1)]
    books = [page["text"] for page in world.books(known, language, copies=2, seed=1)]
    shares = []
    for texts in (general, books):
        pages = [{"text": "\n".join(texts[i:i + 10]), "language": language} for i in range(0, len(texts), 10)]
        shares.append(sum(filters.keyword_filter(page) is page for page in pages) / len(pages))
    assert shares == [0, 1]


# --- the rule ---

def test_hits_of_real_text_are_those_of_the_published_rule(shared_data, language):
    published = filters.read_keywords(shared_data / "mmedc_sources" / "keywords.csv")[language]
    texts, hits = real_texts(shared_data, language), set()
    assert len(texts) >= 30
    for keywords in (published, filters.default_keywords(language)):
        for text in texts:
            expected = published_hits(text, language, keywords)
            assert filters.keyword_hits(text, language, keywords) == expected
            hits.add(expected[0])
    assert len(hits) > 5


pieces = st.one_of(st.sampled_from(WORDS), st.sampled_from(SPACES), st.sampled_from([word.upper() for word in WORDS]),
                   st.text("an tpié压", max_size=3), st.sampled_from(["\r\n", "  ", ",", "ß", "İ", "-", "Σ"]))


@settings(max_examples=600, deadline=None)
@given(st.lists(pieces, max_size=25).map("".join), st.sampled_from(["en", "ru", "zh"]), st.lists(st.sampled_from(WORDS), max_size=8))
@example("chest\xa0pain chest  pain chest\npain chest pain\u3000pain\x1cpain pain, heart", "en", list(WORDS))
@example("anananananananan anan anan\ranan", "en", list(WORDS))
@example("压高血压高血压高高血压", "zh", list(WORDS))
@example("", "en", list(WORDS))
@example("pain", "en", [])
def test_hits_of_strings_made_of_keywords(text, language, keywords):
    """Keywords in a row, in one another, overlapping themselves, in capitals, between every kind of space."""
    assert filters.keyword_hits(text, language, keywords) == published_hits(text, language, keywords)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_hits_of_any_keywords_in_any_text(data):
    keywords = data.draw(st.lists(st.text("ab é病", min_size=1, max_size=13).map(lambda word: " ".join(word.split())).filter(bool), max_size=6))
    text = "".join(data.draw(st.lists(st.one_of(st.text("ab é病\n", max_size=4), st.sampled_from(keywords or [" "])), max_size=20)))
    for language in ("fr", "ja"):
        assert filters.keyword_hits(text, language, keywords) == published_hits(text, language, keywords)


@pytest.mark.parametrize("space", [chr(number) for number in range(0x3001) if chr(number).isspace()])
def test_every_space_ends_a_token(space):
    assert filters.keyword_hits(f"fever{space}pain{space}fever", "en", ["fever", "pain", "chest pain"]) == (2, 14 / 16)
    assert filters.keyword_hits(f"chest{space}pain", "en", ["chest pain"])[0] == (space == " "), "a keyword's own space is a blank"


def test_half_a_surrogate_pair_stops_nothing():
    assert filters.keyword_hits("pain \ud83d pain\udc00", "en", ["pain"]) == (1, 4 / 12)


def test_keyword_filter_decides_as_the_published_rule(language):
    known = world.load_world(number_of_diseases=25)
    keywords = {language: [*filters.world_keywords()[language][::3], "gout", "Blood"]}
    pages = world.web_pages(known, language, documents=120, seed=7) + world.books(known, language, copies=1, seed=7)
    decided = set()
    for thresholds in (filters.KEYWORD_THRESHOLDS, filters.WORLD_THRESHOLDS, {language: (2, 0.1)}):
        for page in pages:
            ours = filters.keyword_filter(page, keywords=keywords, thresholds=thresholds) is page
            unique, share = published_hits(page["text"], language, keywords[language])
            assert ours == (unique >= thresholds[language][0] and share >= thresholds[language][1])
            decided.add(ours)
    assert decided == {True, False}


def test_a_page_exactly_at_both_thresholds_is_kept():
    """Five keywords of four letters on 20 of 500 characters are 4 %; one character more, or one keyword fewer, is too little."""
    keywords = {"en": ["gout", "pain", "skin", "bone", "drug"]}
    text = " ".join(keywords["en"]).ljust(500, ".").replace("drug.", "drug ")
    for page, kept in ((text, True), (text + ".", False), (text.replace("drug", "bone"), False)):
        record = {"text": page, "language": "en"}
        assert (filters.keyword_filter(record, keywords=keywords) is record) == kept


def test_long_and_short_keywords():
    assert filters.keyword_hits("antithrombosis", "en", ["thrombosis"])[0] == 0          # 10 letters: a whole token
    assert filters.keyword_hits("hemochromatosisgene", "en", ["hemochromatosis"])[0] == 1  # longer: anywhere
    assert filters.keyword_hits("the blood tests", "en", ["blood test"])[0] == 1         # several words: anywhere
    assert filters.keyword_hits("患者有贫血", "zh", ["贫血"]) == (1, 0.4)                  # no word splitting


# --- lists from a file ---

def test_published_lists(shared_data):
    keywords = filters.read_keywords(shared_data / "mmedc_sources" / "keywords.csv")
    assert {language: len(words) for language, words in keywords.items()} == {"en": 167, "zh": 183, "ja": 146, "fr": 172, "ru": 171, "es": 188}


def test_read_keywords(tmp_path):
    path = tmp_path / "keywords.csv"
    path.write_bytes("\ufefflanguage,group,keyword\r\nfr,a,Cellule\r\njp,a,肺\r\nfr,b, cellule \r\n\r\nfr,b,Gène\r\n".encode())
    assert filters.read_keywords(path) == {"ja": ("肺",), "fr": ("cellule", "gène")}


@pytest.mark.parametrize(("content", "message"), [
    ("language,keyword\nen,pain\nen, \n", "line 3, column keyword: ' '"),
    ("language,keyword\nen,pain\nxx,mal\n", "line 3, column language: 'xx'; it must be one of en, zh, ja, ru, es, fr"),
    ("language,keyword\nen\n", "line 2, column keyword: None"),
    ("language;keyword\nen;pain\n", "line 2, column language: None"),
    ("language,group\nen,pain\n", "line 2, column keyword: None"),
])
def test_a_broken_list_is_refused_with_its_place(tmp_path, content, message):
    path = tmp_path / "broken.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(f"{path}, {message}")):
        filters.read_keywords(path)
