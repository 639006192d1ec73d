"""Score answers against references: BLEU, ROUGE and BERTScore of texts in six languages, F1 of entities and labels, accuracy."""
import functools
import re
import unicodedata
from collections import defaultdict
from itertools import count
import jieba
import numpy as np
import pandas as pd
from janome.tokenizer import Tokenizer
from rapidfuzz.distance import LCSseq
from rapidfuzz.process import cpdist
ORDERS = (1, 2, 3, 4)  # of n-grams
COLUMNS = (*(f"bleu_{n}" for n in ORDERS), "bleu", "bleu_4_method1", "rouge_1", "rouge_2", "rouge_l")
EPSILON = 0.1  # nltk's method1: matches of an order that has none
CHUNK = 128    # pairs that are scored at a time
BORDER = "\0"  # stands between texts that are split in one go
ENGLISH = bytes(byte if chr(byte) in BORDER + "abcdefghijklmnopqrstuvwxyz0123456789" else 32 for byte in range(256))
DICTIONARY = functools.cache(Tokenizer)  # takes a second, once
RULES = {"en": None, **dict.fromkeys(("zh", "ja"), re.compile(rf"[a-z0-9]+|[^\W_]|{BORDER}")), **dict.fromkeys(("fr", "ru", "es"), re.compile(
    rf"[^\W_]+|{BORDER}")), "zh_jieba": jieba.lcut, "ja_janome": lambda text: DICTIONARY().tokenize(text, wakati=True)}

def words(text, language):
    """The words of a text, in small letters and without punctuation: what every metric here counts, by one of four rules.
    en: runs of a-z and 0-9, as rouge-score 0.1.2 without stemmer (Google Research), whose rule leaves nothing of other scripts.
    fr, ru, es: runs of letters and digits of any script, after NFKC and without stress marks; no stemmer.
    zh, ja: no word splitting. Every character is a word; only runs of a-z and 0-9 stay whole, as in sacrebleu's "zh".
    zh_jieba, ja_janome: words of a dictionary (jieba 0.42.1, janome 0.5.0), with which the released scripts of MMedLM and MedS-Ins split.
    >>> words("Beta-blockers: 2.5 mg", "en"), words("L'été, за́мок", "fr"), words("口服CT25，ビタミン。", "ja")
    (['beta', 'blockers', '2', '5', 'mg'], ['l', 'été', 'замок'], ['口', '服', 'ct25', 'ビ', 'タ', 'ミ', 'ン'])"""
    if language not in RULES:
        raise ValueError(f"no rule for words of language {language!r}; known are {', '.join(RULES)}")
    return _split(text.replace(BORDER, " "), language)
def _split(text, language):
    """Words, and borders between texts as words of their own."""
    if RULES[language] is None:  # as bytes, for speed: whatever is not ASCII becomes a space
        return text.lower().encode("utf-8", "replace").translate(ENGLISH).decode("ascii").split()
    text = unicodedata.normalize("NFKC", text).lower().replace("\u0301", "").replace("\u0300", "")
    if callable(RULES[language]):  # text by text: neighbours do not matter
        return [word for own in text.split(BORDER) for word in (*RULES[language](own), BORDER) if word == BORDER or any(map(str.isalnum, word))][:-1]
    return RULES[language].findall(text)

def rationale_scores(pairs, language):
    """A table with the COLUMNS, one row for each (prediction, reference), from 0 to 1. ValueError for a reference without words.
    bleu_n: sentence BLEU with uniform weights on 1- to n-grams and brevity penalty (Papineni 2002), unsmoothed: 0 where an order has no match.
    bleu: the mean of the four. Table 2 of MMedLM is headed BLEU-1 and ROUGE-1, its released script computes bleu_4_method1 (nltk, smoothing method1)
    and ROUGE-L, on capitals and punctuation, zh and ja split with jieba and janome; here all use `words`. rouge_*: F1, equal to rouge-score's.
    >>> scores = rationale_scores([("the cat sat", "the cat sat down"), ("", "the cat")], "en")
    >>> scores[["bleu_1", "bleu_4", "bleu_4_method1", "rouge_1", "rouge_2", "rouge_l"]].round(3).values.tolist()
    [[0.717, 0.0, 0.403, 0.857, 0.8, 0.857], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]"""
    words("", language)  # an unknown language is refused even where there is no pair
    pairs = list(pairs)
    rows = [_scores(pairs[first:first + CHUNK], language, first) for first in range(0, len(pairs), CHUNK)]
    return pd.DataFrame(np.concatenate([np.empty((0, len(COLUMNS))), *rows]), columns=list(COLUMNS))
def _scores(pairs, language, first):
    """One row of COLUMNS for each pair; `first` is the number of the first of them, for messages."""
    numbers = defaultdict(count(1).__next__, {BORDER: 0})  # word -> number
    texts = BORDER.join(f" {text.replace(BORDER, ' ')} " for pair in pairs for text in pair)
    ids = np.fromiter(map(numbers.__getitem__, _split(texts, language)), np.int64)
    lengths = (np.diff(np.flatnonzero(ids == 0), prepend=-1, append=len(ids)) - 1).reshape(-1, 2)  # of prediction and reference
    if not lengths[:, 1].all():
        number = int(np.argmin(lengths[:, 1]))
        raise ValueError(f"pair {first + number}, language {language!r}: the reference {pairs[number][1][:40]!r} holds no word")
    return _metrics(ids[ids > 0], lengths)
def _metrics(ids, lengths):
    """COLUMNS from the numbers of all words and the lengths (pairs, 2) of the texts."""
    owner = np.repeat(np.arange(lengths.size), lengths.ravel())         # 2 * pair, + 1 for the reference
    matches = _common_ngrams(ids, owner, len(lengths))                  # (orders, pairs)
    sizes = np.maximum(lengths.T - np.arange(4)[:, None, None], 1)      # (orders, sides, pairs) n-grams; 1 for none, as nltk
    brevity = np.exp(np.minimum(1 - lengths[:, 1] / np.maximum(lengths[:, 0], 1), 0))
    with np.errstate(divide="ignore"):  # exp(log(0)) is the 0 that is wanted
        bleu = [brevity * np.exp(np.log(matches[:n] / sizes[:n, 0]).mean(0)) for n in ORDERS]
    method1 = brevity * np.exp(np.log(np.where(matches > 0, matches, EPSILON) / sizes[:, 0]).mean(0)) * (matches[0] > 0)
    overlaps = ((matches[0], sizes[0]), (matches[1], sizes[1]), (_longest_common_subsequences(ids, lengths), sizes[0]))
    return np.stack([*bleu, np.mean(bleu, axis=0), method1, *(_f1(*(common / size)) for common, size in overlaps)], 1)
def _f1(precision, recall):  # in rouge-score's order of operations, so that not even the last digit differs
    return 2 * precision * recall / np.where(precision + recall > 0, precision + recall, 1)
def _common_ngrams(ids, owner, pairs):
    """n-grams that prediction and reference share, (orders, pairs): of one that stands a and b times, min(a, b)."""
    common, grams, words_known = np.zeros((len(ORDERS), pairs)), owner >> 1, ids.max(initial=0) + 1
    for n in ORDERS[:len(ids)]:
        last = len(ids) - n + 1
        whole = owner[:last] == owner[n - 1:]  # n-grams within one text
        grams, distinct = pd.factorize(grams[:last] * words_known + ids[n - 1:])  # numbered as they appear: the first pair's come first
        first = np.diff(np.maximum.accumulate(grams), prepend=-1) > 0
        times = np.bincount((grams << 1 | owner[:last] & 1)[whole], minlength=2 * len(distinct)).reshape(-1, 2)  # in prediction and reference
        common[n - 1] = np.bincount(owner[:last][first] >> 1, times.min(1), pairs)
    return common
def _longest_common_subsequences(ids, lengths):
    """Lengths, for each pair; a word is handed on as the one letter of its number."""
    letters, ends = ids.astype("<u4").tobytes().decode("utf-32-le"), lengths.cumsum()
    texts = [letters[end - length:end] for end, length in zip(ends.tolist(), lengths.ravel().tolist())]
    return cpdist(texts[::2], texts[1::2], scorer=LCSseq.similarity, dtype=np.int64)

NO_ENTITY = "There is no related entity."  # the released definitions and scorer spell it "enetity"

def entity_list(entities):
    """Entities as MedS-Ins writes them: "a, b."; one that holds a comma and a space, or a quote in front or a full stop at its end, is quoted.
    >>> entity_list(["iron", "2,4-D", "fever, acute"]), entity_list([])
    ('iron, 2,4-D, "fever, acute".', 'There is no related entity.')"""
    quoted = ['"' + text.replace('"', '""') + '"' if re.search(r'^$|^[\s"]|,\s|[\s.,]$', text) else text for text in entities]
    return ", ".join(quoted) + "." if entities else NO_ENTITY

def read_entities(text):
    """The entities of such a list, one for each mention.
    >>> read_entities('iron, 2,4-D, "fever, acute".'), read_entities("There is no related enetity.")
    (['iron', '2,4-D', 'fever, acute'], [])"""
    text = text.strip().removesuffix(".")
    if not text or text.casefold() in (NO_ENTITY[:-1].casefold(), "there is no related enetity"):
        return []
    found = re.findall(r'("(?:[^"]|"")*"(?=,\s|$)|.+?)(?:,\s|$)', text, re.DOTALL)
    return [each[1:-1].replace('""', '"') if re.fullmatch(r'"(?:[^"]|"")*"', each) else each for each in found]

def item_scores(pairs, metric, language="en"):
    """One score for each (prediction, reference): bleu_1 (text), F1 of the lists (entities, labels), or 1 where the first line of the prediction
    is the reference, whatever capitals, spaces and points at the ends (accuracy).
    >>> item_scores([(" Aspirin.\\nMore", "aspirin"), ("yes or no", "yes")], "accuracy").tolist()
    [1.0, 0.0]"""
    if metric == "text":
        return rationale_scores(pairs, language)["bleu_1"].to_numpy()
    if metric == "accuracy":
        plain = [[" ".join(text.strip().split("\n")[0].split()).strip(" .").casefold() for text in pair] for pair in pairs]
        return np.array([float(prediction == reference) for prediction, reference in plain])
    sets = [[{each.casefold() for each in read_entities(text) or [""] * (not text.strip())} for text in pair] for pair in pairs]  # silence is none
    return np.array([2 * len(found & right) / (len(found) + len(right)) if found or right else 1.0 for found, right in sets])
