"""Public data sets as lib/knowledge/sources.yaml declares them: native forms (a file -> records with their places) and how they become ours."""
import csv
import functools
import glob
import gzip
import hashlib
import json
import random
import re
import sys
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree
import pandas as pd
import pypdf
from lib.results import fill_template, results_root, write_atomically
from lib.world import KNOWLEDGE, read_yaml
TEXTS = ("web", "paper", "dialogue", "book", "general")  # kinds of training text
KINDS = (*TEXTS, "exam", "question", "instruction", "annotation", "task")
LANGUAGES = {"English": "en", "Chinese": "zh", "Japanese": "ja", "French": "fr", "Russian": "ru", "Spanish": "es"}
TEST_PMIDS = frozenset((KNOWLEDGE / "pubmedqa_test.txt").read_text().split())  # the hub does not mark PubMedQA's test questions
BAD = (ValueError, TypeError, AttributeError, LookupError, OSError, EOFError, zlib.error, zipfile.BadZipFile, ElementTree.ParseError,
       pypdf.errors.PyPdfError, pypdf.errors.DependencyError)
LONGEST = 50_000_000  # bytes of one record: a longer line is a file that has lost its line ends
csv.field_size_limit(2**31 - 1)  # whole articles stand in one cell of HealthFact
def _named(error, place):  # an error as a person needs it: what was wrong, where, and what to do
    if isinstance(error, UnicodeDecodeError):
        return ValueError(f"{place}: not UTF-8 at byte {error.start}; convert the file")
    if isinstance(error, json.JSONDecodeError):
        return ValueError(f"{place}{'' if ', line ' in place else f', line {error.lineno}'}: broken JSON ({error.msg}); mend it")
    if isinstance(error, ElementTree.ParseError):
        return ValueError(f"{place}, line {error.position[0]}: broken XML ({error}); fetch the file again")
    return error if str(error)[:12] == place[:12] else ValueError(f"{place}: {error!r}: not in the published form; mend or drop it")
def _json_lines(path):  # one at a time, since some of these files do not fit in memory
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as stream:
        for number, line in enumerate(iter(functools.partial(stream.readline, LONGEST), b""), start=1):
            while len(line) == LONGEST and (rest := stream.readline(LONGEST)) and not rest.endswith(b"\n"):
                pass  # the rest of a line that is too long
            if line.strip():
                whole = functools.partial(json.loads, line.removeprefix(b"\xef\xbb\xbf"))
                yield f"{path}, line {number}", whole if len(line) < LONGEST else ValueError(f"{path}, line {number}: longer than {LONGEST:,} bytes")
def _files(folder, pattern):  # also in folders that are linked there, which pathlib leaves out
    return sorted(filter(Path.is_file, map(Path, glob.iglob(f"{glob.escape(str(folder))}/**/{pattern}", recursive=True))))
@functools.lru_cache(maxsize=1)
def _s2orc_metadata(folder, pattern):  # the lines of papers with a text; the release of 2020 keeps titles and ids apart from it
    lines = [read for path in _files(folder, pattern) for _, read in _json_lines(path) if b'"has_pdf_parse": true' in read.args[0]]
    return {re.search(rb'"paper_id": "(\w*)|$', line.args[0])[1]: line for line in lines}
def _json_file(path, whole=False, exams=False):  # records of a list, counted, or of a dict, named by _key; or the file as one; or HEAD-QA's
    content = json.loads(path.read_text("utf-8-sig"))
    if not isinstance(content, dict | list) or not content:
        raise ValueError(f"{path}: a JSON list or object with at least one record is needed")
    content = [exam | record for exam in content["exams"].values() for record in exam["data"]] if exams else [content] if whole else content
    pairs = content.items() if isinstance(content, dict) else enumerate(content, start=1)
    return [(f"{path}, record {key}", {"_key": str(key)} | (record if isinstance(record, dict) else {"_value": record})) for key, record in pairs]
def _csv_rows(path, columns=None, left_out=()):  # , ; or tab between the cells, as the header shows; `columns` where there is none
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = csv.DictReader(stream, columns, delimiter="," if columns else max(",;\t", key=stream.readline().count))
        stream.seek(0)
        for row in rows:
            told = {"_cells": [f"{name}: {cell}" for name, cell in row.items() if name not in left_out], "_choices": list(row.values())[1:5]}
            yield f"{path}, line {rows.line_num}", row | told | {"_subject": path.stem.rsplit("_", 1)[0]}
def _xlsx_rows(path):  # the first sheet by its header
    rows = pd.read_excel(path, dtype=str, na_filter=False).to_dict("records")
    return [(f"{path}, row {number}", row) for number, row in enumerate(rows, start=2) if any(row.values())]
def _pdf_pages(path):  # page after page, so that running heads come back; a scanned book has no text
    yield str(path), {"text": "\n".join(page.extract_text() for page in pypdf.PdfReader(path).pages)}
def _medquad_pairs(path):  # the parts of a topic (0000001_1, 0000001_2) repeat each other: one document
    for number, pair in enumerate(ElementTree.parse(path).iter("QAPair"), start=1):
        place, fields = f"{path}, QAPair {number}", {child.tag: child.text for child in pair} | {"pair": number, "topic": path.stem.split("_")[0]}
        yield place, fields | {"Question": re.sub(r" *\?[ ?]*$", "?", _need(fields, "Question", place))}
def _liveqa_questions(path):  # answers stand below ReferenceAnswer, three below RefAnswer, in the training files below others
    for number, node in enumerate(ElementTree.parse(path).iter("NLM-QUESTION"), start=1):
        said = {tag: tidy(node.findtext(f".//{tag}") or "") or None for tag in ("SUBJECT", "MESSAGE", "NIST-PARAPHRASE")}
        said |= {"qid": node.get("qid") or f"Q{number}", "ANSWER": ["".join(answer.itertext()) for answer in node.iter("ANSWER")]}
        yield f"{path}, NLM-QUESTION {number}", said
def _jats_article(path, left_out):  # title, abstract and body, a heading or paragraph a line; 10<sup>6</sup> becomes 10^6
    tree, names = ElementTree.parse(path), (".//article-meta//article-title", ".//article-meta/abstract", "body")
    for part in list(tree.iter()):
        told, edge = {each.get("ref-type", each.tag) for each in part.iter()}, "\n" * (part.tag in ("article-title", "title", "p"))
        if part.tag in left_out or (part.tag in ("sup", "xref") and {"sup", "bibr"} <= told):  # a raised citation would stick to its word
            part[:], part.text = [], ""
        raised = "^" * bool(part.tag == "sup" and re.match(r"[-−+]?\d", part.text or ""))
        part.text, part.tail = (edge + re.sub(r"\s+", " ", text or "") for text in (raised + (part.text or ""), part.tail))
    text = "\n".join("".join(branch.itertext()) for name in names for branch in tree.findall(name)[:1])
    groups = [group for group in tree.iter("subj-group") if "Discipline" in group.get("subj-group-type", "")]
    yield str(path), {key.get("pub-id-type"): key.text for key in tree.iterfind(".//article-meta/article-id")} | {
        "text": text, "subjects": [each.text for group in groups for each in group.iterfind("subject")]}
def _pubmedqa_entries(path, test_first=False):  # the entries of ori_*.json; the test is named, in its order, by test_ground_truth.json
    truth, entries = path.with_name("test_ground_truth.json"), {record["_key"]: (place, record) for place, record in _json_file(path)}
    labels = {record["_key"]: (place, record.get("_value")) for place, record in _json_file(truth)} if truth.exists() else {}
    for pmid in [*labels, *(pmid for pmid in entries if pmid not in labels)] if test_first else entries:
        if pmid not in entries:
            raise ValueError(f"{labels[pmid][0]}: not in {path.name}; both must be of one release")
        told = {"part": "test", "_right_place": labels[pmid][0], "label": labels[pmid][1]} if pmid in labels else {"part": "train"}
        yield entries[pmid][0], entries[pmid][1] | told
def _whole_text(path):  # for HoC with its labels: < A--detail AND B < .. with a sentence between two <, often without a space
    beside = path.parent.parent / "labels" / path.name
    named = {name.strip() for name in re.split(r"<|AND", beside.read_text("utf-8-sig"))} - {"", "NULL"} if beside.exists() else ()
    yield str(path), {"text": path.read_text("utf-8-sig"), "details": sorted(named), "labels": sorted({name.split("--")[0] for name in named})}
def _lines(path, pattern, concepts=()):  # the named groups of a pattern that every line has; UMLS concepts get their preferred English names
    names, pattern = _concept_names(path.with_name("MRCONSO.RRF")) if concepts else {}, re.compile(pattern)
    with path.open(encoding="utf-8-sig", newline="\n") as stream:
        for number, line in enumerate(stream, start=1):
            place, found = f"{path}, line {number}", pattern.match(line)
            fields = found.groupdict() | {f"{name}_name": names.get(found[name]) for name in concepts} if found else {}
            yield place, fields or ValueError(f"{place}: {line[:30]!r} lacks {', '.join(pattern.groupindex)} at their places; fetch the file again")
@functools.lru_cache(maxsize=1)
def _concept_names(path):
    with path.open(encoding="utf-8-sig", newline="\n") as stream:
        return dict(found.groups() for found in map(re.compile(ENTRIES["umls"]["names"]).match, stream) if found)
def _pubtator_documents(path):  # title, abstract and mentions with character spans, without the relations of BC5CDR
    for block in re.split(r"\n\s*\n", path.read_text("utf-8-sig").strip("\n")):
        title, abstract, *lines = block.split("\n")
        entities = [{"start": int(start), "end": int(end), "type": kind, "text": mention, "concept": "".join(concept[:1])}
                    for _, start, end, mention, kind, *concept in (line.split("\t") for line in lines if line.count("\t") > 3)]
        pmid, text = title.split("|")[0], " ".join(line.split("|", 2)[2] for line in (title, abstract))
        yield f"{path}, document {pmid}", {"pmid": pmid, "text": text, "entities": entities}
def _blocks(path, start=""):  # lines of cells up to an empty line or, with `start`, from one line that begins with it to the next
    block, first = [], 1
    for number, line in enumerate([*path.read_text("utf-8-sig").split("\n"), start], start=1):
        if line.startswith(start) if start else not line.strip():
            if any(block):
                yield f"{path}, line {first}", block
            block, first = [], number
        block.append(line.split())
def _tagged(path, start="", column=-1, names=None):  # tokens with B-, I- and O tags, or with the bare name of a type
    for place, block in _blocks(path, start):
        tokens, entities, end = [cells for cells in block if cells and cells[0] != "-DOCSTART-"], [], -1
        for cells in tokens:
            kind, begin, end = re.sub("^[BI](-|$)", "", cells[column]), end + 1, end + 1 + len(cells[0])
            entity = {"start": begin, "end": end, "type": (names or {}).get(kind, kind), "text": cells[0]}
            if cells[column][:1] != "B" and entities and (entities[-1]["type"], entities[-1]["end"]) == (entity["type"], begin - 1):
                entities[-1] |= {"end": end, "text": f"{entities[-1]['text']} {cells[0]}"}
            else:
                entities += [entity] * (kind not in ("O", "N"))
        yield place, {"text": " ".join(cells[0] for cells in tokens), "entities": entities}
def _casimedicos_cases(path):  # a case, options ("1- ..", a missing one is "nan"), CORRECT ANSWER: 3 and an explanation, as tagged tokens
    for place, block in _blocks(path, "QUESTION "):
        case, _, rest = " ".join(cells[0] if cells else "\n" for cells in block).replace(" \n ", "\n").partition("\nCORRECT ANSWER:")
        subject, question, *options = (" ".join(part.split()) for part in re.split(r"\nCLINICAL CASE:|\n[1-9] ?- ", case))
        yield place, {"subject": subject.split(":")[-1].strip(), "question": question, "CORRECT ANSWER": rest.strip()[:1],
                      "options": [option for option in options if option != "nan"], "explanation": " ".join(rest.split()[1:])}
def _ddxplus_rows(path):  # E_54_@_V_161 is a question of release_evidences.json and its value
    known = json.loads(path.with_name("release_evidences.json").read_text("utf-8-sig"))
    for place, row in _csv_rows(path):
        asked = [(known.get(code.split("_@_")[0], {}), code.partition("_@_")[2]) for code in re.findall("'([^']+)'", row["EVIDENCES"])]
        findings = [f"{about['question_en']} {about['value_meaning'].get(value, {}).get('en', value) or 'yes'}" for about, value in asked]
        yield place, row | {"findings": findings}
def _value(record, names):  # the first of the fields a|b that is there; a.b is a field of a field, of all that are in a list
    for name in names.split("|"):
        found = record
        for part in name.split("."):
            found = [_value(each, part) for each in found] if isinstance(found, list) else found.get(part) if isinstance(found, dict) else None
        if found is not None:
            return found
def _need(record, names, place, optional=""):  # the text of a field, stripped, a list line by line; an error where it is none
    found = _value(record, names)
    value = "\n".join(found) if isinstance(found, list) else found
    if not optional and (not isinstance(value, str) or not value.strip()):
        raise ValueError(f"{place}, field {names.split('|')[0]!r}: a non-empty text is needed, found {str(found)[:60]!r}")
    return str(value or "") if optional else value.strip()
def _filled(template, record, place):  # sources.yaml's templates: {field} must be a text, {field?} may be missing, {field!} is taken as it is
    if isinstance(template, dict):
        return {key: _filled(inner, record, place) for key, inner in template.items()}
    if isinstance(template, list):
        return [_filled(inner, record, place) for inner in template]
    if template.endswith("!}"):
        return _value(record, template[1:-2])
    return re.sub(r"\{([^{}?]+)(\??)\}", lambda part: _need(record, part[1], place, part[2]), template)

def tidy(text):
    """One space where there are several, list items on lines of their own, no empty lines."""
    text = re.sub(r"\s{3}\s*- +", "\n- ", text)  # MedQuAD's lists have lost their line ends
    return "\n".join(line for line in (" ".join(part.split()) for part in text.split("\n")) if line)

def detokenise(text):
    """Without the spaces that a tokeniser put around punctuation, as in HoC and ACI-Bench."""
    text = re.sub(r"([(\[]) ", r"\1", re.sub(r" ([.,;:?!)\]%])", r"\1", text))
    return re.sub(r" (n't|'(?:s|re|ve|ll|d|m))\b", r"\1", text)

CLEANERS = {"step": lambda text: text.replace("stfep", "step"),  # one item of MedQA has the typo
            "spaced": lambda text: text.replace("_", " "),
            "one_line": lambda text: detokenise(" ".join(text.split())),  # below: [doctor] hi , brian . -> Doctor: hi, brian.
            "said": lambda text: detokenise(re.sub(r"(?m)^\[(\w)(\w*)\] ?", lambda tag: f"{tag[1].upper()}{tag[2]}: ", text))}
def _item(fields, entry, place, right_place):  # options may be a dict or a list, several right answers become "A,C"
    native, right, about = fields["options"], fields["right"], fields.get("meta_info", {})
    options = dict(zip("ABCDEFGH", native)) if isinstance(native, list) else native
    options = {letter.upper(): text for letter, text in sorted(options.items()) if text is not None or isinstance(native, list)}
    given = [part.strip() for text in (right if isinstance(right, list) else [right]) for part in re.split(",| or ", str(text))]
    letters = sorted(entry.get("letters", {}).get(text.lower(), text.upper()) for text in given)
    if entry.get("open_answers"):  # IgakuQA: "a or d" accepts either, options may be pictures without text, without any the answer is a number
        about = about | ({"open": True} if not options else {"accepted": letters} if " or " in str(right) else {})
        options, letters = {letter: text.strip() or letter for letter, text in options.items()}, letters[:1] if "accepted" in about else letters
    letters = [] if "open" in about else letters
    if "open" not in about and (len(options) < 2 or not all(isinstance(text, str) and text.strip() for text in options.values())):
        raise ValueError(f"{place}, options: at least two non-empty texts are needed, found {str(native)[:60]}")
    if "open" not in about and not set(letters or ["none"]) <= set(options):
        field = entry["record"]["right"].strip("{!}").split("|")[0]
        raise ValueError(f"{right_place}, field {field!r}: no right answer among {', '.join(options)}; mend or drop the item")
    answer = ", ".join(options[letter] for letter in letters) or ", ".join(given)
    if fields.get("answer", answer) != answer:
        raise ValueError(f"{place}, field 'answer': {fields['answer']!r} is not option {','.join(letters)}")
    return {"question": fields["question"], "context": fields.get("context", ""), "options": options, "answer": answer,
            "answer_idx": ",".join(letters), "rationale": fields.get("rationale", ""), "meta_info": about}
def _checked(fields, entry, place):  # tasks have their keys, questions an answer, labels are known, entities stand where they say
    if "references" in fields:
        fields["references"] = [tidy(answer) for answer in fields["references"] if answer.strip()]
    bad = [f"{key!r}: missing; a task needs {', '.join(entry['keys'])}" for key in entry.get("keys", ()) if key not in fields]
    bad += [f"'Instances', {number}: input and output are needed"
            for number, case in enumerate(fields.get("Instances") or [{}] * ("keys" in entry), 1) if not (case.get("input") and case.get("output"))]
    bad += ["'ANSWER': no reference answer"] * (fields.get("references") == [] and entry["record"]["references"] == "{ANSWER!}")
    bad += [f"'label': {label!r} is not known" for label in fields.get("labels", ()) if label not in entry.get("letters", [label])]
    bad += [f"'mention': {each['text']!r} is not the text at {each['start']} to {each['end']}" for each in fields.get("entities", ())
            if fields["text"][each["start"]:each["end"]] != each["text"]]
    if bad:
        raise ValueError(f"{place}, field {bad[0]}; mend or drop the record")
    return fields | ({"labels": [entry["letters"][label] for label in fields["labels"]]} if "labels" in fields and "letters" in entry else {})
def _framed(source, split, record, place):  # in the schema of the kind of set; ids of another split than the usual one name it
    entry, kind, language = source.entry | source.splits[split], source.kind, record["_language"]
    fields = {key: value for key, value in record.items() if key[0] != "_"} if kind == "task" else _filled(entry["record"], record, place)
    name = source.name + ("-" if source.usual in (split, "all") else f"-{split}-") + _filled(entry.get("key", "{_number?}"), record, place)
    if kind == "exam":
        return {"id": name, "exam": source.name, "language": language} | _item(fields, entry, place, record.get("_right_place", place))
    if kind in TEXTS:
        meta = {"kind": kind, "split": "test" if split.startswith("test") else "train", "document": name} | fields.get("meta", {})
        text = fields["text"] if entry.get("raw") else tidy(fields["text"])
        return {"text": text, "source": source.name, "language": language, "id": name, "meta": meta}
    return {"id": name, "source": source.name, "language": language} | _checked(fields, entry, place)
def _there(data_dir, source, split):  # the native files of a split, or its names on the hub
    names = source.entry.get("hub", {}).get("splits", {}).get(split, [])
    return names if data_dir == "hub" else _files(Path(data_dir) / source.folder, source.splits[split]["files"])
def _opened(data_dir, name, split=None, kinds=KINDS):  # a set and those of its splits, the given one or all, that are there
    if name not in SOURCES or SOURCES[name].kind not in kinds:
        raise ValueError(f"unknown set {name!r}; known of this kind: {', '.join(each for each, source in SOURCES.items() if source.kind in kinds)}")
    source, folder, beside = SOURCES[name], Path(data_dir) / SOURCES[name].folder, SOURCES[name].entry.get("beside", [])
    wanted = list(source.splits) if split in (None, "all") else [split]
    if not set(wanted) <= set(source.splits):
        raise ValueError(f"{name}: unknown split {split!r}; there are {', '.join(source.splits)}")
    there, needed = [each for each in wanted if _there(data_dir, source, each)], [source.splits[each]["files"] for each in wanted] + beside
    missing = needed[:1] * (not there) + [pattern for pattern in beside if data_dir != "hub" and not _files(folder, pattern)]
    if missing:
        raise FileNotFoundError(f"{data_dir}: {source.folder}/{missing[0] if folder.is_dir() else ''} is missing; for {name} it should hold "
                                f"{' and '.join(needed)}. Found there: {', '.join(available(data_dir)) or 'none'}. From: {source.entry['obtain']}")
    return source, there
def _hub_rows(hub, name):  # at the pinned revision; class labels become their names
    import datasets
    config, _, part = name.rpartition("/")
    rows = datasets.load_dataset(hub["id"], config or None, split=part, revision=hub["revision"])
    labels = {column: feature for column, feature in rows.features.items() if isinstance(feature, datasets.ClassLabel)}
    for number, row in enumerate(rows, start=1):
        named = {column: feature.int2str(row[column]) for column, feature in labels.items() if (row[column] or 0) >= 0}
        yield f"{hub['id']}, {name}, record {number}", row | named | {"part": "test" if str(row.get("pubid")) in TEST_PMIDS else "train"}
def _natives(data_dir, source, split, part=(0, 1)):  # (place, what the path tells, native record or the error of a file that cannot be read)
    for path in _there(data_dir, source, split)[part[0]::part[1]]:
        entry, names = source.entry | source.splits[split], () if data_dir == "hub" else path.relative_to(data_dir).with_suffix("").parts
        about = {"_folder": names[-2], "_stem": path.stem, "_path": "/".join(names[1:])} if names else {}
        about["_language"] = [*(LANGUAGES[name] for name in names if name in LANGUAGES), entry.get("language", source.languages[0])][0]
        try:
            if data_dir != "hub" and path.stat().st_size < 9 and not path.read_bytes().strip():
                raise ValueError(f"{path}: the file is empty; fetch it again")
            form = functools.partial(globals()[f"_{entry['form']}"], **entry.get("options", {}))
            if "metadata" in entry:
                about["_lines"] = _s2orc_metadata(Path(data_dir) / source.folder, entry["metadata"].format(path.name.removeprefix("pdf_parses")))
            yield from ((place, about, record) for place, record in (_hub_rows(entry["hub"], path) if data_dir == "hub" else form(path)))
        except BAD as error:
            yield str(path), about, error
def _record(source, split, number, native):  # as one of ours; None where the set leaves it out
    place, about, record = native
    if isinstance(record, Exception):
        raise record
    record, entry = record() if callable(record) else record, source.entry | source.splits[split]
    record = (record if isinstance(record, dict) else {}) | {"_number": number} | about
    if record.get("_lines") and "metadata" not in record:
        record["metadata"] = record["_lines"][record["paper_id"].encode()]()
    for field, values in entry.get("only", {}).items():
        found = _value(record, field)
        if not str(found or "").strip() if values == "filled" else not {*(found if isinstance(found, list) else [found])} & {*values}:
            return None
    record |= {field: CLEANERS[how](record[field]) for field, how in entry.get("clean", {}).items() if isinstance(record.get(field), str)}
    return _framed(source, split, record, place)

def read_records(data_dir, name, *, split=None, on_error="stop", problems=None, part=(0, 1)):
    """Records of one set of any kind, of one split or of all that are there, the publisher's test split included (meta["split"]).
    on_error="skip" leaves bad records out; what was wrong, and where, is added to `problems`, else printed, as a wrong count is.
    part: (number, of how many) parts that the files are dealt to."""
    (source, splits), found, seen = _opened(data_dir, name, split), [] if problems is None else problems, set()
    for each in splits:
        count = 0
        for number, native in enumerate(_natives(data_dir, source, each, part), start=1):
            try:
                record = _record(source, each, number, native)
                if record and record["id"] in seen:
                    raise ValueError(f"{native[0]}: the id {record['id']!r} occurs twice; ids must be unique within a set")
            except BAD as error:
                if on_error != "skip":
                    raise _named(error, native[0]) from None
                record = found.append(str(_named(error, native[0])))  # None
            if record:
                seen.add(record["id"])
                count += len(record.get("Instances", "1"))
                yield record
        if part[1] == 1 and source.splits[each]["count"] not in (None, count):
            found.append(f"{name}, split {each}: {count:,} records, {source.splits[each]['count']:,} are published; is the download complete?")
    if problems is None and found:
        print(*found, sep="\n", file=sys.stderr)

def available(data_dir):
    """Names of the sets whose folder is in data_dir, or that are on the hub."""
    return [name for name, source in SOURCES.items() if ("hub" in source.entry if data_dir == "hub" else (Path(data_dir) / source.folder).is_dir())]
def splits(data_dir, name):
    """The splits of a set whose native files are there."""
    return _opened(data_dir, name)[1]

def load_corpus(data_dir, names=None, **how):
    """Training text of the named sets: records {text, source, language, id, meta}. Default: all that are there, but the large ones.
    Left out: the publishers' test splits, and from every set the abstracts (by PubMed id) of PubMedQA's test questions."""
    there, texts = available(data_dir), [name for name, source in SOURCES.items() if source.kind in TEXTS]
    names = [name for name in texts if name in there and not SOURCES[name].entry.get("large")] if names is None else names
    if not names:
        raise FileNotFoundError(f"{data_dir}: no set to read; it should hold one or more of {', '.join(SOURCES[name].folder for name in texts)}")
    names = [_opened(data_dir, name, kinds=TEXTS)[0].name for name in names]
    held_out = {item["meta_info"]["pmid"] for item in load_exam(data_dir, "pubmedqa")} if "pubmedqa" in there and data_dir != "hub" else TEST_PMIDS
    return [record for name in names for record in read_records(data_dir, name, **how)
            if record["meta"]["split"] != "test" and record["meta"].get("pmid") not in held_out]

def load_exam(data_dir, name, *, split=None, items=None, seed=0, **how):
    """The items of an exam in the file's order; `items` draws that many by seed (or all), and a larger draw holds the smaller one."""
    exam = list(read_records(data_dir, name, split=split or _opened(data_dir, name, kinds=("exam",))[0].usual, **how))
    numbers = random.Random(f"{name} {seed}").sample(range(len(exam)), len(exam))[:items]
    return [exam[number] for number in sorted(numbers)]

def split_documents(records, *, test_share, seed):
    """(train, test): a document (meta["document"], else id) goes as a whole, by a hash of its name, whatever the other documents are."""
    parts = [], []
    for record in records:
        name = record.get("meta", {}).get("document", record["id"])
        place = int(hashlib.sha256(f"{seed} {name}".encode()).hexdigest()[:12], 16) / 16**12  # in [0, 1)
        parts[place < test_share].append(record)
    return parts
def _declared(name, own):  # a set that is read in a second way (of: ..) takes what it does not say from the first
    entry = {key: value for key, value in (ENTRIES.get(own.get("of"), {}) | own).items() if value is not None}
    return SimpleNamespace(**{"usual": next(iter(entry["splits"]))} | entry | {"name": name, "languages": tuple(entry["languages"]), "entry": entry})

ENTRIES = read_yaml("sources.yaml")
SOURCES = {name: _declared(name, own) for name, own in ENTRIES.items()}
def inventory(data_dir):
    """A line for each set and split that is there: set, split, records, expected, problems."""
    there = ((name, split) for name in available(data_dir) for split in SOURCES[name].splits if _there(data_dir, SOURCES[name], split))
    for name, split, problems in ((*each, []) for each in there):
        count = sum(len(record.get("Instances", "1")) for record in read_records(data_dir, name, split=split, on_error="skip", problems=problems))
        yield {"set": name, "split": split, "records": count, "expected": SOURCES[name].splits[split]["count"] or "-", "problems": problems}
def main(arguments):
    """usage: python -m lib.sources DATA_DIR (a folder with data sets: what is there) or --cards (writes results/data_cards.md)"""
    if len(arguments) != 1 or arguments != ["--cards"] and not available(arguments[0]):
        sys.exit(main.__doc__)
    if arguments == ["--cards"]:
        return write_atomically(results_root() / "data_cards.md", fill_template("data_cards.md", sources=SOURCES.values()))
    print(f"{'set':28} {'split':14} {'records':>9} {'expected':>9}")
    for row in inventory(arguments[0]):
        print("{set:28} {split:14} {records:9,} {expected:>9}".format(**row), *row["problems"][-5:], sep="\n    ")

if __name__ == "__main__":
    main(sys.argv[1:])
