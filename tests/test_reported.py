"""The published values: copied whole, re-derived where no model is needed, audited by rules that find what we plant.

The rules and the claimed gains are cells of notebook 00. Tests run these very cells, on the values as they are or with an error planted.
"""

import json
import re

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats import proportion

from lib import reported, results, statistics

FILES = {"pmc_llama": 54, "med_palm_2": 412, "mmedlm": 864, "meds": 938}  # 2,268 values
RULES = "averages totals grim intervals overlaps weighted duplicates swaps copies overviews p_values".split()
NOT_API = ["MEDITRON", "InternLM 2", "Llama 3", "Mistral", "Qwen 2", "Med42-v2", "Baichuan 2", "MMedIns-Llama 3"]


def grim_sizes(values, *, decimals, scale=100):
    """Every n up to 2,000 for which all printed values are k/n; multiples of the first fit too."""
    sizes = np.arange(1, 2001)
    return sizes[statistics.grim(np.ravel(values), sizes[:, None], decimals=decimals, scale=scale).all(axis=1)]


def notebook_cells(tag):
    """The code cells of notebook 00 that carry a tag, as {name: source}: a cell of rules once under the name of each, which are its further tags."""
    document = json.loads((results.REPOSITORY / "notebooks" / "00_published_values.ipynb").read_text(encoding="utf-8"))
    code = [("".join(cell["source"]), cell["metadata"].get("tags", [])) for cell in document["cells"] if cell["cell_type"] == "code"]
    tagged = [(number, source, tags) for number, (source, tags) in enumerate(code) if tag in tags]
    return {name: source for number, source, tags in tagged for name in tags[1:] or [f"{tag} {number}"]}


def run_cells(frame, sources):
    """Execute cells of notebook 00 one after the other on these values; return all that they define."""
    names = {"values": frame, "display": lambda table: None}
    for source in (*notebook_cells("found").values(), *dict.fromkeys(sources)):  # a cell that holds two rules runs once
        exec(compile(source, "notebook 00", "exec"), names)
    return names


def run_rule(rule, frame):
    """What one rule finds in these values: [(rule, accused cells, expected value, finding), ...]."""
    names = [name for name, source in notebook_cells("rule").items() if source == notebook_cells("rule")[rule]]  # of the rules in its cell
    found = run_cells(frame, [notebook_cells("rule")[rule]])["found"]
    assert {line[0] for line in found} <= set(names)
    return [line for line in found if line[0] == rule]


@pytest.fixture(scope="module")
def values():
    return reported.read()


@pytest.fixture(scope="module")
def findings():
    return reported.audit("small").assign(cells=lambda found: [[int(cell) for cell in cells.split()] for cells in found["cells"]])


@pytest.fixture(scope="module")
def gains():
    return reported.claimed_gains("small")


@pytest.fixture(scope="module")
def executed(values):
    """All that the rules of notebook 00 define, run on the published values."""
    return run_cells(values, notebook_cells("rule").values())


def test_the_cells_of_the_notebook_are_all_found():
    """A guard: a rule without its tags would be tested by nothing."""
    assert list(notebook_cells("rule")) == RULES
    assert all(f'found.append(("{rule}"' in source or f'found += [("{rule}"' in source for rule, source in notebook_cells("rule").items())
    assert len(notebook_cells("gains")) == 2
    assert len(notebook_cells("found")) == 1


def test_every_rule_has_looked_at_something(executed):
    assert list(executed["checked"]) == RULES
    assert min(executed["checked"].values()) >= 24


def cells(values, paper, table):
    return values[(values["paper"] == paper) & (values["table"] == table)]


# ------------------------------------------------------------------------------------------- reading and asking


def test_all_values_are_there():
    counts = {stem: len(pd.read_csv(reported.FOLDER / f"{stem}.csv", dtype=str)) for stem in FILES}
    assert counts == FILES
    assert sum(counts.values()) == 2_268


def test_every_value_has_one_key_a_source_and_fits_its_interval(values):
    assert not values.duplicated(reported.KEY).any()
    assert (values["source"] != "").all()
    assert values["value"].notna().all()
    known = values[values["interval_low"].notna()]
    assert ((known["interval_low"] <= known["value"]) & (known["value"] <= known["interval_high"])).all()
    assert len(known) == 36 + 2 * 27 + 36 + 72 + 4 + 27 + 27  # Med-PaLM 2, Tables 4, 6, A.1 to A.6


@pytest.mark.parametrize(("where", "value"), [
    (("PMC-LLaMA", "1", "PMC-LLaMA_K 7B papers", "PubMedQA"), 69.5),
    (("PMC-LLaMA", "2", "ChatGPT 175B", "Average"), 54.97),
    (("Med-PaLM 2", "4", "Med-PaLM 2 (best)", "MedQA (USMLE)"), 86.5),
    (("Med-PaLM 2", "A.2", "Physician", "no missing important content"), 0.871),
    (("MMedLM", "3", "MMedLlama3", "PubMedQA"), 80.1),
    (("MMedLM", "Fig4", "BERTScore", "human"), 0.538),
    (("MedS-Bench", "8b Treatment planning", "MMedIns-Llama 3", "SEER"), 98.47),
])
def test_values_copied_by_hand(where, value):
    paper, table, row, column = where
    assert value in reported.query(paper, table=table, row=row, column=column)["value"].tolist()


def test_decimals_are_those_of_the_page(values):
    """GRIM depends on them: 73.40 is printed, not 73.4."""
    text = pd.read_csv(reported.FOLDER / "pmc_llama.csv", dtype=str)
    assert text.query("row == 'LLaMA 7B baseline' and column == 'PubMedQA'")["value"].tolist() == ["73.40"]
    assert cells(values, "PMC-LLaMA", "1")["decimals"].eq(2).all()
    assert cells(values, "MedS-Bench", "overview").query("column == 'MCQA'")["decimals"].eq(1).all()


def test_wide_is_the_printed_table():
    table = reported.wide("Med-PaLM 2", "5")
    assert table.index.get_level_values("row").tolist() == ["5-shot", "CoT+SC (11)", "ER (11+33)"]
    assert table.columns[:3].tolist() == ["MedQA (USMLE)", "PubMedQA", "MedMCQA"]
    both = reported.wide("MMedLM", "2")
    assert both.loc[("full", "MMedLM 2"), ("BLEU-1", "Russian")] == 37.49
    assert reported.wide("MMedLM", "2", metric="ROUGE-1").shape == (30, 7)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="no paper .*there are: .*MMedLM"):
        reported.query("MMed-LM")
    with pytest.raises(ValueError, match="no table .*there are: .*1, 2"):
        reported.query("PMC-LLaMA", table="7")


def test_a_missing_folder_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(reported, "FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match="restore this folder"):
        reported.read()


def test_the_files_name_no_place_of_a_machine():
    for file in reported.FOLDER.glob("*.csv"):
        text = file.read_text(encoding="utf-8")
        assert "\r" not in text
        assert not re.search(r"(^|[\s,\"(])/(home|root|tmp|work|mnt|data|usr)\b|[A-Z]:\\\\|localhost", text), file.name


# ---------------------------------------------------------------------------------------------- golden intervals


def test_all_36_intervals_of_med_palm_2_table_4_are_clopper_pearson(values):
    table = cells(values, "Med-PaLM 2", "4").dropna(subset=["interval_low"])
    low, high = statistics.clopper_pearson((table["value"] * table["n"] / 100).round(), table["n"])
    assert len(table) == 36
    assert np.array_equal(np.round(100 * low, 1), table["interval_low"])
    assert np.array_equal(np.round(100 * high, 1), table["interval_high"])


def test_all_36_group_intervals_of_tables_6_and_a1_are_wald(values):
    tables = values[values["row"].isin(["without overlap", "with overlap"])]
    low, high = proportion.proportion_confint((tables["value"] * tables["n"] / 100).round(), tables["n"], method="normal")
    assert len(tables) == 36
    assert np.abs(100 * low - tables["interval_low"]).max() <= 0.0501
    assert np.abs(100 * high - tables["interval_high"]).max() <= 0.0501
    assert tables["interval_high"].max() == 100  # clipped


def test_all_18_deltas_of_tables_6_and_a1_are_newcombe(values):
    tables = values[values["setting"].str.startswith("overlap")].set_index(["table", "column", "row"])
    a, b, delta = (tables.xs(row, level="row") for row in ("without overlap", "with overlap", "delta"))
    k_a, k_b = ((side["value"] * side["n"] / 100).round() for side in (a, b))
    low, high = statistics.newcombe(k_a, a["n"], k_b, b["n"])
    # MedMCQA: several counts are printed alike, so its delta is known to 0.04 less
    error = 0.051 + np.maximum(0, 0.05 - 50 / a["n"]) + np.maximum(0, 0.05 - 50 / b["n"])
    assert len(delta) == 18
    assert (np.abs(100 * (k_a / a["n"] - k_b / b["n"]) - delta["value"]) <= error).all()
    assert (np.abs(100 * low - delta["interval_low"]) <= error).all()
    assert (np.abs(100 * high - delta["interval_high"]) <= error).all()
    normal = 1.96 * np.sqrt(sum(side["value"] * (100 - side["value"]) / side["n"] for side in (a, b)))
    assert (np.abs(delta["value"] - normal - delta["interval_low"]) > 0.1).sum() >= 16  # not the symmetric interval


def test_the_rating_intervals_take_every_rating_as_independent(executed):
    """Tables A.2 to A.6: 165 of 166 bootstrap intervals are the binomial quantiles of as many independent ratings."""
    methods = executed["methods"].set_index("table")
    assert methods.loc[["4", "6", "A.1"], "method"].tolist() == ["clopper_pearson", "wald", "wald"]
    ratings = methods.loc[["A.2", "A.3", "A.4", "A.5", "A.6"]]
    assert ratings["method"].unique().tolist() == ["bootstrap of independent ratings"]
    assert (ratings["matched"].sum(), ratings["intervals"].sum()) == (165, 166)


# -------------------------------------------------------------------------------------- golden averages and GRIM


def test_all_printed_averages(values, findings):
    """PMC-LLaMA Table 2, MMedLM Tables 1 to 3, MedS-Bench Tables 2 to 7: 211 averages with their cells, 31 wrong."""
    average = values["column"].isin(reported.AVERAGES)
    rows = ["paper", "table", "setting", "row", "metric"]
    means = values[~average].groupby(rows).agg(mean=("value", "mean"), cells=("value", "size"), grain=("step", "max"))
    printed = values[average].set_index(rows).join(means, how="inner").query("cells > 1")
    wrong = findings[findings["rule"] == "averages"]
    assert len(printed) == 211
    assert ((printed["value"] - printed["mean"]).abs() > printed["step"] + printed["grain"] + 1e-9).sum() == 31
    assert wrong.groupby(["paper", "table"]).size().to_dict() == {
        ("PMC-LLaMA", "2"): 3, ("MMedLM", "1"): 2, ("MMedLM", "2"): 1, ("MMedLM", "3"): 1,
        ("MedS-Bench", "2 MCQA"): 1, ("MedS-Bench", "3 Text summarization"): 23}


@pytest.mark.parametrize(("paper", "table", "row", "printed", "expected"), [
    ("PMC-LLaMA", "2", "PMC-LLaMA 13B", 64.43, 63.43),
    ("PMC-LLaMA", "2", "LLaMA-2 13B", 49.40, 49.38),
    ("MMedLM", "1", "GPT-4", 74.27, 75.31),
    ("MMedLM", "1", "GPT-3.5", 51.47, 51.45),
    ("MMedLM", "3", "Mistral", 62.97, 62.86),
    ("MedS-Bench", "2 MCQA", "Mistral", 49.1, 59.6),
])
def test_known_wrong_averages_are_found(findings, paper, table, row, printed, expected):
    found = findings.query("rule == 'averages' and paper == @paper and table == @table and row == @row").iloc[0]
    assert found["printed"] == printed
    assert found["expected"] == pytest.approx(expected, abs=0.03)


def test_the_summary_averages_drop_two_of_six_columns(findings):
    found = findings.query("rule == 'averages' and table == '3 Text summarization'")["finding"]
    assert len(found) == 23
    assert found.str.endswith("it is the mean of MedQSum, RCT-Text, MIMIC-CXR, MIMICIV(Ultrasound) only").all()


def test_health_equity_was_rated_on_89_questions(values, findings):
    """Med-PaLM 2 Table A.3: all 24 shares are k/356 = 89 x 4, the smallest n that fits; 18 of 24 are k/(182 x 4)."""
    equity = values.query("table == 'A.3' and metric == 'proportion' and setting == 'adversarial Health equity'")
    assert len(equity) == 24
    assert grim_sizes(equity["value"], decimals=3, scale=1)[0] == 356 == 89 * 4
    assert statistics.grim(equity["value"], 182 * 4, decimals=3, scale=1).sum() == 18
    stated = findings[(findings["rule"] == "grim") & (findings["table"] == "A.3")]
    assert len(stated) == 6
    for part, n in (("All", 588), ("General", 232)):
        others = values[(values["setting"] == f"adversarial {part}") & (values["metric"] == "proportion")]
        assert grim_sizes(others["value"], decimals=3, scale=1)[0] == n


def test_ratings_of_table_a2_are_counts_of_420_and_140(values):
    table = values.query("table == 'A.2' and metric == 'proportion'")
    assert statistics.grim(table["value"], table["n"], decimals=3, scale=1).all()
    assert table.groupby("row")["n"].first().to_dict() == {"Med-PaLM": 140, "Med-PaLM 2": 420, "Physician": 140}


@pytest.mark.parametrize(("column", "n"), [
    ("PICO Participant Ext.", 43), ("PICO Intervention Ext.", 43), ("PICO Outcome Ext.", 43),
    ("ADE Drug Dose Ext.", 23), ("PMC-patient Basic Info. Ext.", 1500), ("DDXPlus", 1500), ("SEER", 1500),
    ("MIMIC4ED(Hospitalization)", 1500), ("MIMIC4ED(72h ED Revisit)", 1500), ("MIMIC4ED(Critical Triage)", 1500),
    ("PubMedQA Answer Ver.", 650), ("PUBLICHEALTH Health Fact Ver.", 1188), ("MedNLI Discriminative Task", 1422),
])
def test_test_sizes_of_meds_bench_by_grim(values, column, n):
    """The smallest n that gives every score of the eight local models; what the n column of the file says."""
    scores = values[(values["column"] == column) & values["row"].isin(NOT_API) & values["n"].notna()]
    assert len(scores) == 8
    assert grim_sizes(scores["value"], decimals=2)[0] == n
    assert (scores["n"] == n).all()


def test_what_grim_finds(findings):
    """15 cells that were known, and what the same rule finds beyond them."""
    cells = findings[findings["rule"] == "grim"]
    rows = cells.groupby(["paper", "table"])["row"].agg(list).map(lambda names: sorted(set(names))).to_dict()
    assert len(cells) == 40
    assert len(cells.query("paper == 'PMC-LLaMA' and table == '1'")) == 4
    assert len(cells.query("paper == 'MMedLM' and table == '1'")) == 11
    assert rows[("MMedLM", "1")] == ["GPT-3.5", "GPT-4", "GPT-4 (5-shot CoT)", "Llama2", "MedAlpaca"]
    assert rows[("MMedLM", "3")] == ["BioMistral", "MEDITRON"]
    assert rows[("PMC-LLaMA", "2")] == ["Chat-Doctor 7B", "Med-Alpaca 13B", "PMC-LLaMA 13B"]
    api = cells[cells["paper"].eq("MedS-Bench") & ~cells["table"].eq("2 MCQA")]
    assert sorted(api["row"]) == ["Claude-3.5", "Claude-3.5", "GPT-4", "GPT-4"]


# -------------------------------------------------------------------------------- other known errors, by their rule


def found(findings, rule, **where):
    part = findings[findings["rule"] == rule]
    for key, value in where.items():
        part = part[part[key] == value]
    return part


def test_the_swapped_cells_of_gpt_3_5(findings):
    """MedMCQA 72.7 and PubMedQA 53.8 in MMedLM Table 3, copied into MedS-Bench Table 2."""
    swapped = found(findings, "swaps", row="GPT-3.5", metric="accuracy")
    swapped = pd.concat([swapped, found(findings, "swaps", row="GPT-3.5", metric="accuracy/F1")])
    assert swapped["paper"].tolist() == ["MMedLM", "MedS-Bench"]
    assert swapped["finding"].str.startswith("accuracy of medmcqa and pubmedqa").all()


def test_the_identical_rows(findings):
    assert found(findings, "duplicates", table="8c Clinical outcome prediction")["finding"].tolist() == [
        "MEDITRON and Mistral share 3 of 3 cells"]
    overview = found(findings, "duplicates", table="overview")["finding"].tolist()
    assert overview == ["Llama3.1-Aloe-Beta-70B and Llama3.1-Aloe-Beta-8B share 2 of 12 cells",
                        "Med42-v2 and Qwen 2 share 2 of 12 cells"]


def test_the_overview_against_its_tables(findings):
    wrong = found(findings, "overviews")[["row", "column", "printed", "expected"]].round(2).to_numpy().tolist()
    assert wrong == [["MEDITRON", "Text Summarization", 7.15, 17.35],  # the table prints only three of six cells
                     ["Med42-v2", "Rationale", 37.89, 28.06], ["Med42-v2", "Rationale", 30.65, 23.36],
                     ["Baichuan 2", "Clinical Outcome Prediction", 53.22, 10.98],
                     ["Llama3.1-Aloe-Beta-8B", "Diagnosis", 60.67, 63.67],
                     ["Llama3.1-Aloe-Beta-70B", "Concept Explanation", 13.63, 16.48],
                     ["Llama3.1-Aloe-Beta-70B", "Concept Explanation", 17.8, 19.58]]


def test_the_overlap_groups_recombine_on_four_of_nine_sets_only(findings):
    expected = {"PubMedQA": 74.0, "MedMCQA": 71.5, "MMLU Clinical knowledge": 88.3, "MMLU Professional medicine": 90.1,
                "MMLU College medicine": 82.1}
    for table in ("6", "A.1"):
        wrong = found(findings, "overlaps", table=table)
        assert wrong.set_index("column")["expected"].round(1).to_dict() == expected
    assert wrong.set_index("column")["finding"].str.contains("no printed score").sum() == 2


def test_cells_that_differ_between_tables(findings):
    differ = found(findings, "copies")[["row", "column", "printed", "expected"]].to_numpy().tolist()
    assert sorted(differ) == [["InternLM", "Average", 45.67, 45.66], ["MEDITRON", "MedQA", 47.9, 57.2],
                              ["MMed-Llama 3", "Average", 47.21, 47.22]]


def test_all_is_the_weighted_mean_of_its_parts(findings):
    """Med-PaLM 2 Table A.3: 588 = 356 + 232 ratings in all 24 rows. Tables A.5, A.6 and MMedC add up."""
    assert found(findings, "weighted").empty
    assert found(findings, "totals").empty


def test_p_values_that_cannot_be(findings):
    """Med-PaLM 2: nine printed as 0; seven at least five times what the two intervals beside them imply."""
    wrong = found(findings, "p_values")
    assert (wrong["printed"] == 0).sum() == 9
    above = wrong[wrong["printed"] > 0]
    assert above.groupby(["table", "setting"]).size().to_dict() == {
        ("A.2", "independent MMQA140"): 3, ("A.3", "adversarial General"): 4}
    physician = above[above["row"] == "Med-PaLM 2 vs Physician"].iloc[0]  # .900 [.871, .926] and .971 [.943, .993]
    assert physician["column"] == "no inaccurate/irrelevant information"
    assert physician["expected"] < 0.0005


def test_everything_found_was_looked_into_and_is_flagged(values, findings):
    """A new finding needs a line in explanations.csv; the flag column of the files is what the rules say."""
    assert findings["explanation"].str.len().gt(20).all()
    rules = findings.explode("cells").groupby("cells")["rule"].agg(lambda rules: "; ".join(sorted(set(rules))))
    assert (rules.reindex(values.index, fill_value="") == values["flag"]).all()
    assert len(findings) == 122


def as_table(found, frame):
    """Findings of the rules as `reported.audit` returns them, without their explanations."""
    lines = [(rule, *frame.loc[cells[0], [*reported.KEY, "value"]], expected, words, [int(cell) for cell in cells]) for rule, cells, expected, words in found]
    return pd.DataFrame(lines, columns=["rule", *reported.KEY, "printed", "expected", "finding", "cells"])


def test_the_committed_findings_are_those_of_the_rules(values, findings, executed):
    """What notebooks 11 to 14 read; after a change of the values or rules: ./run_all.sh 00 --force."""
    pd.testing.assert_frame_equal(as_table(executed["found"], values), findings.drop(columns="explanation"), check_dtype=False)


def test_the_explanations_are_those_of_the_findings(findings):
    """Written by hand, one for what a rule finds in a cell: none is lost and none is left over."""
    why = pd.read_csv(reported.FOLDER / "explanations.csv", dtype=str, keep_default_na=False)
    lines = [set(frame[["rule", *reported.KEY, "explanation"]].itertuples(index=False, name=None)) for frame in (why, findings)]
    assert lines[0] == lines[1]
    assert len(lines[0]) == len(why) == 121


def test_the_committed_gains_are_those_of_the_values(values, gains):
    pd.testing.assert_frame_equal(run_cells(values, notebook_cells("gains").values())["gains"], gains, check_dtype=False)


# ------------------------------------------------------------------------------------------ rules find what we plant


def accused(rule, frame):
    return {int(cell) for _, cells, _, _ in run_rule(rule, frame) for cell in cells}


def plant(values, where, value, column="value"):
    """A copy of the values with one cell changed, and the index of that cell."""
    index = values.query(where).index
    assert len(index) == 1, where
    changed = values.copy()
    changed.loc[index, column] = value
    return changed, index[0]


@pytest.mark.parametrize(("rule", "where", "value"), [
    ("averages", "paper == 'MMedLM' and table == '2' and row == 'BLOOMZ' and setting == 'PEFT' and column == 'Average' "
                 "and metric == 'ROUGE-1'", 35.36),
    ("grim", "paper == 'PMC-LLaMA' and table == '1' and row == 'LLaMA 13B baseline' and column == 'MedQA'", 45.50),
    ("intervals", "table == '4' and row == 'GPT-4 (5-shot)' and column == 'MMLU Anatomy'", 81.5),
    ("weighted", "setting == 'adversarial All' and row == 'Med-PaLM' and column == 'consensus'", 0.589),
    ("totals", "table == 'A.5' and row == 'Tie' and column == 'better reasoning'", 0.189),
    ("totals", "table == 'MMedC' and row == 'Russian' and column == 'total'", 1.79),
    ("overviews", "table == 'overview' and row == 'GPT-4' and column == 'NER'", 59.25),
    ("copies", "paper == 'PMC-LLaMA' and table == '2' and row == 'PMC-LLaMA 13B' and column == 'MedMCQA'", 56.4),
    ("copies", "paper == 'Med-PaLM 2' and table == '5' and row == 'ER (11+33)' and column == 'MMLU Anatomy'", 84.9),
    ("overlaps", "table == '6' and row == 'delta' and column == 'MMLU College biology'", -1.8),
    ("p_values", "table == 'A.2' and row == 'Med-PaLM 2 vs Physician' and column == 'consensus'", 0.0),
])
def test_a_planted_error_is_found(values, rule, where, value):
    changed, index = plant(values, where, value)
    assert index not in accused(rule, values)
    assert index in accused(rule, changed)


@pytest.mark.parametrize("row", ["Llama 3", "MMedIns-Llama 3", "InternLM 2"])
def test_a_planted_copy_of_a_row_is_found(values, row):
    changed = values.copy()
    table = changed[(changed["table"] == "8c Clinical outcome prediction")]
    target, source = (table[table["row"] == name].index for name in ("Qwen 2", row))
    changed.loc[target, "value"] = changed.loc[source, "value"].to_numpy()
    assert set(target) | set(source) <= accused("duplicates", changed)


@pytest.mark.parametrize("row", ["Llama3", "Gemma", "Mistral", "Flan-PaLM"])
def test_a_planted_swap_is_found(values, row):
    """MedMCQA and PubMedQA of models that are near the usual gap; where a model is not, a swap stays hidden."""
    pair = values.query("paper == 'MMedLM' and row == @row and exam in ['medmcqa', 'pubmedqa']").index
    changed = values.copy()
    changed.loc[pair, "value"] = changed.loc[pair[::-1], "value"].to_numpy()
    assert not set(pair) & accused("swaps", values)
    assert set(pair) <= accused("swaps", changed)


def test_averages_that_leave_out_a_column_are_explained(values):
    changed = values.copy()
    table = changed[(changed["table"] == "7 NER")]
    means = table[~table["column"].isin(["Avg.", "Species800"])].groupby("row")["value"].mean()
    last = table[table["column"] == "Avg."]
    changed.loc[last.index, "value"] = last["row"].map(means).round(2)
    words = [words for _, cells, _, words in run_rule("averages", changed) if cells[0] in last.index]
    assert len(words) == 11
    assert all(text.endswith("it is the mean of BC4Chem, BC5Chem, BC5Disease only") for text in words)


# -------------------------------------------------------------------------------------------------- claimed gains


def test_claimed_gains_of_the_pmc_llama_ablation(gains):
    """Table 1: at these n only 5 of 24 steps can be told from none without the items; three not even paired."""
    steps = gains.query("paper == 'PMC-LLaMA' and table == '1'")
    assert len(steps) == 24
    assert steps["verdict"].value_counts().to_dict() == {
        "unknown without the items": 16, "distinguishable": 5, "not distinguishable": 3}
    graph = steps.query("claim == 'knowledge graph' and column == 'MedQA'").iloc[0]
    low, high = statistics.newcombe(717, 1273, 693, 1273)
    assert (graph["low"], graph["high"]) == pytest.approx((low, high))
    assert graph["items_needed"] == statistics.items_needed(0.5636, 0.5443)
    assert graph["flag"] == "grim"


def test_ensemble_refinement_over_self_consistency(gains):
    """Med-PaLM 2 Table 5: no gain can be told from none on any of the nine sets, except perhaps paired."""
    steps = gains[gains["claim"] == "ensemble refinement over self-consistency"]
    assert len(steps) == 9
    assert not steps["verdict"].eq("distinguishable").any()
    assert steps.query("column == 'MedQA (USMLE)'")["items_needed"].item() > 5_000


def test_the_average_of_six_languages_counts_as_3004_items(gains):
    """36 / sum(1/n) of MMedBench; the macro mean is dominated by Japanese (199) and Russian (256)."""
    steps = gains.query("paper == 'MMedLM' and table == '4'")
    sizes = np.array([1273, 3426, 199, 622, 256, 2742])
    assert (steps["n_a"] == np.floor(36 / (1 / sizes).sum())).all()
    assert len(steps) == 15
    assert steps.query("claim == 'whole corpus (Llama 3)'")["verdict"].item() == "distinguishable"
    assert steps.query("claim == 'English corpus (InternLM)'")["verdict"].item() != "distinguishable"


def test_gains_that_the_text_states_are_those_of_the_tables(gains):
    told = gains.dropna(subset=["printed_gain"])
    assert len(told) == 9
    assert (100 * told["difference"] - told["printed_gain"]).abs().max() < 0.011


def test_preferences_use_wins_losses_and_ties(gains):
    """Med-PaLM 2 Table A.6: more inaccurate or irrelevant content, 0.184 against 0.215 of 1,055, printed p = 0.122."""
    pairwise = gains[gains["design"] == "preferences"].set_index(["claim", "column"])
    close = pairwise.loc[("preferred over Med-PaLM", "more inaccurate/irrelevant")]
    assert close["low"] < 0 < close["high"]
    assert close["verdict"] == "not distinguishable"
    assert statistics.mcnemar(194, 227) == pytest.approx(0.122, abs=0.02)
    assert pairwise["verdict"].eq("distinguishable").sum() == 17


def test_gains_are_consistent(gains):
    assert ((gains["low"] <= gains["difference"]) & (gains["difference"] <= gains["high"])).all()
    shown = gains["verdict"] == "distinguishable"
    assert ((gains["low"] > 0) | (gains["high"] < 0)).equals(shown)
    assert (gains["items_at_best"].fillna(0) <= gains["items_needed"]).all()
    assert set(gains["paper"]) == {"PMC-LLaMA", "Med-PaLM 2", "MMedLM", "MedS-Bench"}
    claims = pd.read_csv(reported.FOLDER / "claims.csv")
    assert set(zip(claims["paper"], claims["claim"])) == set(zip(gains["paper"], gains["claim"]))


def test_the_gains_of_one_paper_are_those_of_all(values, gains):
    for paper in gains["paper"].unique():
        expected = gains[gains["paper"] == paper].reset_index(drop=True)
        pd.testing.assert_frame_equal(reported.claimed_gains("small", paper), expected)
        with np.errstate(invalid="ignore"):  # an average over exams whose sizes another paper prints
            alone = run_cells(values[values["paper"] == paper], notebook_cells("gains").values())["gains"]
        pd.testing.assert_frame_equal(alone, expected, check_dtype=False)
    assert gains["paper"].nunique() == 4


@pytest.mark.parametrize("paper", ["PMC-LLaMA", "Med-PaLM 2", "MMedLM", "MedS-Bench"])
def test_a_paper_alone_is_accused_of_the_same(paper, values, findings):
    """By every rule that does not compare papers with each other, and the same lines are read for the paper alone."""
    own, alone = values[values["paper"] == paper], [rule for rule in RULES if rule not in ("swaps", "copies")]
    found = [line for rule in alone for line in run_rule(rule, own)]
    expected = findings[(findings["paper"] == paper) & findings["rule"].isin(alone)].drop(columns="explanation").reset_index(drop=True)
    assert len(expected) >= 3
    pd.testing.assert_frame_equal(as_table(found, values), expected, check_dtype=False)
    read = reported.audit("small", paper)
    assert (read["finding"].tolist(), set(read["paper"])) == (findings[findings["paper"] == paper]["finding"].tolist(), {paper})
