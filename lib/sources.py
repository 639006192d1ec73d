"""Public data sets: where from, under what licence, and how a native record becomes one of ours."""

# SOURCES at the end is the table: a set is one entry and one small mapping. A corpus yields (id, text, meta), which
# become records {text, source, language, id, meta}; an exam yields items that still lack exam and language. A bad record
# stops the run with an error that names file, line or record, and field.

import csv
import functools
import hashlib
import io
import json
import random
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TEXTS = ("web", "paper", "dialogue")  # kinds of source; the other is "exam"

@dataclass(frozen=True)
class Source:
    """One public data set, as it lies in a folder below DATA_DIR."""

    name: str
    kind: str         # one of TEXTS, or "exam"
    folder: str       # below DATA_DIR
    files: tuple      # patterns of the native files that must be there, at any depth below the folder
    licence: str
    citation: str
    languages: tuple  # ISO codes
    read: Callable    # list of files, in the order of `files` -> native records as ours

# --- native forms: (place for error messages, native record) ----------------------------------------------------------

def _text(path):
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}; convert the file") from None
    if not text.strip():
        raise ValueError(f"{path}: the file is empty; fetch it again")
    return text

def _parsed(path, text, *, first_line=1):
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise ValueError(f"{path}, line {line}: broken JSON ({error.msg}, column {error.colno}); mend it") from None

def _json_lines(path):
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            yield f"{path}, line {number}", _parsed(path, line, first_line=number)

def _json_file(path):
    """A whole JSON file as [(place, key, record)]; the records of a list are counted from 1."""
    content = _parsed(path, _text(path))
    if not isinstance(content, dict | list) or not content:
        raise ValueError(f"{path}: a JSON list or object with at least one record is needed")
    pairs = content.items() if isinstance(content, dict) else enumerate(content, start=1)
    return [(f"{path}, record {key}", str(key), record) for key, record in pairs]

def _csv_rows(path):
    reader = csv.DictReader(io.StringIO(_text(path), newline=""))
    return ((f"{path}, line {reader.line_num}", row) for row in reader)

def _xml_root(path):
    try:
        return ElementTree.fromstring(_text(path).encode())
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}, line {error.position[0]}: broken XML ({error}); fetch the file again") from None

def _need(record, field, place):
    """The text of a field, stripped; ValueError where it is missing, empty or not a text."""
    value = record.get(field) if isinstance(record, dict) else None
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{place}, field {field!r}: a non-empty text is needed, found {value!r}")
    return value.strip()

def tidy(text):
    """One space where there are several, list items on lines of their own, no empty lines.

    >>> tidy("It may include:      -  Surgery.     - A trial.  \\n\\n Ask.")
    'It may include:\\n- Surgery.\\n- A trial.\\nAsk.'
    """
    text = re.sub(r"\s{3}\s*- +", "\n- ", text)  # MedQuAD's lists have lost their line ends
    return "\n".join(line for line in (" ".join(part.split()) for part in text.split("\n")) if line)

def detokenise(text):
    """Undo the spaces that a tokeniser put around punctuation: HoC and ACI-Bench are shipped tokenised.

    >>> detokenise("We do n't use it ( GHS-R ) , the patient 's own .")
    "We don't use it (GHS-R), the patient's own."
    """
    text = re.sub(r" ([.,;:?!)\]%])", r"\1", text)
    text = re.sub(r"([(\[]) ", r"\1", text)
    return re.sub(r" (n't|'(?:s|re|ve|ll|d|m))\b", r"\1", text)

# --- corpora: (id, text, meta); meta["document"] is what a split must not divide, meta["split"] the publisher's split -

def _medquad(files):
    """One record per answered question. The parts of a topic (0000001_1, 0000001_2) repeat each other: one document."""
    for path in files:
        topic = f"{path.parent.name}-{path.stem.split('_')[0]}"
        for number, pair in enumerate(_xml_root(path).iter("QAPair"), start=1):
            fields = {child.tag: child.text for child in pair}
            question = _need(fields, "Question", f"{path}, QAPair {number}").replace(" ?", "?")
            if (fields.get("Answer") or "").strip():  # three of its twelve folders have no answers, for copyright
                text = tidy(f"{question}\n{fields['Answer']}")
                yield f"{path.parent.name}-{path.stem}-{number}", text, {"document": f"medquad-{topic}"}

def _context(entry, place):
    paragraphs = entry.get("CONTEXTS")
    text = "\n".join(map(str, paragraphs)) if isinstance(paragraphs, list) else None
    return _need({"CONTEXTS": text}, "CONTEXTS", place)

def _pubmedqa_labels(path):
    return {pmid: label for _, pmid, label in _json_file(path)}

def _pubmedqa_abstracts(files):
    """Title, sections and conclusion of the abstracts of PQA-L; those of the 500 test questions are marked as test."""
    labels = _pubmedqa_labels(files[1])
    for place, pmid, entry in _json_file(files[0]):
        parts = [_need(entry, "QUESTION", place), _context(entry, place), _need(entry, "LONG_ANSWER", place)]
        yield pmid, tidy("\n".join(parts)), {"pmid": pmid, "split": "test" if pmid in labels else "train"}

def _hoc(files):
    """Abstracts, named by their PubMed id, one tokenised sentence a line; the labels are not read."""
    for path in files:
        yield path.stem, detokenise(" ".join(_text(path).split())), {"pmid": path.stem}

def _clinical_dialogues(files, *, identifier, note):
    """MTS-Dialog and ACI-Bench: a conversation, then the note that was written about it."""
    for path in files:
        split = {"split": "test" if "test" in path.stem.lower() else "train"}
        for place, row in [] if path.stem.endswith("_metadata") else _csv_rows(path):
            tagged = _need(row, "dialogue", place)  # [doctor] hi , brian . -> Doctor: hi, brian.
            said = detokenise(re.sub(r"(?m)^\[(\w)(\w*)\] ?", lambda tag: f"{tag[1].upper()}{tag[2]}: ", tagged))
            text = tidy(f"{said}\n{_need(row, note, place)}")
            yield f"{path.stem}-{_need(row, identifier, place)}", text, split

def _question_and_answer(files, *, form):
    """Instruction records: a person's question and the answer, in a form such as "Patient: {}"."""
    for place, key, entry in _json_file(files[0]):
        yield key, form.format(*(tidy(_need(entry, field, place)) for field in ("input", "output"))), {}

# --- exams: items without exam and language; "id" where the set has one -----------------------------------------------

def _item(place, field, *, question, options, letter, **more):
    """Question, options and right answer, checked; `field` is the native field that names the answer."""
    texts = list(options.values()) if isinstance(options, dict) else []
    if len(texts) < 2 or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"{place}, options: at least two non-empty texts are needed, found {options!r}")
    if str(letter) not in options:
        raise ValueError(f"{place}, field {field!r}: no right answer among {', '.join(options)}; mend or drop the item")
    return {"question": question, "context": "", "options": options, "answer": options[letter], "answer_idx": letter,
            "rationale": "", "meta_info": {}} | more

def _medqa(files):
    for place, entry in _json_lines(files[0]):
        question, step = _need(entry, "question", place), str(entry.get("meta_info", ""))
        item = _item(place, "answer_idx", question=question, letter=entry.get("answer_idx"), options=entry.get("options"),
                     meta_info={"step": step.replace("stfep", "step")})  # one item has the typo
        if item["answer"] != entry.get("answer"):
            raise ValueError(f"{place}, field 'answer': {entry.get('answer')!r} is not option {item['answer_idx']}")
        yield item

def _medmcqa(files):
    """`cop` counts from 1; of `choice_type` multi, too, one option is right; `exp` may be null."""
    for place, entry in _json_lines(files[0]):
        question, exam_id = _need(entry, "question", place), _need(entry, "id", place)
        yield {"id": exam_id} | _item(
            place, "cop", question=question, letter=dict(zip("1234", "ABCD", strict=True)).get(str(entry.get("cop"))),
            options={letter: entry.get(f"op{letter.lower()}") for letter in "ABCD"}, rationale=entry.get("exp") or "",
            meta_info={field: entry.get(field) or "" for field in ("subject_name", "topic_name", "choice_type")})

def _pubmedqa(files):
    """The 500 official test questions of PQA-L: yes, no or maybe, from the abstract without its conclusion."""
    entries = {pmid: (place, entry) for place, pmid, entry in _json_file(files[0])}
    options, letters = {"A": "yes", "B": "no", "C": "maybe"}, {"yes": "A", "no": "B", "maybe": "C"}
    for pmid, label in _pubmedqa_labels(files[1]).items():
        if pmid not in entries:
            raise ValueError(f"{files[1]}, record {pmid}: not in {files[0].name}; both must be of one release")
        place, entry = entries[pmid]
        question, rationale = (_need(entry, field, place) for field in ("QUESTION", "LONG_ANSWER"))
        yield {"id": pmid} | _item(f"{files[1]}, record {pmid}", "label", question=question, letter=letters.get(str(label)),
                                   options=options, context=_context(entry, place), rationale=rationale,
                                   meta_info={"pmid": pmid})

# --- loading -----------------------------------------------------------------------------------------------------------

def _files(data_dir, source):
    """The native files of a set; FileNotFoundError says what is missing, what it should hold, and what is there."""
    folder, found = Path(data_dir) / source.folder, []
    for pattern in source.files:
        matches = sorted(path for path in folder.rglob(pattern) if path.is_file())
        if not matches:
            raise FileNotFoundError(
                f"{data_dir}: {source.folder}/{pattern if folder.is_dir() else ''} is missing; for {source.name} it should "
                f"hold {' and '.join(source.files)}. Sets found there: {', '.join(available(data_dir)) or 'none'}")
        found += matches
    return found

def available(data_dir):
    """Names of the sets whose folder is in data_dir."""
    return [name for name, source in SOURCES.items() if (Path(data_dir) / source.folder).is_dir()]

def _read(data_dir, name, kinds):
    if name not in SOURCES or SOURCES[name].kind not in kinds:
        known = ", ".join(each for each, source in SOURCES.items() if source.kind in kinds)
        raise ValueError(f"unknown set {name!r}; known of this kind: {known}")
    return SOURCES[name].read(_files(data_dir, SOURCES[name]))

def load_corpus(data_dir, names=None):
    """Training text of the named sets (default: all whose folder is there): records {text, source, language, id, meta}.

    Left out: the publishers' test splits, and from every set the abstracts (by PubMed id) of PubMedQA's test questions.
    """
    there, texts = available(data_dir), [name for name, source in SOURCES.items() if source.kind in TEXTS]
    names = [name for name in texts if name in there] if names is None else names
    if not names:
        folders = ", ".join(SOURCES[name].folder for name in texts)
        raise FileNotFoundError(f"{data_dir}: no set to read; it should hold one or more of the folders {folders}")
    held_out = _pubmedqa_labels(_files(data_dir, SOURCES["pubmedqa"])[1]) if "pubmedqa" in there else {}
    return _unique([record for name in names for record in read_records(data_dir, name)
                    if record["meta"]["split"] != "test" and record["meta"].get("pmid") not in held_out])

def read_records(data_dir, name):
    """All records of one set, the publisher's test split included (meta["split"])."""
    for key, text, meta in _read(data_dir, name, TEXTS):
        meta = {"kind": SOURCES[name].kind, "split": "train", "document": f"{name}-{key}"} | meta
        yield {"text": text, "source": name, "language": SOURCES[name].languages[0], "id": f"{name}-{key}", "meta": meta}

def load_exam(data_dir, name, *, items=None, seed=0):
    """The items of an exam in the file's order; `items` draws that many by seed (all, if there are fewer), and a larger
    draw holds the smaller one."""
    native = enumerate(_read(data_dir, name, ("exam",)), start=1)
    exam = _unique([{"id": f"{name}-{item.pop('id', number)}", "exam": name, "language": SOURCES[name].languages[0]} | item
                    for number, item in native])
    numbers = random.Random(f"{name} {seed}").sample(range(len(exam)), len(exam))[:items]
    return [exam[number] for number in sorted(numbers)]

def _unique(records):
    twice = [record_id for record_id, times in Counter(record["id"] for record in records).items() if times > 1]
    if twice:
        raise ValueError(f"the id {twice[0]!r} occurs twice ({len(twice)} such ids); ids must be unique within a set")
    return records

def split_documents(records, *, test_share, seed):
    """(train, test): a document goes by a hash of its name, so order and other documents do not matter, and the records
    of one document (meta["document"], else id) stay together."""
    parts = [], []
    for record in records:
        name = record.get("meta", {}).get("document", record["id"])
        place = int(hashlib.sha256(f"{seed} {name}".encode()).hexdigest()[:12], 16) / 16**12  # in [0, 1)
        parts[place < test_share].append(record)
    return parts

def fingerprint(records):
    """A hash of records or items in their order: 16 hexadecimal digits.

    >>> fingerprint([{"id": "a", "text": "x"}]) == fingerprint([{"text": "x", "id": "a"}])
    True
    """
    return hashlib.sha256(json.dumps(list(records), sort_keys=True).encode()).hexdigest()[:16]

PUBMEDQA = ("pubmedqa", ("ori_pqal.json", "test_ground_truth.json"), "MIT", "Jin et al. 2019, PubMedQA", ("en",))
SOURCES = {source.name: source for source in (
    Source("medquad", "web", "medquad", ("*.xml",), "CC BY 4.0",
           "Ben Abacha and Demner-Fushman 2019, MedQuAD", ("en",), _medquad),
    Source("medical_meadow", "web", "medical_meadow_small", ("*.json",), "GPL-3.0 (repository)",
           "Han et al. 2023, MedAlpaca", ("en",), functools.partial(_question_and_answer, form="{}\n{}")),
    Source("pubmedqa_abstracts", "paper", *PUBMEDQA, _pubmedqa_abstracts),
    Source("hoc", "paper", "hoc", ("text/*.txt",), "GPL-3.0", "Baker et al. 2016, Hallmarks of Cancer", ("en",), _hoc),
    Source("chatdoctor", "dialogue", "chatdoctor", ("chatdoctor5k.json",), "Apache-2.0, for research only",
           "Li et al. 2023, ChatDoctor", ("en",),
           functools.partial(_question_and_answer, form="Patient: {}\nDoctor: {}")),
    Source("mts_dialog", "dialogue", "mts_dialog", ("MTS-Dialog-*.csv",), "CC BY 4.0",
           "Ben Abacha et al. 2023, MTS-Dialog", ("en",),
           functools.partial(_clinical_dialogues, identifier="ID", note="section_text")),
    Source("aci_bench", "dialogue", "aci_bench", ("challenge_data/*.csv",), "CC BY 4.0", "Yim et al. 2023, ACI-Bench",
           ("en",), functools.partial(_clinical_dialogues, identifier="encounter_id", note="note")),
    Source("medqa_us_4opt", "exam", "medqa_us_4opt", ("phrases_no_exclude_test.jsonl",), "MIT",
           "Jin et al. 2021, MedQA", ("en",), _medqa),
    Source("medmcqa", "exam", "medmcqa_dev", ("dev.json",), "MIT", "Pal et al. 2022, MedMCQA", ("en",), _medmcqa),
    Source("pubmedqa", "exam", *PUBMEDQA, _pubmedqa))}
