"""The controlled world: sound in six languages, the same for a seed, no test fact in training, dirt that cleaning removes."""

import functools
import hashlib
import json
import os
import random
import re
import shutil
import string
import subprocess
import sys
import unicodedata
from collections import Counter

import pytest

from lib import filters, instructions, world
from lib.results import REPOSITORY
from lib.world import ATTRIBUTES, LANGUAGES, LETTERS, bare, fact_id, fill, load_world, term, wordings

ITEM_FIELDS = {"question": str, "options": dict, "answer": str, "answer_idx": str, "rationale": str, "meta_info": dict}  # MMedBench
SPOKEN = {"book": 2, "paper": 2, "web": 2, "rationale": 2, "question": 1, "patient": 1, "doctor": 0}  # slots a wording needs
UNSPACED = ("zh", "ja")
OTHER = string.punctuation + string.whitespace + "«»“”‘’—–…¿¡"  # what is no letter


@pytest.fixture(scope="module")
def full():
    return load_world()


@pytest.fixture(scope="module")
def some():
    """Twenty diseases: enough for every exam, few enough to look for every statement in every text."""
    return load_world(number_of_diseases=20)


def key_texts(known, disease, language):
    """{attribute: text without article} of a disease."""
    return {attribute: bare(term(known, disease, attribute, language), language) for attribute in ATTRIBUTES}


def holds(text, words, language):
    """Whether a text holds these words: as words of their own where a language has spaces. Both in lower case."""
    place, spaced = text.find(words), language not in UNSPACED
    while spaced and place >= 0 and (text[place - 1:place] + text[place + len(words):place + len(words) + 1]).strip(OTHER):
        place = text.find(words, place + 1)
    return place >= 0


# --- the knowledge base ----------------------------------------------------------------------------------------------

def test_there_are_at_least_120_diseases_with_six_attributes(full):
    """The size that the design promises; a term that is missing would have stopped load_world."""
    assert len(full.diseases) >= 120
    assert len({disease["disease_id"] for disease in full.diseases}) == len(full.diseases)
    assert all(disease[attribute] for disease in full.diseases for attribute in ("name", *ATTRIBUTES))
    assert len(ATTRIBUTES) == 6
    assert LANGUAGES == ("en", "zh", "ja", "fr", "ru", "es")


def scripts(text):
    """The scripts of the letters of a text, by their Unicode names."""
    names = [unicodedata.name(letter).split()[0] for letter in text if letter.isalpha()]
    kinds = {"CJK": "han", "HIRAGANA": "kana", "KATAKANA": "kana", "KATAKANA-HIRAGANA": "kana", "FULLWIDTH": "latin"}
    return {kinds.get(name, name.lower()) for name in names} - {"greek"}  # beta-blocker with a real beta


def test_every_term_is_in_six_languages_in_the_right_script(full):
    """A column that was left in English, or a Chinese cell in a Japanese column, would teach the wrong language."""
    own = {"zh": {"han"}, "ja": {"han", "kana"}, "ru": {"cyrillic"}}
    everyday = [fact[part] for fact in full.everyday for part in ("subject", "value")]
    for texts in [*full.terms.values(), *everyday]:
        for language in LANGUAGES:
            found, right = scripts(texts[language]), own.get(language, {"latin"})
            numeral = not found and any(letter.isdigit() for letter in texts[language])
            assert found & right or numeral, f"{language}: {texts[language]!r} is not in its script"
            assert found <= right | {"latin"}, f"{language}: {texts[language]!r} has letters of {found - right}"
    assert scripts("β遮断薬のカテ") == {"han", "kana"}
    different = sum(len(set(texts.values())) == 6 for texts in full.terms.values())
    assert different > 0.9 * len(full.terms)  # and the columns are translations


@pytest.mark.parametrize("language", LANGUAGES)
def test_terms_of_a_language_are_all_different(full, language):
    """Two concepts with one text would make a wrong option right. Compared without article and case, as options are printed."""
    texts = Counter(bare(words[language], language).casefold() for words in full.terms.values())
    assert [text for text, times in texts.items() if times > 1] == []
    assert len(texts) > 700


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_symptom_names_one_disease(full, language):
    """A vignette gives the symptom alone: it must belong to one disease, and not be a part of another's symptom."""
    symptoms = [bare(term(full, disease, "symptom", language), language).casefold() for disease in full.diseases]
    assert len(set(symptoms)) == len(symptoms) >= 120
    assert [(a, b) for a in symptoms for b in symptoms if a != b and a in b] == []


AGES = {"toddler": (2, 4), "child": (2, 14), "boy": (2, 17), "teenage": (13, 19), "teenager": (13, 19), "youth": (13, 25), "menarche": (10, 35),
        "young": (16, 40), "middle-aged": (40, 65), "midlife": (35, 60), "older": (60, 90), "age-related": (60, 90)}


def test_a_case_has_an_age_at_which_its_finding_is_seen(full):
    """No "hematuria in a boy" of 60 years: findings and names that speak of an age are only asked at that age."""
    speaking = 0
    for disease in full.diseases:
        youngest, oldest = int(disease["youngest"]), int(disease["oldest"])
        assert 2 <= youngest < oldest <= 90  # not 1: "1 years" is no English
        for word, (low, high) in AGES.items():
            if re.search(rf"\b{word}\b", disease["symptom"] + " " + disease["name"]):
                assert set(range(youngest, oldest + 1)) <= set(range(low, high + 1)), (disease["name"], word)
                speaking += 1
        ages = {world.case_slots(full, disease, "en", random.Random(i))["age"] for i in range(100)}
        assert ages <= set(range(youngest, oldest + 1))
        assert len(ages) > 1
    assert speaking >= 15


def test_a_value_is_shared_by_at_most_three_diseases(full):
    """A value that half the diseases share could be guessed without knowing any; specialties are few by nature."""
    for attribute in ATTRIBUTES[1:]:
        times = Counter(disease[attribute] for disease in full.diseases)
        assert max(times.values()) <= 3, times.most_common(1)
    assert max(Counter(disease["specialty"] for disease in full.diseases).values()) > 3  # the check can fail


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_disease_is_named_in_its_own_values(full, language):
    """"The treatment of scurvy is scurvy tablets" would be answered by reading, not by knowing."""
    named = [(name, text) for disease in full.diseases for text in key_texts(full, disease, language).values()
             if (name := bare(term(full, disease, "name", language), language)).casefold() in text.casefold()]
    assert named == []


def test_an_everyday_fact_has_one_answer(full):
    """Forgetting is measured on these: a subject with two capitals would make a right answer wrong."""
    for language in LANGUAGES:
        asked = Counter((fact["attribute"], fact["subject"][language]) for fact in full.everyday)
        assert [question for question, times in asked.items() if times > 1] == []
    assert len(full.everyday) >= 300


# --- wordings --------------------------------------------------------------------------------------------------------

def leaves(node, path=()):
    """(path, text) of every text in a tree of dicts and lists."""
    if isinstance(node, str):
        yield path, node
    else:
        for name, inner in node.items() if isinstance(node, dict) else enumerate(node):
            yield from leaves(inner, (*path, name))


def plain(text):
    return re.sub(r"\W", "", re.sub(r"\{(\w+)\}", lambda slot: slot[1].lower(), text)).casefold()


@pytest.mark.parametrize("language", LANGUAGES)
def test_eight_wordings_each_for_books_papers_and_questions(language):
    """A fact that is always said with the same words is learned as a string. Wordings differ also between the roles."""
    for attribute in ATTRIBUTES:
        block = wordings(language)["attributes"][attribute]
        for role in ("book", "paper", "question"):
            assert len(block[role]) >= 8, (attribute, role)
        said = Counter(plain(template) for role in SPOKEN for template in block[role])
        assert [template for template, times in said.items() if times > 1] == []
        assert len(said) >= 36


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_slots_of_a_wording_are_what_its_role_needs(language):
    """A book says disease and value, a question the disease alone: a question with {value} would hold its answer."""
    for attribute in ATTRIBUTES:
        for role, needed in SPOKEN.items():
            for template in wordings(language)["attributes"][attribute][role]:
                slots = [slot.lower() for slot in re.findall(r"\{(\w+)\}", template)]
                wanted = {2: ({"disease", "value"},), 1: ({"disease"},), 0: ({"value"}, {"disease", "value"})}[needed]
                assert set(slots) in wanted, template
                assert slots.count("value") <= 1, template
                assert slots.count("disease") <= 1, template
    for target, templates in wordings(language)["vignette"].items():
        for template in templates:  # the disease is what must be found out
            assert set(re.findall(r"\{(\w+)\}", template.lower())) == {"age", "symptom"}, (target, template)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_template_renders(full, language):
    """No unknown slot and no brace that stays, with real terms in the slots, in medical and everyday wordings."""
    disease, number = full.diseases[0], 0
    slots = {column: term(full, disease, column, language) for column in ("symptom", "test", "treatment")}
    slots |= {"disease": term(full, disease, "name", language), "value": term(full, disease, "cause", language), "letter": "A",
              "age": 40, "n": 120, "p": "0.030", "number": 3, "subject": "X"}
    for path, template in leaves(wordings(language)):
        text = fill(template, **slots)
        number += 1
        assert not re.search(r"[{}]", text), (path, text)
        assert text == text.strip(), (path, text)
        assert "  " not in text, (path, text)
        if path[1:] and path[1] == "web" and path[2] in ("boilerplate", "filler") or path[1:3] == ("chapter", "filler"):
            assert text == template, path  # printed as they are: a slot here would stay
    assert number > 500


ARTICLE = {"en": r"(an?|the)", "fr": r"(l'|le|la|les|une?|des|du|aux?)", "es": r"(el|la|los|las|una?|unos|unas|del|al)"}
# A word that cannot stand before a term that begins so: "de le", "à les", "que inhibiteur", "a el", "a antibiotic".
CLASHES = {"en": [(r"a", r"[aeiou]"), (r"an", r"[^aeioAEIOUFHLMNRSX\d]")],
           "fr": [(r"(de|à)", r"les? "), (r"(de|que|le|la|se|ne|je|lorsque|puisque|jusque|quelque)", r"[aeéèêiîoôuyœ]")],
           "es": [(r"(de|a)", r"el "), (r"y", r"h?i(?![ae])"), (r"o", r"h?o")]}


@pytest.mark.parametrize("language", ARTICLE)
def test_no_article_stands_twice_and_no_contraction_is_missing(full, language):
    """Terms bring their article ("the", "l'"): every word that stands before a slot is held against every term."""
    clashes = [*CLASHES[language], (ARTICLE[language], ARTICLE[language] + r"(?<=')|" + ARTICLE[language] + " ")]
    words, found = wordings(language), []
    places = [(template, attribute) for attribute in ATTRIBUTES for role in SPOKEN for template in words["attributes"][attribute][role]]
    places += [(template, attribute) for part in ("relation", "yes_no") for attribute in ATTRIBUTES for template in words[part][attribute]]
    places += [(template, None) for section in ("case", "vignette", "trial", "paper", "web", "chapter", "vignette_rationale", "phrases")
               for _, template in leaves(words[section])]
    for template, attribute in places:
        for before, slot in re.findall(r"([^\W\d_]+'?) \{(disease|value|symptom|test|treatment)\}", template):
            column = {"disease": "name", "value": attribute}.get(slot, slot)
            if column is None:  # the invented agent of a trial, "BF-123"
                continue
            for disease in full.diseases:
                text = term(full, disease, column, language)
                found += [f"{before} {text}" for word, start in clashes if re.fullmatch(word, before.lower()) and re.match(start, text)]
    assert sorted(set(found)) == []
    assert len(places) > 400


def test_the_grammar_check_can_fail():
    for language, before, text in (("fr", "de", "le diabète"), ("fr", "que", "ibuprofène"), ("es", "a", "el asma"), ("en", "a", "aspirin")):
        assert any(re.fullmatch(word, before) and re.match(start, text) for word, start in CLASHES[language])
    assert re.match(ARTICLE["fr"] + r"(?<=')|" + ARTICLE["fr"] + " ", "l'asthme")


# --- everything that is rendered, and determinism ---------------------------------------------------------------------

EXAMS = (world.recall_exam, world.vignette_exam, world.abstract_exam, world.yes_no_exam, world.several_answers_exam)


def corpora_of(known, language, *, seed, documents=20):
    return [*world.books(known, language, copies=1, seed=seed), *world.papers(known, language, documents=documents, seed=seed),
            *world.web_pages(known, language, documents=documents, seed=seed),
            *world.general_text(known, language, documents=documents // 2, seed=seed)]


def questions_of(known, language, diseases, *, seed, items=30):
    exams = [exam(known, language, diseases, items=items, seed=seed) for exam in EXAMS]
    return [item for exam in exams for item in exam]


def answers_of(known, language, diseases, *, seed, records=40):
    """Records of all instruction builders on the given diseases."""
    return [*instructions.dialogue_records(known, language, diseases, records=records, seed=seed),
            *instructions.knowledge_graph_records(known, language, diseases, records=records, seed=seed)]


@functools.cache
def digest(seed):
    """A hash of all that the world renders in all languages, real and fictional."""
    everything = []
    for fictional in (False, True):
        known = load_world(number_of_diseases=14, fictional=fictional, seed=seed)
        for language in LANGUAGES:
            parts = world.split_diseases(known, test_share=0.4, seed=seed)
            everything += corpora_of(known, language, seed=seed, documents=6)
            everything += questions_of(known, language, parts[0], seed=seed, items=6)
            everything += world.everyday_exam(known, language, items=6, seed=seed)
            everything += answers_of(known, language, parts[1], seed=seed, records=6)
    return len(everything), hashlib.sha256(json.dumps(everything, ensure_ascii=False).encode()).hexdigest()


def test_a_seed_gives_the_same_world_in_every_process():
    """Stages are kept by the hash of their data: text that follows the hash seed of Python would retrain everything."""
    ours = digest(0)
    assert ours[0] > 12 * 60
    digest.cache_clear()
    assert digest(0) == ours
    assert digest(1)[1] != ours[1]
    command = [sys.executable, "-c", "import sys; sys.path.insert(0, 'tests'); from test_world import digest; print(digest(0))"]
    other = {"PYTHONHASHSEED": "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"}
    done = subprocess.run(command, env=os.environ | other, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.strip() == str(ours), done.stderr


def test_a_seed_of_one_corpus_changes_that_corpus(some):
    """Each builder must use its seed, or "another seed" would be the same data again."""
    builders = [lambda seed: world.books(some, "en", copies=1, seed=seed), lambda seed: world.papers(some, "en", documents=5, seed=seed),
                lambda seed: world.web_pages(some, "en", documents=5, seed=seed),
                lambda seed: world.general_text(some, "en", documents=5, seed=seed),
                lambda seed: world.everyday_exam(some, "en", items=5, seed=seed),
                lambda seed: instructions.dialogue_records(some, "en", some.diseases, records=5, seed=seed),
                lambda seed: instructions.knowledge_graph_records(some, "en", some.diseases, records=5, seed=seed),
                lambda seed: world.split_diseases(some, seed=seed)]
    builders += [lambda seed, exam=exam: exam(some, "en", some.diseases, items=5, seed=seed) for exam in EXAMS]
    for builder in builders:
        assert builder(0) == builder(0)
        assert builder(0) != builder(1)


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_brace_is_left_in_any_text(some, language):
    records = corpora_of(some, language, seed=3)
    texts = [record["text"] for record in records] + [json.dumps(list(record.values()), ensure_ascii=False) for record in
                                                       answers_of(some, language, some.diseases, seed=3)]
    texts += [text for item in questions_of(some, language, some.diseases, seed=3)
              for text in (item["question"], item["context"], item["rationale"], *item["options"].values())]
    assert [text for text in texts if re.search(r"[{}]|None", text)] == []
    assert len(texts) > 1000
    assert {record["source"] for record in records} == {"book", "paper", "web", "general"}


# --- no test fact in training -------------------------------------------------------------------------------------------

def leaks(texts, known, diseases, language):
    """Facts of these diseases that a text states or asks: its name beside one of its values, or its symptom alone."""
    told = [(disease["disease_id"], bare(term(known, disease, "name", language), language).casefold(),
             {attribute: text.casefold() for attribute, text in key_texts(known, disease, language).items()}) for disease in diseases]
    found = []
    for text in map(str.casefold, texts):
        for disease, name, values in told:
            named = holds(text, name, language)
            found += [f"{disease}.{attribute}" for attribute, value in values.items()
                      if (named or attribute == "symptom") and holds(text, value, language)]
    return found


def whole(item):
    """All that a model reads of an exam item: question, context, options, answer and rationale."""
    return "\n".join([item["question"], item["context"], item["answer"], item["rationale"], *item["options"].values()])


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_test_fact_is_in_anything_that_tuning_reads(full, language):
    """The rule of the design. Over several seeds: training questions, rationales, options, dialogues, knowledge graph."""
    for seed in range(3):
        training, test = world.split_diseases(full, test_share=0.5, seed=seed)
        assert not {disease["disease_id"] for disease in training} & {disease["disease_id"] for disease in test}
        assert len(training) + len(test) == len(full.diseases)
        items = questions_of(full, language, training, seed=seed)
        records = [*answers_of(full, language, training, seed=seed), *instructions.rationale_records(items, seed=seed)]
        texts = [*map(whole, items), *("\n".join(record.values()) for record in records)]
        assert leaks(texts, full, test, language) == []
        assert len(texts) > 500
        named = {item["meta_info"]["disease"] for item in items}
        assert named <= {disease["disease_id"] for disease in training}
        assert len(named) > 20
    asked = [item for item in questions_of(full, language, test, seed=9) if item["exam"] in ("recall", "vignette")]
    for item in asked:  # the check sees every fact that a test item asks
        assert leaks([whole(item)], full, test, language), item


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_abstract_exam_shows_no_finding_of_a_disease(full, language):
    """PubMedQA-like items are read, not known: trials are invented, so they may not repeat a fact of the knowledge base."""
    items = world.abstract_exam(full, language, full.diseases, items=60, seed=0)
    assert leaks(map(whole, items), full, full.diseases, language) == []
    assert len({item["meta_info"]["disease"] for item in items}) > 20


# --- exams ------------------------------------------------------------------------------------------------------------

def all_items(known, language, *, items=60, seed=5):
    return {f"{exam.args[0]}_exam": exam(known, language, known.diseases, items=items, seed=seed) for exam in EXAMS} | {
        "everyday": world.everyday_exam(known, language, items=items, seed=seed),
        "five options": world.vignette_exam(known, language, known.diseases, items=items, seed=seed, options=5)}


@pytest.mark.parametrize("language", LANGUAGES)
def test_items_have_the_schema_of_mmedbench(full, language):
    """Controlled and real exams must be interchangeable: the fields, their types, letters in order, ids that occur once."""
    for name, items in all_items(full, language).items():
        assert len(items) == 60, name
        assert len({item["id"] for item in items}) == 60
        for item in items:
            assert all(isinstance(item[field], kind) and item[field] for field, kind in ITEM_FIELDS.items()), (name, item)
            assert item["language"] == language
            count = {"five options": 5, "several_exam": 5, "yes_no_exam": 2, "abstract_exam": 3}.get(name, 4)
            assert "".join(item["options"]) == LETTERS[:count]
            letters = item["answer_idx"].split(",")
            assert set(letters) <= set(item["options"])
            assert item["answer"] in (item["options"][letters[0]], ("" if language in UNSPACED else " ").join(
                item["options"][letter] for letter in letters))
            assert len({text.strip().casefold() for text in item["options"].values()}) == count, (name, item["options"])
            assert bool(item["context"]) == (name == "abstract_exam")


def said(known, disease, language, templates, column):
    """All sentences that these templates make of one value of a disease."""
    slots = {"disease": term(known, disease, "name", language), "value": term(known, disease, column, language)}
    return {fill(template, **slots) for template in templates}


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_right_option_of_recall_is_right_and_no_other_is(full, language):
    """Checked against the tables: question and rationale say this fact, the answer is its value, the others are values of
    other diseases of this part that this disease does not have."""
    diseases = {disease["disease_id"]: disease for disease in full.diseases[:60]}
    texts = {name: key_texts(full, disease, language) for name, disease in diseases.items()}
    items = world.recall_exam(full, language, list(diseases.values()), items=400, seed=2)
    for item in items:
        name, attribute = item["meta_info"]["fact"].split(".")
        block, disease = wordings(language)["attributes"][attribute], diseases[name]
        assert item["question"] in said(full, disease, language, block["question"], attribute)
        assert item["rationale"] in said(full, disease, language, block["rationale"], attribute)
        assert item["options"][item["answer_idx"]] == item["answer"] == texts[name][attribute]
        possible = {texts[other][attribute] for other in diseases if diseases[other][attribute] != disease[attribute]}
        wrong = set(item["options"].values()) - {item["answer"]}
        assert len(wrong) == 3
        assert wrong <= possible, item
    times = Counter(item["meta_info"]["fact"] for item in items)
    assert len(times) == 360  # 60 x 6 facts, each once before any twice
    assert sorted(set(times.values())) == [1, 2]


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_unfinished_sentence_ends_as_a_textbook_says_it(full, language):
    """Models that never saw a question are asked this way: stem + right ending must be a sentence of the books, and every
    other ending the same sentence with another disease's value."""
    by_id = {disease["disease_id"]: disease for disease in full.diseases}
    whole_terms = {attribute: {bare(term(full, disease, attribute, language), language): term(full, disease, attribute, language)
                               for disease in full.diseases} for attribute in ATTRIBUTES}
    for item in world.recall_exam(full, language, full.diseases, items=120, seed=4):
        name, attribute = item["meta_info"]["fact"].split(".")
        stem, endings = item["completion"]["stem"], item["completion"]["endings"]
        books = wordings(language)["attributes"][attribute]["book"]
        disease = term(full, by_id[name], "name", language)
        assert stem + endings[item["answer_idx"]] in said(full, by_id[name], language, books, attribute)
        for letter, text in item["options"].items():
            value = whole_terms[attribute][text]
            assert stem + endings[letter] in {fill(template, disease=disease, value=value) for template in books}
        assert item["answer"].casefold() not in stem.casefold()
    statements = {attribute: words["statement"] for attribute, words in wordings(language)["everyday"].items() if isinstance(words, dict)}
    facts = {f"{fact['subject']['en']}.{fact['attribute']}": fact for fact in full.everyday}
    for item in world.everyday_exam(full, language, items=100, seed=4):
        fact = facts[item["meta_info"]["fact"]]
        spoken = {fill(template, subject=fact["subject"][language], value=fact["value"][language])
                  for template in statements[fact["attribute"]]}
        assert item["completion"]["stem"] + item["completion"]["endings"][item["answer_idx"]] in spoken


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_right_option_of_a_vignette_is_right_and_no_other_is(full, language):
    """Two steps: the finding belongs to one disease, and the answer is that disease, or its test or treatment."""
    symptoms = {disease["disease_id"]: term(full, disease, "symptom", language).casefold() for disease in full.diseases}
    by_id, targets = {disease["disease_id"]: disease for disease in full.diseases}, Counter()
    for item in world.vignette_exam(full, language, full.diseases, items=200, seed=6):
        name, column = item["meta_info"]["fact"].split(".")
        found = [each for each, symptom in symptoms.items() if symptom in item["question"].casefold()]
        assert found == [name], item["question"]
        assert item["answer"] == bare(term(full, by_id[name], column, language), language)
        possible = {bare(term(full, other, column, language), language) for other in full.diseases
                    if other[column] != by_id[name][column]}
        assert set(item["options"].values()) - {item["answer"]} <= possible
        assert bare(term(full, by_id[name], "name", language), language).casefold() not in item["question"].casefold()
        assert item["answer"].casefold() in item["rationale"].casefold()
        targets[column] += 1
    assert set(targets) == {"name", "treatment", "test"}
    assert min(targets.values()) > 30


@pytest.mark.parametrize("language", LANGUAGES)
def test_yes_no_and_several_answers_agree_with_the_tables(full, language):
    """Every statement is looked up: it is true when it is one of the sentences that the disease's own values make."""
    by_id, words = {disease["disease_id"]: disease for disease in full.diseases}, wordings(language)
    verdicts, sizes = Counter(), Counter()
    for item in world.yes_no_exam(full, language, full.diseases, items=120, seed=7):
        name, attribute = item["meta_info"]["fact"].split(".")
        true = item["question"] in said(full, by_id[name], language, words["yes_no"][attribute], attribute)
        assert item["answer"] == words["trial"]["answers"]["yes" if true else "no"], item
        verdicts[true] += 1
    assert verdicts == {True: 60, False: 60}
    for item in world.several_answers_exam(full, language, full.diseases, items=120, seed=7):
        disease = by_id[item["meta_info"]["disease"]]
        true = set().union(*(said(full, disease, language, words["relation"][a], a) for a in ATTRIBUTES))
        right = [letter for letter, text in item["options"].items() if text in true]
        assert item["answer_idx"] == ",".join(right), item
        sizes[len(right)] += 1
    assert set(sizes) == {1, 2, 3}
    assert min(sizes.values()) > 20


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_answer_of_an_abstract_is_in_its_results(full, language):
    """The result says which of yes, no and maybe; the conclusion, which would give it away, is not in the context."""
    words, verdicts = wordings(language)["trial"], Counter()
    forms = {verdict: [re.sub(r"\\\{\w+\\\}", ".+?", re.escape(template)) for template in words[f"result_{verdict}"]]
             for verdict in ("yes", "no", "maybe")}
    for item in world.abstract_exam(full, language, full.diseases, items=200, seed=8):
        found = [verdict for verdict, patterns in forms.items() if any(re.search(form, item["context"]) for form in patterns)]
        assert [words["answers"][verdict] for verdict in found] == [item["answer"]]
        assert item["rationale"] not in item["context"]
        verdicts[found[0]] += 1
    assert min(verdicts.values()) > 45
    few = world.abstract_exam(full, language, full.diseases, items=200, seed=8, wording_range=range(4))
    unseen = [form for patterns in forms.values() for form in patterns[4:]]
    assert not [item for item in few if any(re.search(form, item["context"]) for form in unseen)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_everyday_questions_agree_with_the_tables(full, language):
    values = {(fact["subject"]["en"], fact["attribute"]): bare(fact["value"][language], language) for fact in full.everyday}
    assert len(values) == len(full.everyday)
    for item in world.everyday_exam(full, language, items=150, seed=1):
        subject, _, attribute = item["meta_info"]["fact"].rpartition(".")
        assert item["answer"] == item["options"][item["answer_idx"]] == values[subject, attribute]
        assert set(item["options"].values()) <= {value for (_, asked), value in values.items() if asked == attribute}


@pytest.mark.parametrize("language", LANGUAGES)
def test_answer_letters_are_roughly_uniform(full, language):
    """A model that always says A must score chance. With 400 items a fair letter is off by 0.07 once in 600 tries."""
    for name, items in all_items(full, language, items=400).items():
        if name == "several_exam":
            continue
        letters = Counter(item["answer_idx"] for item in items)
        options = len(items[0]["options"])
        assert set(letters) == set(LETTERS[:options]), name
        for letter, times in letters.items():
            assert abs(times / len(items) - 1 / options) < 0.075, (name, letter, times)


def test_too_few_diseases_are_refused_with_a_reason(some):
    """Four options need three other values; without the check the sample would fail with a message about populations."""
    with pytest.raises(ValueError, match=r"recall exam \(en\): 3 diseases give only \d wrong \w+ options; add diseases"):
        world.recall_exam(some, "en", some.diseases[:3], items=20, seed=0)


# --- corpora: dirt, facts, cleaning ------------------------------------------------------------------------------------

class Statements:
    """Counts the statements of facts in a text, by looking for every sentence that the templates make of every disease."""

    def __init__(self, known, language):
        words, self.sentences, self.cases = wordings(language), [], []
        for disease in known.diseases:
            for attribute in ATTRIBUTES:
                block = words["attributes"][attribute]
                self.sentences += [(fact_id(disease, attribute), text) for role in ("book", "paper", "web")
                                   for text in said(known, disease, language, block[role], attribute)]
            slots = {column: term(known, disease, column, language) for column in ("symptom", "test", "treatment")}
            for template in words["case"]:  # the age is drawn: two digits
                parts = fill(template, **slots, disease=term(known, disease, "name", language), age="\0").split("\0")
                self.cases.append((disease, max(parts, key=len), re.compile(r"\d+".join(map(re.escape, parts)))))
        self.sentences.sort(key=lambda pair: -len(pair[1]))

    def count(self, text):
        found = Counter()
        for fact, sentence in self.sentences:
            if sentence in text:  # taken out: a shorter wording may be a part of this one
                found[fact] += text.count(sentence)
                text = text.replace(sentence, "\n")
        for disease, longest, case in self.cases:
            if longest in text:
                for attribute in ("symptom", "test", "treatment"):
                    found[fact_id(disease, attribute)] += len(case.findall(text))
        return found


@pytest.mark.parametrize("language", LANGUAGES)
def test_meta_counts_the_statements_that_the_text_makes(some, language):
    """Exposures per fact are the x axis of a figure: they must be what a reader would count in the text."""
    statements, seen = Statements(some, language), Counter()
    for record in corpora_of(some, language, seed=11):
        assert statements.count(record["text"]) == Counter(record["meta"]["facts"]), record["id"]
        seen[record["source"]] += sum(record["meta"]["facts"].values())
    assert seen["book"] == 20 * (6 * 2 + 3 * 2)
    assert seen["paper"] > 40
    assert seen["web"] >= 9
    assert seen["general"] == 0


def dirt(language):
    """{kind: pattern} of what a scanned book or a downloaded paper carries along, in this language."""
    chapter = wordings(language)["chapter"]
    figures = [re.sub(r"\\\{number\\\}", r"[\\d.]+", re.escape(template)) for template in chapter["figure_reference"]]
    return {"URL": r"https?://|www\.", "author list": r"et al\.", "contents": r"\.{4}", "figure reference": "|".join(figures),
            "reference list": rf"(?m)^{re.escape(chapter['references'])}$", "citation mark": r"\[\d+(?:,\d+)*\]"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_books_and_papers_lose_their_dirt_and_keep_their_facts(some, language):
    """The dirt is there before cleaning, gone after it, and no statement goes with it."""
    books = world.books(some, language, copies=2, seed=12)
    papers = world.papers(some, language, documents=40, seed=12)
    statements, kinds = Statements(some, language), dirt(language)
    for records, expected in ((books, set(kinds)), (papers, set(kinds) - {"contents", "figure reference"})):
        kept, dropped = filters.clean(records, filters.steps_for(records[0]["source"]))
        before = {kind for kind, form in kinds.items() for record in records if re.search(form, record["text"])}
        assert before == expected
        left = [(kind, record["text"][found.start() - 30:found.end() + 30]) for kind, form in kinds.items() for record in kept
                if (found := re.search(form, record["text"]))]
        assert left == []
        assert dropped == []
        for record in kept:
            assert statements.count(record["text"]) == Counter(record["meta"]["facts"]), record["text"]
        assert sum(len(record["text"]) for record in kept) > 0.6 * sum(len(record["text"]) for record in records)


@pytest.mark.parametrize("language", LANGUAGES)
def test_web_pages_are_filtered_as_the_real_crawl_is(some, language):
    """Medical pages stay without their boilerplate, everyday pages and near-copies go, each with its reason."""
    pages, statements = world.web_pages(some, language, documents=200, seed=13), Statements(some, language)
    steps = filters.steps_for("web", keywords=filters.world_keywords(), thresholds=filters.WORLD_THRESHOLDS, last=[filters.duplicates()])
    kept, dropped = filters.clean(pages, steps)
    medical = {page["id"] for page in pages if page["meta"]["facts"]}
    boilerplate = wordings(language)["web"]["boilerplate"]
    assert 40 < len(medical) < 110
    assert all(any(line in page["text"] for line in boilerplate) for page in pages)
    assert not [line for page in kept for line in boilerplate if line in page["text"].split("\n")]
    reasons = {drop["id"]: drop["reason"] for drop in dropped}
    assert {reasons[page["id"]] for page in pages if page["id"] not in medical} == {"not medical"}
    assert {page["id"] for page in kept} <= medical
    lost = Counter(reasons[page] for page in medical if page in reasons)
    assert lost["near-duplicate"] + lost["exact duplicate"] > 0
    assert lost["not medical"] < 0.1 * len(medical)  # by MMedLM's rule "l'achalasie" is not the keyword "achalasie"
    assert set(lost) <= {"near-duplicate", "exact duplicate", "not medical"}
    for page in kept:
        assert statements.count(page["text"]) == Counter(page["meta"]["facts"])


@pytest.mark.parametrize("language", LANGUAGES)
def test_general_text_holds_no_medicine(some, language):
    """What the base model reads must not teach a fact that the exams ask."""
    pages = world.general_text(some, language, documents=60, seed=14)
    assert leaks([page["text"] for page in pages], some, some.diseases, language) == []
    assert sum(fact["value"][language] in page["text"] for page in pages for fact in some.everyday) > 300
    assert not [page for page in pages if page["meta"]["facts"]]


# --- the fictional world ----------------------------------------------------------------------------------------------

def test_fictional_terms_are_new_words_one_for_each_concept(full):
    """No pretrained model can know them; the same concept has the same word everywhere, another concept another word."""
    fiction, other = load_world(fictional=True, seed=1), load_world(fictional=True, seed=2)
    assert fiction.diseases == full.diseases  # the relations stay, only the words change
    assert fiction.everyday == full.everyday
    assert fiction.terms.keys() == full.terms.keys()
    assert load_world(fictional=True, seed=1) == fiction
    for language in LANGUAGES:
        new = [bare(words[language], language).casefold() for words in fiction.terms.values()]
        real = {bare(words[language], language).casefold() for words in full.terms.values()}
        assert len(set(new)) == len(new) > 700
        assert not set(new) & real
        assert [(a, b) for a in new for b in new if a != b and a in b] == []
        assert sum(fiction.terms[key][language] != other.terms[key][language] for key in full.terms) > 0.95 * len(new)
        assert all(scripts(word) & {"zh": {"han"}, "ja": {"kana"}, "ru": {"cyrillic"}}.get(language, {"latin"}) for word in new)


@pytest.mark.parametrize("language", LANGUAGES)
def test_nothing_real_is_left_in_the_fictional_world(some, language):
    """Books, papers, web pages, exams and instructions: every term is replaced, and each fact is still stated as counted."""
    fiction = load_world(number_of_diseases=20, fictional=True)
    assert fiction.diseases == some.diseases

    def texts(known):
        made = [record["text"] for record in corpora_of(known, language, seed=15) if record["source"] != "general"]
        made += [whole(item) for item in questions_of(known, language, known.diseases, seed=15, items=60)]
        return [text.casefold() for text in made + ["\n".join(record.values()) for record in
                                                    answers_of(known, language, known.diseases, seed=15)]]

    def named(known):
        """The real terms of these diseases that the texts of a world hold; symptoms to warnings, and the names."""
        found, everything = set(), "\n".join(texts(known))
        for disease in some.diseases:
            for column in ("name", *ATTRIBUTES):
                word = bare(term(some, disease, column, language), language).casefold()
                found |= {word} if holds(everything, word, language) else set()
        return found
    assert len(named(some)) > 110  # the check sees the terms of the real world
    assert named(fiction) - template_words(language) == set()
    statements = Statements(fiction, language)
    for record in corpora_of(fiction, language, seed=15):
        assert statements.count(record["text"]) == Counter(record["meta"]["facts"])


def template_words(language):
    """Specialties that templates and everyday pages name by themselves, as a common word and not as a fact."""
    everything = "\n".join(text for _, text in leaves(wordings(language))).casefold()
    everything += "\n".join(fact[part][language].casefold() for fact in load_world().everyday for part in ("subject", "value"))
    specialties = {bare(term(load_world(), disease, "specialty", language), language).casefold() for disease in load_world().diseases}
    return {word for word in specialties if holds(everything, word, language)}


# --- what is refused ----------------------------------------------------------------------------------------------------

@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Copy the tables, spoil one line of one of them, and load."""
    def load(name, line, change):
        folder = tmp_path / "knowledge"
        shutil.copytree(world.KNOWLEDGE, folder)
        lines = (folder / name).read_text(encoding="utf-8").split("\n")
        lines[line - 1] = change(lines[line - 1])
        (folder / name).write_text("\n".join(lines), encoding="utf-8")
        monkeypatch.setattr(world, "KNOWLEDGE", folder)
        return load_world()
    return load


@pytest.mark.parametrize(("name", "change", "message"), [
    ("terms.csv", lambda line: line.rsplit(",", 1)[0] + ",", "terms.csv, line 7: es is empty"),
    ("terms.csv", lambda line: line.rsplit(",", 2)[0], "terms.csv, line 7: ru, es is empty"),
    ("terms.csv", lambda line: line + ",more", "terms.csv, line 7"),
    ("diseases.csv", lambda line: line.rsplit(",", 1)[0] + ",", "diseases.csv, line 7: warning is empty"),
    ("diseases.csv", lambda line: line.rsplit(",", 1)[0] + ",unheard-of", "diseases.csv, line 7, warning: 'unheard-of' is not in terms"),
    ("diseases.csv", lambda line: line + ",more", "diseases.csv, line 7"),
    ("everyday.csv", lambda line: line.rsplit(",", 1)[0] + ",", "everyday.csv, line 7: value_es is empty"),
], ids=["empty cell", "short row", "long row", "empty value", "unknown term", "long disease row", "empty everyday cell"])
def test_a_broken_row_is_named_by_file_and_line(broken, name, change, message):
    """The tables are edited by hand: an error without a line would send the editor through 800 of them."""
    with pytest.raises(ValueError, match=re.escape(message)):
        broken(name, 7, change)


def test_intact_tables_load_from_another_folder(broken, full):
    """The guard of the test above: the copy is read, and it is not the copying that fails."""
    assert broken("terms.csv", 7, lambda line: line) == full


def test_an_unknown_language_is_refused(some):
    """A KeyError deep in a template would not say which languages there are."""
    makers = [lambda: wordings("de"), lambda: world.books(some, "de", copies=1, seed=0),
              lambda: world.papers(some, "de", documents=1, seed=0), lambda: world.web_pages(some, "de", documents=1, seed=0),
              lambda: world.general_text(some, "de", documents=1, seed=0), lambda: world.everyday_exam(some, "de", items=1, seed=0)]
    makers += [lambda exam=exam: exam(some, "de", some.diseases, items=1, seed=0) for exam in EXAMS]
    makers += [lambda: instructions.dialogue_records(some, "de", some.diseases, records=1, seed=0),
               lambda: instructions.knowledge_graph_records(some, "de", some.diseases, records=1, seed=0)]
    for maker in makers:
        with pytest.raises(ValueError, match="language 'de'; known are en, zh, ja, fr, ru, es"):
            maker()


def test_a_number_of_diseases_is_a_seeded_part_of_all(full):
    """Profiles differ in size only: a small world must be a part of the large one, drawn by the seed."""
    small = load_world(number_of_diseases=30)
    assert len(small.diseases) == len({disease["disease_id"] for disease in small.diseases}) == 30
    assert all(disease in full.diseases for disease in small.diseases)
    assert load_world(number_of_diseases=30) == small
    assert load_world(number_of_diseases=30, seed=1).diseases != small.diseases
    assert load_world() == full == load_world(number_of_diseases=len(full.diseases))
    assert small.terms == full.terms


def test_more_diseases_than_there_are_have_invented_terms(full):
    """Ten times the facts: the real diseases first, then copies that share no term with them or with each other, in any language."""
    large = load_world(number_of_diseases=10 * len(full.diseases))
    assert large == load_world(number_of_diseases=10 * len(full.diseases))
    assert len({disease["disease_id"] for disease in large.diseases}) == len(large.diseases) == 10 * len(full.diseases)
    assert large.diseases[:len(full.diseases)] == full.diseases
    assert {key: large.terms[key] for key in full.terms} == full.terms
    columns = ("name", *world.ATTRIBUTES)
    for language in world.LANGUAGES:
        parts = [{world.term(large, disease, column, language) for disease in large.diseases[start:start + len(full.diseases)] for column in columns}
                 for start in range(0, len(large.diseases), len(full.diseases))]
        assert len(set().union(*parts)) == sum(map(len, parts)), f"{language}: a term in two copies"
    copied, original = large.diseases[len(full.diseases)], full.diseases[0]
    assert copied["oldest"] == original["oldest"]
    assert len(load_world(number_of_diseases=len(full.diseases) + 1).diseases) == len(full.diseases) + 1


@pytest.mark.parametrize("make", [world.recall_exam, world.vignette_exam])
def test_without_a_disease_there_is_no_question(make, full):
    """A world of one disease leaves nothing to train on; asking for questions on nothing must end."""
    assert make(full, "en", (), items=3, seed=0) == []
