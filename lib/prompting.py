"""Ask a model as Med-PaLM 2 was asked: few-shot, chain of thought, self-consistency, ensemble refinement."""
import functools
import hashlib
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, make_dataclass
from pathlib import Path
from typing import NamedTuple
import numpy as np
from lib import evaluation, teacher, training
from lib.benchmarks import EXTRACTION_RULES, few_shot_cases, make_letter_exam
from lib.corpora import count_tokens
from lib.generation import generate
from lib.models import load_model, model_fingerprint
from lib.profiles import fields_of
from lib.results import append_row, read_rows, to_json
from lib.world import read_yaml
PROMPTS = read_yaml("prompts.yaml")

class Strategy(make_dataclass("Settings", fields_of("strategy"), frozen=True)):
    """How one question is answered: `samples` texts and their plurality or, with refinements, the plurality of further texts that follow a prompt
    which shows the samples (Med-PaLM 2, section 3.2). Fields: `strategy` in lib/knowledge/profiles.yaml; form: of lib/knowledge/prompts.yaml."""

STRATEGIES = {name: Strategy(name, **settings) for name, settings in PROMPTS["strategies"].items()}

class Sampler(NamedTuple):
    """A model as this module sees it: on this machine or behind an endpoint."""
    name: str        # what its texts depend on besides the prompt
    draw: Callable   # (prompts, samples=, temperature=, max_new_tokens=, seed=, done=) -> for each prompt a list of texts; done: as in `generate`
    fit: Callable    # (exam, items, max_new_tokens) -> the prompt of each item, with as many solved cases as fit
    count: Callable  # texts -> tokens of each

def local_sampler(folder, *, stop=("\nQuestion:", "\n\n"), tokens_per_batch=8192):
    """A stage folder or model on this machine. However many texts are drawn from a prompt, it is read once."""
    model, tokenizer = load_model(training.model_folder(folder), dtype="auto")
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2048
    def draw(prompts, *, samples, done=None, **settings):
        texts = generate(model, tokenizer, prompts, samples=samples, stop=stop, tokens_per_batch=tokens_per_batch, done=done, **settings)
        return [[text] for text in texts] if samples == 1 else texts
    return Sampler(f"{model_fingerprint(training.model_folder(folder))} {stop}", draw, lambda exam, items, new: evaluation.fitted_prompts(
        exam, items, tokenizer, context - new - 8), functools.partial(count_tokens, tokenizer))  # 8: for marks and joins

def endpoint_sampler(url, model, *, stop=("\nQuestion:",), **asked):
    """A model behind an endpoint; asked: cache, budget and the like, as `teacher.ask` takes them. Its tokens are estimated: a token for four
    characters. ValueError while texts are missing; a rerun asks for those alone."""
    def draw(prompts, *, samples, temperature, max_new_tokens, seed, done=None):
        every, numbers = [prompt for prompt in prompts for _ in range(samples)], [1000 * seed + number for _ in prompts for number in range(samples)]
        texts, problems = teacher.ask(every, url=url, model=model, max_tokens=max_new_tokens, temperature=temperature, sample=numbers, **asked)
        if problems:
            raise ValueError(f"{len(problems)} of {len(every)} texts are missing ({next(iter(problems.values()))}); the others are kept: run again")
        texts = [functools.reduce(lambda text, end: text.split(end, 1)[0], stop, text) for text in texts]
        drawn = [texts[at:at + samples] for at in range(0, len(texts), samples)]
        for number, own in enumerate(drawn if done else ()):
            done(number, own)
        return drawn
    return Sampler(f"{url} {model} {stop}", draw, lambda exam, items, _: [
        "".join([exam.description, *exam.cases, exam.prompt(item)]) for item in items], lambda texts: np.array([len(text) // 4 for text in texts]))

def make_exams(strategy, name, items, training_items=(), *, seed=0):
    """(exams, refining exams) in the strategy's form, one for each item: solved cases are drawn from training items by seed, for each question anew
    where the strategy says so. ValueError where there are too few, and for a case that is the question."""
    def one(item, form):
        own = few_shot_cases(training_items, strategy.num_fewshot, seed=f"{seed} {item['id']}" if strategy.fresh_cases else seed)
        return make_letter_exam(name, [item], form=form, cases=own, description=PROMPTS["descriptions"].get(form, ""), extraction=strategy.extraction)
    return [one(item, strategy.form) for item in items], [one(item, f"{strategy.form}_refinement") for item in items if strategy.refinements]

def shown(item, texts):
    """The item as refinement asks it: the sampled texts, numbered, are its context; a context of its own goes before the question.
    >>> shown({"question": "Which?", "context": "Seen."}, ["First. ", "Second."])
    {'question': 'Seen.\\nWhich?', 'context': '1 reasoning: First.\\n2 reasoning: Second.'}"""
    own = f"{item['context']}\n" if item.get("context") else ""
    lines = [f"{number} reasoning: {' '.join(text.split())}" for number, text in enumerate(texts, start=1)]
    return item | {"question": own + item["question"], "context": "\n".join(lines)}

def plurality(answers, *, key):
    """(the answer given most often, its share of all samples); None is an invalid sample: it wins nothing but counts. `key` (text: seed and item)
    decides a tie; (None, 0.0) where all are invalid.
    >>> plurality(["B", None, "B", "A"], key="0 item-1"), plurality([None], key="")
    (('B', 0.5), (None, 0.0))"""
    votes = Counter(filter(None, answers))
    most = max(votes.values(), default=0)
    tied = sorted(answer for answer in votes if votes[answer] == most)
    return (random.Random(f"tie {key}").choice(tied), most / len(answers)) if tied else (None, 0.0)

def vote(row, number=None, *, stage="sample"):
    """Plurality of the first `number` samples (refinements: stage="refinement") of a row of `solve`, ties as there."""
    return plurality(row[f"{stage}_answers"][:number], key=f"{row['seed']} {row['id']}")

def solve(sampler, strategy, exams, folder, *, refining=(), seed=0):
    """One row an item: prompt, sampled texts and the answer read in each, the same for refinements, the voted answer, its share, invalid samples,
    tokens. exams, refining: lists of Benchmark, equally many items. The texts of an item are appended to a file in `folder`, named by a hash of all
    that they depend on, as soon as they are drawn: a rerun draws what is missing. ValueError for refinements with nothing to ask them with."""
    asked, again = ([(exam, item) for exam in each for item in exam.items] for each in (exams, refining))
    if strategy.refinements and len(again) != len(asked):
        raise ValueError(f"strategy {strategy.name!r} refines {len(asked)} items, `refining` has {len(again)}: give an exam for each")
    content = to_json([sampler.name, asdict(strategy), seed, *(exam.fingerprint for exam in (*exams, *refining))])
    path = Path(folder) / f"{exams[0].name}-{strategy.name}-{hashlib.sha256(content.encode()).hexdigest()[:12]}.texts.jsonl"
    rows = [evaluation._row(exam, item, "") | {"seed": seed} for exam, item in asked]
    _draw(sampler, strategy, asked, rows, path)
    if strategy.refinements:
        _draw(sampler, strategy, [(exam, shown(item, row["sample_texts"])) for (exam, item), row in zip(again, rows)], rows, path, "refinement")
    for row in rows:
        row["predicted_generation"], row["share"] = vote(row, stage="refinement" if strategy.refinements else "sample")
    return rows
def _draw(sampler, strategy, asked, rows, path, stage="sample"):
    """Add the prompts and texts of one stage to the rows, what is read in each text, and what they cost; drawn is what is not in the file."""
    number, warmth = (strategy.samples, strategy.temperature) if stage == "sample" else (strategy.refinements, strategy.refinement_temperature)
    prompts = [sampler.fit(exam, [item], strategy.max_new_tokens)[0] for exam, item in asked]
    known = {line["item"]: line["texts"] for line in read_rows(path) if line["stage"] == stage}
    missing = [place for place in range(len(asked)) if place not in known]
    def keep(place, texts):
        known[missing[place]] = [texts] if isinstance(texts, str) else texts
        append_row(path, {"item": missing[place], "stage": stage, "texts": known[missing[place]]})
    if missing:
        sampler.draw([prompts[place] for place in missing], samples=number, temperature=warmth, max_new_tokens=strategy.max_new_tokens,
                     seed=rows[0]["seed"], done=keep)
    for place, ((exam, item), row, prompt, read) in enumerate(zip(asked, rows, prompts, sampler.count(prompts), strict=True)):
        answers = [EXTRACTION_RULES[exam.extraction](text, item) for text in known[place]]
        row |= {"prompt" if stage == "sample" else "refinement_prompt": prompt, f"{stage}_texts": known[place], f"{stage}_answers": answers,
                f"{stage}_invalid": answers.count(None), f"{stage}_tokens_read": int(read),
                f"{stage}_tokens_written": [int(tokens) for tokens in sampler.count(known[place])]}
