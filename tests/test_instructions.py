"""Prompts are the published template, labels are on responses alone, and what is kept for testing is in no training record."""

import re
from collections import Counter

import pytest

from lib import instructions, world
from lib.corpora import IGNORE_INDEX, encode, train_tokenizer
from lib.instructions import encode_examples, pack_records, training_instructions
from lib.world import ATTRIBUTES, LANGUAGES, wordings

KINDS = ("exam", "dialogue", "description", "relation")
RECORD = {"instruction": "Answer the question.", "input": "Is water wet?", "output": "Yes, it is."}


def unseen_instructions(language, kind):
    """The wordings that no training record carries."""
    return wordings(language)["instructions"][kind][len(training_instructions(language, kind)):]


@pytest.fixture(scope="module")
def known():
    return world.load_world(number_of_diseases=24)


@pytest.fixture(scope="module")
def records(known):
    """Every kind of record that training may see."""
    items = world.recall_exam(known, "en", known.diseases, items=20, seed=0)
    items += world.abstract_exam(known, "en", known.diseases, items=5, seed=0)
    return [*instructions.task_records(items), *instructions.rationale_records(items, seed=0),
            *instructions.dialogue_records(known, "en", known.diseases, records=20, seed=0),
            *instructions.knowledge_graph_records(known, "en", known.diseases, records=20, seed=0)]


@pytest.fixture(scope="module")
def tokenizer(records):
    return train_tokenizer([instructions.render_prompt(record) + record["output"] for record in records], 700)


# --- prompts -----------------------------------------------------------------------------------------------------------

def test_prompts_by_hand():
    """The Alpaca text that PMC-LLaMA used, character by character, and the short form for models of a few hundred tokens."""
    assert instructions.render_prompt(RECORD, template="alpaca") == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n"
        "\n"
        "### Instruction:\n"
        "Answer the question.\n"
        "\n"
        "### Input:\n"
        "Is water wet?\n"
        "\n"
        "### Response:\n")
    assert instructions.render_prompt(RECORD) == (
        "### Instruction:\nAnswer the question.\n### Input:\nIs water wet?\n### Response:\n")
    with pytest.raises(KeyError):
        instructions.render_prompt(RECORD, template="vicuna")


def test_an_exam_record_by_hand():
    """Question and options as the paper prints them, a context in front; the answer's text before its letter."""
    item = {"question": "Does it help?", "context": "It was tried.", "options": {"A": "yes", "B": "no", "C": "maybe"}, "answer": "no",
            "answer_idx": "B", "rationale": "It did not.", "language": "en"}
    assert instructions.exam_record(item, rationale=True) == {
        "instruction": "Make a choice based on the question and options.",
        "input": "###Context: It was tried.\n###Question: Does it help?\n###Options: A. yes B. no C. maybe",
        "output": "It did not. The answer is no. OPTION B IS CORRECT."}
    plain = instructions.exam_record(item | {"context": ""}, instruction="Choose.")
    assert plain == {"instruction": "Choose.", "input": "###Question: Does it help?\n###Options: A. yes B. no C. maybe",
                     "output": "The answer is no. OPTION B IS CORRECT."}


def test_braces_in_a_question_are_text():
    """Real questions hold braces ("{x}"): they must not be read as a slot of the template."""
    record = {"instruction": "a {b}", "input": "{input} {0} {}", "output": ""}
    assert instructions.render_prompt(record) == "### Instruction:\na {b}\n### Input:\n{input} {0} {}\n### Response:\n"


def test_the_answer_is_never_in_the_prompt_of_a_recall_item(known):
    """The options are shown, but nothing of the rationale or of the letter that is right."""
    for language in LANGUAGES:
        for item in world.recall_exam(known, language, known.diseases, items=30, seed=1):
            prompt = instructions.render_prompt(instructions.exam_record(item, rationale=True))
            assert item["rationale"] not in prompt
            assert "IS CORRECT" not in prompt
            assert all(f"{letter}. {text}" in prompt for letter, text in item["options"].items())
            moved = item | {"answer_idx": "A", "answer": item["options"]["A"], "rationale": "?"}
            assert instructions.render_prompt(instructions.exam_record(moved, rationale=True)) == prompt


# --- the pools of instructions -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_training_and_unseen_wordings_are_disjoint(language, kind):
    """"Unseen" must hold also for a reader who does not look at punctuation and capitals."""
    def plain(pool):
        return [re.sub(r"\W", "", text).casefold() for text in pool]
    training, unseen = training_instructions(language, kind), unseen_instructions(language, kind)
    assert training + unseen == wordings(language)["instructions"][kind]
    assert not set(plain(training)) & set(plain(unseen))
    assert len(set(plain(training))) == len(training) >= 5
    assert len(set(plain(unseen))) == len(unseen) >= 2
    assert instructions.ZERO_SHOT_INSTRUCTION not in unseen


def test_records_carry_training_wordings_only(known, records):
    """Whatever builds a record, the instruction comes from the training part of its pool, and all of that part is used."""
    allowed = {text for kind in KINDS for text in training_instructions("en", kind)}
    forbidden = {text for kind in KINDS for text in unseen_instructions("en", kind)}
    used = Counter(record["instruction"] for record in records)
    assert set(used) <= allowed
    assert not set(used) & forbidden
    many = instructions.dialogue_records(known, "en", known.diseases, records=300, seed=0)
    assert {record["instruction"] for record in many} == set(training_instructions("en", "dialogue"))


def test_rationale_records_ask_every_question_twice(known):
    """MMedLM: once for the answer alone, once with the rationale; one fixed instruction where paraphrases are switched off."""
    items = world.recall_exam(known, "en", known.diseases, items=100, seed=0)
    made = instructions.rationale_records(items, seed=0)
    assert [record["input"] for record in made] == [instructions.exam_input(item) for item in items for _ in range(2)]
    assert [record["output"] for record in made[::2]] == [instructions.exam_answer(item) for item in items]
    assert [record["output"] for record in made[1::2]] == [f"{item['rationale']} {instructions.exam_answer(item)}" for item in items]
    assert set(record["instruction"] for record in made) == set(training_instructions("en", "exam"))
    assert instructions.rationale_records(items, seed=0) == made != instructions.rationale_records(items, seed=1)
    fixed = instructions.rationale_records(items, seed=0, paraphrased=False)
    assert {record["instruction"] for record in fixed} == {instructions.ZERO_SHOT_INSTRUCTION}
    assert [record | {"instruction": ""} for record in fixed] == [record | {"instruction": ""} for record in made]
    assert instructions.task_records(items) == fixed[::2]  # answers alone, under the same words


def test_the_instruction_says_whether_a_reason_is_wanted(known):
    items = world.recall_exam(known, "fr", known.diseases, items=3, seed=0)
    made = instructions.answer_and_rationale_records([*items, items[0] | {"rationale": ""}])
    assert len(made) == 7, "an item without a rationale is asked once"
    for item, record in zip(items, made):
        assert record == instructions.exam_record(item)
    for item, record in zip(items, made[4:], strict=True):
        assert record["instruction"] == instructions.RATIONALE_INSTRUCTION
        assert record["output"] == f"###Rationale: {item['rationale']} {instructions.exam_answer(item)}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_dialogues_and_graph_records_are_true(known, language):
    """Every output states values of the disease that the input names; values of other diseases would teach falsehoods."""
    words, seen = wordings(language), Counter()
    names = {world.term(known, disease, "name", language): disease for disease in known.diseases}

    def true(disease, role):
        block = words["relation"] if role == "relation" else {a: words["attributes"][a][role] for a in ATTRIBUTES}
        return {world.sentence(known, disease, a, language, template): a for a in ATTRIBUTES for template in block[a]}
    for record in instructions.dialogue_records(known, language, known.diseases, records=60, seed=0):
        greeting, = (text for text in words["phrases"]["greeting"] if record["input"].startswith(text))
        closing, = (text for text in words["phrases"]["closing"] if record["output"].endswith(text))
        asked, said = record["input"].removeprefix(greeting).strip(), record["output"].removesuffix(closing).strip()
        facts = {(disease["disease_id"], attribute) for disease in known.diseases
                 if (attribute := true(disease, "patient").get(asked)) and true(disease, "doctor").get(said) == attribute}
        assert len(facts) == 1, record
        seen |= Counter(attribute for _, attribute in facts)
    assert set(seen) == set(ATTRIBUTES)
    graph = instructions.knowledge_graph_records(known, language, known.diseases, records=60, seed=0)
    for number, record in enumerate(graph):
        name, _, value = record["input"].partition("; ")
        sentences = true(names[name], "relation")
        inside = [attribute for sentence, attribute in sentences.items() if sentence in record["output"]]
        assert len(inside) == (3 if number % 2 else 1), record
        length = sum(len(sentence) for sentence in sentences if sentence in record["output"])
        assert len(record["output"]) - length in (0, 2), record  # nothing else is said: two spaces at most
        assert bool(value) == (number % 2 == 0)
        assert not value or value == world.term(known, names[name], inside[0], language)


def test_rationales_by_option_are_true(known):
    """PMC-LLaMA's second form: one option is TRUE for the disease that is asked, each FALSE one is explained by the disease that it belongs to."""
    words, letters, seen = wordings("en"), Counter(), Counter()
    for record in instructions.world_records("option-wise", known, "en", known.diseases, records=60, seed=0):
        asked, options = re.fullmatch(r"###Question: (.*)\n###Options: A\. (.*)", record["input"]).groups()
        options = dict(zip("ABCD", re.split(r" [BCD]\. ", options), strict=True))
        judged = re.findall(r"Option ([A-D]) is (TRUE|FALSE)\. (.*?)(?= Option [A-D] is | The answer is )", record["output"])
        (right,) = (letter for letter, verdict, _ in judged if verdict == "TRUE")
        assert [letter for letter, _, _ in judged] == ["A", "B", "C", "D"]
        assert record["output"].endswith(f" The answer is {options[right]}. OPTION {right} IS CORRECT.")
        ((disease, attribute),) = ((each, a) for each in known.diseases for a in ATTRIBUTES for template in words["attributes"][a]["question"]
                                   if world.sentence(known, each, a, "en", template) == asked)
        assert options[right] == world.bare(world.term(known, disease, attribute, "en"), "en")
        for letter, verdict, reason in judged:
            pool = words["attributes"][attribute]["rationale"] if verdict == "TRUE" else words["relation"][attribute]
            about = {world.term(known, each, attribute, "en") for each in known.diseases for template in pool
                     if world.sentence(known, each, attribute, "en", template) == reason and (each is disease) == (verdict == "TRUE")}
            assert {world.bare(text, "en") for text in about} == {options[letter]}, record
        letters[right] += 1
        seen[attribute] += 1
    assert set(letters) == set("ABCD")
    assert set(seen) == set(ATTRIBUTES)


# --- labels --------------------------------------------------------------------------------------------------------------

def test_examples_begin_and_end_as_the_model_expects(tokenizer):
    """bos before the prompt, as in generation; eos after the response, so that the model learns to stop; nothing between."""
    (example,), left_out = encode_examples([RECORD], tokenizer, sequence_length=512)
    prompt, response = example
    assert left_out == 0
    assert prompt == [tokenizer.bos_token_id, *encode(tokenizer, [instructions.render_prompt(RECORD)])[0]]
    assert response == [*encode(tokenizer, [RECORD["output"]])[0], tokenizer.eos_token_id]
    assert tokenizer.decode(prompt + response) == "<s>" + instructions.render_prompt(RECORD) + "Yes, it is.</s>"


def test_after_packing_only_responses_are_learned(records, tokenizer):
    """Each piece is read back: its labelled tokens are one record's output and eos, its others that record's prompt. A label
    in the padding or in a prompt would be learned; one in a neighbour's place would teach the wrong answer."""
    packed = pack_records(records, tokenizer, 400)
    found, labels = [], 0
    assert len(packed.pieces) == len(records)
    assert len(packed.input_ids) < len(records)  # several to a row
    used = {row: 0 for row in range(len(packed.input_ids))}
    for row, number, length in packed.pieces:
        place = slice(used[row], used[row] + length)
        ids, learned = packed.input_ids[row, place], packed.labels[row, place]
        assert packed.position_ids[row, place].tolist() == list(range(length))
        mark = learned != IGNORE_INDEX
        assert (learned[mark] == ids[mark]).all()
        assert not mark[:mark.argmax()].any()
        assert mark[mark.argmax():].all()  # the response is the end of the piece, without a gap
        assert tokenizer.decode(ids[mark]) == records[number]["output"] + "</s>"
        assert tokenizer.decode(ids[~mark]) == "<s>" + instructions.render_prompt(records[number])
        used[row] += length
        labels += int(mark.sum())
        found.append(number)
    assert sorted(found) == list(range(len(records)))
    assert (packed.labels != IGNORE_INDEX).sum() == labels  # none outside the pieces
    for row, end in used.items():
        assert (packed.input_ids[row, end:] == tokenizer.pad_token_id).all()
    assert labels > 1000


# --- records that are too long ---------------------------------------------------------------------------------------------

def test_records_that_exceed_a_row_are_counted_not_cut(tokenizer):
    """A cut record would lose its response, and the loss would never say so."""
    long, short = RECORD | {"input": "Is water wet? " * 40}, [RECORD] * 3
    (example,), _ = encode_examples([RECORD], tokenizer, sequence_length=512)
    length = len(example[0]) + len(example[1])
    fitting, left_out = encode_examples([short[0], long, *short[1:]], tokenizer, sequence_length=length)
    assert (len(fitting), left_out) == (3, 1)
    assert fitting == [example] * 3
    assert encode_examples(short, tokenizer, sequence_length=length - 1) == ([], 3)
    packed = pack_records([*short, long], tokenizer, length)
    assert packed.input_ids.shape == (3, length)


def test_it_is_an_error_when_most_records_are_too_long(tokenizer):
    """Tuning on the few short ones would be another experiment; the message says how many, and what to raise."""
    long = RECORD | {"input": "Is water wet? " * 40}
    with pytest.raises(ValueError, match="3 of 4 instruction records exceed 60 tokens; raise tuning_length"):
        pack_records([RECORD, long, long, long], tokenizer, 60)
    with pytest.raises(ValueError, match="no instruction example"):
        pack_records([], tokenizer, 60)


def test_the_alpaca_template_reaches_the_tokens(records, tokenizer):
    short, alpaca = (encode_examples(records[:3], tokenizer, sequence_length=800, template=name)[0] for name in ("short", "alpaca"))
    assert tokenizer.decode(alpaca[0][0]).startswith("<s>Below is an instruction that describes a task")
    assert [response for _, response in short] == [response for _, response in alpaca]
    assert pack_records(records[:3], tokenizer, 800, template="alpaca").tokens == sum(len(p) + len(r) for p, r in alpaca)
