"""Prompts and answers: templates, MedC-I style instruction data from the controlled world, response-only labels."""
import functools
import random
from lib.corpora import encode, pack_examples
from lib.world import declared, expression_slots, read_yaml, wordings
TEMPLATES = read_yaml("prompts.yaml")["templates"]
ZERO_SHOT_INSTRUCTION = "Make a choice based on the question and options."  # PMC-LLaMA, section 4.2
RATIONALE_INSTRUCTION = "Give the reason, then make a choice based on the question and options."
RATIONALE_OPENING = "###Rationale:"  # of the response, as in MMedLM's released fine-tuning data

def render_prompt(record, *, template="short"):
    """The text before the response of one {instruction, input, output} record.
    >>> render_prompt({"instruction": "Answer.", "input": "Is water wet?", "output": "yes"})
    '### Instruction:\\nAnswer.\\n### Input:\\nIs water wet?\\n### Response:\\n'"""
    return TEMPLATES[template].format(instruction=record["instruction"], input=record["input"])

def exam_input(item):
    """Question, context if there is one, and lettered options as PMC-LLaMA printed them.
    >>> exam_input({"question": "Best drug?", "context": "", "options": {"A": "x", "B": "y"}})
    '###Question: Best drug?\\n###Options: A. x B. y'"""
    context = f"###Context: {item['context']}\n" if item.get("context") else ""
    return f"{context}###Question: {item['question']}\n###Options: " + " ".join(f"{letter}. {text}" for letter, text in item["options"].items())

def exam_answer(item, *, rationale=False):
    """The response that is learned: the option's text and its letter, after the rationale where one is wanted.
    >>> item = {"rationale": "X is best.", "answer": "x", "answer_idx": "A", "language": "en"}
    >>> exam_answer(item), exam_answer(item, rationale=True)
    ('The answer is x. OPTION A IS CORRECT.', 'X is best. The answer is x. OPTION A IS CORRECT.')"""
    stem = wordings(item["language"])["phrases"]["answer_is"]
    return " ".join([*[item["rationale"]] * bool(rationale), f"{stem} {item['answer']}.", f"OPTION {item['answer_idx']} IS CORRECT."])

def exam_record(item, *, instruction=ZERO_SHOT_INSTRUCTION, rationale=False):
    """An exam item as an instruction record {instruction, input, output}."""
    return {"instruction": instruction, "input": exam_input(item), "output": exam_answer(item, rationale=rationale)}

def training_instructions(language, kind):
    """The paraphrases that training may use: the first two thirds; the rest is kept to test unseen wordings."""
    pool = wordings(language)["instructions"][kind]
    return pool[:len(pool) * 2 // 3]

def task_records(items):
    """Task-specific fine-tuning: one fixed instruction, the answer alone (PMC-LLaMA section 4.2, first setting)."""
    return [exam_record(item) for item in items]

def rationale_records(items, *, seed, paraphrased=True):
    """Rationale QA: every question twice, with and without its rationale (MMedLM), the instruction drawn per sample."""
    draw = random.Random(f"rationale {seed}")
    return [exam_record(item, rationale=rationale, instruction=draw.choice(training_instructions(item["language"], "exam")) if paraphrased
                        else ZERO_SHOT_INSTRUCTION) for item in items for rationale in (False, True)]

def answer_and_rationale_records(items):
    """Every question at once answered and, where it has one, after its rationale; the instruction says which (MMedLM's fine-tuning)."""
    reasoned = [exam_record(item, instruction=RATIONALE_INSTRUCTION, rationale=True) for item in items if item["rationale"]]
    return [exam_record(item) for item in items] + [record | {"output": f"{RATIONALE_OPENING} {record['output']}"} for record in reasoned]

def world_records(form, world, language, diseases, *, records, seed):
    """Records of one of the forms of lib/knowledge/exams.yaml: dialogue (a patient asks, the doctor answers, with greeting and closing), or
    knowledge graph (UMLS-like prompts: a disease to its description, a pair of concepts to their relation)."""
    draw = random.Random(f"{form} {language} {seed}")
    slots = expression_slots(world, language, diseases, draw, form) | {"paraphrases": functools.partial(training_instructions, language)}
    made = (declared(read_yaml("exams.yaml")["instructions"][form], slots | {"number": number}) for number in range(records))
    return [{field: each[field] for field in ("instruction", "input", "output")} for each in made]

dialogue_records, knowledge_graph_records = (functools.partial(world_records, form) for form in ("dialogue", "knowledge graph"))

def encode_examples(records, tokenizer, *, sequence_length, template="short"):
    """((prompt ids, response ids) of each record, number left out because they exceed a row); bos before, eos after."""
    prompts = encode(tokenizer, [render_prompt(r, template=template) for r in records])
    responses = encode(tokenizer, [r["output"] for r in records])
    examples = [([tokenizer.bos_token_id, *prompt], [*response, tokenizer.eos_token_id]) for prompt, response in zip(prompts, responses)]
    fitting = [(p, r) for p, r in examples if len(p) + len(r) <= sequence_length]
    return fitting, len(examples) - len(fitting)

def pack_records(records, tokenizer, sequence_length, *, template="short"):
    """Packed rows of instruction records; those that exceed a row are left out, and it is an error when that is most of them."""
    fitting, left_out = encode_examples(records, tokenizer, sequence_length=sequence_length, template=template)
    if left_out > len(fitting):
        raise ValueError(f"{left_out} of {len(records)} instruction records exceed {sequence_length} tokens; raise tuning_length")
    return pack_examples(fitting, sequence_length)
