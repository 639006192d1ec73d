"""Forms and studies (balance, blinding, no rating lost), judges, rubrics, the simulated panel, and the published ratings with their known values."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import ratings, reported, results, statistics, text_metrics, world
from tests.conftest import SHARED_DATA

HERE = SHARED_DATA / "hr_mslr"
public = pytest.mark.skipif(not HERE.is_dir(), reason="no public data here")


def questions(number, systems):
    return [{"id": f"q{n}", "question": f"Question {n}?", "answers": {s: f"secret text {n}" for s in systems}} for n in range(number)]


# ------------------------------------------------------------------------------------------------------------ forms


def test_the_forms_have_the_axes_of_the_papers():
    """Names as in the copied tables, so that a result of ours can stand beside a published one."""
    names = {form: [axis["name"] for axis in told["axes"]] for form, told in ratings.FORMS.items()}
    assert {form: len(own) for form, own in names.items()} == {"independent": 12, "lay": 2, "pairwise": 9, "ranking": 3}
    for form, table in (("independent", "A.2"), ("lay", "A.4"), ("pairwise", "A.5")):
        assert names[form] == list(reported.query("Med-PaLM 2", table=table)["column"].unique())


def test_every_axis_has_words_and_a_best_end():
    for form in ratings.FORMS.values():
        for axis in form["axes"]:
            assert axis["question"].endswith("?")
            assert axis["help"]
            if form["kind"] == "single":
                points = list(axis["options"].values())
                assert points[0] == 1
                assert points == sorted(points, reverse=True)
                assert all(isinstance(option, str) for option in axis["options"]), "YAML reads a bare Yes as true"
            if form["kind"] == "pair":
                assert axis["better"] in ("more", "less")
    assert [axis["better"] for axis in ratings.FORMS["pairwise"]["axes"]] == 4 * ["more"] + 5 * ["less"]


# ------------------------------------------------------------------------------------------------------------ studies


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(2, 4), st.integers(1, 6), st.integers(1, 6), st.integers(0, 99), st.sampled_from(["lay", "pairwise", "ranking"]))
def test_a_study_is_balanced(tmp_path_factory, items, systems, raters, k, seed, form):
    """Every task has k different raters; loads differ by one at most; nobody sees a task twice; the same seed gives the same study."""
    k, people = min(k, raters), [f"r{n}" for n in range(raters)]
    asked, folder = questions(items, [f"s{n}" for n in range(systems)]), tmp_path_factory.mktemp("study")
    study = ratings.make_study(folder, form, asked, people, ratings_per_answer=k, seed=seed)
    given_to = [(task["task"], rater) for rater, own in study["assigned"].items() for task in own]
    number = {"lay": items * systems, "pairwise": items * systems * (systems - 1) // 2, "ranking": items}[form]
    assert len(given_to) == len(set(given_to)) == k * number
    assert pd.Series([task for task, _ in given_to]).value_counts().eq(k).all()
    loads = [len(own) for own in study["assigned"].values()]
    assert max(loads) - min(loads) <= 1
    assert ratings.make_study(folder, form, asked, people, ratings_per_answer=k, seed=seed) == study


def test_order_and_sides_are_drawn_for_each_rater(tmp_path):
    study = ratings.make_study(tmp_path, "pairwise", questions(60, "xy"), ["anna", "ben"], ratings_per_answer=2)
    anna, ben = ([task["question"] for task in own] for own in study["assigned"].values())
    assert sorted(anna) == sorted(ben)
    assert anna != ben
    sides = pd.Series([task["systems"][0] for own in study["assigned"].values() for task in own]).value_counts()
    assert sides.min() > 40  # of 120


def test_the_page_gets_no_name_of_a_system(tmp_path):
    pytest.importorskip("anywidget")
    ratings.make_study(tmp_path, "lay", questions(3, ["system-17", "colleague"]), ["anna"], ratings_per_answer=1)
    page = ratings.rating_page(tmp_path, "anna")
    sent = json.dumps([page.study, page.told])
    assert "secret text" in sent
    assert "system-17" not in sent
    assert "colleague" not in sent


@pytest.mark.parametrize(("change", "words"), [
    ({"raters": ["a", "a"]}, "each once"), ({"raters": ["a"], "ratings_per_answer": 2}, "need as many raters"), ({"raters": ["../a"]}, "named by"),
    ({"form": "stars"}, "choose one of independent"), ({"asked": [{"id": "q", "question": "?", "answers": {}}]}, "every question needs an answer"),
])
def test_a_study_that_cannot_be(tmp_path, change, words):
    how = {"form": "lay", "asked": questions(2, "xy"), "raters": ["a"], "ratings_per_answer": 1} | change
    with pytest.raises(ValueError, match=words):
        ratings.make_study(tmp_path, how["form"], how["asked"], how["raters"], ratings_per_answer=how["ratings_per_answer"])


def test_a_study_is_never_replaced(tmp_path):
    ratings.make_study(tmp_path, "lay", questions(2, "xy"), ["a"], ratings_per_answer=1)
    with pytest.raises(ValueError, match="holds another study"):
        ratings.make_study(tmp_path, "lay", questions(3, "xy"), ["a"], ratings_per_answer=1)


def click(folder, rater, task, axis, value):
    results.append_row(folder / "ratings" / f"{rater}.jsonl", {"task": task["task"], "axis": axis, "value": value})


def test_what_was_clicked_is_what_is_read(tmp_path):
    """The last click counts; sides are turned back; a skipped task and an excluded question are named with their reason."""
    study = ratings.make_study(tmp_path, "pairwise", questions(4, "xy"), ["anna"], ratings_per_answer=1)
    one, two, three, four = study["assigned"]["anna"]
    for value in ("A", "B"):
        click(tmp_path, "anna", one, "better reasoning", value)
    click(tmp_path, "anna", two, "better reasoning", "Tie")
    click(tmp_path, "anna", three, "better reasoning", "A")
    click(tmp_path, "anna", three, "skip", True)
    click(tmp_path, "anna", three, "comment", "two questions in one")
    click(tmp_path, "anna", four, "better reasoning", "A")
    ratings.exclude(tmp_path, four["question"], "not in English")
    table, excluded = ratings.read_ratings(tmp_path)
    assert list(table.columns) == ratings.COLUMNS
    assert table["score"].tolist() == [1 if one["systems"][1] == "x" else -1, 0]
    assert set(table["system"]) == {"x against y"}
    assert excluded.set_index("question")["reason"].to_dict() == {three["question"]: "two questions in one", four["question"]: "not in English"}
    with pytest.raises(ValueError, match="must be a question of the study"):
        ratings.exclude(tmp_path, "q99", "gone")


def test_a_torn_last_line_costs_only_itself(tmp_path):
    study = ratings.make_study(tmp_path, "lay", questions(2, "x"), ["anna"], ratings_per_answer=1)
    first, second = study["assigned"]["anna"]
    click(tmp_path, "anna", first, "intent", "Yes")
    with open(tmp_path / "ratings" / "anna.jsonl", "a") as stream:
        stream.write('{"task": "torn')
    assert len(ratings.read_ratings(tmp_path)[0]) == 1
    click(tmp_path, "anna", second, "intent", "No")
    assert ratings.read_ratings(tmp_path)[0]["score"].tolist() == [1, 0]


def test_several_processes_write_one_file_and_no_line_is_lost(tmp_path):
    """Two windows of one rater, say: three processes of 100 rows each."""
    code = ("import sys; from lib.results import append_row\n"
            "for n in range(100): append_row(sys.argv[1], {'who': sys.argv[2], 'n': n, 'text': 'x' * 3000})")
    running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "a.jsonl"), name], cwd=results.REPOSITORY) for name in "abc"]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    told = results.read_rows(tmp_path / "a.jsonl")
    assert {(row["who"], row["n"]) for row in told} == {(name, n) for name in "abc" for n in range(100)}
    assert len(told) == 300


def test_a_full_disk_is_told_and_loses_nothing(tmp_path, monkeypatch):
    """The widget answers with the problem; the click is not taken for saved."""
    pytest.importorskip("anywidget")
    study = ratings.make_study(tmp_path, "lay", questions(1, "x"), ["anna"], ratings_per_answer=1)
    page, sent = ratings.rating_page(tmp_path, "anna"), []
    monkeypatch.setattr(type(page), "send", lambda self, message: sent.append(message))
    said = {"click": "1", "task": study["assigned"]["anna"][0]["task"], "axis": "intent", "value": "Yes"}
    whole = results.append_row
    monkeypatch.setattr(results, "append_row", lambda path, row: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    page._handle_custom_msg(said, [])
    monkeypatch.setattr(results, "append_row", whole)
    page._handle_custom_msg(said, [])
    page._handle_custom_msg(said | {"click": "2", "value": "Perhaps"}, [])
    assert [sorted(message) for message in sent] == [["click", "problem"], ["click"], ["click", "problem"]]
    assert "No space left" in sent[0]["problem"]
    assert "no answer to it" in sent[2]["problem"]
    assert page.told == {said["task"]: {said["axis"]: "Yes"}}


@pytest.mark.parametrize(("form", "axis", "value"), [("lay", "intent", "Perhaps"), ("pairwise", "better reasoning", "C"),
                                                     ("ranking", "accuracy", [1]), ("lay", "beauty", "Yes"), ("lay", "intent", ["Yes"])])
def test_no_answer_to_an_axis(form, axis, value):
    with pytest.raises(ValueError, match="is no answer to it"):
        ratings.scores(form, ["x", "y"], axis, value)


# ------------------------------------------------------------------------------------------------------------ judges


def replies(monkeypatch, reply):
    """An endpoint that answers each prompt by reply(prompt)."""
    monkeypatch.setattr(ratings.teacher, "ask", lambda prompts, **how: ([reply(prompt) for prompt in prompts if isinstance(prompt, str)], {}))
    return {"endpoint": {"url": "http://nowhere", "cache": "none.jsonl"}}


def test_a_judge_who_takes_the_first_answer_gives_ties(monkeypatch):
    reply = json.dumps(dict.fromkeys([axis["name"] for axis in ratings.FORMS["pairwise"]["axes"]], "A"))
    table = ratings.judge(questions(3, "xy"), "pairwise", models=["one"], **replies(monkeypatch, lambda _: f"Sure! {reply}"))
    assert len(table) == 27
    assert (table["score"] == 0).all()


def test_a_judge_sees_both_sides_and_is_read_rightly(monkeypatch):
    """The judge prefers the text that says "good", wherever it stands."""
    asked = [{"id": "q", "question": "?", "answers": {"x": "good", "y": "bad"}}]
    order = []

    def reply(prompt):
        order.append(prompt.index("good") < prompt.index("bad"))
        return json.dumps({"better reasoning": "A" if order[-1] else "B", "omits more information": "Tie"})
    table = ratings.judge(asked, "pairwise", models=["one"], **replies(monkeypatch, reply)).set_index("axis")["score"]
    assert sorted(order) == [False, True]
    assert table["better reasoning"] == 1
    assert table["omits more information"] == 0
    assert np.isnan(table["better knowledge recall"]), "an axis that was not answered is missing, not a tie"


@pytest.mark.parametrize("reply", ["", None, "no idea", "[1]", '{"intent": "Certainly"}', '{"broken'])
def test_what_cannot_be_read_is_missing(monkeypatch, reply):
    table = ratings.judge(questions(2, "x"), "lay", models=["one", "two"], **replies(monkeypatch, lambda _: reply))
    assert len(table) == 8
    assert table["score"].isna().all()


def test_the_controlled_checklists_grade_exactly():
    """The reference wins every point; each sentence counts on its own; harm costs."""
    known = world.load_world(number_of_diseases=12)
    for item in world.long_answer_questions(known, "en", known.diseases, items=24, seed=3):
        points = [line["points"] for line in item["checklist"]]
        assert sum(point for point in points if point > 0) == 16
        assert ratings.rubric_score(points, ratings.grade_exactly(item["checklist"], item["reference"])) == 1
        for number, line in enumerate(item["checklist"]):
            for said in line["says"]:
                met = ratings.grade_exactly(item["checklist"], f"Hello. {said}")
                assert met == [each == number for each in range(len(points))], said


def test_a_rubric_judge_is_read_line_by_line(monkeypatch):
    checklist = [{"criterion": "Names the cause.", "points": 5}, {"criterion": "Does harm.", "points": -4}]
    how = replies(monkeypatch, lambda prompt: '{"1": true, "2": "perhaps"}' if "full" in prompt else '{"1": false, "2": true}')
    assert ratings.grade_by_judge([("?", checklist, "full"), ("?", checklist, "bad")], model="one", **how) == [[True, None], [False, True]]
    assert np.isnan(ratings.rubric_score([5, -4], [True, None]))
    with pytest.raises(ValueError, match="points to win"):
        ratings.rubric_score([-1], [True])


# ------------------------------------------------------------------------------------------------------------ a simulated panel


def test_planted_correlations_are_recovered():
    """Metric and quality correlate by 0.6, raters add noise: the interval of the mean over three raters holds the planted value in >= 18 of 20
    repetitions (the notebook does 100). Answers of one item share a part of both, so intervals are clustered by item."""
    planted, noise, inside = 0.6, 1.0, 0
    expected = planted / np.sqrt(1 + noise**2 / 3)  # attenuated by the noise that a mean of three leaves
    for seed in range(20):
        draw, items = np.random.default_rng(seed), np.repeat(np.arange(60), 3)
        own, shared = draw.standard_normal((2, 180)), draw.standard_normal((2, 60))[:, items]
        quality, rest = np.sqrt(0.7) * own + np.sqrt(0.3) * shared
        metric = planted * quality + np.sqrt(1 - planted**2) * rest
        scores = ratings.simulated_panel(quality, raters=3, bias=0.5, noise=noise, seed=seed)
        estimate = statistics.correlation(metric, scores.mean(axis=1), "pearson", seed=seed, clusters=items)
        inside += estimate.low <= expected <= estimate.high
    assert inside >= 18


def test_a_panel_is_what_it_is_said_to_be():
    scores = ratings.simulated_panel(np.linspace(0, 1, 4000), raters=200, bias=2.0, noise=0.5, seed=0)
    assert scores.shape == (4000, 200)
    means = scores.mean(axis=0) - 0.5
    assert means.std() == pytest.approx(2.0, rel=0.15)
    assert (scores - scores.mean(axis=0) - np.linspace(0, 1, 4000)[:, None]).std() == pytest.approx(0.5, rel=0.1)


# ------------------------------------------------------------------------------------------------------------ published ratings


@public
@pytest.mark.parametrize(("name", "shape"), [  # scores, answers, raters, axes
    ("mslr_facets", (3392, 600, 2, 6)), ("mslr_pilot", (1013, 100, 3, 6)), ("mts_dialog", (2400, 400, 1, 6)),
    ("olaph_pairwise", (7124, 198, 4, 9)), ("kqa_nli", (1197, 399, 3, 1)),
])
def test_all_published_ratings_load_with_their_counts(name, shape):
    table, answers = ratings.published(SHARED_DATA, name)
    assert (len(table), len(answers), table["rater"].nunique(), table["axis"].nunique()) == shape
    assert len(answers) == ratings.PUBLISHED[name]["counts"]["answers"]
    assert list(table.columns) == ratings.COLUMNS
    assert table["score"].notna().all()
    assert not table.duplicated(["answer", "rater", "axis"]).any()
    assert set(table["answer"]) <= set(answers["answer"])


@public
def test_unigram_f1_follows_the_factual_f1_of_mts_dialog():
    """Pearson about 0.41, Kendall about 0.31, by scipy's own formulas on our join."""
    table, answers = ratings.published(SHARED_DATA, "mts_dialog")
    answers["f1"] = text_metrics.rationale_scores(list(zip(answers["text"], answers["reference"])), "en")["rouge_1"]
    both = table[table["axis"] == "factual F1"].merge(answers)
    assert both["f1"].corr(both["score"]) == pytest.approx(0.41, abs=0.005)
    assert both["f1"].corr(both["score"], "kendall") == pytest.approx(0.31, abs=0.005)


@public
def test_three_physicians_agree_as_known():
    table, _ = ratings.published(SHARED_DATA, "olaph_pairwise")
    wide = table[table["rater"] != "GPT-4"].pivot(index=["axis", "answer"], columns="rater", values="score")
    agree = wide.nunique(axis=1).eq(1).groupby("axis").sum()
    assert agree[[axis["name"] for axis in ratings.FORMS["pairwise"]["axes"]]].tolist() == [179, 179, 123, 106, 107, 107, 191, 143, 135]


@public
def test_majority_labels_of_kqa_are_those_of_its_raters():
    """An independent column of the file: the majority that its authors print."""
    table, _ = ratings.published(SHARED_DATA, "kqa_nli")
    native = pd.read_csv(SHARED_DATA / "hr_kqa_nli" / "dataset" / "NLI_medical_annotator.csv")
    majority = native["majority_label"].map({"Entailment": 1, "Neutral": 0, "Contradiction": -1})
    votes = table.pivot(index="answer", columns="rater", values="score").loc[native["Question"] + " · " + native["claim"] + "/" + native["llm_x"]]
    clear = votes.nunique(axis=1).to_numpy() < 3
    assert clear.sum() > 380
    assert (votes.mode(axis=1)[0].to_numpy() == majority)[clear].all()


@public
@pytest.mark.parametrize(("name", "file", "old", "new", "words"), [
    ("kqa_nli", "dataset/NLI_medical_annotator.csv", ",Entailment,Entailment,Entailment\n", ",Entailment,Maybe,Entailment\n", "'Maybe' is no score"),
    ("kqa_nli", "dataset/NLI_medical_annotator.csv", "llm_x", "model", "no column 'llm_x'"),
    ("olaph_pairwise", "Human-Evaluation/human_evaluation_medlfqa.jsonl", '{"Question"', '{"Quest', "line"),
])
def test_a_damaged_file_is_named(tmp_path, name, file, old, new, words):
    folder = ratings.PUBLISHED[name]["folder"]
    shutil.copytree(SHARED_DATA / folder, tmp_path / folder, copy_function=shutil.copyfile)
    (tmp_path / folder).chmod(0o755)
    for path in (tmp_path / folder).rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    path = tmp_path / folder / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=words):
        ratings.published(tmp_path, name)


def test_a_missing_study_says_where_it_is_from(tmp_path):
    with pytest.raises(FileNotFoundError, match="github.com/Itaymanes"):
        ratings.published(tmp_path, "kqa_nli")
    with pytest.raises(ValueError, match="choose one of mslr_facets"):
        ratings.published(tmp_path, "unknown")


# ------------------------------------------------------------------------------------------------------------ BERTScore in notebook 09


@pytest.mark.slow
def test_bertscore_with_a_local_encoder(tmp_path):
    """The notebook's own cell with a tiny encoder of a folder, against the formula written out; equal texts score 1; nothing is downloaded."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast
    vocabulary = {word: n for n, word in enumerate("[UNK] [PAD] asthma is treated with salbutamol gout hurts".split())}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=9, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)).save_pretrained(tmp_path / "tiny")
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(tmp_path / "tiny")
    cells = json.loads((results.REPOSITORY / "notebooks" / "09_metric_agreement.ipynb").read_text())["cells"]
    (cell,) = ["".join(cell["source"]) for cell in cells if "AutoModel.from_pretrained" in "".join(cell["source"])]
    human = {"study": pd.DataFrame({"text": ["asthma is treated", "", "gout hurts"], "reference": ["asthma is treated", "gout hurts", "salbutamol is with"]})}
    names = {"ENCODER_DIR": f"{tmp_path}/tiny/", "ENCODER_LAYER": 1, "metrics": ["bleu_1"], "human": human, "torch": torch, "AutoModel": AutoModel,
             "AutoTokenizer": AutoTokenizer}
    exec(cell, names)
    assert names["metrics"] == ["bleu_1", "BERTScore (tiny, layer 1)"]
    found = human["study"]["BERTScore (tiny, layer 1)"]
    assert found[0] == pytest.approx(1, abs=1e-5)
    encoder = AutoModel.from_pretrained(tmp_path / "tiny").eval()
    with torch.no_grad():
        a, b = (encoder(torch.tensor([[vocabulary[word] for word in text.split()]]), output_hidden_states=True).hidden_states[1][0].numpy()
                for text in human["study"].loc[2, ["text", "reference"]])
    cosine = np.array([[x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in b] for x in a])
    precision, recall = cosine.max(1).mean(), cosine.max(0).mean()
    assert found[2] == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-5)
