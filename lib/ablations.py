"""Ablations as lists of runs, one line a row of the table; shared stages are trained once and taken from runs/."""
import random
from itertools import product
import pandas as pd
from lib import corpora, evaluation, instructions, models, sources, training, world
TABLE = world.read_yaml("ablations.yaml")  # the rows of PMC-LLaMA's Table 1, and what stands in for what with real data

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

def language_models(profile, data_dir="", *, base_model="", seed=0):
    """(tokenizer, {corpus: stage folder}): base, and after as many tokens of an English and (not with real files) a six-language corpus (MMedLM)."""
    size, mixture = profile.sizes[0], "public" if data_dir else "papers_books"
    raw = corpora.load_sources(profile, data_dir, languages=world.LANGUAGES, seed=seed)
    whole = corpora.prepare(raw, profile, tokenizer=models.load_tokenizer(base_model))
    english = {source: [record for record in records if source == "general" or record["language"] == "en"] for source, records in raw.items()}
    texts = {"English corpus": corpora.prepare(english, profile, tokenizer=whole.tokenizer)} | ({} if data_dir else {"six languages": whole})
    base = training.train_base(profile, size, whole, seed=seed, base_model=base_model)
    return whole.tokenizer, {"base": base} | {name: training.inject(profile, size, base, corpora.mixed(prepared, mixture), seed=seed,
                                                                    name=name.replace(" ", "-")) for name, prepared in texts.items()}

def fine_tuned(profile, folders, items, tokenizer, *, seed=0):
    """{"model · setting": stage folder} of every model zero-shot, after LoRA (rank 16, as MMedLM) and after full fine-tuning on the items."""
    length = profile.tuning_length * (1 if "fact" in items[0]["meta_info"] else 4)  # real questions are that much longer
    packed = instructions.pack_records(instructions.answer_and_rationale_records(items), tokenizer, length)
    found = {f"{name} · zero-shot": folder for name, folder in folders.items()}
    for setting, rank in (("LoRA", 16), ("full", 0)):
        found |= {f"{name} · {setting}": training.tune(profile, folder, packed, name=f"{setting}-{name}", seed=seed, lora_rank=rank)
                  for name, folder in folders.items()}
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

def tuning_sets(records):
    """{name: records} of the tuning runs, each source added to the ones before."""
    growing = {"rationale": records["rationale"], "+ dialogue": records["rationale"] + records["dialogue"]}
    growing["+ knowledge graph"] = growing["+ dialogue"] + records["knowledge graph"]
    return growing | {"fixed wording": records["fixed wording"], "task": records["task"]}

def tuning_data(profile, tokenizer, data_dir="", wanted=("rationale", "+ dialogue", "+ knowledge graph", "fixed wording"), *, seed=0):
    """{name: Packed} of the tuning runs that are wanted."""
    sets = tuning_sets(instruction_sources(profile, data_dir, seed=seed))
    length = profile.tuning_length * (4 if data_dir else 1)  # real questions are that much longer
    return {name: instructions.pack_records(sets[name], tokenizer, length) for name in sets if name in wanted}

def step_table(rows, trained, exams, *, method="loglikelihood"):
    """Each row against the row it extends on the same items: difference, interval and p-value over facts."""
    lines = []
    for row, exam in product([row for row in rows if row["extends"]], exams):
        gain = evaluation.compare(*([line for folders in trained.values() for line in evaluation.evaluate(folders[name], exam)]
                                    for name in (row["row"], row["extends"])), method=method)
        lines.append({"exam": exam.name, "step": f"{row['row']} over {row['extends']}", "row": row["row"], "difference": gain.value,
                      "low": gain.low, "high": gain.high, "wins": gain.wins, "losses": gain.losses, "p_value": gain.p_value})
    return pd.DataFrame(lines)

def steps_between(folders, exams, *, seed=0):
    """Each model against the one before it in `folders`, as step_table does for rows."""
    names = list(folders)
    rows = [{"row": name, "extends": before} for before, name in zip([None, *names], names)]
    return step_table(rows, {seed: folders}, exams)
