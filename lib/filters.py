"""Keep a document, perhaps cleaned, or drop it with a reason that can be counted."""

# A step takes a record {text, source, language, id, meta} and returns it (a changed copy where it mends something) or
# the reason, a string, for dropping it. meta["removed"] counts what was taken out: {kind: lines or marks}.

import functools
import hashlib
import re
import zlib
from collections import Counter

import numpy as np

from lib.world import bare, read_table, read_yaml

ABOUT = ("id", "source", "language")  # what is kept of a dropped record, with the reason and a sample
UNSPACED = ("zh", "ja")  # written without spaces: counted in characters, matched without word splitting
SCRIPT = {"en": "A-Za-zÀ-ɏ", "fr": "A-Za-zÀ-ɏ", "es": "A-Za-zÀ-ɏ", "ru": "Ѐ-ӿ", "zh": "㐀-鿿", "ja": "ぁ-ヿ㐀-鿿々"}
MINIMUM_CHARACTERS = {"zh": 40, "ja": 40}  # 100 elsewhere: one of these characters says as much as 2.5 letters
# (different keywords, share of the text's characters in them): MMedLM, data_collection/filtering/filter.py
KEYWORD_THRESHOLDS = {"en": (5, .04), "zh": (5, .05), "ja": (5, .05), "ru": (4, .02), "es": (4, .04), "fr": (4, .04)}
# A page of the controlled world has some 300 characters (a real one thousands) and names one disease, at most one drug
# and one test, so five keywords are out of reach; one keyword at half the published share already separates.
WORLD_THRESHOLDS = {language: (1, share / 2) for language, (_, share) in KEYWORD_THRESHOLDS.items()}

PATTERNS = read_yaml("filters.yaml")
FORMS = {kind: f"(?:{'|'.join(forms)})" for kind, forms in PATTERNS["dirt"].items()}
BOILERPLATE = {kind: re.compile("|".join(forms), re.I) for kind, forms in PATTERNS["boilerplate"].items()}
FIGURE_REFERENCE = re.compile(FORMS["figure"], re.I)
MARKS = {"URL": re.compile(FORMS["url"], re.I | re.ASCII), "citation mark": re.compile(FORMS["citation"]),
         "figure reference": re.compile(FORMS["figure reference"].replace("FIGURE", FORMS["figure"]), re.I)}
SENTENCE_END = re.compile(FORMS["sentence end"], re.I)
HYPHEN = re.compile(r"(?<=[a-zà-ÿа-яё])[-\u00ad]\n(?=[a-zà-ÿа-яё])")  # capitals and digits keep theirs: IL-\n6
NAME, NEXT = FORMS["name"], rf"(?:(?:[,;]|,? and|,? &) {FORMS['name']})"
REFERENCES = re.compile(rf"[\d.\s]*{FORMS['references']}[\s:：.]*", re.I)
ENTRY = re.compile(rf"\[?\d{{1,3}}[\].)、．]?\s.*(?:(?:19|20)\d\d|doi|et al)|.*doi\.org/|{NAME}.*\b(?:19|20)\d\d\b")
PAGE_NUMBER = re.compile(FORMS["page number"], re.I)
WHOLE_LINES = {  # three names or "et al." make a line of authors: "Hepatitis B" alone is a heading
    "author line": re.compile(rf"{FORMS['authors']}\s*[:：].*|{NAME}{NEXT}*,? et al\.?|{NAME}{NEXT}{{2,}}\.?"),
    "contents": re.compile(FORMS["contents"], re.I)}
MAXIMUM_BOILERPLATE = 160  # characters; a longer line that mentions cookies or a login is an article about them

def clean_book(record):
    """Textbook cleaning (PMC-LLaMA, section 3.1): marks, whole lines, reference lists, hyphenation, running heads."""
    text, hyphens = HYPHEN.subn("", record["text"])
    removed = Counter({"hyphenation": hyphens})
    lines = _without_dirt(text, record["language"], removed)
    return _cleaned(record, _without_running_heads(lines, removed), removed)

def clean_paper(record):
    """Paper cleaning: as for books but for hyphens and heads; title, section heads and section text stay."""
    removed = Counter()
    return _cleaned(record, _without_dirt(record["text"], record["language"], removed), removed)

def clean_web(record):
    """Remove the lines of a page that are about the site: cookies, menus, sharing, copyright, accounts, legal notes."""
    kinds = [(line, boilerplate_kind(line)) for line in record["text"].split("\n")]
    return _cleaned(record, [line for line, kind in kinds if not kind], Counter(kind for _, kind in kinds if kind))

def boilerplate_kind(line):
    """The kind of boilerplate that a line is, or None.
    >>> [boilerplate_kind(line) for line in ("Accept all cookies", "首页 | 资讯 | 联系我们", "Malaria is treatable.")]
    ['cookie notice', 'menu', None]"""
    kinds = (kind for kind, pattern in BOILERPLATE.items() if pattern.search(line))
    return next(kinds, None) if len(line) <= MAXIMUM_BOILERPLATE else None

def _cleaned(record, lines, removed):
    """A copy of the record with these lines; `removed` is added to what earlier steps counted."""
    text, meta = "\n".join(lines).strip(), record.get("meta", {})
    counts = dict(sorted((Counter(meta.get("removed", {})) + removed).items()))  # + leaves out the zeros
    return record | {"text": text, "meta": meta | {"removed": counts}} if text else "nothing left"

def _without_dirt(text, language, removed):
    """The lines of a text but for those that are dirt as a whole; a reference list ends where its entries end."""
    kept, in_references = [], False
    for line in map(str.strip, text.split("\n")):
        in_references = bool(REFERENCES.fullmatch(line) or in_references and (not line or ENTRY.match(line)))
        kinds = ["references"] * in_references + [kind for kind, form in WHOLE_LINES.items() if form.fullmatch(line)]
        removed.update(kinds[:1] if line else [])
        mended = "" if kinds else _mended(line, language, removed).strip()
        kept += [mended] if re.search(r"\w", mended) or not (line or kinds) else []
    return kept

def _mended(line, language, removed):
    """The line without marks and without short sentences around a figure's number, which say nothing without it."""
    for kind, mark in MARKS.items():
        line, number = mark.subn("", line)
        removed[kind] += number
    if not FIGURE_REFERENCE.search(line):
        return line
    sentences, limit = SENTENCE_END.split(line), 40 if language in UNSPACED else 100  # characters
    kept = [said for said in sentences if len(said) > limit or not FIGURE_REFERENCE.search(said)]
    removed["figure reference"] += len(sentences) - len(kept)
    return ("" if language in UNSPACED else " ").join(kept)

def _without_running_heads(lines, removed):
    """Drop page numbers, and short lines that come back three times or more but for their digits: heads of pages."""
    forms = [re.sub(r"\d+", "#", line) for line in lines]
    times = Counter(form for form in forms if len(form) <= 60 and not form.endswith(tuple(".!?。！？:：")))
    kept = [line for line, form in zip(lines, forms, strict=True) if not form or (times[form] < 3 and not PAGE_NUMBER.fullmatch(line))]
    removed["running head"] += len(lines) - len(kept)
    return kept

def too_short(record, *, minimum=None):
    """Drop a document of fewer than `minimum` characters (default: MINIMUM_CHARACTERS of its language, else 100)."""
    least = MINIMUM_CHARACTERS.get(record["language"], 100) if minimum is None else minimum
    return record if len(record["text"]) >= least else "too short"

def without_pmc_id(record):
    """PMC-LLaMA's rule for the papers of S2ORC: keep those that have a PMC id."""
    return record if record["meta"].get("pmc_id") else "no PMC id"

def wrong_script(record, *, share=0.5):
    """Drop a document with less than `share` of its letters in its language's script; Japanese has kana, Chinese none.
    English, French and Spanish are not told apart; a language that is not in SCRIPT passes."""
    letters, language = "".join(re.findall(r"[^\W\d_]", record["text"])), record["language"]
    own = len(re.findall(f"[{SCRIPT[language]}]", letters)) if language in SCRIPT else len(letters)
    kana = len(re.findall("[ぁ-ヿ]", letters)) >= 0.05 * len(letters)
    right = letters and own >= share * len(letters) and kana == {"ja": True, "zh": False}.get(language, kana)
    return record if right else "wrong script"

@functools.cache
def default_keywords(language):
    """The diseases, treatments and tests of lib/knowledge/terms.csv, and the words of 7 letters or more in their names:
    "infectious mononucleosis" also counts as "mononucleosis". Chinese and Japanese names stay whole."""
    kinds = ("disease", "drug", "treatment", "test")
    terms = [bare(row[language], language) for row in read_table("terms.csv") if row["kind"] in kinds]
    words = [] if language in UNSPACED else re.findall(r"[^\W\d_]{7,}", " ".join(terms))
    return tuple(dict.fromkeys(keyword.lower() for keyword in terms + words))

def keyword_hits(text, language, keywords):
    """(number of different keywords, share of the text's characters in a keyword), by MMedLM's rule: a long keyword counts anywhere in the
    text, a short one as a whole token between spaces; in Chinese and Japanese all are long.
    >>> keyword_hits("Asthma and asthma attacks", "en", ("asthma", "tuberculosis"))
    (1, 0.48)"""
    lower, hits = text.lower(), {}
    tokens = Counter(lower.split())
    for word in map(str.lower, keywords):
        long = language in UNSPACED or len(word) > 10 or (len(word) > 5 and len(word.split()) > 1)
        hits[word] = lower.count(word) if long else tokens[word]
    return sum(map(bool, hits.values())), sum(len(word) * times for word, times in hits.items()) / max(1, len(text))

def keyword_filter(record, *, keywords=None, thresholds=KEYWORD_THRESHOLDS):
    """MMedC's web filter: keep a page with enough different keywords on enough of its characters.
    keywords: {language: words}, else default_keywords; thresholds: {language: (keywords, share of characters)}."""
    language = record["language"]
    words = keywords[language] if keywords else default_keywords(language)
    unique, share = keyword_hits(record["text"], language, words)
    return record if unique >= thresholds[language][0] and share >= thresholds[language][1] else "not medical"

def duplicates(*, threshold=0.8, bands=16, rows=8):
    """A step that drops a text seen before (but for case, spaces, punctuation), or one whose 5-grams of words (zh, ja:
    characters) have Jaccard similarity >= threshold with those of a text kept before. bands x rows MinHashes (Broder
    1997) find candidates, 95 % of them at 0.8, 99.99 % at 0.9; they are compared exactly. Make a new step per run."""
    seen, buckets, kept, draw = set(), {}, [], np.random.default_rng(0)
    factor, offset = draw.integers(1, 2**63, (2, bands * rows, 1), np.uint64) | np.uint64(1)  # odd: multiply-shift

    def step(record):
        tokens = re.findall(r"\w" if record["language"] in UNSPACED else r"\w+", record["text"].casefold())
        text = hashlib.sha256("".join(tokens).encode()).digest()
        if text in seen:
            return "exact duplicate"
        seen.add(text)
        grams = {zlib.crc32(" ".join(tokens[i:i + 5]).encode()) for i in range(max(1, len(tokens) - 4))}
        hashes = (factor * np.fromiter(grams, np.uint64) + offset) >> np.uint64(32)  # (bands * rows, grams)
        keys = [(band, row.tobytes()) for band, row in enumerate(hashes.min(axis=1).reshape(bands, rows))]
        for number in {number for key in keys for number in buckets.get(key, ())}:
            if len(grams & kept[number]) >= threshold * len(grams | kept[number]):
                return "near-duplicate"
        for key in keys:
            buckets.setdefault(key, []).append(len(kept))
        kept.append(grams)
        return record
    return step

def steps_for(source, *, thresholds=KEYWORD_THRESHOLDS, keywords=None):
    """The steps for one source (book, paper, web, anything else), with a fresh memory for duplicates."""
    medical = functools.partial(keyword_filter, thresholds=thresholds, keywords=keywords)
    cleaning = {"book": [clean_book], "paper": [clean_paper], "web": [clean_web]}.get(source, [])
    return (*cleaning, wrong_script, too_short, *([medical] if source == "web" else []), duplicates())

def clean(records, steps):
    """Send each record through the steps: (kept, dropped {id, source, language, reason, sample of 80 characters})."""
    kept, dropped = [], []
    for original in records:
        record = functools.reduce(lambda state, step: state if isinstance(state, str) else step(state), steps, original)
        if not isinstance(record, str):
            kept.append(record)
            continue
        dropped.append({k: original[k] for k in ABOUT} | {"reason": record, "sample": original["text"][:80]})
    return kept, dropped
