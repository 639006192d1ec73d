"""The filters against the controlled world, whose facts and dirt are known, and against texts made by hand."""

import random
import re
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from lib import filters, reported, world
from lib.results import REPOSITORY

LONG = "The patient was treated in hospital for three weeks and recovered without any further complication at home. "


def record(text, language="en", source="book", record_id="r1"):
    return {"text": text, "source": source, "language": language, "id": record_id, "meta": {}}


@pytest.fixture(scope="module")
def small_world():
    return world.load_world(number_of_diseases=25)


@pytest.fixture(params=world.LANGUAGES)
def language(request):
    if not (world.KNOWLEDGE / f"wordings_{request.param}.yaml").exists():
        pytest.skip(f"no wordings for {request.param} yet")
    return request.param


def fact_sentences(known, document, kind):
    """Every sentence of the document that states one of its facts, found by filling the templates of its kind again."""
    words, diseases = world.wordings(document["language"]), {d["disease_id"]: d for d in known.diseases}
    facts = [fact.rsplit(".", 1) for fact in document["meta"]["facts"]]
    said = [world.sentence(known, diseases[disease], attribute, document["language"], template)
            for disease, attribute in facts for template in words["attributes"][attribute][kind]]
    return [sentence for sentence in said if sentence in document["text"]]


def dirt_of(words):
    """Patterns of what a scanned book carries in a language."""
    figures = [re.escape(t).replace(r"\{number\}", r"[\d.]+") for t in words["chapter"]["figure_reference"]]
    heads = [rf"^{re.escape(words['chapter'][name])}\b" for name in ("contents", "references")]
    return re.compile("|".join([*figures, *heads, r"www\.", "http", r"et al", r"\[\d", r"\.{4}"]), re.M)


# --- books and papers of the world ---

@pytest.mark.parametrize("kind", ["book", "paper"])
def test_facts_survive_and_dirt_does_not(small_world, language, kind):
    raw = (world.books(small_world, language, copies=2, seed=3) if kind == "book"
           else world.papers(small_world, language, documents=60, seed=3))
    dirt = dirt_of(world.wordings(language))
    assert all(dirt.search(document["text"]) for document in raw), "the world has lost its dirt: nothing would be tested"
    kept, dropped = filters.clean(raw, filters.steps_for(kind))
    assert not dropped
    sentences = 0
    for before, after in zip(raw, kept, strict=True):
        facts = fact_sentences(small_world, before, kind)
        sentences += len(facts)
        assert [fact for fact in facts if fact not in after["text"]] == []
        assert dirt.search(after["text"]) is None, after["text"]
    assert sentences >= len(raw) * (12 if kind == "book" else 2), "every chapter says 6 facts twice"


def test_books_keep_their_cases_headings_and_titles(small_world, language):
    """Only dirt goes: the lines that are left out of a chapter are its contents, authors, URL, references and figures."""
    words = world.wordings(language)
    for before in world.books(small_world, language, copies=1, seed=4):
        after = filters.clean_book(before)
        lost = set(re.sub(r" ?\[\d+\]", "", before["text"]).split("\n")) - set(after["text"].split("\n"))
        assert all(dirt_of(words).search(line) for line in lost), lost
        removed = after["meta"]["removed"]
        assert {kind: removed[kind] for kind in ("author line", "contents", "URL", "references")} == {
            "author line": 1, "contents": 1, "URL": 1, "references": 3}  # a heading and two entries


def test_cleaning_twice_changes_nothing(small_world, language):
    for document in world.books(small_world, language, copies=1, seed=5)[:5]:
        once = filters.clean_book(document)
        assert filters.clean_book(once) == once


# --- books by hand ---

@pytest.mark.parametrize(("dirty", "clean"), [
    ("Asthma is chro-\nnic. IL-\n6 rises.", "Asthma is chronic. IL-\n6 rises."),
    ("It is common [3]. It is mild [3,7] or not [2-4, 9].", "It is common. It is mild or not."),
    ("It is mild (see Table 3). More at https://example.org/a?b=1, they say.", "It is mild. More, they say."),
    ("One fact. See Fig. 5.1. Another fact.", "One fact. Another fact."),
    ("Un fait. Voir la figure 5.1. Un autre.", "Un fait. Un autre."),
    ("Факт. См. рис. 5.1. Другой факт.", "Факт. Другой факт."),
    ("Un dato. Véase la tabla 2. Otro dato.", "Un dato. Otro dato."),
    ("疟疾可治（参见表3.1）。见图5.1。另见www.example.org/a。", "疟疾可治。另见。"),
    ("マラリアは治る。図5を参照。予防もできる。", "マラリアは治る。予防もできる。"),
    ("Page 12\nText.\n- 13 -\nMore text.", "Text.\nMore text."),
    ("Contents\n1 Asthma ........ 3\n2 Gout . . . . . . 9\nAsthma is common.", "Asthma is common."),
    # of real papers
    ("It recurs [2], [3]–[5] and heals [6] . Okafor et al. [7].", "It recurs and heals. Okafor et al."),
    ("As in [7], unlike patients from [8], it fell (F[1,12] = 8.4; [3]).", "As in [7], unlike patients from [8], it fell (F[1,12] = 8.4)."),
    ("Chlorhexidine and [1,10]phenanthroline [2].", "Chlorhexidine and [1,10]phenanthroline."),
    ("It was seen (in June 2010) and again (March 2011).", "It was seen (in June 2010) and again (March 2011)."),
    ("It is rare (Okafor et al., 2001; Wang and Moreau 1999a, b), mild (see Wang 2003) and (in 1999) new.", "It is rare, mild and (in 1999) new."),
    ("Lipstatin (THL, Figure 1A) acts (p = 0.01; Fig. 2) well (Figure 3A; p = 0.02) (Fig. 4) .",
     "Lipstatin (THL) acts (p = 0.01) well (p = 0.02)."),
    ("As shown in Figure 4, it grows more slowly than M. tuberculosis. High vs. control (x; see Fig. 2) it fell.",
     "High vs. control (x) it fell."),
    ("Data are open (available online at http://www.example.org/a.pdf). More is at www.example.org.", "Data are open. More is."),
    ("Okafor A, Moreau C, Wang G\nJ. Smith and A. B. Jones et al.\nAuthors: someone\nText.", "Text."),
])
def test_book_dirt_by_hand(dirty, clean):
    language = "zh" if "疟" in dirty else "ja" if "マ" in dirty else "en"
    assert filters.clean_book(record(dirty, language))["text"] == clean


@pytest.mark.parametrize("text", [
    "Hepatitis B", "Vitamin K", "Hemophilia A, Hemophilia B", "Chapter 3. Asthma", "本组代表3例患者。",
    "References to earlier work are rare in this field.", "See the doctor at once.", "In 1999, the test changed.",
    "Table 2 shows that mortality fell from 12 to 4 percent in those who took the drug for at least six months in a row.",
])
def test_what_looks_like_dirt_but_is_text_stays(text):
    assert filters.clean_book(record(f"{LONG}\n{text}"))["text"] == f"{LONG.strip()}\n{text}"


def test_text_after_a_reference_list_stays():
    text = "Text one.\n7. References\n1. Okafor A (2001). A title.\n[2] Wang G. J Med 1999;3:4.\n\nChapter 2. Gout\nText two."
    cleaned = filters.clean_book(record(text))
    assert cleaned["text"] == "Text one.\nChapter 2. Gout\nText two."
    assert cleaned["meta"]["removed"] == {"references": 3}


def test_running_heads_go_but_headings_stay():
    pages = [f"{2 * i} PRINCIPLES OF MEDICINE\nSection {'abc'[i]} on page facts\nFact {i} is true." for i in range(3)]
    cleaned = filters.clean_book(record("\n".join(pages)))
    assert "PRINCIPLES" not in cleaned["text"]
    assert cleaned["text"].count("Section") == 3
    assert cleaned["meta"]["removed"] == {"running head": 3}


def test_a_record_without_meta_is_cleaned_too():
    document = {field: value for field, value in record(f"{LONG} [4]").items() if field != "meta"}
    assert filters.clean_book(document) == document | {"text": LONG.strip(), "meta": {"removed": {"citation mark": 1}}}


def test_nothing_left():
    assert filters.clean_book(record("www.example.org\n12")) == "nothing left"


# --- web pages ---

def test_boilerplate_of_every_language_is_removed(language, record_property):
    """General phrases, not the world's list: most of it must go. The share is printed with -rP and kept with --junitxml."""
    lines = world.wordings(language)["web"]["boilerplate"]
    caught = [line for line in lines if filters.boilerplate_kind(line)]
    record_property(f"boilerplate removed {language}", f"{len(caught)} of {len(lines)}")
    print(f"boilerplate removed, {language}: {len(caught)} of {len(lines)}")
    assert len(caught) >= 0.8 * len(lines), set(lines) - set(caught)


def test_no_fact_or_everyday_sentence_is_boilerplate(small_world, language):
    words, blocks = world.wordings(language), world.wordings(language)["attributes"]
    facts = [world.sentence(small_world, disease, attribute, language, template) for disease in small_world.diseases
             for attribute in world.ATTRIBUTES for kind in ("web", "book", "paper") for template in blocks[attribute][kind]]
    titles = [world.fill(template, disease=world.term(small_world, disease, "name", language))
              for disease in small_world.diseases for template in words["web"]["medical_title"]]
    everyday = [line for page in world.general_text(small_world, language, documents=60, seed=1)
                for line in page["text"].split("\n")]
    assert len(facts) > 1000
    assert [line for line in facts + titles + everyday if filters.boilerplate_kind(line)] == []


@pytest.mark.parametrize("line", [
    "Avoid cookies, cakes and other sweets.", "Зарегистрированы новые случаи кори.", "本研究已在临床试验中心注册。",
    "Затем можно перейти к лечению.", "Les patients ne doivent pas partager une seringue.", "Many share this risk factor.",
    "For more information to be gained, the trial must be larger.",
    "A click on the left side of the heart is typical.", "Las dos enfermedades comparten este rasgo.", "This may be helpful in mild cases.", "医生分享治疗经验。"])
def test_medical_lines_with_a_word_of_boilerplate_stay(line):
    assert filters.boilerplate_kind(line) is None


def test_keyword_filter_separates_the_pages_of_the_world(language, record_property):
    """A page that states facts is medical. The everyday pages of the world hold hardly a medical word, so precision is
    easy here; real crawls are harder."""
    known = world.load_world()
    pages, _ = filters.clean(world.web_pages(known, language, documents=300, seed=6), [filters.clean_web])
    medical = {page["id"] for page in pages if page["meta"]["facts"]}
    scores = {}
    for name, thresholds in (("world", filters.WORLD_THRESHOLDS), ("published", filters.KEYWORD_THRESHOLDS)):
        kept = {page["id"] for page in pages if not isinstance(filters.keyword_filter(page, keywords=filters.world_keywords(), thresholds=thresholds), str)}
        scores[name] = (len(kept & medical) / max(1, len(kept)), len(kept & medical) / len(medical))
    for name, (precision, recall) in scores.items():
        record_property(f"keywords {language} {name}", f"precision {precision:.3f} recall {recall:.3f}")
        print(f"keyword filter, {language}, {name} thresholds: precision {precision:.3f}, recall {recall:.3f}")
    assert len(medical) > 60
    assert scores["world"][0] >= 0.95
    assert scores["world"][1] >= 0.95
    assert scores["published"][1] < scores["world"][1], "the pages have grown: the published thresholds may do now"


# --- language, quality, length, duplicates ---

@pytest.mark.parametrize(("text", "language", "right"), [
    ("The heart beats about seventy times a minute.", "en", True), ("Сердце бьётся около семидесяти раз в минуту.", "ru", True),
    ("心脏在跳动，HIV 患者每年需要检查。", "zh", True), ("心臓は一分間に約七十回動いている。", "ja", True), ("心脏在跳动，每分钟约七十次。", "ja", False),
    ("Le cœur bat environ soixante-dix fois par minute.", "fr", True), ("El corazón late unas setenta veces por minuto.", "es", True),
    ("Le cœur bat environ soixante-dix fois par minute.", "es", False), ("Das Herz schlägt etwa siebzigmal in der Minute.", "en", False),
    ("Il cuore batte circa settanta volte al minuto.", "es", False), ("The heart beats about seventy times a minute.", "ru", False),
    ("한국어로 쓴 글", "xx", True)])
def test_wrong_language(text, language, right):
    """Telling French from Spanish and Italian, too, which a look at the script cannot; a language that the identifier lacks passes."""
    document = record(text, language)
    assert filters.wrong_language(document) == (document if right else "wrong language")


def test_every_page_of_the_world_is_in_its_language(small_world, language):
    pages = world.general_text(small_world, language, documents=40, seed=2)
    assert filters.clean(pages, [filters.wrong_language])[1] == []


@pytest.mark.parametrize(("text", "rule"), [
    (LONG * 3, None), ("\n".join(f"{LONG}{n}" for n in range(9)), None),
    ("\n".join(["• aspirin and rest"] * 1 + [f"• dose of {n} tablets" for n in range(12)]), "bullets"),
    ("\n".join(f"Read more about condition {'abcdefghij'[n]}..." for n in range(10)), "ellipses"),
    ("\n".join([LONG, LONG, LONG.upper()]), "repeated lines"), ("\n".join([LONG * 4] * 2 + ["one", "two", "three", "four", "five"]), "repeated lines"),
    ("a b c is it so " * 20, "word length"), ("methylprednisolone hydroxychloroquine " * 20, "word length"),
    ("take this # then that # " * 20, "symbols"), ("dose 500 1000 given 250 750 daily " * 20, "few letters")])
def test_low_quality_rules_of_gopher(text, rule):
    document = record(text, source="web")
    assert filters.low_quality(document) == (f"low quality: {rule}" if rule else document)


def test_low_quality_counts_no_words_in_chinese():
    document = record("糖尿病是一种慢性疾病。\n患者需要定期检查血糖。", "zh")
    assert filters.low_quality(document) == document
    assert filters.low_quality(record("请点击…\n请登录…\n患者需要定期检查血糖。", "zh")) == "low quality: ellipses"


def test_no_page_of_the_world_is_of_low_quality(small_world, language):
    pages = world.web_pages(small_world, language, documents=60, seed=3)
    assert filters.clean(pages, [filters.clean_web, filters.low_quality])[1] == []


def test_too_short():
    assert filters.too_short(record("a" * 99)) == "too short"
    assert not isinstance(filters.too_short(record("a" * 100)), str)
    assert not isinstance(filters.too_short(record("病" * 40, "zh")), str)
    assert filters.too_short(record("病" * 39, "ja")) == "too short"
    assert filters.too_short(record("a" * 100), minimum=101) == "too short"


def similar(draw, jaccard, words=400):
    """Two texts whose word 5-grams have about the given Jaccard similarity: the second has another end."""
    text = [f"w{draw.randrange(10**6)}" for _ in range(words)]
    kept = round(2 * jaccard / (1 + jaccard) * words)
    return " ".join(text), " ".join(text[:kept] + [f"v{draw.randrange(10**6)}" for _ in range(words - kept)])


@pytest.mark.parametrize(("jaccard", "least", "most"), [(0.9, 0.99, 1.0), (0.5, 0.0, 0.05)])
def test_planted_near_duplicates(jaccard, least, most):
    draw = random.Random(0)
    pairs = [similar(draw, jaccard) for _ in range(100)]
    documents = [record(text, record_id=f"{n}-{side}") for n, pair in enumerate(pairs) for side, text in enumerate(pair)]
    _, dropped = filters.clean(documents, [filters.duplicates()])
    assert all(drop["reason"] == "near-duplicate" and drop["id"].endswith("-1") for drop in dropped)
    assert least <= len(dropped) / len(pairs) <= most


def jaccard_of(first, second):
    """By the definition: shared word 5-grams of all of both."""
    grams = [{tuple(words[i:i + 5]) for i in range(len(words) - 4)} for words in (re.findall(r"\w+", text.lower()) for text in (first, second))]
    return len(grams[0] & grams[1]) / len(grams[0] | grams[1])


def test_the_threshold_is_that_of_the_exact_similarity():
    """Pairs from 0.70 to 0.95: what is dropped has 0.8 and more; candidates below it are looked at and kept."""
    draw, dropped = random.Random(5), []
    pairs = [similar(draw, 0.7 + n / 400, words=200) for n in range(100)]
    for pair in pairs:
        step = filters.duplicates()
        dropped.append([isinstance(step(record(text)), str) for text in pair][1])
    exact = [jaccard_of(*pair) for pair in pairs]
    assert all(similarity >= 0.8 for similarity, gone in zip(exact, dropped) if gone)
    assert sum(dropped) >= 0.95 * sum(similarity >= 0.8 for similarity in exact) >= 40


def test_shingles_by_hand():
    """Case and punctuation do not matter, order does; fewer words than five make one; a Chinese character is a word."""
    def grams(text):
        return filters.shingles(text).tolist()
    assert len(grams("one two three four five six")) == 2
    assert grams("One, two “three” four – five six!") == grams("one two three four five six")
    assert grams("two one three four five six") != grams("one two three four five six")
    assert grams("one two three four five six")[1:] == grams("two three four five six")
    assert (len(grams("one two")), len(grams("糖尿病是慢性病"))) == (1, 3)
    assert grams("") == []
    assert filters.duplicates()(record("")) == record("")


def test_exact_duplicates_whatever_the_case_and_punctuation():
    documents = [record("Asthma is common, they say.", record_id="a"), record("asthma is  common; they SAY", record_id="b"),
                 record("Asthma is rare, they say.", record_id="c")]
    kept, dropped = filters.clean(documents, [filters.duplicates()])
    assert [document["id"] for document in kept] == ["a", "c"]
    assert [drop["reason"] for drop in dropped] == ["exact duplicate"]


def test_copies_in_the_crawl_are_found(small_world, language):
    """One page in ten is another page with a line of boilerplate more; without that line they are the same."""
    pages = world.web_pages(small_world, language, documents=200, seed=8)
    _, dropped = filters.clean(pages, [filters.clean_web, filters.duplicates()])
    found = [drop for drop in dropped if "duplicate" in drop["reason"]]
    stems = {page["text"].rsplit("\n", 1)[0]: page["id"] for page in pages}
    copies = [page["id"] for page in pages if page["text"] in stems]
    assert len(found) >= len(copies) >= 5


# --- overlap with the exams ---

def brute_force_overlap(text, question, window):
    """The rule as it is written: the whole question, or any `window` characters of it, somewhere in the text."""
    text, question = (" ".join(each.casefold().split()) for each in (text, question))
    size = min(window, len(question))
    return any(question[at:at + size] in text for at in range(len(question) - size + 1))


@pytest.mark.parametrize("window", [1, 7, 31, 32, 33, 40, 120])
def test_overlap_equals_brute_force(window):
    """Random texts of two letters and a space, where partial agreement is everywhere."""
    draw, decided = random.Random(window), []
    for _ in range(60):
        alphabet = draw.choice(["ab ", "abcdefgh ", "糖尿病 "])
        questions = ["".join(draw.choices(alphabet, k=draw.randint(1, 150))) for _ in range(5)]
        questions = [question if question.strip() else "a" for question in questions]
        text = "".join(draw.choices(alphabet, k=400))
        for question in questions:
            start, size = draw.randrange(len(question)), draw.randint(1, 150)
            at = draw.randrange(400)
            text = text[:at] + question[start:start + size] + text[at:]
        expected = {number for number, question in enumerate(questions) if brute_force_overlap(text, question, window)}
        assert filters.overlap_finder(questions, window=window)(text) == expected
        decided.append(len(expected))
    assert window == 1 or len(set(decided)) > 1


def test_overlap_by_hand():
    question = "A 45-year-old man has chest pain. " * 20  # 680 characters
    find = filters.overlap_finder([question, "What is  the\nmost likely diagnosis?"])
    assert find("") == set()
    assert find("Book: " + question[30:30 + 512].upper()) == {0}
    assert find("Book: " + question[30:30 + 510]) == set()
    assert find("what IS the most likely diagnosis?") == {1}
    assert find("what is the most likely diagnosis") == set()
    with pytest.raises(ValueError, match="question 1 is empty"):
        filters.overlap_finder(["What?", " "])
    assert filters.overlap_finder([])("any text") == set()


def test_overlap_row_by_hand():
    """Questions 0 to 4, of which 1 and 3 stand in a text: 2 of 3 right without, 1 of 2 with overlap; the interval against one computed with scipy."""
    row = filters.overlap_row([1, 1, 1, 0, 0], {1, 3})
    assert (row["n_without"], row["n_with"], row["accuracy_with"]) == (3, 2, 0.5)
    assert row["accuracy_without"] == pytest.approx(2 / 3)
    assert row["difference"] == pytest.approx(1 / 6)
    (la, ua), (lb, ub) = (stats.binomtest(k, n).proportion_ci(method="wilson") for k, n in ((2, 3), (1, 2)))
    assert row["low"] == pytest.approx(1 / 6 - ((2 / 3 - la) ** 2 + (ub - 1 / 2) ** 2) ** 0.5)  # Newcombe 1998, method 10
    assert row["high"] == pytest.approx(1 / 6 + ((ua - 2 / 3) ** 2 + (1 / 2 - lb) ** 2) ** 0.5)


@pytest.mark.parametrize(("given_away", "sides"), [(set(), (3, 0)), ({0, 1, 2}, (0, 3))])
def test_overlap_row_with_an_empty_side_has_no_difference(given_away, sides):
    row = filters.overlap_row([1, 0, 1], given_away)
    assert (row["n_without"], row["n_with"]) == sides
    assert all(np.isnan(row[name]) for name in ("difference", "low", "high"))
    assert sum(np.isnan(row[f"accuracy_{side}"]) for side in ("without", "with")) == 1


@pytest.mark.parametrize(("right", "given_away"), [([1, 0], {2}), ([1, 0], {-1}), ([1, 0.5], {0}), ([1, float("nan")], {0})])
def test_overlap_row_names_bad_input(right, given_away):
    with pytest.raises(ValueError, match="need 0 or 1 for each of 2 questions and numbers below that"):
        filters.overlap_row(right, given_away)


@pytest.mark.parametrize("table", ["6", "A.1"])
def test_overlap_analysis_gives_the_published_tables(table):
    """From texts and answers with the published counts: numbers, accuracies, differences and all intervals of a difference, as printed."""
    values, seen = reported.query("Med-PaLM 2", table=table), 0
    for exam, part in values.groupby("column"):
        cells = part.set_index("row")
        counts = {side: (int(cells.loc[f"{side} overlap", "n"]), cells.loc[f"{side} overlap", "value"] / 100) for side in ("without", "with")}
        questions = [f"Question {number} of {exam}, as nobody else would word it?" for number in range(sum(n for n, _ in counts.values()))]
        right = [float(number < round(n * share)) for n, share in counts.values() for number in range(n)]
        find = filters.overlap_finder(questions)
        row = filters.overlap_row(right, set().union(*(find(f"A page. {text} And so on.") for text in questions[counts["without"][0]:])))
        assert (row["n_without"], row["n_with"]) == tuple(n for n, _ in counts.values())
        for side, (_, share) in counts.items():
            assert row[f"accuracy_{side}"] == pytest.approx(share, abs=0.00051)
        delta = cells.loc["delta", ["value", "interval_low", "interval_high"]].astype(float) / 100
        assert [row["difference"], row["low"], row["high"]] == pytest.approx(list(delta), abs=0.0016), exam  # of rounded parts
        seen += 1
    assert seen == 9


def test_decontaminate_drops_what_gives_a_question_away():
    step = filters.decontaminate(["Which drug treats malaria in pregnancy?"], window=120)
    assert step(record("Q: which drug treats malaria in pregnancy? A: quinine")) == "overlaps an exam"
    assert step(record("Malaria in pregnancy is treated.")) == record("Malaria in pregnancy is treated.")


def test_planted_copies_in_a_gigabyte_are_found_in_bounded_memory(tmp_path):
    """1 GB of text in documents of 1 MB, ten of them with 512 characters of a question: found all, with less than 2 GB of memory, libraries included."""
    script = tmp_path / "scan.py"
    script.write_text("""
import random, resource
from lib import filters
draw = random.Random(0)
words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(5000)]
questions = [" ".join(draw.choices(words, k=200)) for _ in range(2000)]
blocks = [" ".join(draw.choices(words, k=1600)) for _ in range(200)]
find, seen, found = filters.overlap_finder(questions), 0, {}
for number in range(1000):
    text = " ".join(draw.choices(blocks, k=105))
    if number % 100 == 50:
        at = draw.randrange(len(questions[number]) - 512)
        text = text[:500_000] + questions[number][at:at + 512] + text[500_000:]
    seen += len(text)
    here = find(text)
    found |= {number: here} if here else {}
print(seen, sorted(found.items()) == [(n, {n}) for n in range(50, 1000, 100)], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000)
""")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    seen, right, megabytes = done.stdout.split()
    assert int(seen) > 1e9
    assert right == "True"
    assert int(megabytes) < 2000


# --- clean and its tables ---

def test_clean_counts_and_leaves_its_input_alone():
    documents = [record(f"{LONG}See Figure 1.", record_id="a"), record("Short.", record_id="b"),
                 record(f"{LONG} [4]", record_id="c"), record("Сердце " * 20, record_id="d")]
    before = [dict(document) for document in documents]
    kept, dropped = filters.clean(documents, filters.steps_for("book", last=[filters.duplicates()]))
    assert documents == before
    assert dropped == [
        {"id": "b", "source": "book", "language": "en", "reason": "too short", "sample": "Short."},
        {"id": "c", "source": "book", "language": "en", "reason": "exact duplicate", "sample": f"{LONG} [4]"[:80]},
        {"id": "d", "source": "book", "language": "en", "reason": "wrong language", "sample": ("Сердце " * 20)[:80]}]
    assert [document["meta"]["removed"] for document in kept] == [{"figure reference": 1}]
    assert kept[0]["text"] == LONG.strip()


def test_no_pattern_hangs_on_a_hostile_line():
    """Lines made to send a backtracking pattern astray: 20 KB each would take hours."""
    for unit in ("AB ", "A. ", "Aa Bb C, ", "...", "1 ", "Fig ", "(", "www.", "[1,", "图", "-", "a-\n", " "):
        hostile = record(unit * (20_000 // len(unit)) + "x")
        for step in (filters.clean_book, filters.clean_paper, filters.clean_web):
            step(hostile)
