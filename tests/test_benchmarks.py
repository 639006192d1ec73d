"""Answers are read as a person would read them, chance is what guessing scores, and a bad item is refused by field."""

import dataclasses
import re

import pandas as pd
import pytest

from lib import benchmarks, instructions, world
from lib.benchmarks import any_letter_v1, answer_text_v1, check_item, make_completion_exam, make_exam, make_letter_exam, option_letter_v1
from lib.world import LANGUAGES, wordings

OPTIONS = {"A": "iron", "B": "iron chelation", "C": "vitamin C", "D": "an ACE inhibitor"}
FOUR = {"id": "1", "language": "en", "question": "Best treatment?", "context": "", "options": OPTIONS, "answer": "iron chelation",
        "answer_idx": "B", "rationale": "", "meta_info": {}}
FIVE = FOUR | {"options": OPTIONS | {"E": "E. coli vaccine"}}
YES_NO = FOUR | {"options": {"A": "yes", "B": "no", "C": "maybe"}, "answer": "no"}
TWINS = FOUR | {"options": {"A": "iron", "B": "Iron", "C": "zinc"}}
CHINESE = FOUR | {"language": "zh", "options": {"A": "铁剂", "B": "铁螯合剂", "C": "维生素C"}}
JAPANESE = FOUR | {"language": "ja", "options": {"A": "鉄剤", "B": "キレート療法", "C": "ビタミンC"}}
RUSSIAN = FOUR | {"language": "ru", "options": {"A": "железо", "B": "хелаторы железа", "C": "витамин C"}}
FRENCH = FOUR | {"language": "fr", "options": {"A": "fer", "B": "chélation du fer", "C": "vitamine C"}}
SPANISH = FOUR | {"language": "es", "options": {"A": "hierro", "B": "quelación del hierro", "C": "vitamina C"}}
ALL_FOUR = "OPTION A IS CORRECT. OPTION B IS CORRECT. OPTION C IS CORRECT. OPTION D IS CORRECT."


# --- option_letter_v1: PMC-LLaMA's "(?i)OPTION [ABCD] IS CORRECT", the first match (PAPERS A1.1 P16) -----------------------

LETTERS = [
    # as the tuned model says it
    (FOUR, "The answer is iron chelation. OPTION B IS CORRECT.", "B"),
    (FOUR, "Too much iron is harmful. The answer is iron chelation. OPTION B IS CORRECT.", "B"),
    (FOUR, "OPTION A IS CORRECT", "A"),
    (FOUR, "OPTION D IS CORRECT.</s>", "D"),
    (FOUR, " \n\nOPTION C IS CORRECT.\n", "C"),
    (FOUR, "###Answer: OPTION B IS CORRECT.", "B"),
    (FOUR, "###Rationale: Chelation binds iron.\n\n###Answer: OPTION B IS CORRECT.", "B"),
    (FOUR, "**OPTION B IS CORRECT**", "B"),
    (FOUR, "(OPTION B IS CORRECT)", "B"),
    (FOUR, "\"OPTION B IS CORRECT\"", "B"),
    (FOUR, "I think that OPTION B IS CORRECT because iron is high.", "B"),
    # capitals
    (FOUR, "option b is correct", "B"),
    (FOUR, "Option B is correct.", "B"),
    (FOUR, "option B is Correct, the others are not", "B"),
    (FOUR, "oPTION d iS cORRECT", "D"),
    # five options, and letters that are no option
    (FIVE, "OPTION E IS CORRECT.", "E"),
    (FIVE, "The answer is E. coli vaccine. OPTION E IS CORRECT.", "E"),
    (FOUR, "OPTION E IS CORRECT.", None),
    (FOUR, "OPTION Z IS CORRECT.", None),
    (YES_NO, "OPTION D IS CORRECT.", None),
    (YES_NO, "The answer is maybe. OPTION C IS CORRECT.", "C"),
    # several letters: the first sentence that names one letter, by the published rule
    (FOUR, "OPTION A IS CORRECT. OPTION B IS CORRECT.", "A"),
    (FOUR, "OPTION C IS CORRECT.\n### Instruction:\nMake a choice.\n### Response:\nOPTION A IS CORRECT.", "C"),
    (FOUR, ALL_FOUR[ALL_FOUR.index("OPTION D"):], "D"),
    (FOUR, "OPTION A AND B IS CORRECT", None),
    (FOUR, "OPTION A, B IS CORRECT", None),
    (FOUR, "OPTION A,B IS CORRECT", None),
    (FOUR, "OPTION AB IS CORRECT", None),
    (FOUR, "OPTION ABCD IS CORRECT", None),
    (FOUR, "OPTIONS A, B, C AND D ARE CORRECT", None),
    # the options read aloud, or nothing chosen
    (FOUR, "A. iron B. iron chelation C. vitamin C D. an ACE inhibitor", None),
    (FOUR, "Option A is TRUE. Option B is FALSE. Option C is FALSE. Option D is FALSE.", None),
    (FOUR, "OPTION A, OPTION B, OPTION C, OPTION D", None),
    (FOUR, "", None),
    (FOUR, " ", None),
    (FOUR, "\n", None),
    (FOUR, "None of the options is correct.", None),
    (FOUR, "B", None),
    (FOUR, "The answer is B.", None),
    (FOUR, "(B) iron chelation", None),
    (FOUR, "The answer is iron chelation.", None),
    (FOUR, "OPTION X IS CORRECT", None),
    (FOUR, "OPTION 2 IS CORRECT", None),
    (FOUR, "OPTION IS CORRECT", None),
    (FOUR, "OPTION {letter} IS CORRECT", None),
    # said not to be so
    (FOUR, "OPTION B IS INCORRECT.", None),
    (FOUR, "OPTION B IS NOT CORRECT.", None),
    (FOUR, "OPTION A IS INCORRECT. OPTION B IS CORRECT.", "B"),
    # cut off by the limit of new tokens
    (FOUR, "The answer is iron chelation. OPTION B IS", None),
    (FOUR, "The answer is iron chelation. OPTION", None),
    (FOUR, "OPTION B IS CORR", None),
    # letters that only look Latin, and full-width ones as a Chinese or Japanese model writes them
    (FOUR, "OPTION В IS CORRECT.", None),  # a Cyrillic Ve
    (FOUR, "OPTION Б IS CORRECT.", None),
    (FOUR, "OPTION é IS CORRECT.", None),
    (CHINESE, "答案是铁螯合剂。OPTION B IS CORRECT。", "B"),
    (CHINESE, "答案是 铁螯合剂. OPTION Ｂ IS CORRECT.", "B"),
    (JAPANESE, "正解はキレート療法。ＯＰＴＩＯＮ　Ｂ　ＩＳ　ＣＯＲＲＥＣＴ。", "B"),
    (JAPANESE, "選択肢Bが正しい。", None),
    (RUSSIAN, "Правильный ответ: хелаторы железа. OPTION B IS CORRECT.", "B"),
]


# --- answer_text_v1: the option whose text follows "The answer is" -----------------------------------------------------------

TEXTS = [
    # as the tuned model says it
    (FOUR, "The answer is iron chelation. OPTION B IS CORRECT.", "B"),
    (FOUR, "The answer is iron. OPTION A IS CORRECT.", "A"),
    (FOUR, "The answer is vitamin C. OPTION C IS CORRECT.", "C"),
    (FOUR, "The answer is an ACE inhibitor. OPTION D IS CORRECT.", "D"),
    (FOUR, " Too much iron is harmful. The answer is iron chelation. OPTION B IS CORRECT.", "B"),
    (FOUR, "Vitamin C helps iron, an ACE inhibitor does not. The answer is iron.", "A"),
    (FOUR, "The answer is iron", "A"),
    (FOUR, "The answer is iron chelation", "B"),
    (FOUR, "The answer is iron.", "A"),
    (FOUR, "The answer is  iron .", "A"),
    (FOUR, "The answer is\niron.", "A"),
    # the text counts, not the letter that comes with it
    (FOUR, "The answer is iron chelation. OPTION A IS CORRECT.", "B"),
    (FOUR, "The answer is iron chelation. OPTION Z IS CORRECT.", "B"),
    (FOUR, "The answer is iron chelation. OPTION", "B"),
    # what follows the answer
    (FOUR, "The answer is iron chelation.\n\n### Instruction:\nMake a choice", "B"),
    (FOUR, "The answer is iron chelation.\nThe dose depends on weight.", "B"),
    (FOUR, "The answer is iron chelation. It binds what is too much.", "B"),
    (FOUR, "The answer is iron. Iron chelation would be wrong.", "A"),
    (FOUR, "The answer is iron chelation.</s>", "B"),
    (FOUR | {"options": {"A": "5", "B": "5.5 mg"}}, "The answer is 5.5 mg.", "B"),
    (FOUR | {"options": {"A": "5", "B": "6"}}, "The answer is 5.5 mg.", None),
    # the last one counts: a model that thinks aloud changes its mind
    (FOUR, "The answer is iron. No: The answer is iron chelation. OPTION B IS CORRECT.", "B"),
    # capitals
    (FOUR, "The answer is IRON CHELATION. OPTION B IS CORRECT.", "B"),
    (FOUR, "The answer is Iron.", "A"),
    (FOUR, "So the answer is iron chelation.", "B"),
    (FOUR, "THE ANSWER IS IRON.", "A"),
    (FOUR, "the answer is vitamin c", "C"),
    # several options, all options, no option
    (FOUR, "The answer is iron or iron chelation.", None),
    (FOUR, "The answer is iron and vitamin C.", None),
    (FOUR, "The answer is iron, iron chelation, vitamin C, an ACE inhibitor.", None),
    (FOUR, "The answer is A. iron B. iron chelation C. vitamin C D. an ACE inhibitor.", None),
    (FOUR, "The answer is iron iron chelation vitamin C an ACE inhibitor.", None),
    (FOUR, "A. iron B. iron chelation C. vitamin C D. an ACE inhibitor", None),
    (FOUR, "The answer is zinc. OPTION B IS CORRECT.", None),
    (FOUR, "The answer is iron chelator.", None),
    (FOUR, "The answer is irony.", None),
    (FOUR, "The answer is chelation.", None),
    (FOUR, "The answer is not iron.", None),
    (FOUR, "The answer is B.", None),
    (FOUR, "The answer is E.", None),
    (FOUR, "The answer is none of these.", None),
    (FOUR, "OPTION B IS CORRECT.", None),
    (FOUR, "iron chelation", None),
    (FOUR, "", None),
    (FOUR, " ", None),
    (FOUR, "\n\n", None),
    (FOUR, "The answer is", None),
    (FOUR, "The answer is.", None),
    (FOUR, "The answer is . OPTION B IS CORRECT.", None),
    (FOUR, "The answer", None),
    (TWINS, "The answer is iron.", None),  # two options read the same
    (TWINS, "The answer is zinc.", "C"),
    # an option with a full stop in it, five options
    (FIVE, "The answer is E. coli vaccine. OPTION E IS CORRECT.", "E"),
    (FIVE, "The answer is E. coli.", None),
    (FIVE, "The answer is an ACE inhibitor. OPTION D IS CORRECT.", "D"),
    (YES_NO, "The data are mixed. The answer is maybe. OPTION C IS CORRECT.", "C"),
    (YES_NO, "The answer is no. OPTION B IS CORRECT.", "B"),
    (YES_NO, "The answer is not known.", None),
    (YES_NO, "The answer is yes and no.", None),
    # other languages, other full stops, full-width letters
    (CHINESE, "答案是 铁螯合剂. OPTION B IS CORRECT.", "B"),
    (CHINESE, "答案是铁螯合剂。", "B"),
    (CHINESE, "患者铁过多。答案是铁剂。", "A"),
    (CHINESE, "答案是维生素Ｃ。", "C"),
    (CHINESE, "答案是铁剂和维生素C。", None),
    (CHINESE, "The answer is 铁剂.", None),  # the stem of another language
    (JAPANESE, "正解は キレート療法. OPTION B IS CORRECT.", "B"),
    (JAPANESE, "正解はビタミンＣ。", "C"),
    (JAPANESE, "正解はｷﾚｰﾄ療法。", "B"),  # half-width kana
    (JAPANESE, "正解は鉄剤である。", None),
    (RUSSIAN, "Правильный ответ: хелаторы железа. OPTION B IS CORRECT.", "B"),
    (RUSSIAN, "правильный ответ: железо", "A"),
    (RUSSIAN, "Правильный ответ: железо или витамин C.", None),
    (FRENCH, "La réponse est chélation du fer. OPTION B IS CORRECT.", "B"),
    (FRENCH, "La re\u0301ponse est che\u0301lation du fer.", "B"),  # accents as marks of their own
    (FRENCH, "La réponse est fer et vitamine C.", None),
    (SPANISH, "La respuesta es quelación del hierro. OPTION B IS CORRECT.", "B"),
    (SPANISH, "Por lo tanto, la respuesta es hierro.", "A"),
]


@pytest.mark.parametrize(("rule", "cases"), [(option_letter_v1, LETTERS), (answer_text_v1, TEXTS)], ids=["letter", "text"])
def test_completions_are_read_as_by_hand(rule, cases):
    """Real-shaped completions with the answer a person reads off them; an answer that is none must not be guessed."""
    wrong = [(text, expected, rule(text, item)) for item, text, expected in cases if rule(text, item) != expected]
    assert wrong == []
    assert len({(text, *item["options"].values()) for item, text, _ in cases}) == len(cases) >= 50
    found = [expected for _, _, expected in cases]
    assert found.count(None) >= 20
    assert {"A", "B", "C", "D", "E"} <= set(found)


def test_every_rule_is_tested_and_named_with_its_version():
    assert {"option_letter_v1", "option_letters_v1", "answer_letter_v1", "bare_letter_v1", "any_letter_v1", "answer_text_v1", "last_option_v1"} == \
        set(benchmarks.EXTRACTION_RULES)
    assert all(rule.__name__ == name for name, rule in benchmarks.EXTRACTION_RULES.items())
    assert all(re.search(r"_v\d+$", name) for name in benchmarks.EXTRACTION_RULES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_training_teaches_is_read_back(language):
    """The response that tuning learns, with and without rationale, is read as the right answer by both rules, in every
    language and kind of exam with one right answer; and as the wrong one when it names a wrong option."""
    known = world.load_world(number_of_diseases=24)
    exams = [world.recall_exam, world.vignette_exam, world.abstract_exam, world.yes_no_exam]
    items = [item for exam in exams for item in exam(known, language, known.diseases, items=40, seed=0)]
    for item in items:
        for letter, text in item["options"].items():
            for rationale in (False, True):
                said = instructions.exam_answer(item | {"answer": text, "answer_idx": letter}, rationale=rationale)
                assert option_letter_v1(said, item) == letter
                assert answer_text_v1(said, item) == letter, said
    assert len(items) == 160


@pytest.mark.parametrize("language", LANGUAGES)
def test_scored_options_continue_the_response_that_was_learned(language):
    """The log-likelihood is of the text that tuning taught: prompt + stem + option is the beginning of prompt + response."""
    known = world.load_world(number_of_diseases=24)
    exam = make_exam("recall", world.recall_exam(known, language, known.diseases, items=20, seed=0))
    for item in exam.items:
        stem, options = exam.options(item)
        assert instructions.exam_answer(item).startswith(stem + options[item["answer_idx"]] + " OPTION")
        assert list(options) == list(item["options"])
        assert exam.prompt(item) == instructions.render_prompt(instructions.exam_record(item))
    assert stem == wordings(language)["phrases"]["answer_is"]


# --- benchmarks ------------------------------------------------------------------------------------------------------------

def test_chance_is_the_mean_of_one_over_the_options():
    """0.25 for four options, 0.5 for two; (1/4 + 1/5 + 1/3 + 1/4) / 4 for a mixed exam."""
    assert make_exam("four", [FOUR]).chance == 0.25
    assert make_exam("mixed", [FOUR, FIVE, YES_NO, CHINESE | {"options": OPTIONS}]).chance == pytest.approx((0.25 + 0.2 + 1 / 3 + 0.25) / 4)
    known = world.load_world(number_of_diseases=24)
    assert make_exam("yes/no", world.yes_no_exam(known, "en", known.diseases, items=10, seed=0)).chance == 0.5
    five = world.vignette_exam(known, "en", known.diseases, items=10, seed=0, options=5)
    assert make_exam("vignette", five).chance == pytest.approx(0.2)


@pytest.mark.parametrize(("change", "message"), [
    ({"id": ""}, "field 'id': missing or empty"), ({"id": None}, "field 'id': missing or empty"),
    ({"question": ""}, "field 'question': missing or empty"), ({"options": {}}, "field 'options': missing or empty"),
    ({"options": None}, "field 'options': missing or empty"), ({"answer_idx": ""}, "field 'answer_idx': missing or empty"),
    ({"answer_idx": None}, "field 'answer_idx': missing or empty"),
    ({"options": {"A": "x"}, "answer_idx": "A"}, "field 'options': at least two are needed, got 1"),
    ({"answer_idx": "E"}, "field 'answer_idx': 'E' is not among the options A, B, C, D"),
    ({"answer_idx": "b"}, "field 'answer_idx': 'b' is not among the options"),
    ({"answer_idx": "A,E"}, "field 'answer_idx': 'E' is not among the options"),
    ({"answer_idx": "iron"}, "field 'answer_idx': 'iron' is not among the options"),
    ({"answer_idx": 2}, "field 'answer_idx': '2' is not among the options"),
    ({"options": OPTIONS | {"B": ""}}, "field 'options': B"), ({"options": OPTIONS | {"C": None}}, "field 'options': C"),
], ids=str)
def test_a_bad_item_is_refused_by_place_and_field(change, message):
    """An item without a right answer would be scored as wrong for every model, and nobody would see it."""
    with pytest.raises(ValueError, match=re.escape(f"exam.jsonl, line 3, {message}")):
        check_item(FOUR | change, where="exam.jsonl, line 3")
    with pytest.raises(ValueError, match=re.escape(f"exam 'trial', item 1, {message}")):
        make_exam("trial", [FOUR, FOUR | change, FOUR])


@pytest.mark.parametrize("field", ["id", "question", "options", "answer_idx"])
def test_a_missing_field_is_named(field):
    with pytest.raises(ValueError, match=f"here, field '{field}': missing or empty"):
        check_item({name: value for name, value in FOUR.items() if name != field}, where="here")


def test_good_items_pass():
    """The guard of the two tests above: nothing is refused that can be scored, several right answers included."""
    for item in (FOUR, FIVE, YES_NO, CHINESE, FOUR | {"answer_idx": "A,C"}):
        check_item(item, where="here")
    assert make_exam("four", [FOUR]).items == (FOUR,)


def test_an_empty_exam_is_refused():
    """An accuracy of 0 / 0 would be NaN in a table."""
    with pytest.raises(ValueError, match="exam 'nothing' has no items"):
        make_exam("nothing", [])
    with pytest.raises(ValueError, match="exam 'recall', item 0, field 'completion': missing; it holds stem and endings"):
        make_completion_exam("recall", [FOUR])
    with pytest.raises(ValueError, match="exam 'nothing' has no items"):
        make_completion_exam("nothing", [])


def test_an_instruction_can_differ_by_item():
    """Unseen wordings go round by the number of the item; each item keeps its own, in whatever order it is asked."""
    pool = world.wordings("en")["instructions"]["exam"][-2:]
    items = [FOUR | {"id": str(number)} for number in range(2 * len(pool))]
    exam = make_exam("recall", items, instruction=lambda number: pool[number % len(pool)])
    for number in reversed(range(len(items))):
        assert exam.prompt(items[number]).startswith(f"### Instruction:\n{pool[number % len(pool)]}\n### Input:")
    assert make_exam("recall", items).prompt(items[3]).startswith(f"### Instruction:\n{instructions.ZERO_SHOT_INSTRUCTION}\n")
    assert make_exam("recall", items, template="alpaca").prompt(items[0]).startswith("Below is an instruction")


def test_a_fingerprint_changes_with_all_that_a_row_depends_on():
    """Rows are kept by fingerprint: an item, a prompt, a rule or a scored text that changed must not meet old rows."""
    exam = make_exam("recall", [FOUR, FIVE])
    others = [make_exam("other", [FOUR, FIVE]), make_exam("recall", [FIVE, FOUR]), make_exam("recall", [FOUR]),
              make_exam("recall", [FOUR, FIVE | {"answer_idx": "C"}]), make_exam("recall", [FOUR, FIVE], instruction="Choose."),
              make_exam("recall", [FOUR, FIVE], template="alpaca"), make_exam("recall", [FOUR, FIVE], extraction="option_letter_v1"),
              dataclasses.replace(exam, options=lambda item: ("Answer:", item["options"]))]
    assert make_exam("recall", [dict(FOUR), dict(FIVE)]).fingerprint == exam.fingerprint
    assert len({exam.fingerprint, *(other.fingerprint for other in others)}) == 9


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_completion_exam_scores_the_unfinished_sentence(language):
    known = world.load_world(number_of_diseases=24)
    exam = make_completion_exam("recall", world.recall_exam(known, language, known.diseases, items=10, seed=0))
    for item in exam.items:
        stem, endings = exam.options(item)
        assert exam.prompt(item) == item["completion"]["stem"]
        assert stem == ""
        assert list(endings) == list(item["options"])
        assert len(set(endings.values())) == 4
    assert exam.chance == 0.25


# --- letters: the forms of the harness and of Med-PaLM 2 ---------------------------------------------------------------------

ALPACA = ("Below is an instruction that describes a task, paired with an input that provides further context. Write a response that appropriately "
          "completes the request.\n\n### Instruction:\n")
PRINTED = {  # as the harness and the paper print them
    "medqa": "Question: Best treatment?\nA. iron\nB. iron chelation\nC. vitamin C\nD. an ACE inhibitor\nAnswer:",
    "medmcqa": "Question: Best treatment?\nChoices:\nA. iron\nB. iron chelation\nC. vitamin C\nD. an ACE inhibitor\nAnswer:",
    "mmlu": "Best treatment?\nA. iron\nB. iron chelation\nC. vitamin C\nD. an ACE inhibitor\nAnswer:",
    "med_palm_2": "Question: Best treatment?\n(A) iron\n(B) iron chelation\n(C) vitamin C\n(D) an ACE inhibitor\nAnswer:",
    "pmc_llama": ALPACA + "Make a choice based on the question and options.\n\n### Input:\n###Question: Best treatment?\n"
                 "###Options: A. iron B. iron chelation C. vitamin C D. an ACE inhibitor\n\n### Response:",
    "mmedlm": ALPACA + "You're a English doctor, kindly address the medical queries according to the patient's account. Answer with the best option "
              "directly.\n\n### Input:\n###Question: Best treatment? Which of the following is the best treatment for this patient? "
              "###Options: A. iron B. iron chelation C. vitamin C D. an ACE inhibitor \n\n### Response:"}
SCORED = {"med_palm_2": "({})", "pmc_llama": "###Answer: OPTION {} IS CORRECT.", "mmedlm": "###Answer: OPTION {} IS CORRECT."}  # else " {}"


def test_every_other_form_is_one_of_the_prompting_strategies():
    """Their prompts are tested in test_prompting."""
    assert set(benchmarks.FORMS) - set(PRINTED) == {"med_palm_2_steps", "med_palm_2_steps_refinement", "pubmedqa", "world", "world_steps",
                                                    "world_steps_refinement"}


@pytest.mark.parametrize("form", PRINTED)
def test_a_form_prints_question_and_options_as_published(form):
    exam = make_letter_exam("trial", [FOUR], form=form)
    assert exam.prompt(FOUR) == PRINTED[form]
    stem, scored = exam.options(FOUR)
    assert stem == ""
    assert list(scored.values()) == [SCORED.get(form, " {}").format(letter) for letter in "ABCD"]
    assert [benchmarks.any_letter_v1(text, FOUR) for text in scored.values()] == list("ABCD")
    assert "The bone is broken.\n" in make_letter_exam("trial", [FOUR], form=form).prompt(FOUR | {"context": "The bone is broken."})


def test_a_rationale_exam_opens_the_reason_itself():
    exam = benchmarks.make_rationale_exam("trial", [FOUR])
    record = instructions.answer_and_rationale_records([FOUR | {"rationale": "It binds iron."}])[1]
    assert exam.prompt(FOUR) == instructions.render_prompt(record) + "###Rationale:"
    assert record["output"] == "###Rationale: It binds iron. The answer is iron chelation. OPTION B IS CORRECT."
    assert benchmarks.EXTRACTION_RULES[exam.extraction](record["output"].removeprefix("###Rationale:"), FOUR) == "B"


def test_the_form_of_mmedlm_names_the_language_of_the_item():
    exam = make_letter_exam("trial", [SPANISH], form="mmedlm")
    assert "You're a Spanish doctor, kindly" in exam.prompt(SPANISH)


def test_solved_cases_stand_before_the_question_and_are_never_the_question():
    case = FOUR | {"id": "2", "question": "Worst treatment?", "answer_idx": "A"}
    exam = make_letter_exam("trial", [FOUR], cases=[case], description="About iron.\n\n")
    assert exam.cases == ("Worst treatment?\nA. iron\nB. iron chelation\nC. vitamin C\nD. an ACE inhibitor\nAnswer: A\n\n",)
    assert exam.description == "About iron.\n\n"
    assert len({exam.fingerprint, make_letter_exam("trial", [FOUR]).fingerprint, make_letter_exam("trial", [FOUR], cases=[case]).fingerprint}) == 3
    with pytest.raises(ValueError, match="1 few-shot cases are test questions, as 'Best treatment"):
        make_letter_exam("trial", [FOUR], cases=[FOUR])
    with pytest.raises(ValueError, match="unknown form 'alpaca'; choose one of medqa, medmcqa, mmlu, med_palm_2, pmc_llama, mmedlm"):
        make_letter_exam("trial", [FOUR], form="alpaca")
    with pytest.raises(ValueError, match="5 few-shot cases are wanted, the training split has 1 items"):
        benchmarks.few_shot_cases([FOUR], 5, seed=0)


E_FIVE = dict.fromkeys("ABCDE", "x")
SEVERAL = FOUR | {"options": E_FIVE}
ANY_LETTER = [
    (FOUR, "OPTION B IS CORRECT.", "B"), (SEVERAL, "OPTION A, C IS CORRECT.", "A,C"), (SEVERAL, "OPTIONS C and A ARE CORRECT.", "A,C"),
    (SEVERAL, "OPTION Ａ、Ｃ IS CORRECT。", "A,C"), (FOUR, "OPTION E IS CORRECT.", None), (SEVERAL, "OPTION A, F IS CORRECT.", None),
    (FOUR, "OPTION A IS CORRECT. OPTION B IS CORRECT.", "A"),
    (FOUR, "Explanation: iron binds.\nAnswer: (C)", "C"), (FOUR, "The answer is (B).", "B"), (FOUR, "the answer is B", "B"),
    (FOUR, "So the answer is A. No, the answer is D.", "D"), (FOUR, "The answer is B, because iron is high.", "B"),
    (FOUR, "The answer is a drug.", None), (FOUR, "The answer is iron.", None), (FOUR, "The answer is E.", None),
    (FOUR, "Answer: B or C", None), (SEVERAL, "The answer is A and C.", "A,C"), (SEVERAL, "Answer: (A), (C), (E)", "A,C,E"),
    (CHINESE, "答案：B。", "B"), (CHINESE, "答案是（Ｂ）。", "B"), (CHINESE, "【A】", "A"), (CHINESE, "答案是A、C。", "A,C"), (CHINESE, "答案是铁剂。", None),
    (JAPANESE, "正解はB。", "B"), (JAPANESE, "正解：「C」", "C"), (JAPANESE, "答え：A", "A"), (JAPANESE, "Bだと思う", None),
    (RUSSIAN, "Правильный ответ: A.", "A"), (RUSSIAN, "Ответ: B", "B"), (FRENCH, "La réponse est C.", "C"), (FRENCH, "Réponse: A et C.", "A,C"),
    (SPANISH, "La respuesta es B.", "B"), (SPANISH, "Respuesta: A y B.", "A,B"),
    (FOUR, "B", "B"), (FOUR, " B.", "B"), (FOUR, "(C) vitamin C", "C"), (FOUR, "D) an ACE inhibitor", "D"), (FOUR, "A: iron", "A"),
    (FOUR, "c\n\nQuestion: next", "C"), (SEVERAL, "A, C", "A,C"), (FOUR, "B is correct", "B"), (FOUR, "E", None), (FOUR, "Z.", None),
    (FOUR, "A patient needs iron.", None), (FOUR, "Both are right", None), (FOUR, "AC", None), (FOUR, "", None), (FOUR, "\n", None),
    (FOUR, "I do not know.", None), (FOUR, "None of these.", None), (FOUR, "iron chelation", None), (FOUR, "Can I help?", None)]


def test_letters_are_read_as_by_hand():
    """Bare, in brackets, after a word for answer, in six languages and their punctuation; several letters; and none."""
    wrong = [(text, expected, any_letter_v1(text, item)) for item, text, expected in ANY_LETTER if any_letter_v1(text, item) != expected]
    assert wrong == []
    assert len(ANY_LETTER) >= 50
    assert sum(expected is None for *_, expected in ANY_LETTER) >= 15


def test_published_outputs_of_pmc_llama_score_as_their_file_says(shared_data):
    """1,273 answers of PMC-LLaMA 7B to MedQA: the file's name carries 0.5090, and our rules read each as its authors did."""
    path, = (shared_data / "outputs_afrimedqa" / "results" / "PMC-LLAMA-7B-FT").glob("medqa*_score_0.5090_1273.csv")
    rows = pd.read_csv(path, keep_default_na=False).to_dict("records")
    for rule in (option_letter_v1, any_letter_v1):
        read = [rule(row["outputs"], {"options": dict.fromkeys("ABCD", "x")}) for row in rows]
        assert read == [row["preds"] for row in rows]
        assert sum(letter == row["answer"] for letter, row in zip(read, rows)) / len(rows) == pytest.approx(0.5090, abs=5e-5)
    assert len(rows) == 1273
