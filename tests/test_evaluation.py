"""Rows of a model on an exam: right, resumable and counted as by hand; the ablation is the published table, row by row."""

import csv
import json
import math
import random
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from scipy import stats

from lib import ablations, benchmarks, corpora, evaluation, instructions, sources, training, world
from lib.models import load_model
from lib.profiles import PROFILES, SIX_LANGUAGES, Architecture
from lib.results import REPOSITORY, read_rows

METALS = ("iron", "zinc", "gold", "lead")
SAID = "The answer is iron. OPTION C IS CORRECT."  # whatever is asked, and whatever letter iron has


def metal_items(number, *, seed):
    """Items with the four metals in any order; every fourth has the right answer "iron"."""
    draw, items = random.Random(seed), []
    for i in range(number):
        options = dict(zip("ABCD", draw.sample(METALS, 4)))
        answer = METALS[i % 4]
        items.append({"id": f"metal-{seed}-{i}", "language": "en", "question": f"Which metal is number {draw.randint(10, 99)}?",
                      "context": "", "options": options, "answer": answer, "rationale": "",
                      "answer_idx": next(letter for letter, text in options.items() if text == answer),
                      "meta_info": {"fact": f"metal.{i % 6}"}})
    return items


@pytest.fixture(scope="module")
def parrot(tmp_path_factory):
    """The folder of a stage that was trained for a few steps to give one and the same answer."""
    records = [instructions.exam_record(item) | {"output": SAID} for item in metal_items(32, seed=0)]
    tokenizer = corpora.train_tokenizer([instructions.render_prompt(record) + record["output"] for record in records], 400)
    stage = training.Stage("parrot", steps=70, rows_per_step=4, micro_batch_size=4, peak_learning_rate=1e-2, precision="float32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUNS_ROOT", str(tmp_path_factory.mktemp("runs")))
        mixture = {"instructions": (instructions.pack_records(records, tokenizer, 160), 1)}
        return training.train(stage, mixture, base=Architecture(32, 2, 2, 64, vocabulary_size=400), tokenizer=tokenizer, progress=None)


@pytest.fixture
def folder(parrot, tmp_path):
    """A copy of the stage of its own, without any evaluation."""
    return shutil.copytree(parrot, tmp_path / "parrot", ignore=shutil.ignore_patterns("evaluations"))


@pytest.fixture(scope="module")
def exam():
    return benchmarks.make_exam("metals", metal_items(12, seed=1))


# --- rows --------------------------------------------------------------------------------------------------------------

def test_a_model_that_repeats_one_answer_is_scored_so(folder, exam):
    """It says "iron" to everything: its prediction is the letter that iron has in each item, its accuracy the share of items
    whose answer is iron, by both methods; the letter that it says, always C, is another column."""
    rows = evaluation.evaluate(folder, exam)
    iron = [next(letter for letter, text in item["options"].items() if text == "iron") for item in exam.items]
    assert [row["completion"] for row in rows] == [SAID] * 12
    assert [row["predicted_generation"] for row in rows] == iron
    assert [row["predicted_loglikelihood"] for row in rows] == iron
    assert [row["predicted_letter"] for row in rows] == ["C"] * 12
    assert len(set(iron)) > 2
    for method in evaluation.METHODS:
        line = evaluation.accuracy_row(evaluation.evaluate(folder, exam), method=method)
        assert (line["items"], line["correct"], line["accuracy"], line["unparsed"]) == (12, 3, 0.25, 0)
    assert [row["id"] for row in rows] == [item["id"] for item in exam.items]
    assert [row["prompt"] for row in rows] == [exam.prompt(item) for item in exam.items]
    assert [row["fact"] for row in rows] == [item["meta_info"]["fact"] for item in exam.items]
    table = evaluation.score_table({"parrot": folder}, [exam])
    assert table[["model", "exam", "accuracy", "chance"]].values.tolist() == [["parrot", "metals", 0.25, 0.25]]


def test_loglikelihoods_are_those_of_full_logits(folder, exam):
    """The whole text of one item is read at once, with no cache and no packing, and the option's own tokens are added up."""
    row, item = evaluation.evaluate(folder, exam)[0], exam.items[0]
    model, tokenizer = load_model(folder / "model")
    stem, options = exam.options(item)
    context = [tokenizer.bos_token_id, *tokenizer(exam.prompt(item) + stem, add_special_tokens=False)["input_ids"]]
    for letter, text in options.items():
        own = tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            chances = model(torch.tensor([context + own]).to(model.device)).logits[0].double().log_softmax(-1)
        naive = sum(chances[len(context) - 1 + i, token].item() for i, token in enumerate(own))
        assert row["loglikelihood"][letter] == pytest.approx(naive, abs=1e-3)
    assert len(set(row["loglikelihood"].values())) == 4
    assert text == f" {item['options']['D']}."


def test_a_completion_exam_is_scored_without_generation(folder):
    """Unfinished sentences have log-likelihoods only; their rows go into a file of their own."""
    known = world.load_world(number_of_diseases=24)
    exam = benchmarks.make_completion_exam("recall", world.recall_exam(known, "en", known.diseases, items=4, seed=0))
    rows = evaluation.evaluate(folder, exam, methods=("loglikelihood",))
    assert all(set(row["loglikelihood"]) == set("ABCD") and "completion" not in row for row in rows)
    assert rows[0]["predicted_loglikelihood"] == max(rows[0]["loglikelihood"], key=rows[0]["loglikelihood"].get)
    assert len(list((folder / "evaluations").iterdir())) == 1
    evaluation.evaluate(folder, benchmarks.make_exam("recall", exam.items), methods=("loglikelihood",))
    evaluation.evaluate(folder, benchmarks.make_exam("recall", exam.items), max_new_tokens=2)
    assert len(list((folder / "evaluations").iterdir())) == 3  # other prompts, other methods: other rows


# --- resuming ------------------------------------------------------------------------------------------------------------

class Scoring:
    """lib.evaluation.score_items, counting items, and interrupted at a given call."""

    original = staticmethod(evaluation.score_items)

    def __init__(self, stop_at=None):
        self.items, self.calls, self.stop_at = [], 0, stop_at

    def __call__(self, model, tokenizer, benchmark, items, *rest):
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        self.items += [item["id"] for item in items]
        return self.original(model, tokenizer, benchmark, items, *rest)


@pytest.fixture(scope="module")
def undisturbed(parrot, exam, tmp_path_factory):
    """The rows file that an evaluation without any interruption writes, as bytes."""
    folder = shutil.copytree(parrot, tmp_path_factory.mktemp("undisturbed") / "stage", ignore=shutil.ignore_patterns("evaluations"))
    evaluation.evaluate(folder, exam)
    path, = (folder / "evaluations").iterdir()
    return path.name, path.read_bytes()


def test_an_interrupted_evaluation_goes_on_where_it_stopped(folder, exam, undisturbed, monkeypatch):
    """Five rows are written, then the process is stopped: the second call scores the other seven, the third none at all."""
    name, content = undisturbed
    monkeypatch.setattr(evaluation, "score_items", Scoring(stop_at=2))
    with pytest.raises(KeyboardInterrupt):
        evaluation.evaluate(folder, exam, chunk=5)
    assert len(read_rows(folder / "evaluations" / name)) == 5
    monkeypatch.setattr(evaluation, "score_items", second := Scoring())
    rows = evaluation.evaluate(folder, exam, chunk=5)
    assert second.items == [item["id"] for item in exam.items[5:]]
    assert (folder / "evaluations" / name).read_bytes() == content
    monkeypatch.setattr(evaluation, "load_model", lambda *_, **__: pytest.fail("nothing is left to score"))
    assert evaluation.evaluate(folder, exam) == rows == [json.loads(line) for line in content.splitlines()]


@pytest.mark.parametrize("lines", [0, 1, 7, 11])
def test_a_torn_last_line_is_written_again(folder, exam, undisturbed, lines):
    """A kill or a full disk leaves a part of a row: it is cut off, and the file ends as if nothing had happened."""
    name, content = undisturbed
    path = folder / "evaluations" / name
    path.parent.mkdir()
    complete = content.splitlines(keepends=True)
    path.write_bytes(b"".join(complete[:lines]) + complete[lines][:len(complete[lines]) // 2])
    evaluation.evaluate(folder, exam)
    assert path.read_bytes() == content
    assert len(complete) == 12


def test_a_damaged_row_in_the_middle_is_an_error(folder, exam, undisturbed):
    """It cannot be repaired by going on: the message names file and line."""
    name, content = undisturbed
    path = folder / "evaluations" / name
    path.parent.mkdir()
    complete = content.splitlines(keepends=True)
    path.write_bytes(b"".join([*complete[:2], complete[2][:20] + b"\n", *complete[3:]]))
    with pytest.raises(ValueError, match=rf"{re.escape(name)}.*line 3"):
        evaluation.evaluate(folder, exam)


def test_rows_do_not_depend_on_the_chunk(folder, exam, undisturbed):
    """Items are scored in batches; how many at a time must not change a completion or a prediction."""
    rows = evaluation.evaluate(folder, exam, chunk=1)
    for row, line in zip(rows, undisturbed[1].splitlines()):
        expected = json.loads(line)
        assert row.keys() == expected.keys()
        assert row["loglikelihood"] == pytest.approx(expected["loglikelihood"], abs=2e-4)
        assert row | {"loglikelihood": None} == expected | {"loglikelihood": None}


def test_a_folder_without_a_model_is_refused(tmp_path, exam):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="neither config.json"):
        evaluation.evaluate(tmp_path / "empty", exam)
    assert not (tmp_path / "empty" / "evaluations").exists()


# --- accuracy ----------------------------------------------------------------------------------------------------------------

def rows_of(predictions, answers, *, method="loglikelihood", facts=None, options=4):
    """Rows as evaluate gives them, with what the tables read."""
    return [{"id": f"q{i}", "fact": facts[i] if facts else f"f{i}", "answer_idx": answer, "options": options,
             evaluation.METHODS[method]: None if prediction == "-" else prediction}
            for i, (prediction, answer) in enumerate(zip(predictions, answers))]


@pytest.mark.parametrize(("predictions", "answers", "right", "unparsed"), [
    ("ABCDABCDAB", "ABCDAAAAAA", 6, 0), ("ABC-A--DAB", "ABCDAAAAAA", 5, 3), ("BBBB", "AAAA", 0, 0), ("AAAA", "AAAA", 4, 0),
    ("----", "AAAA", 0, 4), ("A", "A", 1, 0)])
def test_accuracy_is_a_hand_count_with_an_exact_interval(predictions, answers, right, unparsed):
    """Unparsed answers are wrong in one accuracy and left out of the other; the interval is scipy's Clopper-Pearson."""
    line = evaluation.accuracy_row(rows_of(predictions, answers, method="generation"), method="generation")
    number = len(answers)
    exact = stats.binomtest(right, number).proportion_ci(0.95, method="exact")
    assert (line["items"], line["correct"], line["unparsed"], line["accuracy"]) == (number, right, unparsed, right / number)
    assert (line["low"], line["high"]) == pytest.approx((exact.low, exact.high))
    assert line["chance"] == 0.25
    if unparsed == number:
        assert math.isnan(line["accuracy_parsed"])
    else:
        assert line["accuracy_parsed"] == right / (number - unparsed)


def test_chance_follows_the_options_and_nothing_is_refused():
    mixed = rows_of("AB", "AA", options=4) + rows_of("AB", "AA", options=2)
    assert evaluation.accuracy_row(mixed)["chance"] == 0.375
    assert evaluation.accuracy_row(mixed, chance=0.3)["chance"] == 0.3
    with pytest.raises(ValueError, match="no rows to score"):
        evaluation.accuracy_row([])
    assert evaluation.correct(mixed).tolist() == [1, 0, 1, 0]
    assert evaluation.correct(rows_of("A-", "AA", method="generation"), "generation").tolist() == [1, 0]


def test_comparison_by_hand():
    """a is right on 7 of 10, b on 3, both on 2: five wins, one loss; with one item a fact the p-value is McNemar's."""
    a, b, answers = "AAAAAAABBB", "AABBBBBABB", "AAAAAAAAAA"
    gain = evaluation.compare(rows_of(a, answers), rows_of(b, answers))
    assert (gain.value, gain.wins, gain.losses, gain.n) == (pytest.approx(0.4), 5, 1, 10)
    assert gain.p_value == pytest.approx(stats.binomtest(1, 6).pvalue)
    assert -0.1 <= gain.low < 0.4 < gain.high <= 0.8
    back = evaluation.compare(rows_of(b, answers), rows_of(a, answers))
    assert (back.value, back.wins, back.losses) == (pytest.approx(-0.4), 1, 5)
    assert evaluation.compare(rows_of(a, answers), rows_of(a, answers)).p_value == 1


def test_a_fact_that_is_asked_twice_counts_once():
    """Two seeds, or two questions on one fact, are no independent evidence: interval and p-value must not shrink by them."""
    a, b, answers = "AAAAAAABBB", "AABBBBBABB", "AAAAAAAAAA"
    facts = [f"f{i}" for i in range(10)] * 2
    once = evaluation.compare(rows_of(a, answers), rows_of(b, answers))
    twice = evaluation.compare(rows_of(a * 2, answers * 2, facts=facts), rows_of(b * 2, answers * 2, facts=facts))
    assert (twice.value, twice.n) == (pytest.approx(once.value), 10)
    assert twice.p_value == pytest.approx(once.p_value)
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high), abs=0.02)


@pytest.mark.parametrize("other", [rows_of("AAA", "AAA"), rows_of("AAAA", "AAAA")[::-1], [row | {"id": f"x{row['id']}"} for row in
                                                                                      rows_of("AAAA", "AAAA")], []])
def test_only_the_same_items_are_compared(other):
    """Fewer items, another order, other items: a paired test would pair what does not belong together."""
    with pytest.raises(ValueError, match="only on the same items in the same order"):
        evaluation.compare(rows_of("AABB", "AAAA"), other)


# --- the exams of the notebooks ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["smoke", "small"])
def test_no_fact_of_a_test_exam_is_asked_in_training(name):
    """Recall and vignettes ask facts of diseases: those of the test are on diseases that no training question names."""
    profile, facts, diseases = PROFILES[name], {}, {}
    for part in ("train", "test"):
        exams = evaluation.world_exams(profile, part=part)
        items = [item for exam in exams.values() for item in exam]
        facts[part] = {item["meta_info"]["fact"] for exam in ("recall", "vignette") for item in exams[exam]}
        diseases[part] = {item["meta_info"]["disease"] for item in items}
        number = profile.test_items if part == "test" else profile.training_questions
        assert {exam: len(made) for exam, made in exams.items()} == dict.fromkeys(("vignette", "recall", "abstract"), number)
        assert len({item["id"] for item in items}) == len(items)
    assert not facts["train"] & facts["test"]
    assert not diseases["train"] & diseases["test"]
    assert not {item["question"] + item["context"] for item in ablations.training_items(profile)} & {
        item["question"] + item["context"] for exam in evaluation.exams(profile) for item in exam.items}
    assert min(len(part) for part in facts.values()) > 10


def test_the_small_exams_can_show_an_effect_of_five_points():
    """At least 300 items an exam, and chance where it should be."""
    exams = {exam.name: exam for exam in evaluation.exams(PROFILES["small"])}
    assert {name: (len(exam.items), exam.chance) for name, exam in exams.items()} == {
        "vignette": (300, 0.25), "recall": (300, 0.25), "abstract": (300, pytest.approx(1 / 3))}


def test_real_exams_are_split_between_training_and_test(shared_data):
    """What is trained on is what the test sample leaves: no id and no question text in both, whatever the seed."""
    profile = PROFILES["smoke"]
    for seed in (0, 1):
        tests = evaluation.exams(profile, shared_data, seed=seed)
        tested = [item for exam in tests for item in exam.items]
        trained = ablations.training_items(profile, shared_data, seed=seed)
        assert [exam.name for exam in tests] == ["medqa_us_4opt", "medmcqa", "pubmedqa"]
        assert len(tested) == 3 * profile.test_items
        assert len(trained) == 3 * 2 * profile.training_questions
        assert not {item["id"] for item in tested} & {item["id"] for item in trained}
        assert not {item["question"] for item in tested} & {item["question"] for item in trained}
    assert all(exam.chance == pytest.approx(chance) for exam, chance in zip(tests, (0.25, 0.25, 1 / 3)))


# --- the ablation of PMC-LLaMA, Table 1 -----------------------------------------------------------------------------------------

# As printed in the paper (arXiv 2304.14454): MedQA, MedMCQA, PubMedQA.
TABLE_1 = {"2M base": (44.54, 48.51, 73.40), "5M base": (45.48, 51.42, 76.40), "2M + papers": (44.70, 50.54, 69.50),
           "2M + papers + books": (45.56, 51.45, 74.60), "5M + papers + books": (48.15, 54.15, 77.10),
           "2M + rationale": (49.32, 54.56, 77.20), "2M + rationale + dialogue": (54.43, 55.77, 77.00),
           "2M + rationale + dialogue + graph": (56.36, 56.04, 77.90)}
EXAMS = {"vignette": "MedQA", "recall": "MedMCQA", "abstract": "PubMedQA"}


def test_every_published_row_and_cell_is_there():
    """8 rows x 3 exams: our table holds the 24 values of the paper, each beside the row that repeats it, and no other."""
    table = pd.read_csv(REPOSITORY / "results" / "small" / "04_ablations" / "tables" / "table_1.csv")
    ours = {(line.row, line.exam): round(100 * line.published, 2) for line in table.itertuples()}
    assert ours == {(row, exam): value for row, values in TABLE_1.items() for exam, value in zip(EXAMS, values)}
    assert len(ours) == 24
    with open(REPOSITORY / "results" / "reported" / "pmc_llama.csv", encoding="utf-8", newline="") as stream:
        file = {(line["row"], line["column"]): float(line["value"]) for line in csv.DictReader(stream)
                if line["table"] == "1" and line["metric"] == "accuracy"}
    names = {line["label"].format({"small": "2M", "large": "5M"}[line["size"]]): line["published"] for line in ablations.TABLE["pmc_llama"]}
    assert {(names[row], EXAMS[exam]): value for (row, exam), value in ours.items()} == file


def test_rows_are_made_of_what_exists():
    """Each row extends an earlier one, and its size, mixture and tuning are known, with real files as well: an error would come after hours."""
    lines, public = ablations.TABLE["pmc_llama"], ablations.TABLE["public_injection"]
    assert len({line["label"] + line["size"] for line in lines}) == len({line["key"] for line in lines}) == len(lines) == 8
    for place, line in enumerate(lines):
        assert line["extends"] in [earlier["key"] for earlier in lines[:place]] if place else line["extends"] is None
        assert line["size"] in ("small", "large")
        assert line["tuning"] in ablations.TABLE["tuning_sets"]
    injections = [line["injection"] for line in lines]
    assert injections.count(None) == 2
    for known, named in (({"book", "paper", "web", "general"}, injections), ({"reference", "abstract", "dialogue", "general"}, map(public.get, injections))):
        assert {source for name in named if name for source in corpora.MIXTURES[name]} <= known


def test_each_row_adds_one_ingredient():
    """A step of the table must be one difference, or it could not be called the effect of it."""
    lines = {line["key"]: line for line in ablations.TABLE["pmc_llama"]}
    for line in lines.values():
        if line["extends"]:
            before = lines[line["extends"]]
            assert sum(line[part] != before[part] for part in ("size", "injection", "tuning")) == 1, line["key"]
    assert sum(line["extends"] is not None for line in lines.values()) == 7


def test_tuning_sets_grow_by_one_source():
    sets = ablations.TABLE["tuning_sets"]
    assert sets["+ dialogue"] == [*sets["rationale"], "dialogue"]
    assert sets["+ knowledge graph"] == [*sets["+ dialogue"], "knowledge graph"]
    made = ablations.instruction_sources(PROFILES["smoke"])
    assert {name: len(part) for name, part in made.items()} == {
        "task": 72, "rationale": 144, "dialogue": 36, "knowledge graph": 36, "fixed wording": 144}
    assert {source for parts in sets.values() for source in parts} == set(made)
    tokenizer = corpora.train_tokenizer([record["output"] for part in made.values() for record in part], 600)
    packed = ablations.tuning_data(PROFILES["smoke"], tokenizer, wanted=("rationale", "+ dialogue"))
    assert list(packed) == ["rationale", "+ dialogue"]
    assert len({*packed["+ dialogue"].pieces[:, 1]}) - len({*packed["rationale"].pieces[:, 1]}) == 36


def test_instruction_sources_hold_no_fact_of_the_test():
    """Dialogues and graph records are built beside the exams: no name of a test disease may be in any of them."""
    profile = PROFILES["small"]
    known = world.load_world(number_of_diseases=profile.number_of_diseases)
    tested = {item["meta_info"]["disease"] for exam in evaluation.exams(profile) for item in exam.items}
    names = [world.term(known, disease, "name", "en").casefold() for disease in known.diseases if disease["disease_id"] in tested]
    everything = "\n".join(text for part in ablations.instruction_sources(profile).values() for record in part
                           for text in record.values()).casefold()
    assert [name for name in names if name in everything] == []
    trained = [world.term(known, disease, "name", "en").casefold() for disease in known.diseases if disease["disease_id"] not in tested]
    assert all(name in everything for name in trained)  # the check sees the names that are there
    assert len(names) == 42


# --- the tables of the ablation, from rows made by hand ---------------------------------------------------------------------------

ROWS = [{"row": "base", "key": "base", "size": "2M", "extends": None, "reported": "LLaMA 7B baseline"},
        {"row": "books", "key": "books", "size": "2M", "extends": "base", "reported": "PMC-LLaMA_K 7B papers+books"}]


@pytest.fixture
def answered(monkeypatch):
    """lib.evaluation.evaluate, answering from a table: folder -> letters, where A is right."""
    letters = {"base-0": "ABBBBBBB", "books-0": "AAAAAABB", "base-1": "AABBBBBB", "books-1": "AAAAAAAB"}
    monkeypatch.setattr(evaluation, "evaluate", lambda folder, exam, **_: rows_of(letters[folder], "AAAAAAAA"))
    return benchmarks.make_exam("recall", metal_items(8, seed=2))


def test_tables_by_hand(answered):
    """1 and 6 of 8 right with the first seed, 2 and 7 with the second; pooled, items of a fact are drawn together."""
    one, two = ({seed: {name: f"{name}-{seed}" for name in ("base", "books")} for seed in range(number)} for number in (1, 2))
    step, = ablations.step_table(ROWS, one, [answered]).to_dict("records")
    assert (step["step"], step["difference"], step["wins"], step["losses"]) == ("books over base", 0.625, 5, 0)
    assert step["p_value"] == pytest.approx(2 / 32)
    step, = ablations.step_table(ROWS, two, [answered]).to_dict("records")
    assert (step["difference"], step["wins"]) == (10 / 16, 10)
    assert step["p_value"] == pytest.approx(2 / 64)  # six facts differ: two seeds are not ten independent items
    between = ablations.steps_between({"base": "base-0", "books": "books-0"}, [answered])
    assert between["step"].tolist() == ["books over base"]


def test_six_relations_are_six_sentences():
    """Two relations that are worded alike would make a question of notebook 03 with two right options."""
    known = world.load_world(number_of_diseases=24)
    wordings = [templates[0] for templates in world.wordings("en")["relation"].values()]
    said = {(disease["disease_id"], attribute): {world.sentence(known, disease, attribute, "en", wording) for wording in wordings}
            for disease in known.diseases for attribute in world.ATTRIBUTES}
    assert len(said) == 144
    assert {len(sentences) for sentences in said.values()} == {6}


# --- letters, few-shot cases, the harness, an endpoint -------------------------------------------------------------------

# --- exams in six languages ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["smoke", "small"])
def test_every_language_has_recall_and_an_exam_of_its_own_form(name):
    profile = SIX_LANGUAGES[name]
    test, train = (evaluation.language_items(profile, part=part) for part in ("test", "train"))
    assert list(test) == list(train) == [
        "recall en", "vignette en", "recall zh", "vignette zh", "recall ja", "several ja", "recall fr", "several fr", "recall ru", "yes_no ru",
        "recall es", "vignette es"]
    for each, items in test.items():
        exam, language = each.split()
        assert {item["language"] for item in items} == {language}
        assert len(items) == profile.test_items // (1 if exam == "recall" else 2)
        assert {len(item["options"]) for item in items} == {"yes_no ru": {2}, "vignette zh": {5}, "several ja": {5}, "several fr": {5}}.get(each, {4})
        asked, taught = ({item["meta_info"]["disease"] for item in part[each]} for part in (test, train))
        assert asked
        assert not asked & taught


def test_real_exams_are_read_by_language_and_split(shared_data):
    """Test questions where there are some, else the validation split; what is neither test nor validation trains."""
    profile = SIX_LANGUAGES["small"]
    test, train = (evaluation.language_items(profile, str(shared_data), part=part) for part in ("test", "train"))
    assert {"medqa_us_4opt en", "medmcqa en", "pubmedqa en", "mmlu_medical en", "headqa en", "headqa es", "frenchmedmcqa fr", "igakuqa ja",
            "rumeddanet ru", "casimedicos en", "casimedicos es"} <= set(test)
    assert {"pubmedqa en", "frenchmedmcqa fr", "rumeddanet ru", "casimedicos es"} <= set(train)
    assert not {"medqa_us_4opt en", "medmcqa en", "igakuqa ja"} & set(train), "their training splits are not there"
    for name, items in test.items():
        assert 100 < len(items) <= profile.test_items  # the smallest set has 117
        assert all(item["answer_idx"] for item in items), "items without options cannot be asked"
        assert not {item["id"] for item in items} & {item["id"] for item in train.get(name, ())}
        benchmarks.make_exam(name, items)
    assert any("," in item["answer_idx"] for item in test["frenchmedmcqa fr"])
    assert evaluation.language_items(profile, str(shared_data)) == test


@pytest.mark.parametrize(("about", "expected"), [
    ({"fact": "asthma.treatment"}, "treatment"), ({"subject_name": "Pharmacology", "fact": "x.y"}, "Pharmacology"), ({"subject": "anatomy"}, "anatomy"),
    ({"category": "biology", "year": "2016"}, "biology"), ({}, "not named")])
def test_topics(about, expected):
    assert evaluation.topic({"meta_info": about}) == expected


def test_where_several_may_be_right_chance_is_that_of_a_set(folder):
    """Of three options seven sets can be chosen; the prediction holds every option above an even share."""
    items = [item | {"options": dict(list(item["options"].items())[:3]), "answer_idx": idx} for item, idx in
             zip(metal_items(2, seed=5), ("A,B", "A"))]
    exam = benchmarks.make_exam("sets", items)
    assert exam.several
    assert exam.chance == pytest.approx(1 / 7)
    for row in evaluation.evaluate(folder, exam, methods=("loglikelihood",)):
        shares = np.exp(np.array(list(row["loglikelihood"].values())))
        expected = [letter for letter, share in zip("ABC", shares / shares.sum()) if share > 1 / 3]
        assert row["predicted_loglikelihood"].split(",") == expected


@pytest.mark.parametrize(("name", "form", "shape"), [("medqa_us_4opt", "medqa", "Llama"), ("medmcqa", "medmcqa", "Qwen2"),
                                                  ("mmlu_medical", "mmlu", "Mistral")])
def test_letters_score_as_in_the_harness(parrot, shared_data, tmp_path, name, form, shape):
    """lm-evaluation-harness on the same saved model and 250 real questions: the same log-likelihoods and the same choices."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    _, tokenizer = load_model(parrot / "model")
    config = getattr(transformers, f"{shape}Config")(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=4096, initializer_range=0.3, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    torch.manual_seed(0)
    getattr(transformers, f"{shape}ForCausalLM")(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    exam = benchmarks.make_letter_exam(name, sources.load_exam(shared_data, name, items=250), form=form)
    harness = HFLM(pretrained=str(tmp_path), device="cpu", dtype="float32", batch_size=16, add_bos_token=True)
    requests = [Instance("loglikelihood", {}, (exam.prompt(item), text), 0) for item in exam.items for text in exam.options(item)[1].values()]
    theirs = np.array([value for value, _ in harness.loglikelihood(requests, disable_tqdm=True)]).reshape(-1, 4)
    rows = evaluation.score_items(*load_model(tmp_path), exam, exam.items, ("loglikelihood",))
    ours = np.array([list(row["loglikelihood"].values()) for row in rows])
    assert ours.shape == (250, 4)
    assert np.abs(ours - theirs).max() < 1e-3
    assert [row["predicted_loglikelihood"] for row in rows] == ["ABCD"[best] for best in theirs.argmax(1)]
    assert len(set(theirs.argmax(1))) > 2, "a model that always says the same letter shows nothing"


def test_a_prompt_that_does_not_fit_is_shortened_from_its_cases(parrot):
    """With room for everything all cases stand there; with less the last go first; the question always stays whole."""
    items, cases = metal_items(3, seed=1), metal_items(4, seed=7)
    cases = [case | {"question": f"Case {i}: which metal?"} for i, case in enumerate(cases)]
    exam = benchmarks.make_letter_exam("metals", items, cases=cases, description="On metals.\n\n")
    _, tokenizer = load_model(parrot / "model")
    tokens = corpora.count_tokens(tokenizer, ["".join([exam.description, *exam.cases[:n], exam.prompt(items[0])]) for n in range(5)])
    for number in range(5):
        for spare in (0, 1):
            prompt, = evaluation.fitted_prompts(exam, items[:1], tokenizer, int(tokens[number]) + 3 + spare)
            assert prompt == "".join([exam.description, *exam.cases[:number], exam.prompt(items[0])])
    prompt, = evaluation.fitted_prompts(exam, items[:1], tokenizer, 1)
    assert prompt == exam.description + exam.prompt(items[0])


def test_several_right_options_are_scored_as_sets():
    """Only equal sets are correct."""
    rows = [{"answer_idx": "A,C", "predicted_generation": "A,C"}, {"answer_idx": "A,C", "predicted_generation": "A"},
            {"answer_idx": "B", "predicted_generation": None}]
    assert evaluation.correct(rows, "generation").tolist() == [1, 0, 0]
