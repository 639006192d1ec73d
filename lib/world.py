"""The controlled medical world: one knowledge base of real medicine, rendered as corpora and exams in six languages."""
import csv
import functools
import random
import re
from dataclasses import dataclass
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

def load_world(*, number_of_diseases=None, fictional=False, seed=0):
    """Read lib/knowledge, or a seeded subset of its diseases; `fictional` gives every medical term a seeded pseudo-word, the same one everywhere."""
    diseases = [dict(row) for row in read_table("diseases.csv")]
    terms = {row["en"]: {language: row[language] for language in LANGUAGES} for row in read_table("terms.csv")}
    for number, disease in enumerate(diseases, start=2):
        for column in ("name", *ATTRIBUTES):
            if disease[column] not in terms:
                raise ValueError(f"lib/knowledge/diseases.csv, line {number}, {column}: {disease[column]!r} is not in terms.csv")
    if number_of_diseases is not None and number_of_diseases < len(diseases):
        diseases = random.Random(f"diseases {seed}").sample(diseases, number_of_diseases)
    everyday = ({"kind": row["subject_kind"], "attribute": row["attribute"]}
                | {slot: {language: row[f"{slot}_{language}"] for language in LANGUAGES} for slot in ("subject", "value")}
                for row in read_table("everyday.csv"))
    return World(tuple(diseases), _fictional_terms(terms, seed) if fictional else terms, tuple(everyday))

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
    capitals = {name.capitalize(): str(text)[:1].upper() + str(text)[1:] for name, text in slots.items()}
    return template.format(**slots, **capitals)

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
    draw, words = random.Random(f"books {language} {seed}"), wordings(language)
    return [_chapter(world, disease, language, f"book-{language}-{copy}-{number}", number, draw, words) for copy in range(copies)
            for number, disease in enumerate(draw.sample(world.diseases, len(world.diseases)), start=1)]

def papers(world, language, *, documents, seed):
    """Journal articles: two or three narrow facts of one disease, a small trial, much method; common diseases more often."""
    draw, words = random.Random(f"papers {language} {seed}"), wordings(language)
    weights = [1 / (1 + rank) ** 0.5 for rank in range(len(world.diseases))]  # some diseases are studied more than others
    chosen = draw.choices(world.diseases, weights, k=documents)
    return [_paper(world, disease, language, f"paper-{language}-{i}", draw, words) for i, disease in enumerate(chosen)]

def web_pages(world, language, *, documents, seed):
    """A crawl: a third medical pages with boilerplate, the rest everyday pages; one in ten is a near-copy of another."""
    draw, words, pages = random.Random(f"web {language} {seed}"), wordings(language), []
    for i in range(documents):
        page_id = f"web-{language}-{i}"
        if pages and draw.random() < 0.1:  # the same page under another address, one line changed
            copy = draw.choice(pages)
            pages.append(copy | {"id": page_id, "text": copy["text"] + "\n" + draw.choice(words["web"]["boilerplate"])})
        elif draw.random() < 1 / 3:
            pages.append(_medical_page(world, draw.choice(world.diseases), language, page_id, draw, words))
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
def _chapter(world, disease, language, record_id, number, draw, words):
    name, parts = term(world, disease, "name", language), words["chapter"]
    lines = [fill(parts["title"], number=number, disease=name), f"{parts['contents']} 1 ....... {number}  2 ....... {number + 7}"]
    lines += [_authors(draw), fill(draw.choice(parts["intro"]), disease=name)]
    for attribute in draw.sample(ATTRIBUTES, len(ATTRIBUTES)):
        block = words["attributes"][attribute]
        said = [sentence(world, disease, attribute, language, t) for t in draw.sample(block["book"], 2)]
        lines += [block["heading"], _join([said[0] + draw.choice(["", "", f" [{draw.randint(1, 40)}]"]), said[1]], language)]
        if draw.random() < 0.25:
            lines.append(fill(draw.choice(parts["figure_reference"]), number=f"{number}.{draw.randint(1, 9)}"))
    lines += [fill(t, **case_slots(world, disease, language, draw)) for t in draw.sample(words["case"], 2)]
    lines += [draw.choice(parts["filler"]), f"www.example.org/book/{number}", parts["references"]]
    lines += [_reference(i, 1980, draw) for i in (1, 2)]
    facts = {fact_id(disease, a): 4 if a in ("symptom", "test", "treatment") else 2 for a in ATTRIBUTES}  # 2 of the 4 are the cases
    return _record("\n".join(lines), "book", language, record_id, facts)
def _paper(world, disease, language, record_id, draw, words):
    name, paper = term(world, disease, "name", language), words["paper"]
    chosen = draw.sample(ATTRIBUTES, draw.choice([2, 3]))
    said = [sentence(world, disease, a, language, draw.choice(words["attributes"][a]["paper"])) for a in chosen]
    filler = [t.format(n=draw.randint(30, 900), p=f"{draw.uniform(0.001, 0.9):.3f}") for t in draw.sample(paper["filler"], 9)]
    trial, _ = trial_text(world, disease, agent_name(draw), language, draw, range(6))
    lines = [fill(draw.choice(paper["title"]), disease=name), _authors(draw), paper["abstract"],
             _join([said[0], filler[0]], language), paper["introduction"],
             _join([*said[1:], filler[1] + " [3,7]", filler[2]], language), paper["methods"], _join(filler[3:6], language),
             paper["results"], _join([*trial, filler[6]], language), paper["discussion"], _join(filler[7:], language),
             words["chapter"]["references"], _reference(1, 1990, draw)]
    return _record("\n".join(lines), "paper", language, record_id, {fact_id(disease, a): 1 for a in chosen})

def agent_name(draw):
    """An invented agent for invented trials: no claim is made on a real drug."""
    return f"{draw.choice('BKLNRTVX')}{draw.choice('FGMPQSZ')}-{draw.randint(100, 999)}"

def trial_text(world, disease, drug, language, draw, wording_range):
    """([background, method, result, conclusion], verdict) of a small trial; the verdict is yes, no or maybe."""
    trial, verdict = wordings(language)["trial"], draw.choice(["yes", "no", "maybe"])
    slots = {"disease": term(world, disease, "name", language), "value": drug, "n": draw.randint(40, 900),
             "p": f"{draw.uniform(0.2, 0.9) if verdict == 'no' else draw.uniform(0.001, 0.04):.3f}"}
    result = trial[f"result_{verdict}"][draw.choice(list(wording_range))]
    parts = (draw.choice(trial["background"]), draw.choice(trial["method"]), result, draw.choice(trial[f"rationale_{verdict}"]))
    return [fill(part, **slots) for part in parts], verdict
def _medical_page(world, disease, language, record_id, draw, words):
    chosen, web, name = draw.sample(ATTRIBUTES, 3), words["web"], term(world, disease, "name", language)
    said = [sentence(world, disease, a, language, draw.choice(words["attributes"][a]["web"])) for a in chosen]
    lines = [draw.choice(web["boilerplate"]), fill(draw.choice(web["medical_title"]), disease=name), *said,
             draw.choice(web["filler"]), *draw.sample(web["boilerplate"], 2)]
    return _record("\n".join(lines), "web", language, record_id, {fact_id(disease, a): 1 for a in chosen})
def _everyday_page(world, language, record_id, draw):
    words, facts = wordings(language)["everyday"], draw.sample(world.everyday, 6)
    said = [fill(draw.choice(words[f["attribute"]]["statement"]), subject=f["subject"][language], value=f["value"][language]) for f in facts]
    lines = [draw.choice(words["titles"])] + [_join([text, draw.choice(words["filler"])], language) for text in said]
    return _record("\n".join(lines), "general", language, record_id, {})
def _join(sentences, language):
    return ("" if language in ("zh", "ja") else " ").join(sentences)
def _authors(draw):
    return ", ".join(draw.sample(read_yaml("invented.yaml")["authors"], 3)) + " et al."
def _reference(number, first_year, draw):
    return f"{number}. {_authors(draw)} ({draw.randint(first_year, 2023)}). https://doi.org/10.1000/{draw.randint(1000, 9999)}"

# --- exams: items {id, exam, language, question, context, options{A..}, answer, answer_idx, rationale, meta_info} -------

def recall_exam(world, language, diseases, *, items, seed):
    """MedMCQA-like: one attribute of a named disease, four options; every fact once before any fact twice."""
    draw, words = random.Random(f"recall {language} {seed}"), wordings(language)["attributes"]
    texts = [terms[language] for terms in world.terms.values()]
    facts, exam = [(disease, attribute) for disease in diseases for attribute in ATTRIBUTES], []
    while facts and len(exam) < items:
        for disease, attribute in draw.sample(facts, min(len(facts), items - len(exam))):
            said = words[attribute]
            question, rationale = (sentence(world, disease, attribute, language, draw.choice(said[kind])) for kind in ("question", "rationale"))
            choices = _fact_choices(world, "recall", language, disease, attribute, diseases, draw)
            item = _item("recall", language, seed, len(exam), question, choices, rationale, fact_id(disease, attribute), disease)
            template = max(said["book"], key=lambda t: t.lower().find("{value}") if "{disease}" in t.lower().split("{value}")[0] else -1)
            slots = {"disease": term(world, disease, "name", language)}
            exam.append(item | {"completion": _unfinished(template, texts, item["options"], language, slots)})
    return exam
def _unfinished(template, texts, options, language, slots):
    """A fact for a model that was never shown a question: {"stem", "endings": {A: ..}}, each ending as `texts` spell it."""
    (stem, rest), full = template.split("{value}"), {bare(text, language): text for text in texts}
    endings = {letter: _join(["", full[text] + rest], language) for letter, text in options.items()}
    return {"stem": fill(stem, **slots).rstrip(), "endings": endings}

def vignette_exam(world, language, diseases, *, items, seed, options=4):
    """MedQA-like: a finding is given, the disease is not; asked are the disease, its treatment or its test."""
    draw, words = random.Random(f"vignette {language} {seed}"), wordings(language)
    asked, exam = [(d, *a) for d in diseases for a in (("disease", "name"), ("treatment", "treatment"), ("test", "test"))], []
    while asked and len(exam) < items:
        for disease, target, column in draw.sample(asked, min(len(asked), items - len(exam))):
            slots = case_slots(world, disease, language, draw) | {"value": term(world, disease, column, language)}
            choices = _fact_choices(world, "vignette", language, disease, column, diseases, draw, count=options)
            question, why = (fill(draw.choice(words[kind][target]), **slots) for kind in ("vignette", "vignette_rationale"))
            exam.append(_item("vignette", language, seed, len(exam), question, choices, why, fact_id(disease, column), disease))
    return exam

def abstract_exam(world, language, diseases, *, items, seed, wording_range=range(6)):
    """PubMedQA-like: yes, no or maybe, to be read off the abstract of a small trial; the conclusion is not shown."""
    draw, words, exam = random.Random(f"abstract {language} {seed}"), wordings(language)["trial"], []
    letters = {"yes": "A", "no": "B", "maybe": "C"}
    for i in range(items):
        disease, drug = draw.choice(diseases), agent_name(draw)
        context, verdict = trial_text(world, disease, drug, language, draw, wording_range)
        question = fill(draw.choice(words["question"]), disease=term(world, disease, "name", language), value=drug)
        choices = {letter: words["answers"][each] for each, letter in letters.items()}, letters[verdict]
        item = _item("abstract", language, seed, i, question, choices, context[3], f"trial-{i}", disease)
        exam.append(item | {"context": _join(context[:3], language)})
    return exam

def yes_no_exam(world, language, diseases, *, items, seed):
    """RuMedDaNet-like: is this statement on a disease right? Half are; the others carry another disease's value."""
    draw, words, exam = random.Random(f"yes_no {language} {seed}"), wordings(language), []
    for i in range(items):
        disease, attribute, right = draw.choice(diseases), draw.choice(ATTRIBUTES), "AB"[i % 2]
        source = disease if right == "A" else draw.choice([d for d in diseases if d[attribute] != disease[attribute]])
        name, value = term(world, disease, "name", language), term(world, source, attribute, language)
        question = fill(draw.choice(words["yes_no"][attribute]), disease=name, value=value)
        rationale = sentence(world, disease, attribute, language, draw.choice(words["attributes"][attribute]["rationale"]))
        choices = {letter: words["trial"]["answers"][verdict] for letter, verdict in (("A", "yes"), ("B", "no"))}, right
        exam.append(_item("yes_no", language, seed, i, question, choices, rationale, fact_id(disease, attribute), disease))
    return exam

def several_answers_exam(world, language, diseases, *, items, seed):
    """FrenchMedMCQA- and IgakuQA-like: which of five statements are true of a disease; one to three are."""
    draw, words, exam = random.Random(f"several {language} {seed}"), wordings(language), []
    for i in range(items):
        disease, true = draw.choice(diseases), draw.randint(1, 3)
        attributes, name = draw.sample(ATTRIBUTES, 5), term(world, disease, "name", language)
        others = [draw.choice([d for d in diseases if d[a] != disease[a]]) for a in attributes[true:]]
        statements = [(fill(draw.choice(words["relation"][a]), disease=name, value=term(world, s, a, language)), s is disease)
                      for a, s in zip(attributes, [disease] * true + others)]
        draw.shuffle(statements)
        options = {letter: text for letter, (text, _) in zip(LETTERS, statements)}
        right = [letter for letter, (_, is_true) in zip(LETTERS, statements) if is_true]
        question, answer = fill(words["phrases"]["several_question"], disease=name), _join(map(options.get, right), language)
        exam.append(_item("several", language, seed, i, question, (options, right), answer, fact_id(disease, "several"), disease))
    return exam

def everyday_exam(world, language, *, items, seed):
    """Everyday facts, four options: what is lost of them is forgetting."""
    draw, exam = random.Random(f"everyday {language} {seed}"), []
    for i, fact in enumerate(draw.sample(world.everyday, min(items, len(world.everyday)))):
        words, subject, right = wordings(language)["everyday"][fact["attribute"]], fact["subject"][language], fact["value"][language]
        question = fill(draw.choice(words["question"]), subject=subject, value=right)
        alike = [f for f in world.everyday if f["attribute"] == fact["attribute"]]
        wrong = draw.sample(sorted({f["value"][language] for f in alike} - {right}), 3)
        choices, rationale = _choices(right, wrong, language, draw), fill(words["statement"][0], subject=subject, value=right)
        statement = next(t for t in words["statement"] if "{subject}" in t.lower().split("{value}")[0])
        item = _item("everyday", language, seed, i, question, choices, rationale, f"{fact['subject']['en']}.{fact['attribute']}")
        exam.append(item | {"completion": _unfinished(statement, [right, *wrong], item["options"], language, {"subject": subject})})
    return exam

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
def _item(exam, language, seed, number, question, choices, rationale, fact, disease=None):
    """One exam item; choices: ({letter: option}, the letters of the right ones)."""
    options, right = choices
    return {"id": f"{exam}-{language}-{seed}-{number}", "exam": exam, "language": language, "question": question, "context": "",
            "options": options, "answer": _join([options[letter] for letter in right], language), "answer_idx": ",".join(right),
            "rationale": rationale, "meta_info": ({"disease": disease["disease_id"]} if disease else {}) | {"fact": fact}}
def _fact_choices(world, exam, language, disease, column, diseases, draw, *, count=4):
    """Options are values of other diseases of the same part, so no option is a give-away."""
    right = term(world, disease, column, language)
    others = sorted({term(world, d, column, language) for d in diseases} - {right})
    if len(others) < count - 1:
        raise ValueError(f"{exam} exam ({language}): {len(diseases)} diseases give only {len(others)} wrong {column} options; add diseases")
    return _choices(right, draw.sample(others, count - 1), language, draw)
def _choices(right, wrong, language, draw):
    texts = draw.sample([right, *wrong], len(wrong) + 1)
    options = {letter: bare(text, language) for letter, text in zip(LETTERS, texts)}
    return options, LETTERS[texts.index(right)]

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
    for key in renamed:
        for language in LANGUAGES:
            parts = syllables.get(language, syllables["other"])
            word = next(w for w in iter(lambda p=parts: "".join(draw.choices(p, k=4)), None) if (language, w) not in taken)
            taken.add((language, word))
            renamed[key][language] = {"fr": "le ", "es": "el "}.get(language, "") + word
    return renamed
