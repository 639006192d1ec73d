"""An exam is data, a prompt for each item, a named rule that reads the answer, and a chance level."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from lib.instructions import ZERO_SHOT_INSTRUCTION, exam_record, render_prompt
from lib.world import wordings

ITEM_FIELDS = ("id", "question", "options", "answer_idx")
LETTER_RULE = re.compile(r"(?i)OPTION ([A-Z]) IS CORRECT")
SENTENCE_END = r"\s*(?:。|\.(?=\s|<|$)|\n|<|$)"  # not the point of "5.5 mg"

@dataclass(frozen=True)
class Benchmark:
    """Items, how they are asked, how an answer is read, and what guessing would score."""

    name: str
    items: tuple
    prompt: Callable    # item -> the text before the response
    options: Callable   # item -> (text that comes before the scored options, {letter: scored text})
    extraction: str     # name of a rule in EXTRACTION_RULES

    @property
    def chance(self):
        """The expected accuracy of guessing: the mean of 1 / number of options."""
        return sum(1 / len(item["options"]) for item in self.items) / len(self.items)

    @property
    def fingerprint(self):
        """A hash of items, prompts, scored texts and rule: rows of one fingerprint are comparable."""
        content = [self.name, self.extraction, *((item, self.prompt(item), self.options(item)) for item in self.items)]
        return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:12]

def make_exam(name, items, *, instruction=ZERO_SHOT_INSTRUCTION, template="short", extraction="answer_text_v1"):
    """A multiple-choice benchmark from exam items, asked zero-shot with one instruction for all items.

    `instruction` may be a function of the item number (for unseen wordings). Raises ValueError for an item that cannot be scored.
    """
    _check_items(name, items)
    asked = {item["id"]: instruction(number) if callable(instruction) else instruction for number, item in enumerate(items)}
    return Benchmark(name, tuple(items), lambda item: render_prompt(exam_record(item, instruction=asked[item["id"]]), template=template),
                     _options_after_stem, extraction)

def make_completion_exam(name, items):
    """The same facts as unfinished sentences: for models that were never shown a question. Scored by log-likelihood only."""
    _check_items(name, items)
    for number, item in enumerate(items):
        if "completion" not in item:
            raise ValueError(f"exam {name!r}, item {number}, field 'completion': missing; it holds stem and endings")
    return Benchmark(name, tuple(items), lambda item: item["completion"]["stem"],
                     lambda item: ("", item["completion"]["endings"]), "answer_text_v1")

def _options_after_stem(item):
    """The answer as training data words it: "The answer is", then the option's text with its full stop."""
    stem = wordings(item.get("language", "en"))["phrases"]["answer_is"]
    return stem, {letter: f" {text}." for letter, text in item["options"].items()}

def _check_items(name, items):
    if not items:
        raise ValueError(f"exam {name!r} has no items")
    for number, item in enumerate(items):
        check_item(item, where=f"exam {name!r}, item {number}")

def check_item(item, *, where):
    """ValueError that names the field when an exam item has no question, too few options or no right answer.

    >>> check_item({"id": "1", "question": "?", "options": {"A": "x", "B": "y"}, "answer_idx": "C"}, where="exam.jsonl, line 3")
    Traceback (most recent call last):
    ValueError: exam.jsonl, line 3, field 'answer_idx': 'C' is not among the options A, B
    """
    for field in ITEM_FIELDS:
        if not item.get(field):
            raise ValueError(f"{where}, field {field!r}: missing or empty")
    if len(item["options"]) < 2:
        raise ValueError(f"{where}, field 'options': at least two are needed, got {len(item['options'])}")
    for letter, text in item["options"].items():
        if not str(text or "").strip():
            raise ValueError(f"{where}, field 'options': {letter} has no text")
    for letter in str(item["answer_idx"]).split(","):
        if letter not in item["options"]:
            raise ValueError(f"{where}, field 'answer_idx': {letter!r} is not among the options {', '.join(item['options'])}")

# --- reading a generated answer: rule name -> function(completion, item) -> letter or None ------------------------------

def option_letter_v1(completion, item):
    """PMC-LLaMA's rule: the first "OPTION X IS CORRECT"; a letter that is no option counts as unparsed.

    >>> option_letter_v1("x. OPTION B IS CORRECT.", {"options": {"A": "x", "B": "y"}})
    'B'
    """
    found = LETTER_RULE.search(unicodedata.normalize("NFKC", completion))  # full-width letters are letters
    letter = found.group(1).upper() if found else None
    return letter if letter in item["options"] else None

def answer_text_v1(completion, item):
    """The option whose text follows the last "The answer is" up to a full stop; none when that is no option, or names two.

    >>> item = {"language": "en", "options": {"A": "iron", "B": "iron chelation"}}
    >>> answer_text_v1("So it is rare. The answer is iron chelation. It binds iron. OPTION A IS CORRECT.", item)
    'B'
    >>> answer_text_v1("The answer is iron or iron chelation.", item) is None
    True
    """
    _, found, rest = _plain(completion).rpartition(_plain(wordings(item.get("language", "en"))["phrases"]["answer_is"]))
    said = {letter: _plain(text).strip(" .。") for letter, text in item["options"].items()}
    said = {letter: text for letter, text in said.items() if found and re.match(r"\s*" + re.escape(text) + SENTENCE_END, rest)}
    longest = [letter for letter, text in said.items() if len(text) == max(map(len, said.values()))]
    return longest[0] if len(longest) == 1 else None

def _plain(text):
    """One form of full-width letters, accents and capitals."""
    return unicodedata.normalize("NFKC", text).casefold()

EXTRACTION_RULES = {"option_letter_v1": option_letter_v1, "answer_text_v1": answer_text_v1}
