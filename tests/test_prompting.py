"""Strategies by hand-made model outputs: counts, prompts, votes and ties, what a kill costs, and what is published."""

import contextlib
import itertools
import json
import re
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from lib import benchmarks, corpora, evaluation, filters, generation, prompting, reported, results, tables, world
from lib.prompting import STRATEGIES, Strategy, plurality
from lib.results import REPOSITORY
from tests.test_evaluation import metal_items, parrot  # noqa: F401  (a fixture)

ITEMS = metal_items(7, seed=3)
TRAINING = [item | {"id": f"train-{n}", "question": f"Training {n}?", "rationale": f"Reason {n}."} for n, item in enumerate(metal_items(12, seed=4))]
REFINE = STRATEGIES["ensemble_refinement"]


class Fake:
    """A model that says what it was told to; it remembers every prompt it was given, and how many texts were wanted."""

    def __init__(self, say):
        self.say, self.asked = say, []

    def sampler(self):
        def draw(prompts, *, samples, temperature, max_new_tokens, seed, done=None):
            for place, prompt in enumerate(prompts):
                self.asked.append((prompt, samples, temperature))
                done(place, [self.say(prompt, number) for number in range(samples)])
        return prompting.Sampler("fake", draw, lambda exam, items, new: ["".join([exam.description, *exam.cases, exam.prompt(item)]) for item in items],
                                 lambda texts: np.array([len(text.split()) for text in texts]))


def letters(prompt, number):
    """Stage 1: A, B, C, D, nothing, A, B, ...; stage 2 always D."""
    return "It is so.\nAnswer: (D)" if "Students'" in prompt else f"Reason {number}.\nAnswer: " + ("(A)", "(B)", "(C)", "(D)", "none")[number % 5]


def solve(fake, strategy, folder, items=ITEMS, seed=0):
    exams, refining = prompting.make_exams(strategy, "metals", items, TRAINING, seed=seed)
    return prompting.solve(fake.sampler(), strategy, exams, folder, refining=refining, seed=seed)


# --- counts and prompts ------------------------------------------------------------------------------------------------

def test_the_numbers_are_those_of_the_paper():
    """Med-PaLM 2, sections 3.2 and 4.1: 5 cases, 11 samples, 33 refinements; PubMedQA: 3 cases, drawn for each question."""
    numbers = {name: (s.samples, s.refinements, s.num_fewshot, s.fresh_cases) for name, s in STRATEGIES.items() if not name.startswith("world")}
    assert numbers == {"few_shot": (1, 0, 5, False), "chain_of_thought": (1, 0, 5, False), "self_consistency": (11, 0, 5, False),
                       "ensemble_refinement": (11, 33, 5, False), "pubmedqa": (1, 0, 3, True), "pubmedqa_self_consistency": (11, 0, 3, True)}
    assert {s.temperature for s in STRATEGIES.values() if s.samples > 1} == {0.7}
    assert {s.temperature for s in STRATEGIES.values() if s.samples == 1} == {0.0}


def test_refinement_draws_11_shows_all_and_draws_33(tmp_path):
    fake = Fake(letters)
    rows = solve(fake, REFINE, tmp_path)
    assert Counter(samples for _, samples, _ in fake.asked) == {11: 7, 33: 7}
    for row in rows:
        assert len(row["sample_texts"]) == len(row["sample_answers"]) == 11
        assert len(row["refinement_texts"]) == len(row["refinement_tokens_written"]) == 33
        shown = re.findall(r"^(\d+) reasoning: (.+)$", row["refinement_prompt"].rpartition("Students' reasonings:")[2], flags=re.M)
        assert shown == [(str(n + 1), " ".join(text.split())) for n, text in enumerate(row["sample_texts"])]
        assert (row["sample_invalid"], row["refinement_invalid"]) == (2, 0)
        assert (row["predicted_generation"], row["share"]) == ("D", 1.0)
    assert evaluation.accuracy_row(rows, method="generation")["correct"] == sum(item["answer_idx"] == "D" for item in ITEMS)


def test_self_consistency_draws_11_and_counts_invalid_samples(tmp_path):
    """A, B, C, D, none, A, B, C, D, none, A: A has 3 of 11."""
    fake = Fake(letters)
    rows = solve(fake, STRATEGIES["self_consistency"], tmp_path)
    assert [(samples, temperature) for _, samples, temperature in fake.asked] == [(11, 0.7)] * 7
    assert {(row["predicted_generation"], row["share"], row["sample_invalid"]) for row in rows} == {("A", 3 / 11, 2)}
    assert prompting.vote(rows[0], 1) == ("A", 1.0)
    nothing = solve(Fake(lambda prompt, number: "I cannot say."), STRATEGIES["self_consistency"], tmp_path / "other")
    assert {(row["predicted_generation"], row["share"], row["sample_invalid"]) for row in nothing} == {(None, 0.0, 11)}
    assert evaluation.accuracy_row(nothing, method="generation")["unparsed"] == 7


def test_the_prompt_is_the_published_one():
    """PAPERS M4 and M6: the quoted sentences word for word, and five solved cases with their reasons before the question."""
    (exam, *_), (refining, *_) = prompting.make_exams(REFINE, "metals", ITEMS, TRAINING)
    prompt = "".join([exam.description, *exam.cases, exam.prompt(ITEMS[0])])
    assert prompt.startswith("Instructions: The following are multiple choice questions about medical knowledge. Solve them in a step-by-step fashion, "
                             "starting by summarizing the available information. Output a single option from the four options as the final answer.\n\n")
    opening = "Explanation: Let's solve this step-by-step, referring to authoritative sources as needed."
    assert prompt.count(opening) == 6
    assert prompt.endswith(f"Question: {ITEMS[0]['question']}\n" + "\n".join(f"({k}) {v}" for k, v in ITEMS[0]["options"].items()) + "\n" + opening)
    solved = re.findall(re.escape(opening) + r" Reason (\d+)\.\nAnswer: \(([A-D])\)\n\n", prompt)
    assert len(solved) == 5
    assert all(TRAINING[int(number)]["answer_idx"] == letter for number, letter in solved)
    assert "Beware of wrong reasoning" in refining.description
    assert "Students' reasonings:\n1 reasoning: x\n" in refining.prompt(prompting.shown(ITEMS[0], ["x"]))


def test_the_forms_of_the_controlled_world():
    """The question stands last, before it the options and, in refinement, the reasonings; a reasoning begins with the diagnosis."""
    item = {"id": "1", "question": "What now?", "context": "", "options": {"A": "iron", "B": "zinc"}, "answer": "zinc", "answer_idx": "B"}
    forms = {form: benchmarks.make_letter_exam("v", [item], form=form) for form in ("world", "world_steps", "world_steps_refinement")}
    assert forms["world"].prompt(item) == "Options: A. iron B. zinc\nWhat now?"
    assert forms["world"].options(item) == ("", {"A": " The answer is iron.", "B": " The answer is zinc."})
    assert forms["world_steps"].prompt(item) == "Options: A. iron B. zinc\nWhat now? Diagnosis:"
    assert forms["world_steps_refinement"].prompt(prompting.shown(item, [" gout. Treatment: iron.", "gout."])) == (
        "Students' reasonings:\n1 reasoning: gout. Treatment: iron.\n2 reasoning: gout.\nOptions: A. iron B. zinc\nWhat now? Diagnosis:")


def test_pubmedqa_draws_three_training_cases_for_each_question():
    exams, _ = prompting.make_exams(STRATEGIES["pubmedqa"], "metals", [ITEMS[0] | {"context": "Seen."}, *ITEMS[1:]], TRAINING, seed=5)
    assert [len(exam.cases) for exam in exams] == [3] * 7
    assert len({exam.cases for exam in exams}) > 3
    assert exams[0].prompt(exams[0].items[0]).startswith("Context: Seen.\nQuestion: ")
    assert exams[0].prompt(ITEMS[0]).endswith("The answer to the question given the context is:")
    again, _ = prompting.make_exams(STRATEGIES["pubmedqa"], "metals", ITEMS, TRAINING, seed=5)
    other, _ = prompting.make_exams(STRATEGIES["pubmedqa"], "metals", ITEMS, TRAINING, seed=6)
    assert [exam.cases for exam in again] == [exam.cases for exam in exams] != [exam.cases for exam in other]
    fixed, _ = prompting.make_exams(STRATEGIES["few_shot"], "metals", ITEMS, TRAINING)
    assert len({exam.cases for exam in fixed}) == 1


def test_bad_input_is_named(tmp_path):
    exams, refining = prompting.make_exams(REFINE, "metals", ITEMS, TRAINING)
    with pytest.raises(ValueError, match="strategy 'ensemble_refinement' refines 7 items, `refining` has 3: give an exam for each"):
        prompting.solve(Fake(letters).sampler(), REFINE, exams, tmp_path, refining=refining[:3])
    with pytest.raises(ValueError, match="5 few-shot cases are wanted, the training split has 2 items"):
        prompting.make_exams(REFINE, "metals", ITEMS, TRAINING[:2])
    with pytest.raises(ValueError, match="1 few-shot cases are test questions"):
        prompting.make_exams(Strategy("x", "med_palm_2", num_fewshot=1), "metals", ITEMS[:1], ITEMS[:1])


# --- votes -------------------------------------------------------------------------------------------------------------

def test_plurality_against_counting():
    """All 4^6 lists of up to three answers and invalid ones: the winner is among those that nobody beats, and always the same for a key."""
    seen = Counter()
    for answers in itertools.product(["A", "B", "C", None], repeat=6):
        counts = {letter: answers.count(letter) for letter in "ABC"}
        best = max(counts.values())
        winners = [letter for letter in "ABC" if best and counts[letter] == best]
        answer, share = plurality(answers, key="0 q")
        assert (answer in winners) if winners else answer is None
        assert share == best / 6
        assert (answer, share) == plurality(answers[::-1], key="0 q")  # the order of samples decides nothing
        seen[len(winners)] += 1
    assert set(seen) == {0, 1, 2, 3}


def test_a_tie_is_drawn_evenly_by_seed_and_item():
    drawn = Counter(plurality(["A", "B", "C", None], key=f"{seed} item-{item}")[0] for seed in range(30) for item in range(100))
    assert set(drawn) == {"A", "B", "C"}
    assert min(drawn.values()) > 900  # of 1,000 expected; standard deviation 26
    assert {plurality(["A", "A", "B"], key=str(seed)) for seed in range(50)} == {("A", 2 / 3)}


def test_the_seed_of_a_run_decides_its_ties(tmp_path):
    """Two samples each for A and B: over items and seeds both come out, and the vote taken again from a row is the run's."""
    fake, strategy = Fake(lambda prompt, number: f"Answer: ({'AB'[number % 2]})"), Strategy("tie", "med_palm_2_steps", samples=4)
    rows = [row for seed in range(6) for row in solve(fake, strategy, tmp_path, seed=seed)]
    assert {row["predicted_generation"] for row in rows} == {"A", "B"}
    assert all(prompting.vote(row) == (row["predicted_generation"], row["share"]) for row in rows)


# --- cost, and what a kill costs ---------------------------------------------------------------------------------------

def budget_of(strategies, sampler, exams, monkeypatch):
    """The lines that the end of the cell of notebook 07 with the tag `budget` saves."""
    cells, saved = json.loads((REPOSITORY / "notebooks" / "07_prompting_strategies.ipynb").read_text(encoding="utf-8"))["cells"], {}
    (cell,) = (cell for cell in cells if "budget" in cell["metadata"].get("tags", ()))
    monkeypatch.setattr(results, "save_table", lambda _, name, frame: saved.setdefault(name, frame))
    source = "".join(cell["source"])
    exec(source[source.index("lines = []"):], {"strategies": strategies, "sampler": sampler, "exams": exams, "run": None, "results": results, "tables": tables, "pd": pd})
    return saved["budget"].to_dict("records")


def test_the_budget_is_an_upper_bound_known_beforehand(tmp_path, monkeypatch):
    fake = Fake(lambda prompt, number: " ".join(["word"] * REFINE.max_new_tokens))
    strategies = {"refined": REFINE, "direct": STRATEGIES["few_shot"]}
    exams = {name: prompting.make_exams(strategy, "metals", ITEMS, TRAINING) for name, strategy in strategies.items()}
    said, direct = budget_of(strategies, fake.sampler(), exams, monkeypatch)
    assert fake.asked == []
    rows = solve(fake, REFINE, tmp_path)
    assert (said["items"], said["texts"]) == (7, 7 * 44)
    assert said["tokens_written"] == sum(sum(row["sample_tokens_written"]) + sum(row["refinement_tokens_written"]) for row in rows)
    read = sum(row["sample_tokens_read"] + row["refinement_tokens_read"] for row in rows)
    assert read - 7 * 30 < said["tokens_read"] <= read  # "1 reasoning:" stands before each of eleven
    assert direct["texts"] == 7


@pytest.mark.parametrize("strategy", ["few_shot", "self_consistency", "ensemble_refinement"])
@pytest.mark.parametrize("killed_after", range(15))
def test_a_run_killed_after_any_item_goes_on_without_sampling_again(tmp_path, monkeypatch, killed_after, strategy):
    """Seven items, one or two stages each: whichever texts were drawn last, those before are in the file, and nothing in it is drawn again."""
    strategy = STRATEGIES[strategy]
    whole, stages = solve(Fake(letters), strategy, tmp_path / "whole"), 1 + bool(strategy.refinements)
    written, append = [], prompting.append_row

    def dying(path, row):
        append(path, row)
        written.append(row)
        if len(written) == killed_after:
            raise KeyboardInterrupt
    monkeypatch.setattr(prompting, "append_row", dying)
    first = Fake(letters)
    with pytest.raises(KeyboardInterrupt) if 0 < killed_after <= 7 * stages else contextlib.nullcontext():
        solve(first, strategy, tmp_path / "killed")
    kept = min(killed_after or 7 * stages, 7 * stages)
    assert len(written) == len(first.asked) == kept
    second = Fake(letters)
    assert solve(second, strategy, tmp_path / "killed") == whole
    assert len(second.asked) == 7 * stages - kept
    assert not {prompt for prompt, *_ in first.asked} & {prompt for prompt, *_ in second.asked}
    third = Fake(letters)
    assert solve(third, strategy, tmp_path / "killed") == whole
    assert third.asked == [], "a finished run asks nothing"


def test_a_local_model_killed_after_any_batch_reads_no_finished_prompt_again(parrot, tmp_path, monkeypatch):  # noqa: F811
    """A batch holds one prompt here. The texts that a kill leaves are those of an unbroken run."""
    strategy = Strategy("er", "world_steps", samples=3, refinements=2, temperature=1.5, refinement_temperature=1.5, max_new_tokens=12)
    exams, refining = prompting.make_exams(strategy, "metals", ITEMS[:3])
    sampler = prompting.local_sampler(parrot, tokens_per_batch=1)
    whole = prompting.solve(sampler, strategy, exams, tmp_path / "whole", refining=refining)
    append, read = prompting.append_row, generation._read
    for killed_after in range(1, 6):
        passes, folder = [], tmp_path / str(killed_after)

        def dying(path, row, last=killed_after):
            append(path, row)
            if len(path.read_text().splitlines()) == last:
                raise KeyboardInterrupt
        monkeypatch.setattr(prompting, "append_row", dying)
        with pytest.raises(KeyboardInterrupt):
            prompting.solve(sampler, strategy, exams, folder, refining=refining)
        monkeypatch.setattr(prompting, "append_row", append)
        monkeypatch.setattr(generation, "_read", lambda model, ids, *rest, own=passes: own.append(ids.shape) or read(model, ids, *rest))
        assert prompting.solve(sampler, strategy, exams, folder, refining=refining) == whole
        assert sum(length > 1 for _, length in passes) == 6 - killed_after
        monkeypatch.setattr(generation, "_read", read)


def test_rows_of_another_seed_strategy_or_prompt_are_not_taken(tmp_path):
    for seed, strategy, items in ((0, REFINE, ITEMS), (1, REFINE, ITEMS), (0, STRATEGIES["self_consistency"], ITEMS), (0, REFINE, ITEMS[:5])):
        fake = Fake(letters)
        assert len(solve(fake, strategy, tmp_path, items, seed)) == len(items)
        assert fake.asked
    assert len(list(tmp_path.glob("*.jsonl"))) == 4


# --- a model on this machine, and one behind an endpoint --------------------------------------------------------------------

def test_a_local_model_reads_each_prompt_once_and_repeats_its_samples(parrot, tmp_path, monkeypatch):  # noqa: F811
    """However many samples follow; the first samples are the same ones, whether 3 or 5 are wanted, with one seed."""
    passes, read = [], generation._read
    monkeypatch.setattr(generation, "_read", lambda model, ids, *rest: passes.append(ids.shape) or read(model, ids, *rest))
    sampler, settings = prompting.local_sampler(parrot), {"form": "world_steps", "temperature": 1.5, "max_new_tokens": 24, "extraction": "last_option_v1"}
    found = {}
    for samples in (3, 5):
        strategy = Strategy(f"sc{samples}", samples=samples, **settings)
        found[samples] = solve_with(sampler, strategy, tmp_path)
    assert sum(length > 1 for _, length in passes) == 2 * 3  # one prompt a batch and stage: read once
    assert {rows for rows, length in passes if length > 1} == {1}
    assert [row["sample_texts"] for row in found[3]] == [row["sample_texts"][:3] for row in found[5]]
    assert len({text for row in found[5] for text in row["sample_texts"]}) > 5
    assert [row["sample_tokens_written"] for row in found[5]] == [
        corpora.count_tokens(sampler.count.args[0], row["sample_texts"]).tolist() for row in found[5]]


def solve_with(sampler, strategy, folder):
    """Three items, one a batch."""
    exams, _ = prompting.make_exams(strategy, "metals", ITEMS[:3])
    return [row for exam in exams for row in prompting.solve(sampler, strategy, [exam], folder)]


def test_an_endpoint_is_asked_for_every_sample_and_errors_name_what_is_missing(tmp_path, monkeypatch):
    calls = []

    def ask(prompts, *, url, model, cache, max_tokens, temperature, sample):
        calls.append((len(set(prompts)), sample, temperature, max_tokens))
        if model == "bad":
            return [None, *["x"] * (len(prompts) - 1)], {0: "HTTP 500, 4 tries"}
        return [f"Reason.\nAnswer: ({'ABCD'[number % 4]})\nQuestion: next" for number in sample], {}
    monkeypatch.setattr(prompting.teacher, "ask", ask)
    strategy = STRATEGIES["self_consistency"]
    exams, _ = prompting.make_exams(strategy, "metals", ITEMS, TRAINING)
    rows = prompting.solve(prompting.endpoint_sampler("http://x/v1", "good", cache=tmp_path / "c"), strategy, exams, tmp_path)
    assert calls == [(7, 7 * list(range(11)), 0.7, 512)]
    assert rows[0]["sample_texts"][:2] == ["Reason.\nAnswer: (A)", "Reason.\nAnswer: (B)"]  # cut where the next question would begin
    assert {row["predicted_generation"] for row in rows} <= {"A", "B", "C"}  # three votes each
    with pytest.raises(ValueError, match=r"1 of 77 texts are missing \(HTTP 500, 4 tries\); the others are kept: run again"):
        prompting.solve(prompting.endpoint_sampler("http://x/v1", "bad", cache=tmp_path / "c"), strategy, exams, tmp_path / "bad")
    seeded = prompting.endpoint_sampler("http://x/v1", "good", cache=tmp_path / "c")
    calls.clear()
    seeded.draw(["a"], samples=2, temperature=0.7, max_new_tokens=9, seed=3)
    assert [sample for _, sample, *_ in calls] == [[3000, 3001]]  # another seed is another draw


# --- data ----------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("text", "expected"), [
    ("gold, not iron", "A"), ("iron", "A"), ("zinc. The answer is lead.", "D"), ("IRON, then Zinc", "B"), ("tin", None)])
def test_the_option_named_last(text, expected):
    assert benchmarks.last_option_v1(text, {"options": {"A": "iron", "B": "zinc", "C": "gold", "D": "lead"}}) == expected


def test_the_mixture_is_that_of_table_3():
    """Weights in per mille are the printed shares; 1,000 rows hold them exactly, the variant holds multiple choice in equal parts."""
    table = reported.query("Med-PaLM 2", table="3").set_index("row")
    weights = prompting.PROMPTS["mixtures"]["Med-PaLM 2"]
    assert sum(weights.values()) == 1000
    assert {name: weight / 10 for name, weight in weights.items()} == table["value"].to_dict()
    for mixture in prompting.PROMPTS["mixtures"].values():
        sizes = tuple(int(table.loc[name, "n"]) for name in mixture)
        drawn = Counter(source for source, _ in corpora.rows_of_step(0, sum(mixture.values()), weights=tuple(mixture.values()), sizes=sizes, seed=0))
        assert [drawn[number] for number in range(len(mixture))] == list(mixture.values())
    assert {name: weights[name] / weights["MedQA"] for name in ("MedQA", "MedMCQA")} == prompting.PROMPTS["mixtures"]["Med-PaLM 2, multiple choice only"]


def test_long_questions_are_many_varied_and_our_own(shared_data):
    """At least 60 + 60, of several topics, no two alike, and none that stands in a public set of questions."""
    questions = pd.DataFrame(world.read_table("questions.csv"))
    assert questions.groupby("data_set").size().min() >= 60
    assert questions.groupby("data_set")["topic"].nunique().min() >= 5
    assert questions["id"].is_unique
    assert questions["question"].str.endswith(("?", ".")).all()
    step = filters.duplicates(threshold=0.4)
    kept = [step({"text": text, "id": "", "language": "en"}) for text in questions["question"]]
    assert [one for one in kept if isinstance(one, str)] == []
    find = filters.overlap_finder(list(questions["question"]), window=40)
    public = [path for name in ("liveqa_medical_trec2017", "medicationqa", "medlfqa_olaph", "chatdoctor") for path in (shared_data / name).rglob("*")
              if path.is_file() and path.stat().st_size < 30_000_000]
    assert len(public) > 3
    assert [path.name for path in public if find(path.read_text(encoding="utf-8", errors="replace"))] == []


def test_long_prompts_hold_question_and_fairness():
    fairness = prompting.PROMPTS["fairness"]
    for form in prompting.PROMPTS["long_answers"].values():
        plain, fair = (form.format(question="Why {so}?", fairness=words) for words in ("", fairness))
        assert plain.endswith("\n\nQuestion: Why {so}?\nAnswer:")
        assert fair == plain.replace("\n\nQuestion", fairness + "\n\nQuestion")
    assert set(pd.DataFrame(world.read_table("questions.csv"))["data_set"]) <= set(prompting.PROMPTS["long_answers"])


def test_committed_rows_give_the_committed_scores():
    """Of the small profile, where it has run: votes counted again from rows/ are the table's, with 11 and 33 texts each."""
    folder = results.REPOSITORY / "results" / "small" / "07_prompting_strategies"
    if not folder.is_dir():
        pytest.skip("notebook 07 has not run yet with the profile small")
    table = pd.read_csv(folder / "tables" / "strategies.csv").set_index("strategy")["correct"]
    rows = [json.loads(line) for line in (folder / "rows" / "ensemble_refinement.jsonl").read_text().splitlines()]
    assert {(sum(row["sample_texts"].values()), sum(row["refinement_texts"].values())) for row in rows} == {(11, 33)}
    assert sum(row["predicted_generation"] == row["answer_idx"] for row in rows) == table["ensemble refinement (11+33)"]
