"""Public data sets: where from, under what licence, and how a native record becomes one of ours."""

# lib/knowledge/sources.yaml declares every set: its files, splits and expected counts, licence and citation, and what our record
# takes from which native field (see _filled). Here are the native forms (a file -> native records, each with its place for
# messages) and loading, the same for local files and for the hub. A bad record stops the run with an error that names file, line
# or record, and field; on_error="skip" leaves it out and lists it.

import csv
import functools
import gzip
import hashlib
import io
import json
import logging
import random
import re
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import yaml

from lib.results import results_root, write_atomically

TEXTS = ("web", "paper", "dialogue", "book", "general")  # kinds of training text
KINDS = (*TEXTS, "exam", "question", "instruction", "annotation", "task")
KNOWLEDGE = Path(__file__).resolve().parent / "knowledge"
LANGUAGES = {"English": "en", "Chinese": "zh", "Japanese": "ja", "French": "fr", "Russian": "ru", "Spanish": "es"}
NOT_PUBLISHED_FORM = (KeyError, TypeError, AttributeError, IndexError)
csv.field_size_limit(2**31 - 1)  # whole articles stand in one cell of HealthFact

@dataclass(frozen=True)
class Source:
    """One public data set, as it lies in a folder below DATA_DIR or on the hub."""

    name: str
    kind: str         # one of KINDS
    folder: str       # below DATA_DIR
    files: tuple      # patterns of the native files, at any depth below the folder, split by split
    licence: str
    citation: str
    languages: tuple  # ISO codes
    splits: dict      # name -> {files, count as published or null, language}
    usual: str        # the split that load_exam reads if none is named; "all" for every one
    entry: dict       # all that lib/knowledge/sources.yaml says of it

# --- native forms: (place for error messages, native record or a function that makes it) -------------------------------

def _text(path):
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}; convert the file") from None
    if not text.strip():
        raise ValueError(f"{path}: the file is empty; fetch it again")
    return text

def _parsed(path, text, line=1):
    try:
        return json.loads(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}, line {line}: not UTF-8 at byte {error.start} of the line; convert the file") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {line + error.lineno - 1}: broken JSON ({error.msg}, column {error.colno}); mend it") from None

def _json_lines(path):
    """One line at a time: some of these files do not fit in memory. A .gz is read as it is."""
    if not path.stat().st_size:
        raise ValueError(f"{path}: the file is empty; fetch it again")
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield f"{path}, line {number}", functools.partial(_parsed, path, line.removeprefix(b"\xef\xbb\xbf"), number)

def _json_file(path):
    """The records of a list, counted from 1, or of a dict, named by _key."""
    content = _parsed(path, _text(path))
    if not isinstance(content, dict | list) or not content:
        raise ValueError(f"{path}: a JSON list or object with at least one record is needed")
    pairs = content.items() if isinstance(content, dict) else enumerate(content, start=1)
    return [(f"{path}, record {key}", {"_key": str(key)} | (record if isinstance(record, dict) else {"_value": record})) for key, record in pairs]

def _csv_rows(path, columns=None):
    """A table with , ; or tab between its cells, as its header shows; `columns` are those of a table without header."""
    text = _text(path)
    mark = "," if columns else max(",;\t", key=text.split("\n", 1)[0].count)
    reader = csv.DictReader(io.StringIO(text, newline=""), columns, delimiter=mark)
    for row in reader:
        yield f"{path}, line {reader.line_num}", row | {"_subject": path.stem.rsplit("_", 1)[0]}

def _csv_cells(path, left_out):
    """The cells of a row as lines of text, for a table that is one patient a row."""
    for place, row in _csv_rows(path):
        yield place, row | {"cells": [f"{title}: {cell}" for title, cell in row.items() if title not in (*left_out, "_subject")]}

def _xlsx_rows(path):
    """The first sheet by its header: a workbook is zipped XML, so the standard library reads it."""
    try:
        with zipfile.ZipFile(path) as book:
            strings, sheet = (ElementTree.fromstring(book.read(f"xl/{part}.xml")) for part in ("sharedStrings", "worksheets/sheet1"))
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{path}: not a workbook ({error}); fetch it again") from None
    shared, header = ["".join(text.text or "" for text in string.iterfind(".//{*}t")) for string in strings.iterfind("{*}si")], {}
    for row in sheet.iterfind(".//{*}row"):
        cells = {re.match("[A-Z]+", cell.get("r"))[0]: "".join(cell.itertext()) if cell.get("t") != "s" else shared[int(cell.findtext("{*}v"))]
                 for cell in row if len(cell)}
        if header and any(cells.values()):
            yield f"{path}, row {row.get('r')}", {title: cells.get(column) for column, title in header.items()}
        header = header or cells

def _xml_root(path):
    try:
        return ElementTree.fromstring(_text(path).encode())
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}, line {error.position[0]}: broken XML ({error}); fetch the file again") from None

def _medquad_pairs(path):
    """The answered questions of a file. The parts of a topic (0000001_1, 0000001_2) repeat each other: one document."""
    for number, pair in enumerate(_xml_root(path).iter("QAPair"), start=1):
        fields, place = {child.tag: child.text for child in pair}, f"{path}, QAPair {number}"
        question = _need(fields, "Question", place).replace(" ?", "?")
        if (fields.get("Answer") or "").strip():  # three of its twelve folders have no answers, for copyright
            yield place, fields | {"Question": question, "pair": number, "topic": path.stem.split("_")[0]}

def _liveqa_questions(path):
    """Answers stand below ReferenceAnswer, three below RefAnswer, those of the training files below others; all are called ANSWER."""
    for number, node in enumerate(_xml_root(path).iter("NLM-QUESTION"), start=1):
        said = {tag: " ".join((node.findtext(f".//{tag}") or "").split()) or None for tag in ("SUBJECT", "MESSAGE", "NIST-PARAPHRASE")}
        answers = ["".join(answer.itertext()) for answer in node.iter("ANSWER")]
        yield f"{path}, NLM-QUESTION {number}", said | {"qid": node.get("qid") or node.get("questionid"), "ANSWER": answers}

def _jats_article(path):
    """Title, abstract and body, a heading or paragraph a line; tables, figures and references are left out."""
    node = _xml_root(path)
    outside = {part for tag in ("fig", "table-wrap", "ref-list") for branch in node.iter(tag) for part in branch.iter()}
    branches = [branch for name in (".//article-meta//article-title", ".//article-meta/abstract", "body") for branch in node.findall(name)[:1]]
    lines = [" ".join("".join(piece.itertext()).split()) for branch in branches for piece in branch.iter()
             if piece.tag in ("article-title", "title", "p") and piece not in outside]
    yield str(path), {key.get("pub-id-type"): key.text for key in node.iterfind(".//article-meta/article-id")} | {"body": lines}

def _s2orc_paper(path):
    """A paper in any of three release formats: the parts stand in the record itself or in its grobid_parse."""
    record = _parsed(path, _text(path))
    parts, lines = record.get("grobid_parse") or record, [(record.get("metadata") or {}).get("title") or ""]
    for paragraph in [*(parts.get("abstract") or []), *(parts.get("body_text") or [])]:
        lines += [line for line in (paragraph.get("section"), paragraph["text"]) if line and line not in lines]
    yield str(path), record | {"body_text": lines}

def _pubmedqa_entries(path):
    """Entries of ori_*.json by PubMed id, with their label in test_ground_truth.json; of the latter, those it names, in its order."""
    truth, of_test = path.with_name("test_ground_truth.json"), not path.name.startswith("ori_")
    labels = {record["_key"]: (place, record.get("_value")) for place, record in _json_file(truth)} if truth.exists() else {}
    entries = {record["_key"]: (place, record) for place, record in _json_file(path.with_name("ori_pqal.json") if of_test else path)}
    for pmid in labels if of_test else entries:
        if pmid not in entries:
            raise ValueError(f"{labels[pmid][0]}: not in ori_pqal.json; both must be of one release")
        told = {"part": "test", "_right_place": labels[pmid][0], "label": labels[pmid][1]} if pmid in labels else {"part": "train"}
        yield entries[pmid][0], entries[pmid][1] | told

def _headqa_questions(path):
    for name, exam in _parsed(path, _text(path))["exams"].items():
        for record in exam["data"]:
            texts = [answer["atext"] for answer in sorted(record["answers"], key=lambda answer: int(answer["aid"]))]
            yield f"{path}, exam {name}, question {record.get('qid')}", exam | {"name": name, "data": None, "texts": texts} | record

def _whole_text(path):
    """A text file; for HoC with its labels, < A--detail AND B < .. with a sentence between two <, often without a space."""
    beside = path.parent.parent / "labels" / path.name
    named = {name.strip() for name in re.split(r"<|AND", _text(beside))} - {"", "NULL"} if beside.exists() else ()
    yield str(path), {"text": _text(path), "details": sorted(named), "labels": sorted({name.split("--")[0] for name in named})}

def _icd10cm_lines(path):
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():  # order number, code, 1 if it can be billed, short and long description, at fixed columns
            yield f"{path}, line {number}", {"code": line[6:14], "category": line[6:9], "billable": line[14:15] == "1", "description": line[77:]}

def _pubtator_documents(path):
    for block in re.split(r"\n\s*\n", _text(path).strip("\n")):
        place = f"{path}, document {block.split('|')[0]}"
        yield place, functools.partial(_pubtator_document, place, block.split("\n"))

def _pubtator_document(place, lines):
    """Title and abstract with character spans; a mention that is not the text at its span is an error."""
    text, entities = " ".join(line.split("|", 2)[2] for line in lines[:2]), []
    for start, end, mention, kind, *concept in (line.split("\t")[1:] for line in lines[2:] if line.count("\t") > 3):
        if text[int(start):int(end)] != mention:
            raise ValueError(f"{place}, field 'mention': {mention!r} is not the text at {start} to {end}; mend the file")
        entities.append({"start": int(start), "end": int(end), "type": kind, "text": mention, "concept": "".join(concept[:1])})
    return {"pmid": lines[0].split("|")[0], "text": text, "entities": entities}

def _blocks(path, start=""):
    """(place, lines of cells): up to an empty line or, with `start`, from one line that begins with it to the next."""
    block, first = [], 1
    for number, line in enumerate([*_text(path).split("\n"), start], start=1):
        if line.startswith(start) if start else not line.strip():
            if any(block):
                yield f"{path}, line {first}", block
            block, first = [], number
        block.append(line.split())

def _tagged(path, start="", column=-1, names=None):
    """Tokens with B-, I- and O tags, or the bare name of a type; entities are character spans in the joined tokens."""
    for place, block in _blocks(path, start):
        tokens, entities, end = [cells for cells in block if cells and cells[0] != "-DOCSTART-"], [], -1
        text = " ".join(cells[0] for cells in tokens)
        for cells in tokens:
            begun, kind = cells[column][:1] == "B", re.sub("^[BI](-|$)", "", cells[column])
            kind, begin, end = (names or {}).get(kind, kind), end + 1, end + 1 + len(cells[0])
            if kind not in ("O", "N"):
                if not begun and entities and (entities[-1]["type"], entities[-1]["end"]) == (kind, begin - 1):
                    begin = entities.pop()["start"]
                entities.append({"start": begin, "end": end, "type": kind, "text": text[begin:end]})
        yield place, {"text": text, "entities": entities}

def _casimedicos_cases(path):
    """A case, its options ("1- ..", a missing one is "nan"), CORRECT ANSWER: 3, and the doctor's explanation, from tagged tokens."""
    for place, block in _blocks(path, "QUESTION "):
        text = "\n".join(line.strip() for line in " ".join(cells[0] if cells else "\n" for cells in block).split("\n"))
        case, _, rest = text.partition("\nCORRECT ANSWER:")
        subject, question, *options = re.split(r"\nCLINICAL CASE:|\n[1-9] ?- ", case)
        yield place, {"subject": subject.split(":")[-1], "question": " ".join(question.split()), "CORRECT ANSWER": rest.strip()[:1],
                      "options": [" ".join(option.split()) for option in options if option != "nan"], "explanation": " ".join(rest.split()[1:])}

def _umls_lines(path):
    """Definitions (MRDEF) or relations (MRREL) that are not suppressed, with the preferred English names of MRCONSO.RRF beside them."""
    with path.with_name("MRCONSO.RRF").open(encoding="utf-8") as concepts, path.open(encoding="utf-8") as lines:
        names = {cells[0]: cells[14] for cells in (line.split("|") for line in concepts) if [*cells[1:3], cells[6]] == ["ENG", "P", "Y"]}
        for number, cells in enumerate((line.split("|") for line in lines), start=1):
            if path.name == "MRDEF.RRF" and cells[0] in names and cells[6] == "N":
                yield f"{path}, line {number}", {"key": cells[2], "task": "Describe it.", "input": names[cells[0]], "output": cells[5]}
            if path.name == "MRREL.RRF" and {cells[0], cells[4]} <= set(names) and cells[7] and cells[14] == "N":  # read from the second concept
                yield f"{path}, line {number}", {"key": cells[8], "task": "How is the first related to the second?", "output": cells[7].replace("_", " "),
                                                 "input": [names[cells[4]], names[cells[0]]]}

def _ddxplus_rows(path):
    """Findings in words: E_54_@_V_161 is a question of release_evidences.json and its value."""
    known = _parsed(path, _text(path.with_name("release_evidences.json")))
    for place, row in _csv_rows(path):
        codes = [(known.get(name, {}), name, value) for name, _, value in (code.partition("_@_") for code in re.findall("'([^']+)'", row["EVIDENCES"]))]
        yield place, row | {"findings": [f"{about.get('question_en', name)} {about.get('value_meaning', {}).get(value, {}).get('en', value) or 'yes'}"
                                         for about, name, value in codes]}

FORMS = {form.__name__[1:]: form for form in (
    _json_lines, _json_file, _csv_rows, _csv_cells, _xlsx_rows, _medquad_pairs, _liveqa_questions, _jats_article, _s2orc_paper, _pubmedqa_entries, _headqa_questions,
    _whole_text, _icd10cm_lines, _pubtator_documents, _tagged, _casimedicos_cases, _umls_lines, _ddxplus_rows)}
FORMS["json_document"] = lambda path: [(str(path), functools.partial(_parsed, path, _text(path)))]

# --- from a native record to ours ---------------------------------------------------------------------------------------

def _value(record, names):
    """The first of the fields a|b that is there; a.b is a field, or a number in a list, of a field."""
    for name in names.split("|"):
        found = record
        for part in name.split("."):
            found = {str(place): each for place, each in enumerate(found)} if isinstance(found, list) else found
            found = found.get(part) if isinstance(found, dict) else None
        if found is not None:
            return found

def _need(record, names, place):
    """The text of a field, stripped, a list line by line; ValueError where it is missing, empty or not a text."""
    found = _value(record, names)
    value = "\n".join(map(str, found)) if isinstance(found, list) else found
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{place}, field {names.split('|')[0]!r}: a non-empty text is needed, found {str(found)[:60]!r}")
    return value.strip()

def _filled(template, record, place):
    """A template of sources.yaml with native fields put in: {field} must be a text, {field?} may be missing, {field!} is taken as it is."""
    if isinstance(template, dict):
        return {key: _filled(inner, record, place) for key, inner in template.items()}
    if isinstance(template, list):
        return [_filled(inner, record, place) for inner in template]
    template = template.replace("{_language}", record["_language"])
    if template.endswith("!}"):
        return _value(record, template[1:-2])
    return re.sub(r"\{([^{}?]+)(\??)\}", lambda part: str(_value(record, part[1]) or "") if part[2] else _need(record, part[1], place), template)

def tidy(text):
    """One space where there are several, list items on lines of their own, no empty lines."""
    text = re.sub(r"\s{3}\s*- +", "\n- ", text)  # MedQuAD's lists have lost their line ends
    return "\n".join(line for line in (" ".join(part.split()) for part in text.split("\n")) if line)

def detokenise(text):
    """Undo the spaces that a tokeniser put around punctuation: HoC and ACI-Bench are shipped tokenised.

    >>> detokenise("We do n't use it ( GHS-R ) , the patient 's own .")
    "We don't use it (GHS-R), the patient's own."
    """
    text = re.sub(r"([(\[]) ", r"\1", re.sub(r" ([.,;:?!)\]%])", r"\1", text))
    return re.sub(r" (n't|'(?:s|re|ve|ll|d|m))\b", r"\1", text)

CLEANERS = {"step": lambda text: text.replace("stfep", "step"),  # one item has the typo
            "one_line": lambda text: detokenise(" ".join(text.split())),  # below: [doctor] hi , brian . -> Doctor: hi, brian.
            "said": lambda text: detokenise(re.sub(r"(?m)^\[(\w)(\w*)\] ?", lambda tag: f"{tag[1].upper()}{tag[2]}: ", text))}

def _item(fields, entry, place, right_place):
    """Question, options (a dict or a list) and right answer ("A,C" for several), checked; `letters` translates what is no letter."""
    listed, right, about = isinstance(fields["options"], list), fields["right"], fields.get("meta_info", {})
    pairs = zip("ABCDEFGH", fields["options"]) if listed else sorted((fields["options"] or {}).items())
    options = {letter.upper(): text for letter, text in pairs if text is not None or listed}
    given = [part.strip() for text in (right if isinstance(right, list) else [right]) for part in re.split(",| or ", str(text))]
    letters = sorted(entry.get("letters", {}).get(text.lower(), text.upper()) for text in given)
    if " or " in str(right):  # IgakuQA: either is accepted
        about, letters = about | {"accepted": letters}, letters[:1]
    if entry.get("open_answers"):  # IgakuQA: options may be pictures and have no text; without any, the answer is a number
        options = {letter: text.strip() or letter for letter, text in options.items()}
    if entry.get("open_answers") and not options:
        about, letters = about | {"open": True}, []
    elif len(options) < 2 or not all(isinstance(text, str) and text.strip() for text in options.values()):
        raise ValueError(f"{place}, options: at least two non-empty texts are needed, found {str(fields['options'])[:60]}")
    elif not letters or not set(letters) <= set(options):
        field = entry["record"]["right"].strip("{!}").split("|")[0]
        raise ValueError(f"{right_place}, field {field!r}: no right answer among {', '.join(options)}; mend or drop the item")
    answer = ", ".join(options[letter] for letter in letters) or ", ".join(given)
    if fields.get("answer", answer) != answer:
        raise ValueError(f"{place}, field 'answer': {fields['answer']!r} is not option {','.join(letters)}")
    return {"question": fields["question"], "context": fields.get("context", ""), "options": options, "answer": answer,
            "answer_idx": ",".join(letters), "rationale": fields.get("rationale", ""), "meta_info": about}

def _task(record, entry, place):
    """A task as it is, its keys and instances checked."""
    missing = [key for key in entry["keys"] if key not in record] + ["Instances"] * (not record.get("Instances"))
    if missing:
        raise ValueError(f"{place}, field {missing[0]!r}: missing or empty; a task needs {', '.join(entry['keys'])}")
    for number, case in enumerate(record["Instances"], start=1):
        if not (isinstance(case, dict) and case.get("input") and case.get("output")):
            raise ValueError(f"{place}, instance {number}, field 'input' or 'output': missing or empty; mend or drop the instance")
    return {key: value for key, value in record.items() if not key.startswith("_")}

def _framed(source, split, record, place):
    """A native record in the schema of the kind of set; ids of another split than the usual one name it."""
    entry, kind = source.entry, source.kind
    fields = _task(record, entry, place) if kind == "task" else _filled(entry["record"], record, place)
    key = _filled(entry.get("key", "{_number?}"), record, place)
    name, head = f"{source.name}-{key if source.usual in (split, 'all') else f'{split}-{key}'}", {"source": source.name, "language": record["_language"]}
    if kind == "exam":
        return {"id": name, "exam": source.name, "language": head["language"]} | _item(fields, entry, place, record.get("_right_place", place))
    if kind in TEXTS:
        meta = {"kind": kind, "split": "test" if split.startswith("test") else "train", "document": name} | fields.get("meta", {})
        return {"text": fields["text"] if entry.get("raw") else tidy(fields["text"])} | head | {"id": name, "meta": meta}
    if kind == "question":
        fields["references"] = [tidy(answer) for answer in fields["references"] if answer.strip()]
        if not fields["references"] and entry["record"]["references"] and "?" not in str(entry["record"]["references"]):
            raise ValueError(f"{place}, field {entry['record']['references'].strip('{!}')!r}: no answer; mend or drop the question")
    if "labels" in fields and "letters" in entry:
        fields["labels"] = [entry["letters"][label] for label in fields["labels"]]
    return {"id": name} | head | fields

# --- loading -----------------------------------------------------------------------------------------------------------

def _record(source, split, number, native):
    """One native record as ours, None where the set leaves it out; ValueError, with the place, for a bad one."""
    place, about, record = native
    record = record() if callable(record) else record
    record = (record if isinstance(record, dict) else {}) | {"_number": number, "_language": source.splits[split].get("language", source.languages[0])} | about
    if "pubid" in record:  # the hub does not mark PubMedQA's official test questions
        record["part"] = "test" if str(record["pubid"]) in _test_pmids() else "train"
    for field, values in (source.entry.get("only", {}) | source.splits[split].get("only", {})).items():
        found = _value(record, field)
        if not found if values == "filled" else found not in values:
            return None
    cleaned = {field: CLEANERS[how](record[field]) for field, how in source.entry.get("clean", {}).items() if isinstance(record.get(field), str)}
    try:
        return _framed(source, split, record | cleaned, place)
    except NOT_PUBLISHED_FORM as error:
        raise ValueError(f"{place}, field {error}: not in the published form; mend or drop the record") from None

def _there(data_dir, source, split):
    return sorted(path for path in (Path(data_dir) / source.folder).rglob(source.splits[split]["files"]) if path.is_file())

def _opened(data_dir, name, split, kinds=KINDS):
    """A set and those of its splits, the given one or all, that are there."""
    if name not in SOURCES or SOURCES[name].kind not in kinds:
        raise ValueError(f"unknown set {name!r}; known of this kind: {', '.join(each for each, source in SOURCES.items() if source.kind in kinds)}")
    source, hub = SOURCES[name], data_dir == "hub"
    wanted = list(source.splits) if split in (None, "all") else [split]
    if not set(wanted) <= set(source.splits):
        raise ValueError(f"{name}: unknown split {split!r}; there are {', '.join(source.splits)}")
    there = [each for each in wanted if (each in source.entry.get("hub", {}).get("splits", ()) if hub else _there(data_dir, source, each))]
    folder, beside = Path(data_dir) / source.folder, source.entry.get("beside", [])
    lacking = [] if hub else [pattern for pattern in beside if not any(folder.rglob(pattern))]
    if not there or lacking:
        patterns = [*lacking, *(source.splits[each]["files"] for each in wanted if each not in there)]
        place = "hub" if hub else f"{data_dir}: {source.folder}/{patterns[0] if folder.is_dir() else ''}"
        raise FileNotFoundError(
            f"{place} is missing; for {name} it should hold {' and '.join([source.splits[each]['files'] for each in wanted] + beside)}. "
            f"Sets found there: {', '.join(available(data_dir)) or 'none'}. How to obtain it: {source.entry['obtain']}")
    return source, there

def _hub_rows(source, split):
    """Rows of a split on the hub at the pinned revision; class labels become their names."""
    import datasets
    hub = source.entry["hub"]
    for name in hub["splits"][split]:
        config, _, part = name.rpartition("/")
        rows = datasets.load_dataset(hub["id"], config or None, split=part, revision=hub["revision"])
        labels = {column: feature for column, feature in rows.features.items() if isinstance(feature, datasets.ClassLabel)}
        for number, row in enumerate(rows, start=1):
            named = {column: feature.int2str(row[column]) for column, feature in labels.items() if (row[column] or 0) >= 0}
            yield f"{hub['id']}, {name}, record {number}", {}, row | named

def _natives(data_dir, source, split, bad):
    """(place, what the path tells, native record) of one split; a file that cannot be read goes to `bad`."""
    if data_dir == "hub":
        yield from _hub_rows(source, split)
    for path in [] if data_dir == "hub" else _there(data_dir, source, split):
        names = path.parent.name, path.stem
        about = dict(zip(("_folder", "_stem"), names)) | {"_language": LANGUAGES[name] for name in names if name in LANGUAGES}  # noqa: B035
        try:
            yield from ((place, about, record) for place, record in FORMS[source.entry["form"]](path, **source.entry.get("options", {})))
        except (ValueError, *NOT_PUBLISHED_FORM) as error:
            bad(error if isinstance(error, ValueError) else ValueError(f"{path}, field {error}: not in the published form; mend the file"))

def _stop(error):
    raise error

def read_records(data_dir, name, *, split=None, on_error="stop", problems=None):
    """Records of one set of any kind, of one split or of all that are there, the publisher's test split included (meta["split"]).

    on_error="skip" leaves bad records out; what was wrong, and where, is added to the list `problems`, else to the log, as a wrong
    count is."""
    source, splits = _opened(data_dir, name, split)
    if on_error not in ("stop", "skip"):
        raise ValueError(f"on_error must be 'stop' or 'skip', not {on_error!r}")
    found, seen = [] if problems is None else problems, set()
    bad = _stop if on_error == "stop" else lambda error: found.append(str(error))
    for part in splits:
        count = 0
        for number, native in enumerate(_natives(data_dir, source, part, bad), start=1):
            try:
                record = _record(source, part, number, native)
                if record and record["id"] in seen:
                    raise ValueError(f"{native[0]}: the id {record['id']!r} occurs twice; ids must be unique within a set")
            except ValueError as error:
                bad(error)
                continue
            if record:
                seen.add(record["id"])
                count += len(record.get("Instances", "1"))
                yield record
        if source.splits[part].get("count") not in (None, count):
            found.append(f"{name}, split {part}: {count:,} records, {source.splits[part]['count']:,} are published; is the download complete?")
    if problems is None and found:
        logging.getLogger(__name__).warning("%s", "\n".join(found))

def available(data_dir):
    """Names of the sets whose folder is in data_dir, or that are on the hub."""
    return [name for name, source in SOURCES.items() if ("hub" in source.entry if data_dir == "hub" else (Path(data_dir) / source.folder).is_dir())]

@functools.cache
def _test_pmids():
    return frozenset((KNOWLEDGE / "pubmedqa_test.txt").read_text().split())

def load_corpus(data_dir, names=None, **how):
    """Training text of the named sets: records {text, source, language, id, meta}. Default: all that are there, but the large ones.

    Left out: the publishers' test splits, and from every set the abstracts (by PubMed id) of PubMedQA's test questions."""
    there, texts = available(data_dir), [name for name, source in SOURCES.items() if source.kind in TEXTS]
    names = [name for name in texts if name in there and not SOURCES[name].entry.get("large")] if names is None else names
    if not names:
        folders = ", ".join(SOURCES[name].folder for name in texts)
        raise FileNotFoundError(f"{data_dir}: no set to read; it should hold one or more of the folders {folders}")
    for name in names:
        _opened(data_dir, name, None, TEXTS)
    held_out = set() if data_dir != "hub" and "pubmedqa" not in there else {item["meta_info"]["pmid"] for item in load_exam(data_dir, "pubmedqa")}
    return [record for name in names for record in read_records(data_dir, name, **how)
            if record["meta"]["split"] != "test" and record["meta"].get("pmid") not in held_out]

def load_exam(data_dir, name, *, split=None, items=None, seed=0, on_error="stop", problems=None):
    """The items of an exam in the file's order, of the usual split if none is named; `items` draws that many by seed (all, if there
    are fewer), and a larger draw holds the smaller one."""
    split = split or _opened(data_dir, name, "all", ("exam",))[0].usual
    exam = list(read_records(data_dir, name, split=split, on_error=on_error, problems=problems))
    numbers = random.Random(f"{name} {seed}").sample(range(len(exam)), len(exam))[:items]
    return [exam[number] for number in sorted(numbers)]

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

# --- the table -----------------------------------------------------------------------------------------------------------

def _declared():
    """The sets of lib/knowledge/sources.yaml; one that is read in a second way (of: ..) takes what it does not say from the first."""
    entries = yaml.safe_load((KNOWLEDGE / "sources.yaml").read_text(encoding="utf-8"))
    for name, entry in entries.items():
        entry = {key: value for key, value in (entries.get(entry.get("of"), {}) | entry).items() if value is not None}
        files, usual = tuple(split["files"] for split in entry["splits"].values()), entry.get("usual", next(iter(entry["splits"])))
        yield name, Source(name, *(entry[key] for key in ("kind", "folder")), files, *(entry[key] for key in ("licence", "citation", "languages", "splits")),
                           usual, entry)

SOURCES = dict(_declared())

def inventory(data_dir):
    """One line for each set and split that is there: set, split, records, expected, seconds, and the problems found."""
    for name in available(data_dir):
        for split in [split for split in SOURCES[name].splits if _there(data_dir, SOURCES[name], split)]:
            started, problems = time.perf_counter(), []
            count = sum(len(record.get("Instances", "1")) for record in read_records(data_dir, name, split=split, on_error="skip", problems=problems))
            yield {"set": name, "split": split, "records": count, "expected": SOURCES[name].splits[split].get("count"),
                   "seconds": time.perf_counter() - started, "problems": problems}

def data_cards():
    """Markdown: one card for each set."""
    cards = ["# Data sets", "Written from `lib/knowledge/sources.yaml` by `python -m lib.sources --cards`. None of the data is in this repository."]
    for source in SOURCES.values():
        entry, hub = source.entry, source.entry.get("hub")
        counts = ", ".join(f"{split} {part['count']:,}" if part.get("count") else f"{split} (no published count)" for split, part in source.splits.items())
        lines = {"What": f"{entry['title']} ({source.kind})", "Folder": f"`{source.folder}`: {', '.join(f'`{each}`' for each in source.files)}",
                 "Hub": f"{hub['id']} at revision `{hub['revision']}`" if hub else "not read from the hub", "Licence": source.licence,
                 "Citation": source.citation, "Languages": ", ".join(source.languages), "Records": counts,
                 "Restrictions": entry.get("restrictions", "none beyond the licence"), "How to obtain": entry["obtain"]}
        cards.append(f"## {source.name}\n\n" + "\n".join(f"- **{title}:** {line}" for title, line in lines.items()))
    return "\n\n".join(cards) + "\n"

def main(arguments):
    """usage: python -m lib.sources DATA_DIR (what is there) or --cards (writes results/data_cards.md)"""
    if arguments == ["--cards"]:
        print(write_atomically(results_root() / "data_cards.md", data_cards()).name)
    elif len(arguments) == 1:
        print(f"{'set':28} {'split':14} {'records':>9} {'expected':>9} {'seconds':>8}")
        for row in inventory(arguments[0]):
            print(f"{row['set']:28} {row['split']:14} {row['records']:9,} {row['expected'] or '-':>9} {row['seconds']:8.2f}")
            more = [f"and {len(row['problems']) - 5:,} more"] if len(row["problems"]) > 5 else []
            print("".join(f"    {problem}\n" for problem in [*row["problems"][-5:], *more]), end="")
    else:
        sys.exit(main.__doc__)

if __name__ == "__main__":
    main(sys.argv[1:])
