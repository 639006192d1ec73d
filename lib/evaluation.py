"""A model on a benchmark: one row per item, kept beside the model, and the tables that follow from the rows."""
import math
import random
from pathlib import Path
import numpy as np
import pandas as pd
from lib import benchmarks, sources, statistics, training, world
from lib.corpora import count_tokens
from lib.generation import generate, option_loglikelihoods
from lib.models import load_model
from lib.results import append_row, read_rows
METHODS = {"loglikelihood": "predicted_loglikelihood", "generation": "predicted_generation"}

def evaluate(folder, benchmark, *, max_new_tokens=48, methods=tuple(METHODS), chunk=200):
    """Rows of one model (a stage folder of lib.training or a model folder) on one exam: prompt, log-likelihoods, completion, both predictions.
    They are appended to a file in evaluations/ beside the model after every `chunk` items, so that a rerun goes on where it stopped."""
    path = Path(folder) / "evaluations" / f"{benchmark.name}-{benchmark.fingerprint}-{'+'.join(methods)}-{max_new_tokens}.jsonl"
    rows = read_rows(path)
    if len(rows) < len(benchmark.items):
        model, tokenizer = load_model(training.model_folder(folder), dtype="auto")
        for start in range(len(rows) // chunk * chunk, len(benchmark.items), chunk):  # a chunk is asked whole: its batches decide the rounding
            asked = score_items(model, tokenizer, benchmark, benchmark.items[start:start + chunk], methods, max_new_tokens)
            for row in asked[max(0, len(rows) - start):]:
                append_row(path, row)
        rows = read_rows(path)
    return rows

def score_items(model, tokenizer, benchmark, items, methods=tuple(METHODS), max_new_tokens=48):
    """One row for each item; the option with the highest summed log-likelihood after "The answer is" is the prediction."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2048
    prompts = fitted_prompts(benchmark, items, tokenizer, context - max(64, max_new_tokens))
    rows = [_row(benchmark, item, prompt) for item, prompt in zip(items, prompts)]
    if "loglikelihood" in methods:
        asked = [benchmark.options(item) for item in items]
        requests = [(prompt + stem, list(options.values())) for prompt, (stem, options) in zip(prompts, asked)]
        for row, item, scores in zip(rows, items, option_loglikelihoods(model, tokenizer, requests)):
            row["loglikelihood"] = {letter: round(float(score), 4) for letter, score in zip(item["options"], scores[:, 0])}
            row["predicted_loglikelihood"] = likeliest(row["loglikelihood"], several=benchmark.several)
    if "generation" in methods:
        for row, item, text in zip(rows, items, generate(model, tokenizer, prompts, max_new_tokens=max_new_tokens)):
            row |= {"completion": text, "predicted_generation": benchmarks.EXTRACTION_RULES[benchmark.extraction](text, item),
                    "predicted_letter": benchmarks.option_letter_v1(text, item)}  # PMC-LLaMA's letter, whatever the exam's rule
    return rows

def likeliest(scores, *, several=False):
    """The option of highest log-likelihood or, where several may be right, all that get more than an even share of the probability.
    >>> likeliest({"A": -3.0, "B": -1.0, "C": -1.2}), likeliest({"A": -3.0, "B": -1.0, "C": -1.2}, several=True)
    ('B', 'B,C')"""
    best = max(scores, key=scores.get)
    total = sum(math.exp(score - scores[best]) for score in scores.values())
    likely = [letter for letter, score in scores.items() if math.exp(score - scores[best]) > total / len(scores)]
    return ",".join(likely or [best]) if several else best

def fitted_prompts(benchmark, items, tokenizer, room):
    """The prompt of each item after as many solved cases as fit into `room` tokens; the last cases are left out first."""
    asked = [benchmark.description + benchmark.prompt(item) for item in items]
    if not benchmark.cases:
        return asked
    cost, own = np.cumsum([0, *count_tokens(tokenizer, benchmark.cases)]), count_tokens(tokenizer, asked)
    kept = [max(0, int(np.searchsorted(cost, room - tokens, side="right")) - 1) for tokens in own]
    return [benchmark.description + "".join(benchmark.cases[:number]) + benchmark.prompt(item) for item, number in zip(items, kept)]
def _row(benchmark, item, prompt):
    return {"id": item["id"], "exam": benchmark.name, "answer_idx": item["answer_idx"], "options": len(item["options"]),
            "fact": item.get("meta_info", {}).get("fact", item["id"]), "prompt": prompt}

def correct(rows, method="loglikelihood"):
    """1 where the prediction is right, else 0 (unparsed answers are wrong), as an array in item order."""
    return np.array([row[METHODS[method]] == row["answer_idx"] for row in rows], dtype=float)

def accuracy_row(rows, *, method="loglikelihood", chance=None):
    """{items, correct, accuracy (unparsed answers are wrong), low, high (Clopper-Pearson), unparsed, accuracy_parsed (without them), chance}."""
    if not rows:
        raise ValueError("no rows to score: the benchmark has no items")
    right, column = correct(rows, method), METHODS[method]
    unparsed = sum(row[column] is None for row in rows)
    low, high = statistics.clopper_pearson(int(right.sum()), len(rows))
    parsed = len(rows) - unparsed
    return {"items": len(rows), "correct": int(right.sum()), "accuracy": right.mean(), "low": float(low), "high": float(high),
            "unparsed": unparsed, "accuracy_parsed": right.sum() / parsed if parsed else math.nan,
            "chance": chance if chance is not None else np.mean([1 / row["options"] for row in rows])}

def compare(rows_a, rows_b, *, method="loglikelihood", seed=0):
    """Accuracy of a minus b on the same items, with a bootstrap interval and a permutation p-value over facts."""
    if [row["id"] for row in rows_a] != [row["id"] for row in rows_b]:
        raise ValueError("two models can be compared only on the same items in the same order")
    return statistics.paired_difference(correct(rows_a, method), correct(rows_b, method), seed=seed, clusters=[row["fact"] for row in rows_a])

def score_table(folders, exams, *, method="loglikelihood", methods=tuple(METHODS)):
    """One line a model and exam. folders: {model name: stage folder}; exams: list of Benchmark."""
    return pd.DataFrame([{"model": name, "exam": exam.name} | accuracy_row(evaluate(folder, exam, methods=methods), method=method, chance=exam.chance)
                         for name, folder in folders.items() for exam in exams])

def world_exams(profile, *, part="test", language="en", seed=0, items=None):
    """{name: items} of the three English exams, on the training or the held-out diseases of the controlled world.
    They stand for MedQA, MedMCQA and PubMedQA. Training abstracts use four of the six wordings of a result: the test has unseen ones."""
    known = world.load_world(number_of_diseases=profile.number_of_diseases)
    diseases = world.split_diseases(known, test_share=0.6)[part == "test"]
    number, seed = items or (profile.test_items if part == "test" else profile.training_questions), 1000 * (part == "test") + seed
    asked, wordings = (known, language, diseases), range(6 if part == "test" else 4)
    return {"vignette": world.vignette_exam(*asked, items=number, seed=seed), "recall": world.recall_exam(*asked, items=number, seed=seed),
            "abstract": world.abstract_exam(*asked, items=number, seed=seed, wording_range=wordings)}

def exams(profile, data_dir="", *, seed=0, template="short"):
    """The three test exams as benchmarks: of the controlled world, or MedQA, MedMCQA and PubMedQA from `data_dir`."""
    items = ({name: sources.load_exam(data_dir, name, items=profile.test_items, seed=seed) for name in ("medqa_us_4opt", "medmcqa", "pubmedqa")}
             if data_dir else world_exams(profile, seed=seed))
    return [benchmarks.make_exam(name, some, template=template) for name, some in items.items()]

# The exam of each language has the form of its part of MMedBench: MedQA, its Mainland part, IgakuQA, FrenchMedMCQA, RuMedDaNet, HEAD-QA.
OWN_FORMS = {"en": (world.vignette_exam, {}), "zh": (world.vignette_exam, {"options": 5}), "ja": (world.several_answers_exam, {}),
             "fr": (world.several_answers_exam, {}), "ru": (world.yes_no_exam, {}), "es": (world.vignette_exam, {})}

def language_items(profile, data_dir="", *, part="test", seed=0):
    """{"exam language": items}: recall and one exam of its own form for each of six languages, or all exams that `data_dir` holds."""
    if data_dir:
        return _public_items(profile, data_dir, part, seed)
    known, found = world.load_world(number_of_diseases=profile.number_of_diseases), {}
    diseases, seed = world.split_diseases(known, test_share=0.6)[part == "test"], 1000 * (part == "test") + seed
    number = profile.test_items if part == "test" else profile.training_questions
    for each, (own, more) in OWN_FORMS.items():
        made = [world.recall_exam(known, each, diseases, items=number, seed=seed), own(known, each, diseases, items=number // 2, seed=seed, **more)]
        found |= {f"{items[0]['exam']} {each}": items for items in made}
    return found
def _public_items(profile, data_dir, part, seed):
    """A sample of each exam and language that is there, test split before validation split; items without options are left out."""
    found, most = {}, profile.test_items if part == "test" else profile.training_questions
    for source in (sources.SOURCES[name] for name in sources.available(data_dir) if sources.SOURCES[name].kind == "exam"):
        spoken = {split: source.splits[split].get("language", source.languages[0]) for split in sources.splits(data_dir, source.name)}
        for language in dict.fromkeys(spoken.values()):
            own = [split for split in spoken if spoken[split] == language]
            test, validation, train = ([split for split in own if split.startswith(start)] for start in ("test", "validation", "train"))
            read = train if part == "train" else test or validation or own
            items = [item for split in read for item in sources.load_exam(data_dir, source.name, split=split) if item["answer_idx"]]
            if items:
                found[f"{source.name} {language}"] = random.Random(f"{source.name} {seed}").sample(items, min(len(items), most))
    return found

def topic(item):
    """What a question is about: the subject that its exam names, or the attribute that it asks for."""
    about = item.get("meta_info", {})
    named = next((about[field] for field in ("subject_name", "subject", "category", "meta_info") if about.get(field)), None)
    return named or about.get("fact", "not named").rpartition(".")[2]
