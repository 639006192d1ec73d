"""Every notebook has the agreed form, quotes only numbers that it computed, and runs from end to end."""

import ast
import base64
import json
import os
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score
from sklearn.preprocessing import MultiLabelBinarizer
from transformers import LlamaConfig, LlamaForCausalLM

from lib import batch, benchmarks, corpora, evaluation, results
from lib.results import BOLD_FINDING, REPOSITORY
from tests.conftest import SHARED_DATA

PATHS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in PATHS]
EVERY = pytest.mark.parametrize("name", NAMES)
CODE_LINES, CELLS = 25, 30


def cells_of(path):
    document = json.loads(path.read_text(encoding="utf-8"))
    return [cell | {"source": "".join(cell["source"])} for cell in document["cells"]]


def source_cells(name):
    return cells_of(REPOSITORY / "notebooks" / f"{name}.ipynb")


def code_of(name):
    return [cell for cell in source_cells(name) if cell["cell_type"] == "code"]


def test_the_notebooks_are_there():
    """A guard: without notebooks every other test here passes on nothing."""
    assert {"01_corpus_statistics", "02_knowledge_injection", "03_instruction_tuning", "04_ablations"} <= set(NAMES)


def test_public_data_is_there_where_it_must_be():
    if os.environ.get("CI") != "true":
        pytest.skip("only continuous integration must have the public data")
    assert (SHARED_DATA / "README.md").is_file(), "the tests on public data would all be skipped"


@EVERY
def test_name_and_committed_form(name):
    assert re.fullmatch(r"\d\d_[a-z0-9_]+", name)
    assert not [cell for cell in code_of(name) if cell["outputs"] or cell["execution_count"]], "committed with outputs"
    path = str(REPOSITORY / "notebooks" / f"{name}.ipynb")
    done = subprocess.run([sys.executable, "-m", "nbstripout", "--verify", "--keep-id", path], capture_output=True)
    assert done.returncode == 0, f"not in stripped form; run: nbstripout --keep-id notebooks/{name}.ipynb"


@EVERY
def test_the_first_cell_asks_and_answers(name):
    first = source_cells(name)[0]
    assert first["cell_type"] == "markdown"
    lines = [line for line in first["source"].split("\n") if line.strip()]
    assert re.match(rf"# {name[:2]} · .+\?$", lines[0]), "the title is a question: # NN · ...?"
    assert lines[1].startswith("**Question.**")
    assert any(line.startswith("**Answer.**") for line in lines)
    assert re.match(r"Reads .+ · writes .+", lines[-1]), "the last line: Reads ... · writes ... · paper items · time"
    bold = re.findall(r"\*\*([^*\n]+)\*\*(<!--)?", first["source"])
    bare = [text for text, named in bold if not named and re.search(r"\d", text)]
    assert not bare, f"bold numbers without the name of a finding behind them: {bare}"


@EVERY
def test_the_second_cell_holds_documented_literals(name):
    cells = source_cells(name)
    assert [number for number, cell in enumerate(cells) if "parameters" in cell["metadata"].get("tags", [])] == [1]
    parameters = batch.parse_parameters(cells[1]["source"])
    assert "PROFILE" in parameters
    assert not [key for key, (default, text) in parameters.items() if not text or not key.isupper() or default is None]


@EVERY
def test_imports_come_once_and_nothing_is_defined(name):
    trees = [ast.parse(cell["source"]) for cell in code_of(name)]
    imports = [number for number, tree in enumerate(trees)
               if any(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.walk(tree))]
    assert imports == [1], "one import cell, right behind the parameters"
    assert source_cells(name)[2]["cell_type"] == "code"
    defined = [node for tree in trees for node in ast.walk(tree)
               if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))]
    assert not defined, "definitions live in lib"


@EVERY
def test_code_cells_are_short_and_introduced(name):
    cells = source_cells(name)
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            assert cell["source"].strip(), f"cell {number} is empty"
            assert cell["source"].count("\n") < CODE_LINES, f"cell {number} has more than {CODE_LINES} lines"
            assert number < 3 or cells[number - 1]["cell_type"] == "markdown", f"cell {number} is not introduced"


@EVERY
def test_a_notebook_is_read_in_one_go(name):
    assert 15 <= len(source_cells(name)) <= CELLS


@EVERY
def test_the_last_cell_saves_the_findings(name):
    last = code_of(name)[-1]["source"]
    assert "save_findings(" in last
    assert sum("save_findings(" in cell["source"] for cell in code_of(name)) == 1


@EVERY
def test_upstream_names_earlier_notebooks(name):
    job = batch.read_job(REPOSITORY / "notebooks" / f"{name}.ipynb")
    assert set(job.upstream) <= {other for other in NAMES if other < name}
    # Notebooks that read others' results run after all that do not, so a reader may name a later number, but no later reader.
    assert all(other < name or not batch.read_job(REPOSITORY / "notebooks" / f"{other}.ipynb").reads for other in job.reads)


@EVERY
def test_quoted_numbers_are_the_committed_findings(name):
    folder = REPOSITORY / "results" / "small" / name
    assert (folder / "findings.json").is_file(), f"no committed result; run ./run_all.sh {name[:2]}"
    findings = json.loads((folder / "findings.json").read_text())
    for path in (REPOSITORY / "notebooks" / f"{name}.ipynb", folder / f"{name}.ipynb"):
        first = cells_of(path)[0]["source"]
        assert BOLD_FINDING.search(first), "the answer quotes no number"
        assert results.fill_answer(first, findings) == first, f"{path.name}: run python -m tests.fill"


def test_the_readme_quotes_the_committed_findings():
    known = {f"n{name[:2]}_{key}": value for name in NAMES
             for key, value in json.loads((REPOSITORY / "results" / "small" / name / "findings.json").read_text()).items()}
    readme = (REPOSITORY / "README.md").read_text()
    assert len(BOLD_FINDING.findall(readme)) >= 10, "the README quotes no numbers"
    assert results.fill_answer(readme, known) == readme, "run python -m tests.fill"
    assert len(readme.split()) <= 900


def small(name, table):
    """A committed table of the profile small, and the findings beside it."""
    folder = REPOSITORY / "results" / "small" / name
    return pd.read_csv(folder / "tables" / f"{table}.csv"), json.loads((folder / "findings.json").read_text())


def test_committed_curves_lead_where_the_findings_say():
    """The loss is followed to the last token; half-way from chance to certainty lies on the line between two neighbours."""
    loss, findings = small("02_knowledge_injection", "loss")
    ends = loss.groupby("mixture")["tokens"].agg(["size", "max"])
    assert ends["max"].tolist() == 2 * [round(1e6 * findings["tokens_millions"])]
    assert ends["size"].between(30, 60).all()
    curve, _ = small("02_knowledge_injection", "exposures")
    assert curve["exposures"].is_monotonic_increasing
    reached = np.interp(findings["exposures_for_half"], curve["exposures"], curve["accuracy"])
    assert reached == pytest.approx((1 + findings["chance"]) / 2, abs=1e-3)


def test_single_items_stand_in_the_rows_once():
    """One line a question of each exam: a line that is appended twice would count its question twice."""
    table, _ = small("04_ablations", "table_1")
    files = sorted((REPOSITORY / "results" / "small" / "04_ablations" / "rows").glob("*.jsonl"))
    assert len(files) == table["row"].nunique() * table["seeds"].max()
    for path in files:
        rows = results.read_rows(path)
        assert len({(row["exam"], row["id"]) for row in rows}) == len(rows) == table.groupby("row")["items"].sum().max() / table["seeds"].max()


def test_committed_results_hold_no_secret_and_no_path():
    paths = [path for path in (REPOSITORY / "results").glob("*/*/**/*")
             if path.suffix in (".ipynb", ".html", ".json", ".csv", ".jsonl") and ".failed" not in path.parts]
    texts = {path: path.read_text(encoding="utf-8") for path in paths}
    assert not [path for path, text in texts.items() if results.find_secret(text)]
    assert not [path for path, text in texts.items() if f"{results.Path.home()}/" in text or f"{REPOSITORY}/" in text]


@EVERY
def test_every_saved_figure_is_shown_once(name):
    """The page shows the very file that was saved; a figure that pyplot still held would be drawn and shown again."""
    folder = results.results_root() / "small" / name
    saved = [path.read_bytes() for path in sorted(folder.glob("figures/*.png"))]
    shown = [base64.b64decode(output["data"]["image/png"]) for cell in cells_of(folder / f"{name}.ipynb")
             for output in cell.get("outputs", ()) if "image/png" in output.get("data", {})]
    assert saved
    assert sorted(shown) == sorted(saved)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """Every notebook through the real command line, small, into folders of its own."""
    root = tmp_path_factory.mktemp("smoke")
    places = {"RESULTS_ROOT": str(root / "results"), "RUNS_ROOT": str(root / "runs")}
    environment = {key: value for key, value in os.environ.items() if key != "NOTEBOOKS_DIR"} | places
    done = subprocess.run([sys.executable, "-m", "lib.batch", "--profile", "smoke"], cwd=REPOSITORY, env=environment,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return root / "results" / "smoke", done.stdout


@pytest.mark.slow
@EVERY
def test_smoke_run(name, smoke):
    folder, shown = smoke
    assert (folder / name / "findings.json").is_file(), shown
    assert json.loads((folder / name / "findings.json").read_text()), "no findings"
    quoted = {match[2] for match in BOLD_FINDING.findall(source_cells(name)[0]["source"])}
    assert quoted <= set(json.loads((folder / name / "findings.json").read_text()))
    assert list((folder / name / "tables").glob("*.csv")), "a notebook saves at least one table"
    assert (folder / name / f"{name}.html").stat().st_size < 5e6, "the page is too large to read"


# ---- numbers of committed tables, computed again with other code ----

def committed_table(notebook, name):
    return pd.read_csv(REPOSITORY / "results" / "small" / notebook / "tables" / f"{name}.csv")


def test_averages_of_05_are_those_of_its_exams():
    """macro: the mean of the accuracies; pooled: all questions in one, with the exact interval of scipy."""
    averages = committed_table("05_exam_benchmarks", "averages").set_index(["model", "average"])
    parts = dict(list(committed_table("05_exam_benchmarks", "mmedbench").groupby("model")))
    assert len(averages) == 2 * len(parts) > 4
    for model, part in parts.items():
        macro, pooled = averages.loc[(model, "macro")], averages.loc[(model, "pooled")]
        assert macro["accuracy"] == pytest.approx((part["correct"] / part["items"]).mean(), abs=1e-4)
        share = part["correct"] / part["items"]
        error = 1.96 * ((share * (1 - share) / part["items"]).sum() ** 0.5) / len(part)
        assert (macro["low"], macro["high"]) == pytest.approx((share.mean() - error, share.mean() + error), abs=2e-4)
        exact = stats.binomtest(int(part["correct"].sum()), int(part["items"].sum())).proportion_ci(method="exact")
        assert (pooled["low"], pooled["high"]) == pytest.approx((exact.low, exact.high), abs=1e-4)


def test_several_right_options_of_05_score_as_in_scikit_learn():
    """Exact sets and the F1 of the options of each item, from the rows, by the metrics for several labels."""
    rows = results.read_rows(REPOSITORY / "results" / "small" / "05_exam_benchmarks" / "rows" / "full.jsonl")
    table = committed_table("05_exam_benchmarks", "several").set_index(["exam", "model"])
    for exam in table.index.unique("exam"):
        own = [row for row in rows if row["exam"] == exam]
        right, chosen = ([row[name].split(",") for row in own] for name in ("answer_idx", "predicted_loglikelihood"))
        names = MultiLabelBinarizer().fit(right + chosen)
        line = table.loc[exam].iloc[-1]  # the rows are those of the last model
        assert len(own) > 20
        assert any(len(each) > 1 for each in right)
        assert line["exact set"] == pytest.approx(accuracy_score(names.transform(right), names.transform(chosen)), abs=1e-4)
        assert line["option F1"] == pytest.approx(f1_score(names.transform(right), names.transform(chosen), average="samples"), abs=1e-4)


def test_the_guide_to_an_exam_of_ones_own_is_true(tmp_path, monkeypatch):
    """Notebook 05 tells the form of an item and one line of code; with a checkpoint of anybody's, in a folder, the new exam is asked and counted."""
    (guide,) = [cell["source"] for cell in source_cells("05_exam_benchmarks") if "An exam of your own" in cell["source"]]
    item, code = json.loads(re.search(r'`(\{"id".*?\})`', guide)[1]), re.search(r"```python\n(.*?)```", guide, flags=re.DOTALL)[1]
    own = [item | {"id": f"q{n}", "question": f"Which metal is number {n}?", "options": {"A": "iron", "B": "zinc"}, "answer": "iron"} for n in range(5)]
    (tmp_path / "here").mkdir()
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, own)) + "\n")
    monkeypatch.chdir(tmp_path / "here")
    names = {"benchmarks": benchmarks, "results": results, "exams": []}
    exec(code, names)
    corpora.train_tokenizer([each["question"] for each in own], 300).save_pretrained(tmp_path / "model")
    LlamaForCausalLM(LlamaConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, intermediate_size=32,
                                 max_position_embeddings=512)).save_pretrained(tmp_path / "model")
    (line,) = evaluation.score_table({"tiny": tmp_path / "model"}, names["exams"], methods=("loglikelihood",)).to_dict("records")
    assert (line["model"], line["exam"], line["items"], line["chance"], line["unparsed"]) == ("tiny", "mine en", 5, 0.5, 0)
    assert "Which metal is number 3?" in names["exams"][0].prompt(own[3])
    assert evaluation.topic(own[0]) == "not named"
    (tmp_path / "mine.jsonl").write_text(json.dumps({name: value for name, value in own[0].items() if name != "options"}) + "\n")
    with pytest.raises(ValueError, match="item 0, field 'options': missing or empty"):
        exec(code, names)
