"""The controlled medical world: one knowledge base of real medicine, rendered as corpora and exams in six languages."""
import csv
import functools
import random
import re
from dataclasses import dataclass
from itertools import product
import jinja2
import yaml
from lib.results import KNOWLEDGE
LANGUAGES = ("en", "zh", "ja", "fr", "ru", "es")
ATTRIBUTES = ("specialty", "cause", "symptom", "test", "treatment", "warning")
LETTERS = "ABCDE"
ARTICLES = {"en": r"(?:an?|the) ", "fr": r"(?:l'|le |la |les |une? |des )", "es": r"(?:el|la|los|las|una?) "}
@dataclass(frozen=True)
class World:
    """Diseases with the key of each term, the terms in six languages, and everyday facts."""
    diseases: tuple   # of {"disease_id", "name", "specialty", "cause", ... "warning"}: keys into `terms`
    terms: dict       # key -> {"en": ..., "zh": ..., ...}
    everyday: tuple   # of {"kind", "subject": {language: text}, "attribute", "value": {language: text}}
    templates: int = 8  # wordings in which books and papers state a fact: the first of those that there are

def load_world(*, number_of_diseases=None, fictional=False, templates=8, seed=0):
    """Read lib/knowledge, or a seeded subset of its diseases; `fictional` gives every medical term a seeded pseudo-word, the same one everywhere.
    A number above that of the diseases adds copies of all, in which every term is a pseudo-word: new facts of the same kind."""
    diseases = [dict(row) for row in read_table("diseases.csv")]
    terms = {row["en"]: {language: row[language] for language in LANGUAGES} for row in read_table("terms.csv")}
    for number, disease in enumerate(diseases, start=2):
        for column in ("name", *ATTRIBUTES):
            if disease[column] not in terms:
                raise ValueError(f"lib/knowledge/diseases.csv, line {number}, {column}: {disease[column]!r} is not in terms.csv")
    read, real = tuple(diseases), tuple(terms)
    for copy in range(1, -(-(number_of_diseases or 0) // len(read))):
        terms |= {f"{key} {copy}": {} for key in real}
        diseases += [row | {column: f"{row[column]} {copy}" for column in ("disease_id", "name", *ATTRIBUTES)} for row in read]
    if number_of_diseases is not None and number_of_diseases < len(diseases):
        diseases = random.Random(f"diseases {seed}").sample(diseases, number_of_diseases)
    everyday = ({"kind": row["subject_kind"], "attribute": row["attribute"]} | {
        slot: {language: row[f"{slot}_{language}"] for language in LANGUAGES} for slot in ("subject", "value")} for row in read_table("everyday.csv"))
    invented = _fictional_terms(terms if fictional else terms.keys() - {*real}, seed)
    return World(tuple(diseases), invented if fictional else terms | invented, tuple(everyday), templates)

def split_diseases(world, *, test_share=0.5, seed=0):
    """(training diseases, test diseases): exam questions of one part never ask a fact of the other."""
    shuffled = random.Random(f"split {seed}").sample(world.diseases, len(world.diseases))
    cut = round(len(shuffled) * (1 - test_share))
    return tuple(shuffled[:cut]), tuple(shuffled[cut:])
def wordings(language):
    """All templates of a language, as in lib/knowledge/wordings_<language>.yaml."""
    if language not in LANGUAGES:
        raise ValueError(f"no wordings for language {language!r}; known are {', '.join(LANGUAGES)}")
    return read_yaml(f"wordings_{language}.yaml")
@functools.cache
def _first_wordings(language, number):
    """The templates of a language, of those that state a fact in books and papers the first `number`."""
    words = wordings(language)
    return words | {"attributes": {name: block | {kind: (2 * block[kind][:number])[:max(2, number)] for kind in ("book", "paper")}
                                   for name, block in words["attributes"].items()}}
def term(world, disease, column, language):
    """The text of a disease's `name` or attribute, as it stands inside a sentence."""
    return world.terms[disease[column]][language]
def bare(text, language):
    """A term without its article, as exam options print it.
    >>> bare("an electrocardiogram", "en"), bare("l'asthme", "fr"), bare("la tos", "es")
    ('electrocardiogram', 'asthme', 'tos')"""
    return re.sub(f"^{ARTICLES[language]}", "", text) if language in ARTICLES else text
def fill(template, **slots):
    """Fill {slot} as given and {Slot} with a capital first letter.
    >>> fill("{Disease} is treated with {value}.", disease="asthma", value="salbutamol")
    'Asthma is treated with salbutamol.'"""
    return template.format(**slots, **{name.capitalize(): str(text)[:1].upper() + str(text)[1:] for name, text in slots.items()})
def sentence(world, disease, attribute, language, template):
    """One fact said with one template."""
    return fill(template, disease=term(world, disease, "name", language), value=term(world, disease, attribute, language))
def case_slots(world, disease, language, draw):
    """The slots of a clinical case: symptom, test, disease, treatment, and an age at which the disease is seen."""
    slots = {column: term(world, disease, column, language) for column in ("symptom", "test", "treatment")}
    return slots | {"disease": term(world, disease, "name", language), "age": draw.randint(int(disease["youngest"]), int(disease["oldest"]))}

# --- corpora: records {text, source, language, id, meta}; meta["facts"] lists the facts that the text states ------------
def books(world, language, *, copies, seed):
    """`copies` textbooks, each with a chapter on every disease: all facts, a case, and the dirt of a scanned book."""
    draw = random.Random(f"books {language} {seed}")
    return [_chapter(world, disease, language, f"book-{language}-{copy}-{number}", number, draw) for copy in range(copies)
            for number, disease in enumerate(draw.sample(world.diseases, len(world.diseases)), start=1)]
def papers(world, language, *, documents, seed):
    """Journal articles: two or three narrow facts of one disease, a small trial, much method; common diseases more often."""
    draw = random.Random(f"papers {language} {seed}")
    weights = [1 / (1 + rank) ** 0.5 for rank in range(len(world.diseases))]  # some diseases are studied more than others
    chosen = draw.choices(world.diseases, weights, k=documents)
    return [_some_facts("paper", world, disease, language, f"paper-{language}-{i}", draw, draw.choice([2, 3])) for i, disease in enumerate(chosen)]

def web_pages(world, language, *, documents, seed):
    """A crawl: a third medical pages with boilerplate, the rest everyday pages; one in ten is a near-copy of another."""
    draw, words, pages = random.Random(f"web {language} {seed}"), wordings(language), []
    for i in range(documents):
        page_id = f"web-{language}-{i}"
        if pages and draw.random() < 0.1:  # the same page under another address, one line changed
            copy = draw.choice(pages)
            pages.append(copy | {"id": page_id, "text": copy["text"] + "\n" + draw.choice(words["web"]["boilerplate"])})
        elif draw.random() < 1 / 3:
            pages.append(_some_facts("web", world, draw.choice(world.diseases), language, page_id, draw, 3))
        else:
            page = _everyday_page(world, language, page_id, draw)
            pages.append(page | {"source": "web", "text": draw.choice(words["web"]["boilerplate"]) + "\n" + page["text"]})
    return pages
def general_text(world, language, *, documents, seed):
    """Everyday pages without medicine: what the base model has read, and what injection may make it forget."""
    draw = random.Random(f"general {language} {seed}")
    return [_everyday_page(world, language, f"general-{language}-{i}", draw) for i in range(documents)]
def _record(text, source, language, record_id, facts):
    return {"text": text, "source": source, "language": language, "id": record_id, "meta": {"facts": facts}}

def fact_id(disease, attribute):
    """The name of one fact, e.g. asthma.treatment."""
    return f"{disease['disease_id']}.{attribute}"
def _chapter(world, disease, language, record_id, number, draw):
    facts = {fact_id(disease, a): 4 if a in ("symptom", "test", "treatment") else 2 for a in ATTRIBUTES}  # 2 of the 4 are the cases
    return _document("book", world, disease, language, record_id, draw, facts, number=number)
def _some_facts(source, world, disease, language, record_id, draw, number):
    chosen = draw.sample(ATTRIBUTES, number)
    return _document(source, world, disease, language, record_id, draw, {fact_id(disease, a): 1 for a in chosen}, chosen=chosen)
def _document(source, world, disease, language, record_id, draw, facts, **more):
    slots = expression_slots(world, language, (), draw, source) | {"source": source, "disease": disease}
    return _record(JINJA.get_template("documents.jinja").render(slots | more), source, language, record_id, facts)
def agent_name(draw):
    """An invented agent for invented trials: no claim is made on a real drug."""
    return f"{draw.choice('BKLNRTVX')}{draw.choice('FGMPQSZ')}-{draw.randint(100, 999)}"

def trial_text(world, disease, drug, language, draw, wording_range):
    """([background, method, result, conclusion], verdict) of a small trial; the verdict is yes, no or maybe."""
    trial, verdict = wordings(language)["trial"], draw.choice(["yes", "no", "maybe"])
    slots = {"disease": term(world, disease, "name", language), "value": drug, "n": draw.randint(40, 900),
             "p": f"{draw.uniform(0.2, 0.9) if verdict == 'no' else draw.uniform(0.001, 0.04):.3f}"}
    result = trial[f"result_{verdict}"][draw.choice(list(wording_range))]
    parts = draw.choice(trial["background"]), draw.choice(trial["method"]), result, draw.choice(trial[f"rationale_{verdict}"])
    return [fill(part, **slots) for part in parts], verdict
def _everyday_page(world, language, record_id, draw):
    words, facts = wordings(language)["everyday"], draw.sample(world.everyday, 6)
    said = [fill(draw.choice(words[f["attribute"]]["statement"]), subject=f["subject"][language], value=f["value"][language]) for f in facts]
    lines = [draw.choice(words["titles"])] + [_join([text, draw.choice(words["filler"])], language) for text in said]
    return _record("\n".join(lines), "general", language, record_id, {})
def _join(sentences, language):
    return ("" if language in ("zh", "ja") else " ").join(sentences)

# --- exams: items {id, exam, language, question, context, options{A..}, answer, answer_idx, rationale, meta_info} -------

def exam(form, world, language, diseases=(), *, items, seed, **more):
    """Items of one of the exams of lib/knowledge/exams.yaml, on the given diseases; `more` as it names them (options, wording_range)."""
    entry, draw, found = read_yaml("exams.yaml")["exams"][form], random.Random(f"{form} {language} {seed}"), []
    slots = expression_slots(world, language, diseases, draw, form) | {"more": entry.get("more", {}) | more}
    for number, about in enumerate(_subjects(declared({"each": entry["each"]}, slots)["each"], items, draw) if "each" in entry else range(items)):
        made = declared(entry["let"], slots | {"number": number, "about": about})
        (options, right), disease = made["choices"], made.get("disease")
        answer = _join([options[letter] for letter in right], language)
        found.append({"id": f"{form}-{language}-{seed}-{number}", "exam": form, "language": language, "question": made["question"],
                      "context": made.get("context", ""), "options": options, "answer": answer, "answer_idx": ",".join(right),
                      "rationale": made.get("rationale", answer), "meta_info": ({"disease": disease["disease_id"]} if disease else {}) |
                      {"fact": made["fact"]}} | ({"completion": made["completion"]} if "completion" in made else {}))
    return found

# One exam each, called as exam: (world, language, diseases, *, items, seed).
recall_exam, vignette_exam, abstract_exam, yes_no_exam, several_answers_exam, everyday_exam = (
    functools.partial(exam, form) for form in ("recall", "vignette", "abstract", "yes_no", "several", "everyday"))
def _subjects(pool, items, draw):
    """Every subject once before any twice."""
    while pool and items > 0:
        yield from draw.sample(pool, min(len(pool), items))
        items -= len(pool)

def long_answer_questions(world, language, diseases, *, items, seed):
    """Open questions {id, question, reference, checklist} that can be graded exactly: a line of the checklist has points and all sentences that say
    it, 5 points for what was asked, 2 for a further fact, -6 for advising what is harmful. The reference says all but that."""
    draw, words, asked = random.Random(f"long {language} {seed}"), wordings(language)["attributes"], []
    for i in range(items):
        disease, about = diseases[i % len(diseases)], draw.sample(ATTRIBUTES[1:], 2)
        lines = [*((attribute, attribute, 5 if attribute in about else 2) for attribute in ATTRIBUTES[1:]), ("treatment", "warning", -6)]
        checklist = [{"criterion": sentence(world, disease | {said: disease[value]}, said, language, words[said]["book"][0]), "points": points,
                      "says": [sentence(world, disease | {said: disease[value]}, said, language, template) for template in words[said]["book"]]}
                     for said, value, points in lines]
        question = _join([fill(draw.choice(words[a]["patient"]), disease=term(world, disease, "name", language)) for a in about], language)
        asked.append({"id": f"long-{language}-{seed}-{i}", "question": question, "checklist": checklist,
                      "reference": _join([line["criterion"] for line in checklist if line["points"] > 0], language)})
    return asked
def declared(expressions, slots):
    """{name: what it stands for} of Jinja expressions, which may use the slots and the names before."""
    return {name: value for name, value in vars(_module(tuple(expressions.items())).make_module(slots)).items() if name in expressions}
@functools.cache
def _module(pairs):
    return JINJA.from_string("".join(f"{{% set {name} = {text} %}}" for name, text in pairs))

def expression_slots(world, language, diseases, draw, form):
    """What expressions of exams.yaml may name and call, for one language and set of diseases."""
    def fact_choices(disease, column, count=4):  # values of other diseases of the same part, so no option is a give-away
        right = term(world, disease, column, language)
        others = sorted({term(world, d, column, language) for d in diseases} - {right})
        if len(others) < count - 1:
            raise ValueError(f"{form} exam ({language}): {len(diseases)} diseases give only {len(others)} wrong {column} options; add diseases")
        return shuffled(right, draw.sample(others, count - 1))
    def shuffled(right, wrong):
        texts = draw.sample([right, *wrong], len(wrong) + 1)
        return {letter: bare(text, language) for letter, text in zip(LETTERS, texts)}, LETTERS[texts.index(right)]
    def statements(disease, true):  # five on a disease, of which the first `true` hold before they are shuffled
        attributes, name = draw.sample(ATTRIBUTES, 5), term(world, disease, "name", language)
        about = [disease] * true + [draw.choice([d for d in diseases if d[a] != disease[a]]) for a in attributes[true:]]
        relation = wordings(language)["relation"]
        made = [(fill(draw.choice(relation[a]), disease=name, value=term(world, d, a, language)), d is disease) for a, d in zip(attributes, about)]
        draw.shuffle(made)
        return dict(zip(LETTERS, (text for text, _ in made))), [letter for letter, (_, holds) in zip(LETTERS, made) if holds]
    def unfinished(templates, options, slots, values=(), latest=False):  # for a model that was never asked: endings as the terms spell them
        begun = [text for text in templates if any(f"{{{name}}}" in text.lower().split("{value}")[0] for name in slots)]
        template = max(begun, key=lambda text: text.lower().find("{value}")) if latest else begun[0]
        full = {bare(text, language): text for text in values or [terms[language] for terms in world.terms.values()]}
        stem, rest = template.split("{value}")
        endings = {letter: _join(["", full[text] + rest], language) for letter, text in options.items()}
        return {"stem": fill(stem, **slots).rstrip(), "endings": endings}
    return {"draw": draw, "world": world, "language": language, "diseases": diseases, "words": _first_wordings(language, world.templates),
            "shuffled": shuffled, "fact_choices": fact_choices, "statements": statements, "unfinished": unfinished,
            "joined": lambda texts: _join(texts, language), "case_slots": lambda disease: case_slots(world, disease, language, draw),
            "said": lambda disease, attribute, template: sentence(world, disease, attribute, language, template),
            "term": lambda disease, column: term(world, disease, column, language),
            "trial_text": lambda disease, drug, wording_range: trial_text(world, disease, drug, language, draw, wording_range)}

def read_table(name):
    """The rows of a CSV file in lib/knowledge; ValueError with file and line where a cell is empty or one too many."""
    with open(KNOWLEDGE / name, encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    for number, row in enumerate(rows, start=2):
        if None in row:
            raise ValueError(f"lib/knowledge/{name}, line {number}: more cells than the header has columns")
        if empty := [column for column, value in row.items() if not (value or "").strip()]:
            raise ValueError(f"lib/knowledge/{name}, line {number}: {', '.join(empty)} is empty")
    return rows

@functools.cache
def read_yaml(name):
    """A YAML file in lib/knowledge; read once, so what it returns must not be changed."""
    return yaml.load((KNOWLEDGE / name).read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
def _fictional_terms(terms, seed):
    """A pseudo-word for every term and language, unique within the language."""
    draw, taken, renamed = random.Random(f"fictional {seed}"), set(), {key: {} for key in sorted(terms)}
    syllables = read_yaml("invented.yaml")["syllables"]
    for key, language in product(renamed, LANGUAGES):
        parts = syllables.get(language, syllables["other"])
        word = next(w for w in iter(lambda p=parts: "".join(draw.choices(p, k=4)), None) if (language, w) not in taken)
        taken.add((language, word))
        renamed[key][language] = {"fr": "le ", "es": "el "}.get(language, "") + word
    return renamed

JINJA = jinja2.Environment(loader=jinja2.FileSystemLoader(KNOWLEDGE), undefined=jinja2.StrictUndefined, trim_blocks=True)
JINJA.globals.update(fill=fill, bare=bare, product=product, fact_id=fact_id, agent_name=agent_name, attributes=ATTRIBUTES, read_yaml=read_yaml)
