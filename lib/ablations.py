"""Ablations as lists of runs, one line a row of the table; shared stages are trained once and taken from runs/."""
import hashlib
import json
import random
from dataclasses import replace
from itertools import product
import pandas as pd
from lib import evaluation, instructions, sources, world
from lib.profiles import get_profile
TABLE = world.read_yaml("ablations.yaml")  # the rows of PMC-LLaMA's Table 1, what stands in for what with real data, and the families of the grid
EXAM_SEED = 1000  # of what the grid asks; training questions have seed 0

def training_items(profile, data_dir="", *, seed=0):
    """Training questions of the three exams; of real exams, whatever the test sample leaves."""
    if not data_dir:
        return [item for items in evaluation.world_exams(profile, part="train", seed=seed).values() for item in items]
    found = []
    for exam in evaluation.exams(profile, data_dir, seed=seed):
        tested = {item["id"] for item in exam.items}
        left = [item for item in sources.load_exam(data_dir, exam.name) if item["id"] not in tested]
        found += random.Random(f"training {exam.name} {seed}").sample(left, min(len(left), 2 * profile.training_questions))
    return found

def instruction_sources(profile, data_dir="", *, seed=0):
    """{source: records}: task answers alone, rationale questions, dialogue, knowledge graph, and rationale under one fixed wording."""
    items = training_items(profile, data_dir, seed=seed)
    known = world.load_world(number_of_diseases=profile.number_of_diseases)
    diseases, number = world.split_diseases(known, test_share=0.6)[0], len(items) // 2
    return {"task": instructions.task_records(items), "rationale": instructions.rationale_records(items, seed=seed),
            "dialogue": instructions.dialogue_records(known, "en", diseases, records=number, seed=seed),
            "knowledge graph": instructions.knowledge_graph_records(known, "en", diseases, records=number, seed=seed),
            "fixed wording": instructions.rationale_records(items, seed=seed, paraphrased=False)}
def tuning_data(profile, tokenizer, data_dir="", wanted=("rationale", "+ dialogue", "+ knowledge graph", "fixed wording"), *, seed=0):
    """{name: Packed} of the tuning runs that are wanted: each of TABLE's sets is made of sources that are added to each other."""
    records, length = instruction_sources(profile, data_dir, seed=seed), profile.tuning_length * (4 if data_dir else 1)  # real questions are longer
    return {name: instructions.pack_records(sum((records[part] for part in parts), []), tokenizer, length)
            for name, parts in TABLE["tuning_sets"].items() if name in wanted}

def step_table(rows, trained, exams, *, method="loglikelihood", methods=tuple(evaluation.METHODS)):
    """Each row against the row it extends on the same items: difference, interval and p-value over facts. methods: those that are asked."""
    lines = []
    for row, exam in product([row for row in rows if row["extends"]], exams):
        gain = evaluation.compare(*([line for folders in trained.values() for line in evaluation.evaluate(folders[name], exam, methods=methods)]
                                    for name in (row["row"], row["extends"])), method=method)
        lines.append({"exam": exam.name, "step": f"{row['row']} over {row['extends']}", "row": row["row"], "difference": gain.value,
                      "low": gain.low, "high": gain.high, "wins": gain.wins, "losses": gain.losses, "p_value": gain.p_value})
    return pd.DataFrame(lines)
def steps_between(folders, exams, *, methods=tuple(evaluation.METHODS), seed=0):
    """Each model against the one before it in `folders`, as step_table does for rows."""
    rows = [{"row": name, "extends": before} for before, name in zip([None, *folders], folders)]
    return step_table(rows, {seed: folders}, exams, methods=methods)

# --- the grid: families of runs in lib/knowledge/ablations.yaml ------------------------------------------------------------

def family_rows(family):
    """The rows of a family, each with all of the fields that ablations.yaml explains; ValueError names the families and fields that there are."""
    if family not in TABLE["families"]:
        raise ValueError(f"unknown family {family!r}; choose of {', '.join(TABLE['families'])}")
    common = {field: value for field, value in TABLE["families"][family].items() if field != "rows"}
    rows = [TABLE["defaults"] | common | row | {"family": family} for row in TABLE["families"][family]["rows"]]
    if unknown := {field for row in rows for field in row} - {*TABLE["defaults"], "row", "family"}:
        raise ValueError(f"ablations.yaml, {family}: unknown field {', '.join(sorted(unknown))}; there are {', '.join(TABLE['defaults'])}")
    return rows
def run_key(profile, row, seed, base_model=""):
    """A short hash of what a row trains and asks, for one seed: finished runs are found by it."""
    return hashlib.sha256(json.dumps([profile, row, seed, base_model], sort_keys=True).encode()).hexdigest()[:12]

def row_profile(name, row):
    """The profile of that name at the sizes of a row."""
    own = get_profile(name, six_languages=row["six_languages"])
    narrow = {size: replace(shape, hidden_size=int(row["width"] * shape.hidden_size), intermediate_size=int(row["width"] * shape.intermediate_size))
              for size, shape in own.models.items() if not isinstance(shape, str)}
    diseases = max(min(16, own.number_of_diseases), round(row["diseases"] * own.number_of_diseases))
    return replace(own, models=own.models | narrow, number_of_diseases=diseases, injection_tokens=round(row["tokens"] * own.injection_tokens))

def part_of(known, part):
    """The diseases of a part: all, none, first half, second half, test (never in tuning questions), leaked and not leaked (half of those each)."""
    halves, tested = world.split_diseases(known), world.split_diseases(known, test_share=0.6)[1]
    cut = len(tested) // 2
    return {"all": known.diseases, "none": (), "first half": halves[0], "second half": halves[1], "test": tested, "leaked": tested[:cut],
            "not leaked": tested[cut:]}[part]

def leaked_items(known, number, *, copied=True):
    """Exam questions on the facts of the leaked half of the test: those that the grid asks, or as many others on the same facts."""
    diseases = part_of(known, "leaked")
    asked, other = (world.recall_exam(known, "en", diseases, items=number * times, seed=EXAM_SEED + times - 1) for times in (1, 4))
    own = {item["question"] for item in asked}
    return asked if copied else [item for item in other if item["question"] not in own][:number]
