"""The grid of ablations: rows as data, corpora that differ in one thing, facts that do not leak between languages, parts and names.

What notebook 18 does with a row is tested by running its tagged cells on rows of the test's choice."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from lib import ablations, corpora, evaluation, filters, statistics, training, world
from lib.models import new_model
from lib.profiles import PROFILES, get_profile
from lib.results import REPOSITORY, read_rows
from lib.world import LANGUAGES

FAMILIES = list(ablations.TABLE["families"])


def row_of(family, name):
    return next(row for row in ablations.family_rows(family) if row["row"] == name)


def run_cells(*tags, rows, profile="smoke", seed=0, base_model="", folder=None):
    """The names that the tagged cells of the notebook leave behind, after running them on these rows."""
    cells = json.loads((REPOSITORY / "notebooks" / "18_ablation_grid.ipynb").read_text(encoding="utf-8"))["cells"]
    code = {cell["metadata"]["tags"][0]: "".join(cell["source"]) for cell in cells if cell["metadata"].get("tags")}
    names = {"PROFILE": profile, "BASE_MODEL": base_model, "jobs": [(row, seed) for row in rows], "earlier": [], "known": set(),
             "families": {row["family"]: ablations.family_rows(row["family"]) for row in rows}, "run": SimpleNamespace(folder=folder)}
    exec(next("".join(cell["source"]) for cell in cells if "from lib import" in "".join(cell["source"])), names)
    for tag in tags:
        exec(code[tag], names)
    return names


def corpus_of(row, profile="smoke"):
    """(world, Prepared) of a row."""
    names = run_cells("corpora", rows=[row], profile=profile)
    return names["texts"][names["names"][0][1]]


# --- rows -------------------------------------------------------------------------------------------------------------------------

def test_every_row_is_whole_and_named_once():
    assert len(FAMILIES) == 11
    for family in FAMILIES:
        rows = ablations.family_rows(family)
        assert len({row["row"] for row in rows}) == len(rows) >= 2
        for row in rows:
            assert set(row) == {*ablations.TABLE["defaults"], "row", "family"}
            assert set(row["exams"]) <= set(ablations.TABLE["exams"])
            assert row["mixture"] in corpora.MIXTURES
            assert set(row["stages"]) <= {"inject", "tune"}
            assert set(row["languages"]) <= set(LANGUAGES)


def test_a_row_differs_from_the_first_of_its_family_in_what_it_names():
    first, *others = ablations.family_rows("general text")[1:]
    for row in others:
        assert {field for field in row if row[field] != first[field]} <= {"row", "x", "mixture"}


def test_unknown_families_and_fields_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="unknown family 'bookz'; choose of general text"):
        ablations.family_rows("bookz")
    monkeypatch.setitem(ablations.TABLE["families"], "odd", {"rows": [{"row": "a", "tokns": 2}]})
    with pytest.raises(ValueError, match="odd: unknown field tokns"):
        ablations.family_rows("odd")


def test_sizes_by_hand():
    row = ablations.family_rows("capacity")[0]  # a quarter of the width, half of the diseases, all tokens
    profile = ablations.row_profile("small", row)
    shape = profile.models["2M"]
    assert (shape.hidden_size, shape.intermediate_size, shape.heads, profile.number_of_diseases, profile.injection_tokens) == (48, 128, 3, 35, 1_200_000)
    assert ablations.row_profile("small", row | {"diseases": 0.1}).number_of_diseases == 16
    six = ablations.row_profile("small", ablations.family_rows("MMedLM")[0])
    assert six == get_profile("small", six_languages=True)  # so that notebook 05 and this family share their stages
    assert ablations.row_profile("full", row | {"diseases": 1}).models == PROFILES["full"].models  # a pretrained model keeps its width


def test_keys_name_row_seed_and_model():
    rows = [row for family in FAMILIES for row in ablations.family_rows(family)]
    keys = {ablations.run_key("small", row, seed, model) for row in rows for seed in (0, 1) for model in ("", "folder")}
    assert len(keys) == 4 * len(rows)


def test_shares_of_general_text_and_of_books():
    shares = {row["x"]: corpora.MIXTURES[row["mixture"]] for row in ablations.family_rows("general text") if row["x"] is not None}
    assert sorted(shares) == [0, 1, 5, 20, 50]
    for percent, weights in shares.items():
        assert 100 * weights.get("general", 0) / sum(weights.values()) == pytest.approx(percent, abs=0.01)
        assert weights["book"] / weights["paper"] == pytest.approx(15 / 4, rel=0.01)
    for row in ablations.family_rows("books or papers"):
        weights = corpora.MIXTURES[row["mixture"]]
        assert 100 * weights.get("book", 0) / sum(weights.values()) == pytest.approx(row["x"])
        assert weights["general"] / sum(weights.values()) == 0.05


# --- what a row reads ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["facts in English alone", "second half in three languages"])
def test_no_fact_crosses_into_a_language_that_does_not_tell_it(name):
    """By the list of stated facts, and by the names and terms themselves: none of the first half's stands in a French or Chinese document."""
    row = row_of("languages", name)
    names = run_cells("corpora", "exams", rows=[row], profile="small")
    known, prepared = names["texts"][names["names"][0][1]]
    untold = ablations.part_of(known, "first half" if "half" in name else "all")
    ids = {world.fact_id(disease, attribute) for disease in untold for attribute in world.ATTRIBUTES}
    documents = [record for records in prepared.documents.values() for record in records]
    for language in ("fr", "zh"):
        own = [record for record in documents if record["language"] == language]
        assert len(own) > 100
        assert not ids & {fact for record in own for fact in record["meta"].get("facts", {})}
        text = "\n".join(record["text"] for record in own).casefold()
        assert not [disease for disease in untold if world.bare(world.term(known, disease, "name", language), language).casefold() in text]
        exam = next(exam for exam, _ in names["exams"][0]
                    if exam.items[0]["language"] == language and "first half" in exam.name)
        assert {item["meta_info"]["fact"] for item in exam.items} <= {
            world.fact_id(disease, attribute) for disease in ablations.part_of(known, "first half") for attribute in world.ATTRIBUTES}
    english = {fact for record in documents if record["language"] == "en" for fact in record["meta"].get("facts", {})}
    assert ids <= english  # what the others must not tell is told in English


def test_each_language_is_asked_at_least_200_questions():
    items = evaluation.language_items(get_profile("small", six_languages=True))
    for language in LANGUAGES:
        assert sum(len(part) for name, part in items.items() if name.endswith(language)) >= 200
        assert all(len(part) >= 100 for name, part in items.items() if name.endswith(language))


def test_training_questions_and_corpora_of_parts_are_disjoint():
    known = world.load_world(number_of_diseases=35)
    parts = {name: {disease["disease_id"] for disease in ablations.part_of(known, name)}
             for name in ("all", "none", "first half", "second half", "test", "leaked", "not leaked")}
    assert parts["first half"] | parts["second half"] == parts["all"]
    assert not parts["first half"] & parts["second half"]
    assert parts["leaked"] | parts["not leaked"] == parts["test"]
    assert not parts["leaked"] & parts["not leaked"]
    profile = ablations.row_profile("small", row_of("order", "tuning alone"))
    trained = {item["meta_info"]["disease"] for item in ablations.training_items(profile)}
    assert trained
    assert not trained & parts["test"]
    assert trained <= parts["all"]


def test_wordings_are_the_first_and_eight_are_all():
    whole, few = (world.load_world(number_of_diseases=16, templates=number) for number in (8, 2))
    everything = world.load_world(number_of_diseases=16)
    assert world.books(whole, "en", copies=1, seed=3) == world.books(everything, "en", copies=1, seed=3)
    text = "\n".join(record["text"] for record in world.books(few, "en", copies=4, seed=3)).casefold()
    ends = {number: [template.split("{value}")[-1].strip(" .") for block in world.wordings("en")["attributes"].values()
                     for template in block["book"][number:number + 1]] for number in (0, 1, 2, 5)}
    said = {number: sum(len(end) > 12 and end.replace("{disease}", "").casefold() in text for end in group) for number, group in ends.items()}
    treatment = world.wordings("en")["attributes"]["treatment"]["book"]
    for disease in few.diseases:
        forms = [world.sentence(few, disease, "treatment", "en", template).casefold() in text for template in treatment]
        assert forms == [True] * 2 + [False] * 6, said
    one = world.books(world.load_world(number_of_diseases=16, templates=1), "en", copies=1, seed=3)
    assert len(one) == 16


def test_the_reworded_exam_asks_what_no_corpus_says():
    row = row_of("wordings", "8 wordings")
    names = run_cells("corpora", "exams", rows=[row])
    (seen, _), (reworded, _) = names["exams"][0]
    prepared = names["texts"][names["names"][0][1]][1]
    text = " ".join(" ".join(record["text"].split()) for records in prepared.documents.values() for record in records).casefold()
    found = {exam.name: sum(item["completion"]["stem"].casefold() in text for item in exam.items) for exam in (seen, reworded)}
    assert found["reworded"] == 0 < found["recall"]  # the check sees a wording that is there


def test_invented_names_leave_no_real_one():
    known, prepared = corpus_of(row_of("invented names", "injection"))
    text = "\n".join(record["text"] for source in ("book", "paper") for record in prepared.documents[source]).casefold()
    real = world.load_world(number_of_diseases=16)
    names = {world.term(real, disease, "name", "en").casefold() for disease in real.diseases}
    assert len(names) == 16
    assert not [name for name in names if name in text]
    assert sum(world.term(known, disease, "name", "en").casefold() in text for disease in known.diseases) >= 14  # some pages are held out


@pytest.mark.parametrize(("name", "copied"), [("questions copied", True), ("questions in other words", False)])
def test_leaked_pages_are_what_is_asked_or_are_not(name, copied):
    """The rule finds every copied question, and none that asks the same facts in other words."""
    names = run_cells("corpora", "exams", rows=[row_of("contamination", name)], profile="small")
    (exam, _), (untouched, _) = names["exams"][0]
    known, prepared = names["texts"][names["names"][0][1]]
    assert not {item["meta_info"]["fact"] for item in exam.items} & {item["meta_info"]["fact"] for item in untouched.items}
    assert list(exam.items) == ablations.leaked_items(known, 300)
    pages = [record["text"] for record in prepared.documents["web"]]
    find = filters.overlap_finder([item["question"] for item in exam.items], window=120)
    found = len(set().union(*(find(page) for page in pages)))
    assert 50 <= len(pages) <= 60
    assert (found > 0.9 * len(exam.items) if copied else found == 0)
    said = "\n".join(pages)
    assert sum(item["answer"] in said for item in exam.items) > 0.95 * len(exam.items)  # the facts are told


# --- stages and answers ---------------------------------------------------------------------------------------------------------------

@pytest.fixture
def stages(monkeypatch):
    """What train_row asks of lib.training, in order."""
    called = []
    monkeypatch.setattr(training, "train_base", lambda *_, seed, **__: called.append(("base", seed)) or "base")
    monkeypatch.setattr(training, "inject", lambda profile, size, folder, mixture, *, name, seed: called.append(("inject", folder, name)) or "injected")
    monkeypatch.setattr(training, "tune", lambda profile, folder, packed, *, name, seed, lora_rank: called.append(("tune", folder, name, lora_rank)) or "tuned")
    return called


@pytest.mark.parametrize(("name", "expected"), [
    ("neither", []), ("tuning alone", [("tune", "base", "full-papers_books", 0)]), ("injection alone", [("inject", "base", "papers_books")]),
    ("injection then tuning", [("inject", "base", "papers_books"), ("tune", "injected", "full-papers_books", 0)]),
    ("tuning then injection", [("tune", "base", "full-papers_books", 0), ("inject", "tuned", "papers_books")])])
def test_stages_follow_each_other_as_the_row_says(stages, name, expected):
    run_cells("corpora", "stages", rows=[row_of("order", name)], seed=7)
    assert stages == [("base", 7), *expected]


def test_leaked_questions_are_tuned_on(monkeypatch, stages):
    seen = []
    monkeypatch.setattr(ablations.instructions, "pack_records", lambda records, *_: seen.append(records) or "packed")
    run_cells("corpora", "stages", rows=[row_of("contamination", name) for name in ("nothing leaked", "questions in the tuning data")])
    clean, leaked = seen
    known = world.load_world(number_of_diseases=16)
    asked = ablations.instructions.task_records(ablations.leaked_items(known, PROFILES["smoke"].test_items))
    assert len(asked) == 12
    assert leaked == clean + 8 * asked
    assert not [record for record in asked if record in clean]


def test_answers_of_a_trained_row(places):
    """One row from corpus to lines: facts, shares and exposures belong together, and the same call trains nothing again."""
    row, cells = row_of("exposures", "all tokens"), ("corpora", "stages", "exams", "answers")
    line, = run_cells(*cells, rows=[row], seed=1, folder=places)["lines"]
    assert [line] == read_rows(places / "rows" / "grid.jsonl")
    assert line["key"] == ablations.run_key("smoke", row, 1)
    assert line["items"] == PROFILES["smoke"].test_items
    assert len(line["facts"]) == len(set(line["facts"])) == len(line["correct"]) == len(line["exposures"])
    assert set(line["correct"]) <= {0.0, 1.0}
    assert json.loads(json.dumps(line)) == line
    known = world.load_world(number_of_diseases=16)
    asked = {world.fact_id(disease, attribute) for disease in ablations.part_of(known, "test") for attribute in world.ATTRIBUTES}
    assert set(line["facts"]) <= asked
    assert sum(line["exposures"]) > 0
    before = {path: path.stat().st_mtime_ns for path in (places / "runs_root").rglob("done.json")}
    assert before
    assert [line] == run_cells(*cells, rows=[row], seed=1, folder=places)["lines"]
    assert before == {path: path.stat().st_mtime_ns for path in (places / "runs_root").rglob("done.json")}


def test_invented_names_on_a_model_from_a_folder(places):
    """A checkpoint in Hugging Face layout, as `full` would name one: it is asked as it is, and after reading the invented facts."""
    texts = [page["text"] for page in world.general_text(world.load_world(number_of_diseases=16), "en", documents=20, seed=0)]
    tokenizer = corpora.train_tokenizer(texts, 600)
    folder = places / "checkpoint"
    new_model(PROFILES["smoke"].models["2M"], tokenizer, seed=3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    lines = run_cells("corpora", "stages", "exams", "answers", rows=ablations.family_rows("invented names"), base_model=str(folder), folder=places)["lines"]
    assert [line["stage"][:6] for line in lines] == ["checkp"] * 2 + ["inject"] * 2
    assert all(line["exposures"] and (sum(line["exposures"]) > 0) == (line["exam"] == "recall" and line["stage"] != "checkpoint") for line in lines)


def test_rationales_are_written_by_models_of_six_languages(places):
    lines = run_cells("corpora", "stages", "exams", "answers", rows=[row_of("MMedLM", "and rationales")], folder=places)["lines"]
    written = {line["exam"]: line for line in lines if "written" in line}
    assert set(written) == {f"rationales {language}" for language in LANGUAGES}
    assert len(lines) == 18
    assert all(len(line["written"]) == len(line["wanted"]) == line["items"] and all(line["wanted"]) for line in written.values())


# --- intervals over facts and seeds -----------------------------------------------------------------------------------------------

def test_crossed_mean_against_one_draw_after_another():
    values = np.random.default_rng(5).random((40, 3)) + np.array([0, 0.1, 0.5])
    estimate = statistics.crossed_mean(values, seed=1, replicates=4000)
    draw = np.random.default_rng(9)
    drawn = [values[draw.integers(0, 40, 40)][:, draw.integers(0, 3, 3)].mean() for _ in range(4000)]
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.n == 40
    assert (estimate.low, estimate.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.02)
    over_facts = statistics.bootstrap_mean(values.mean(axis=1), seed=1)
    assert estimate.high - estimate.low > 1.5 * (over_facts.high - over_facts.low)  # seeds that differ make it wider


def test_crossed_mean_of_one_seed_is_the_bootstrap_over_facts():
    values = np.random.default_rng(2).integers(0, 2, 60).astype(float)
    one, plain = statistics.crossed_mean(values[:, None], seed=0, replicates=4000), statistics.bootstrap_mean(values, seed=0)
    assert (one.low, one.high) == pytest.approx((plain.low, plain.high), abs=0.02)
    constant = statistics.crossed_mean(np.zeros((60, 2)), seed=0)
    assert (constant.low, constant.value, constant.high) == (-constant.high, 0, pytest.approx(statistics.clopper_pearson(0, 60)[1]))


def test_a_limited_world_equals_the_whole_but_for_its_wordings():
    assert replace(world.load_world(number_of_diseases=16, templates=2), templates=8) == world.load_world(number_of_diseases=16)
