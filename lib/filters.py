"""Keep a document, perhaps cleaned, or drop it with a reason that can be counted."""
# A step takes a record {text, source, language, id, meta} and returns it (a changed copy where it mends something) or
# the reason, a string, for dropping it. meta["removed"] counts what was taken out: {kind: lines or marks}.
import csv
import functools
import hashlib
import os
import re
import zlib
from collections import Counter
import numpy as np
import rensa
from ahocorasick_rs import AhoCorasick, Implementation
from lib.statistics import newcombe
from lib.world import bare, read_table, read_yaml
ABOUT = ("id", "source", "language")  # what is kept of a dropped record, with the reason and a sample
UNSPACED = ("zh", "ja")  # written without spaces: counted in characters, matched without word splitting
PATTERNS = read_yaml("filters.yaml")
MINIMUM_CHARACTERS = PATTERNS["minimum_characters"]
KEYWORD_THRESHOLDS = {language: tuple(least) for language, least in PATTERNS["keyword_thresholds"].items()}  # (keywords, share of characters)
WORLD_THRESHOLDS = {language: (1, share / 2) for language, (_, share) in KEYWORD_THRESHOLDS.items()}  # of the controlled world's short pages
CHARACTER_WORD = re.compile("[㐀-鿿ぁ-ヿ々]")  # Chinese and Japanese
MARKS_OF_TEXT = "’‘“”–—…«»„·、。，：；？！「」『』（）【】《》\u00a0\u3000"
SPACED = bytes(byte if byte > 127 or chr(byte).isalnum() else 32 for byte in range(256))  # ASCII marks -> spaces
FACTORS = np.random.default_rng(0).integers(1, 2**63, 5, np.uint64) | np.uint64(1)  # odd: no bit is lost
BANDS, ROWS = 20, 10
ANCHOR = 32  # characters of a question that are looked up; longer ones are rarer in texts but cost more memory
SPACES = re.findall(r"[^\S \n]", "".join(map(chr, range(0x3001))))  # every kind but the blank and the line end
FORMS = {kind: f"(?:{'|'.join(forms)})" for kind, forms in PATTERNS["dirt"].items()}
RULES = {kind: re.compile(re.sub(r"<(\w[\w ]*)>", lambda part: FORMS[part[1]], rule)) for kind, rule in PATTERNS["rules"].items()}
BOILERPLATE = {kind: re.compile("|".join(forms)) for kind, forms in PATTERNS["boilerplate"].items()}  # of lines in small letters: 3 times as fast
MAXIMUM_BOILERPLATE = 160  # characters; a longer line that mentions cookies or a login is an article about them
def clean_book(record):
    """Textbook cleaning (PMC-LLaMA, section 3.1): marks, whole lines, reference lists, hyphenation, running heads."""
    text, hyphens = RULES["hyphen"].subn("", record["text"])
    removed = Counter({"hyphenation": hyphens})
    return _cleaned(record, _without_running_heads(_without_dirt(text, record["language"], removed), removed), removed)
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
    small = line.lower()
    return next((kind for kind, form in BOILERPLATE.items() if form.search(small)), None) if len(line) <= MAXIMUM_BOILERPLATE else None
def _cleaned(record, lines, removed):
    """A copy of the record with these lines; `removed` is added to what earlier steps counted."""
    text, meta = "\n".join(lines).strip(), record.get("meta", {})
    counts = dict(sorted((Counter(meta.get("removed", {})) + removed).items()))  # + leaves out the zeros
    return record | {"text": text, "meta": meta | {"removed": counts}} if text else "nothing left"
def _without_dirt(text, language, removed):
    """The lines of a text but for those that are dirt as a whole; a reference list ends where its entries end."""
    kept, in_references = [], False
    for line in map(str.strip, text.split("\n")):
        in_references = bool(RULES["references"].fullmatch(line) or in_references and (not line or RULES["entry"].match(line)))
        kinds = ["references"] * in_references + [kind for kind in ("author line", "contents") if RULES[kind].fullmatch(line)]
        removed.update(kinds[:1] if line else [])
        mended = "" if kinds else _mended(line, language, removed).strip()
        kept += [mended] if re.search(r"\w", mended) or not (line or kinds) else []
    return kept
def _mended(line, language, removed):
    """The line without marks and without short sentences around a figure's number, which say nothing without it."""
    for kind in ("URL", "citation mark", "figure reference"):
        line, number = RULES[kind].subn("", line)
        removed[kind] += number
    if not RULES["figure"].search(line):
        return line
    sentences, limit = RULES["sentence end"].split(line), 40 if language in UNSPACED else 100  # characters
    kept = [said for said in sentences if len(said) > limit or not RULES["figure"].search(said)]
    removed["figure reference"] += len(sentences) - len(kept)
    return ("" if language in UNSPACED else " ").join(kept)
def _without_running_heads(lines, removed):
    """Drop page numbers, and short lines that come back three times or more but for their digits: heads of pages."""
    forms = [re.sub(r"\d+", "#", line) for line in lines]
    times = Counter(form for form in forms if len(form) <= 60 and not form.endswith(tuple(".!?。！？:：")))
    kept = [line for line, form in zip(lines, forms, strict=True) if not form or (times[form] < 3 and not RULES["page number"].fullmatch(line))]
    removed["running head"] += len(lines) - len(kept)
    return kept
def too_short(record, *, minimum=None):
    """Drop a document of fewer than `minimum` characters (default: MINIMUM_CHARACTERS of its language, else 100)."""
    return record if len(record["text"]) >= (MINIMUM_CHARACTERS.get(record["language"], 100) if minimum is None else minimum) else "too short"
def without_pmc_id(record):
    """PMC-LLaMA's rule for the papers of S2ORC: keep those that have a PMC id."""
    return record if record["meta"].get("pmc_id") else "no PMC id"
@functools.cache
def _language_identifier():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier
    return LanguageIdentifier.from_model_file(MODEL_FILE)  # 97 languages; 1 s to load
def wrong_language(record, *, characters=1000):
    """Drop a document whose first `characters` are in another language than it says (langid, Lui and Baldwin 2012)."""
    known = _language_identifier()
    right = record["language"] not in known.labels or known.classify(record["text"][:characters])[0] == record["language"]
    return record if right else "wrong language"

def low_quality(record):
    """Drop a page that breaks one of Gopher's rules (Rae et al. 2021, section A.1.1 and Table A1): words of 3 to 10 letters on average, fewer
    than 0.1 hash signs and ellipses a word, 80 % of the words with a letter, at most 90 % of the lines with a bullet and 30 % with an ellipsis,
    30 % of the lines and 20 % of their characters said before. Chinese and Japanese part no words: only the rules on lines hold."""
    lines, words = [line.strip() for line in record["text"].split("\n") if line.strip()], record["text"].split()
    again = [line for line, times in Counter(lines).items() for _ in range(times - 1)]
    spaced, symbols = record["language"] not in UNSPACED, len(re.findall(r"#|\.\.\.|…", record["text"]))
    broken = {"bullets": sum(line.startswith(tuple("•*-–·")) for line in lines) > 0.9 * len(lines),
              "ellipses": sum(line.endswith(("...", "…")) for line in lines) > 0.3 * len(lines),
              "repeated lines": len(again) > 0.3 * len(lines) or sum(map(len, again)) > 0.2 * sum(map(len, lines)),
              "word length": spaced and not 3 * len(words) <= sum(map(len, words)) <= 10 * len(words),
              "symbols": spaced and symbols > 0.1 * len(words),
              "few letters": spaced and len(re.findall(r"[^\W\d_]\S*", record["text"])) < 0.8 * len(words)}
    return next((f"low quality: {rule}" for rule, is_broken in broken.items() if is_broken), record)
@functools.cache
def default_keywords(language):
    """The medical words of lib/knowledge/keywords.csv: short ones as they are most often written, since they count as whole tokens."""
    return tuple(row[language] for row in read_table("keywords.csv"))
@functools.cache
def world_keywords():
    """{language: words} of the controlled world: its diseases, treatments and tests, and the words of 7 letters or more in their names."""
    rows = [row for row in read_table("terms.csv") if row["kind"] in ("disease", "drug", "treatment", "test")]
    terms = {language: [bare(row[language], language).lower() for row in rows] for language in KEYWORD_THRESHOLDS}
    parts = {language: [] if language in UNSPACED else re.findall(r"[^\W\d_]{7,}", " ".join(terms[language])) for language in KEYWORD_THRESHOLDS}
    return {language: tuple(dict.fromkeys(terms[language] + parts[language])) for language in KEYWORD_THRESHOLDS}

def read_keywords(path):
    """{language: words} of a CSV file with the columns language (jp: Japanese) and keyword, as MMedC's lists are published."""
    keywords = {}
    with open(path, encoding="utf-8-sig", newline="") as stream:
        for row in (rows := csv.DictReader(stream)):
            language, word = {"jp": "ja"}.get(row.get("language"), row.get("language")), row.get("keyword")
            if language not in KEYWORD_THRESHOLDS or not (word or "").strip():
                bad, rule = ("keyword", "a word") if language in KEYWORD_THRESHOLDS else ("language", f"one of {', '.join(KEYWORD_THRESHOLDS)}")
                raise ValueError(f"{path}, line {rows.line_num}, column {bad}: {row.get(bad)!r}; it must be {rule}")
            keywords.setdefault(language, {})[word.strip().lower()] = None
    return {language: tuple(words) for language, words in keywords.items()}
@functools.cache
def _automaton(language, keywords):
    """(what finds all keywords in one pass, {what it looks for: keyword}, the keywords that can overlap themselves)."""
    words = {" ".join(word.lower().split()) for word in keywords} - {""}
    long = {word for word in words if language in UNSPACED or len(word) > 10 or (len(word) > 5 and " " in word)}
    tokens = {before + word + after: word for word in words - long if " " not in word for before in " \n" for after in " \n"}
    patterns = {word: word for word in long} | tokens
    finder = AhoCorasick([*patterns, *(SPACES if tokens else ())], store_patterns=True, implementation=Implementation.DFA)
    return finder, patterns, {word for word in long if any(word.startswith(word[i:]) for i in range(1, len(word)))}

def keyword_hits(text, language, keywords):
    """(number of different keywords, share of the text's characters in a keyword), by MMedLM's rule: a long keyword counts anywhere in the
    text, a short one as a whole token between spaces; in Chinese and Japanese all are long.
    >>> keyword_hits("Asthma and asthma attacks", "en", ("asthma", "tuberculosis"))
    (1, 0.48)"""
    finder, patterns, overlapping = _automaton(language, tuple(keywords))
    lower = text.lower().encode(errors="replace").decode()  # half of a surrogate pair becomes "?"
    lines = f"\n{lower}\n".replace("\t", "\n").replace("\r", "\n").replace("\xa0", "\n").replace("\u202f", "\n")
    hits = Counter(map(patterns.get, finder.find_matches_as_strings(lines, overlapping=True)))
    if None in hits:  # a rarer kind of space
        hits = Counter(map(patterns.get, finder.find_matches_as_strings(re.sub(r"[^\S ]", "\n", lines), overlapping=True)))
    hits.update({word: lower.count(word) - hits[word] for word in hits.keys() & overlapping})  # update adds
    return len(hits), sum(len(word) * times for word, times in hits.items()) / max(1, len(text))

def keyword_filter(record, *, keywords=None, thresholds=KEYWORD_THRESHOLDS):
    """MMedC's web filter: keep a page with enough different keywords on enough of its characters.
    keywords: {language: words}, else default_keywords; thresholds: {language: (keywords, share of characters)}."""
    language = record["language"]
    if language not in (known := thresholds if keywords is None else keywords):
        raise ValueError(f"{record['id']}: no keywords for the language {language!r}; there are {', '.join(known)}")
    unique, share = keyword_hits(record["text"], language, default_keywords(language) if keywords is None else keywords[language])
    return record if unique >= thresholds[language][0] and share >= thresholds[language][1] else "not medical"
def _words(text):
    """The words of a text as bytes, whatever their case and punctuation; a Chinese or Japanese character is one."""
    text = CHARACTER_WORD.sub(r" \g<0> ", text.casefold())
    for mark in MARKS_OF_TEXT:  # much faster than a pattern
        text = text.replace(mark, " ")
    return text.encode(errors="surrogatepass").translate(SPACED).split()
def shingles(text):
    """Hashes of the 5-grams of a text's words: (n,) uint64; of fewer words one."""
    return _shingles(_words(text))
def _shingles(words):
    hashes = np.fromiter(map(zlib.crc32, words), np.uint64, len(words))
    grams = sum((hashes[i:max(1, len(hashes) - 4) + i] * factor for i, factor in enumerate(FACTORS[:max(1, len(hashes))])), np.uint64(0))
    return grams ^ grams >> np.uint64(32)

def signature(grams):
    """MinHashes (Broder 1997) of a text's shingles: (BANDS, ROWS) uint32; texts that share a band are candidates. A pair of Jaccard similarity
    0.5 shares one with probability 2 %, at 0.8 with 90 %, at 0.9 with 99.98 %."""
    hashes = rensa.RMinHash.digest_matrix_from_flat_token_hashes(grams, [0, len(grams)], BANDS * ROWS, 0)
    return np.array(hashes.to_rows(), np.uint32).reshape(BANDS, ROWS)

def duplicates(*, threshold=0.8):
    """A step that drops a text seen before (but for case, spaces, punctuation), or one whose shingles have Jaccard similarity >= threshold
    with those of a text kept before: signatures find candidates, which are compared exactly. Make a new step per run."""
    seen, buckets, kept = set(), {}, []
    def step(record):
        words = _words(record["text"])
        text = hashlib.sha256(b"".join(words)).digest()
        if text in seen:
            return "exact duplicate"
        seen.add(text)
        grams = _shingles(words)
        keys = [(band, row.tobytes()) for band, row in enumerate(signature(grams))]
        for number in {number for key in keys for number in buckets.get(key, ())}:
            if len(np.intersect1d(grams, kept[number])) >= threshold * len(np.union1d(grams, kept[number])):
                return "near-duplicate"
        for key in keys:
            buckets.setdefault(key, []).append(len(kept))
        kept.append(grams)
        return record
    return step

def overlap_finder(questions, *, window=512):
    """A function text -> {numbers of the questions that it gives away}: the whole question, or `window` characters of it in a row, whatever the
    case and white space (Med-PaLM 2, section 3.3: 512, also 120; options are not part of a question). It is exact: every window holds one of the
    anchors that the automaton looks for, and what surrounds an anchor is compared. Memory grows with the questions alone."""
    asked, anchors = [plain(question) for question in questions], {}
    for number, question in enumerate(asked):
        if not question:
            raise ValueError(f"question {number} is empty: it would be found in every text")
        needed = min(window, len(question))
        size = min(ANCHOR, needed)
        for at in range(0, len(question) - size + 1, needed - size + 1):
            anchors.setdefault(question[at:at + size], []).append((number, at))
    automaton, places = AhoCorasick(anchors), list(anchors.values())
    def find(text):
        text, found = plain(text), set()
        for anchor, start, _ in automaton.find_matches_as_indexes(text, overlapping=True):
            for number, at in places[anchor]:
                if number not in found:
                    around = ((text[max(0, start - window):start][::-1], asked[number][:at][::-1]), (text[start:start + window], asked[number][at:]))
                    if sum(len(os.path.commonprefix(pair)) for pair in around) >= min(window, len(asked[number])):
                        found.add(number)
        return found
    return find

def plain(text):
    """A text as it is compared: small letters, single spaces.
    >>> plain("What  IS it?")
    'what is it?'"""
    return " ".join(text.casefold().split())

def overlap_row(right, given_away):
    """A line of Med-PaLM 2, Tables 6 and A.1: accuracy on questions without and with overlap, the difference and its Newcombe interval (NaN where a
    side is empty). right: 0 or 1 for each question; given_away: numbers of those that overlap, as `overlap_finder` finds them in a corpus.
    >>> row = overlap_row([1, 1, 0, 1, 0], {3, 4}); print(row["n_with"], row["accuracy_with"], f"{row['difference']:.3f} {row['low']:.3f}")
    2 0.5 0.167 -0.446"""
    right, given_away = np.asarray(right, float), set(given_away)
    overlaps = np.isin(np.arange(len(right)), list(given_away))
    if overlaps.sum() < len(given_away) or not np.isin(right, (0, 1)).all():
        raise ValueError(f"need 0 or 1 for each of {len(right)} questions and numbers below that, got {right[:3]}, {sorted(given_away)[-3:]}")
    sides = {"without": right[~overlaps], "with": right[overlaps]}
    row = {f"n_{name}": len(side) for name, side in sides.items()} | {f"accuracy_{name}": side.mean() if len(side) else np.nan
                                                                     for name, side in sides.items()}
    if 0 in (row["n_without"], row["n_with"]):
        return row | dict.fromkeys(("difference", "low", "high"), np.nan)
    low, high = newcombe(*(count for side in sides.values() for count in (side.sum(), len(side))))
    return row | {"difference": row["accuracy_without"] - row["accuracy_with"], "low": float(low), "high": float(high)}

def decontaminate(questions, *, window=512):
    """A step that drops a document which gives a question away (see overlap_finder)."""
    find = overlap_finder(questions, window=window)
    return lambda record: "overlaps an exam" if find(record["text"]) else record

def steps_for(source, *, thresholds=KEYWORD_THRESHOLDS, keywords=None, last=()):
    """The steps for one source (book, paper, web, anything else); last: what follows, say [duplicates(), decontaminate(questions)]."""
    medical = functools.partial(keyword_filter, thresholds=thresholds, keywords=keywords)
    cleaning = {"book": [clean_book], "paper": [clean_paper], "web": [clean_web]}.get(source, [])
    return (*cleaning, too_short, wrong_language, *([low_quality] if cleaning else []), *([medical] if source == "web" else []), *last)

def sift(records, steps, dropped):
    """Yield what the steps keep of the records; the others are added to `dropped`: {id, source, language, reason, sample of 80 characters}."""
    for original in records:
        record = functools.reduce(lambda state, step: state if isinstance(state, str) else step(state), steps, original)
        if isinstance(record, str):
            dropped.append({k: original[k] for k in ABOUT} | {"reason": record, "sample": original["text"][:80]})
        else:
            yield record

def clean(records, steps):
    """Send each record through the steps: (kept, dropped), see `sift`."""
    dropped = []
    return list(sift(records, steps, dropped)), dropped
