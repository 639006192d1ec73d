"""An exam is data, a prompt for each item, a named rule that reads the answer, and a chance level."""
import hashlib
import json
import random
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from lib.instructions import RATIONALE_INSTRUCTION, RATIONALE_OPENING, ZERO_SHOT_INSTRUCTION, exam_record, render_prompt
from lib.sources import LANGUAGES
from lib.world import read_yaml, wordings
PATTERNS = read_yaml("prompts.yaml")["patterns"]  # of answers
LETTERS = "{letter}(?:{separator}{letter})*{end}".format(**PATTERNS)  # one or more, then an end

@dataclass(frozen=True)
class Benchmark:
    """Items, how they are asked, how an answer is read, and what guessing would score. ValueError for an item that cannot be scored."""
    name: str
    items: tuple
    prompt: Callable    # item -> the text before the response
    options: Callable   # item -> (text that comes before the scored options, {letter: scored text})
    extraction: str     # name of a rule in EXTRACTION_RULES
    cases: tuple = ()   # solved cases, as text; as many of them as fit stand before the prompt
    description: str = ""  # stands before everything
    def __post_init__(self):
        if not self.items:
            raise ValueError(f"exam {self.name!r} has no items")
        for number, item in enumerate(self.items):
            check_item(item, where=f"exam {self.name!r}, item {number}")
    @property
    def several(self):
        """Whether any item has more than one right option; then every item is asked as one that may have."""
        return any("," in item["answer_idx"] for item in self.items)
    @property
    def chance(self):
        """The expected accuracy of guessing: the mean of 1 / number of options, or of non-empty sets of them."""
        return sum(1 / (2 ** len(item["options"]) - 1 if self.several else len(item["options"])) for item in self.items) / len(self.items)
    @property
    def fingerprint(self):
        """A hash of items, prompts, scored texts and rule: rows of one fingerprint are comparable."""
        content = [self.name, self.extraction, *filter(None, [self.description]), *self.cases,
                   *((item, self.prompt(item), self.options(item)) for item in self.items)]
        return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:12]

def make_exam(name, items, *, instruction=ZERO_SHOT_INSTRUCTION, template="short", extraction="answer_text_v1"):
    """A multiple-choice benchmark from exam items, asked zero-shot with one instruction or (for unseen wordings) a function of the item number."""
    asked = {item.get("id"): instruction(number) if callable(instruction) else instruction for number, item in enumerate(items)}
    return Benchmark(name, tuple(items), lambda item: render_prompt(exam_record(item, instruction=asked[item["id"]]), template=template),
                     _options_after_stem, extraction)

def make_rationale_exam(name, items):
    """The items with the instruction to give the reason first, and its opening word: what is generated begins with the reason (MMedLM)."""
    exam = make_exam(name, items, instruction=RATIONALE_INSTRUCTION)
    return replace(exam, prompt=lambda item: exam.prompt(item) + RATIONALE_OPENING)

def make_completion_exam(name, items):
    """The same facts as unfinished sentences: for models that were never shown a question. Scored by log-likelihood only."""
    for number, item in enumerate(items):
        if "completion" not in item:
            raise ValueError(f"exam {name!r}, item {number}, field 'completion': missing; it holds stem and endings")
    return Benchmark(name, tuple(items), lambda item: item["completion"]["stem"], lambda item: ("", item["completion"]["endings"]), "answer_text_v1")

FORMS = read_yaml("prompts.yaml")["forms"]  # how an exam is printed: a case, one option, the answer that is scored

def make_letter_exam(name, items, *, form="mmlu", cases=(), description="", extraction="any_letter_v1"):
    """A benchmark whose scored text is the letter of an option, in one of FORMS, zero-shot or after solved cases.
    cases: exam items of the training split; description: what stands above all. ValueError for an unknown form, and for a case that is an item."""
    if form not in FORMS:
        raise ValueError(f"unknown form {form!r}; choose one of {', '.join(FORMS)}")
    if leaked := {item.get("question") for item in items} & {case["question"] for case in cases}:
        raise ValueError(f"exam {name!r}: {len(leaked)} few-shot cases are test questions, as {sorted(leaked)[0][:60]!r}")
    layout = FORMS[form]
    def answer(letter, item, why=""):
        return layout["answer"].format(letter=letter, text=item["options"].get(letter, ""), rationale=why)
    solved = tuple(_printed(layout, case) + answer(case["answer_idx"], case, case.get("rationale", "")) + "\n\n" for case in cases)
    return Benchmark(name, tuple(items), lambda item: _printed(layout, item), lambda item: (
        "", {letter: answer(letter, item) for letter in item["options"]}), extraction, solved, description)
def _printed(layout, item):
    options = layout["between"].join(layout["option"].format(letter=letter, text=text) for letter, text in item["options"].items())
    context = layout["context"].format(context=item["context"]) if item.get("context") else ""
    language = next(name for name, code in LANGUAGES.items() if code == item.get("language", "en"))
    return layout["case"].format(question=item["question"].strip(), options=options, context=context, language=language)

def few_shot_cases(items, number, *, seed):
    """`number` items of a training split, drawn by seed; ValueError where there are fewer.
    >>> [case["id"] for case in few_shot_cases([{"id": i} for i in range(9)], 2, seed=1)]
    [2, 0]"""
    if number > len(items):
        raise ValueError(f"{number} few-shot cases are wanted, the training split has {len(items)} items")
    return random.Random(f"few-shot {seed}").sample(list(items), number)
def _options_after_stem(item):
    """The answer as training data words it: "The answer is", then the option's text with its full stop."""
    stem = wordings(item.get("language", "en"))["phrases"]["answer_is"]
    return stem, {letter: f" {text}." for letter, text in item["options"].items()}

def check_item(item, *, where):
    """ValueError that names the place and the field when an exam item has no question, too few options or no right answer."""
    options, right = item.get("options") or {}, str(item.get("answer_idx")).split(",")
    bad = [f"{field!r}: missing or empty" for field in ("id", "question", "options", "answer_idx") if not item.get(field)]
    bad += [f"'options': at least two are needed, got {len(options)}"] * (len(options) < 2)
    bad += [f"'options': {letter} has no text" for letter, text in options.items() if not str(text or "").strip()]
    bad += [f"'answer_idx': {letter!r} is not among the options {', '.join(options)}" for letter in right if letter not in options]
    if bad:
        raise ValueError(f"{where}, field {bad[0]}")

# --- reading a generated answer: rule name -> function(completion, item) -> letter or None ------------------------------

def option_letter_v1(completion, item):
    """PMC-LLaMA's rule: the first "OPTION X IS CORRECT"; a letter that is no option counts as unparsed.
    >>> option_letter_v1("x. OPTION B IS CORRECT.", {"options": {"A": "x", "B": "y"}})
    'B'"""
    found = re.search("(?i)OPTION ([A-Z]) IS CORRECT", unicodedata.normalize("NFKC", completion))  # full-width letters are letters
    return found.group(1).upper() if found and found.group(1).upper() in item["options"] else None

def answer_text_v1(completion, item):
    """The option whose text follows the last "The answer is" up to a full stop; none when that is no option, or names two.
    >>> item = {"language": "en", "options": {"A": "iron", "B": "iron chelation"}}
    >>> answer_text_v1("So it is rare. The answer is iron chelation. It binds iron. OPTION A IS CORRECT.", item)
    'B'
    >>> answer_text_v1("The answer is iron or iron chelation.", item) is None
    True"""
    _, found, rest = _plain(completion).rpartition(_plain(wordings(item.get("language", "en"))["phrases"]["answer_is"]))
    said = {letter: _plain(text).strip(" .。") for letter, text in item["options"].items()}
    said = {letter: text for letter, text in said.items() if found and re.match(r"\s*" + re.escape(text) + PATTERNS["sentence_end"], rest)}
    longest = [letter for letter, text in said.items() if len(text) == max(map(len, said.values()))]
    return longest[0] if len(longest) == 1 else None
def _plain(text):
    """One form of full-width letters, accents and capitals."""
    return unicodedata.normalize("NFKC", text).casefold()

def answer_letter_v1(completion, item):
    """The letters ("(B)", "A, C", "A and C") after the last "the answer is", or word for answer with a colon, of the item's language or of English.
    >>> answer_letter_v1("Fever suggests it. The answer is (B).", {"options": {"A": "x", "B": "y"}})
    'B'
    >>> answer_letter_v1("答案：A、B。", {"language": "zh", "options": {"A": "x", "B": "y"}})
    'A,B'"""
    stems = [_plain(wordings(language)["phrases"]["answer_is"]) for language in {"en", item.get("language", "en")}]
    stem = "|".join(map(re.escape, [*stems, *(f"{word}:" for word in PATTERNS["answer_words"])]))
    found = list(re.finditer(rf"(?:{stem})\s*:?\s*({LETTERS})", _plain(completion)))
    return _named(found[-1] if found else None, item)

def bare_letter_v1(completion, item):
    """The letters that a completion begins with, brackets around them or not.
    >>> item = {"options": {"A": "x", "B": "y", "C": "z"}}
    >>> [bare_letter_v1(text, item) for text in (" B", "(C) z", "【A】", "A, C", "A patient", "D", "Both")]
    ['B', 'C', 'A', 'A,C', None, None, None]"""
    return _named(re.match(rf"\s*({LETTERS})", _plain(completion)), item)

def option_letters_v1(completion, item):
    """As option_letter_v1, with several letters: "OPTION A, C ARE CORRECT"; the letters are joined as "A,C".
    >>> option_letters_v1("OPTIONS A and C ARE CORRECT.", {"options": {"A": "x", "B": "y", "C": "z"}})
    'A,C'"""
    return _named(re.search(rf"options? ({LETTERS}) (?:is|are) correct", _plain(completion)), item)

def any_letter_v1(completion, item):
    """The first of the rules for letters that finds one: OPTION X IS CORRECT, the answer is X, X alone at the beginning."""
    rules = (option_letters_v1, answer_letter_v1, bare_letter_v1)
    return next((letter for rule in rules if (letter := rule(completion, item))), None)

def last_option_v1(completion, item):
    """The option that is named last, whatever stands around it; of two that end at one place the longer.
    >>> last_option_v1("Not iron: iron chelation.", {"options": {"A": "iron", "B": "iron chelation", "C": "chelation"}})
    'B'"""
    text, options = _plain(completion), {letter: _plain(option) for letter, option in item["options"].items()}
    found = {letter: (text.rfind(option) + len(option), len(option)) for letter, option in options.items() if option in text}
    return max(found, key=found.get, default=None)
def _named(found, item):
    """The letters of a match such as "(a), (c)", in the item's order; None without a match, and when one of them is no option."""
    letters = {part.strip("()[]【】「」<> ") for part in re.split(PATTERNS["separator"], found.group(1))} if found else set()
    named = [letter for letter in item["options"] if letter.casefold() in letters]
    return ",".join(named) if named and len(named) == len(letters) else None

EXTRACTION_RULES = {rule.__name__: rule for rule in (
    option_letter_v1, answer_text_v1, option_letters_v1, answer_letter_v1, bare_letter_v1, any_letter_v1, last_option_v1)}
