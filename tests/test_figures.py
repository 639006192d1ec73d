"""Figures can be read and say what the data say; tables are byte-stable, escaped, and judge in fixed words."""

import io
import math
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from lib import figures, reported, results, statistics, tables

EXAMS, ROWS = ["MedQA (USMLE)", "PubMedQA", "MedMCQA"], ["LLaMA 7B", "7B + papers", "7B + papers + books", "PMC-LLaMA 13B"]


def scores():
    """Twelve estimates: three exams, four rows; the last has no interval."""
    frame = pd.DataFrame([{"exam": exam, "row": row, "accuracy": 0.4 + 0.1 * i + 0.05 * j}
                          for i, exam in enumerate(EXAMS) for j, row in enumerate(ROWS)])
    frame = frame.assign(low=frame["accuracy"] - 0.03, high=frame["accuracy"] + 0.03, published=0.5, chance=0.25)
    frame.loc[11, ["low", "high"]] = np.nan
    return frame


def lines():
    """Three curves that end at nearly the same height, and one that stays low."""
    return pd.DataFrame([{"tokens": x, "score": 0.25 + top * x / (x + 10), "model": name, "low": 0.2, "high": 0.8}
                         for name, top in (("papers", 0.5), ("books", 0.501), ("both", 0.502), ("none", 0.01))
                         for x in (1, 10, 100, 1000)])


def parts():
    return pd.DataFrame([{"language": language, "source": source, "tokens": 1.5 * (i + 1)}
                         for language in ("en", "zh", "ja") for i, source in enumerate(("books", "papers", "web"))])


def gains():
    return scores().assign(difference=lambda frame: frame["accuracy"] - 0.55, low=-0.02, high=0.1, mark=" †")


EXAMPLES = {
    "interval_bars": lambda: figures.interval_bars(
        scores(), label="row", value="accuracy", low="low", high="high", group="exam", reference="published",
        chance="chance", title="A title"),
    "series": lambda: figures.interval_bars(
        scores(), label="exam", value="accuracy", low="low", high="high", series="row", chance=0.25, title="A title"),
    "curves": lambda: figures.curves(
        lines(), x="tokens", y="score", series="model", low="low", high="high", x_label="tokens seen",
        y_label="accuracy", chance=0.25, title="A title"),
    "stacked_bars": lambda: figures.stacked_bars(
        parts(), label="language", part="source", value="tokens", axis="tokens (billions)", title="A title"),
    "forest": lambda: figures.forest(
        gains(), label="row", difference="difference", low="low", high="high", group="exam", note="mark", title="A title"),
    "heat_map": lambda: figures.heat_map(scores().pivot(index="row", columns="exam", values="accuracy"), title="A title"),
}


@pytest.fixture(autouse=True)
def close_all():
    yield
    plt.close("all")


def png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=60, bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()


def texts(figure):
    """All visible words of a figure with the boxes they take up."""
    figure.canvas.draw()
    found = [text for text in figure.findobj(plt.Text) if text.get_text().strip() and text.get_visible()]
    boxes = [(text.get_text(), plt.Text.get_window_extent(text)) for text in found]  # without the line from a label to its curve
    inside = [(words, box) for words, box in boxes if box.width and box.height]
    return list({(words, tuple(box.bounds)): (words, box) for words, box in inside}.values())


# ------------------------------------------------------------------------------------------------------- every figure


@pytest.mark.parametrize("name", EXAMPLES)
def test_one_call_returns_a_figure_as_wide_as_a_page(name):
    figure = EXAMPLES[name]()
    assert isinstance(figure, Figure)
    assert figure.get_figwidth() == figures.WIDTH


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_same_data_give_the_same_bytes(name):
    assert png(EXAMPLES[name]()) == png(EXAMPLES[name]())


@pytest.mark.parametrize("name", EXAMPLES)
def test_no_words_overlap(name):
    found = texts(EXAMPLES[name]())
    assert len(found) > 5, "the check saw no words"
    overlapping = [(a, b) for (a, x), (b, y) in combinations(found, 2)
                   if min(x.x1, y.x1) - max(x.x0, y.x0) > 1 and min(x.y1, y.y1) - max(x.y0, y.y0) > 2]
    assert not overlapping


def test_a_figure_that_is_not_saved_shows_in_a_notebook():
    """Open for pyplot: the kernel shows it at the end of the cell; one that is saved is shown by save_figure and closed."""
    figure = EXAMPLES["heat_map"]()
    assert plt.fignum_exists(figure.number)


# -------------------------------------------------------------------------------------------------------- colours


# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB
EYES = {"normal": np.eye(3),
        "protan": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
        "deutan": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
        "tritan": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]])}


def seen(colour, eye):
    """A colour in CIELAB as an eye sees it."""
    rgb = np.array(to_rgb(colour))
    linear = np.clip(EYES[eye] @ np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4), 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    f = np.cbrt(xyz / np.array([0.9505, 1, 1.089]))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("eye", EYES)
def test_every_pair_of_families_can_be_told_apart(eye):
    """Distance in CIELAB; 2.3 is just noticeable side by side."""
    distances = {pair: np.linalg.norm(seen(figures.PALETTE[pair[0]], eye) - seen(figures.PALETTE[pair[1]], eye))
                 for pair in combinations(figures.PALETTE, 2)}
    assert len(distances) == 55
    assert min(distances.values()) > 10, min(distances, key=distances.get)


@pytest.mark.parametrize(("name", "family"), [
    ("Llama3", "LLaMA"), ("MMedLlama3", "MMed"), ("MMedIns-Llama 3", "MMed"), ("PMC-LLaMA_K 7B papers", "PMC-LLaMA"),
    ("LLaMA-2 70B", "LLaMA"), ("Llama3.1-Aloe-Beta-8B", "other medical"), ("ChatGPT 175B", "GPT"), ("GPT-Neo", "other"),
    ("Flan-PaLM (best)", "Med-PaLM"), ("MedPaLM2", "Med-PaLM"), ("InternLM 2", "InternLM"), ("MMedLM 2", "MMed"),
    ("BioMistral", "other medical"), ("Human (pass)", "human"), ("Physician", "human"), ("MMedBench(ZH)", None),
    ("papers + books", None), ("ER (11+33)", None)])
def test_a_name_has_the_family_a_reader_expects(name, family):
    assert figures.family(name) == family


def test_a_family_keeps_its_colour_and_no_other_line_takes_it():
    chosen = figures.colours(["no injection", "PMC-LLaMA 7B", "PMC-LLaMA 13B", "papers"])
    assert chosen["PMC-LLaMA 7B"] == figures.PALETTE["PMC-LLaMA"]
    assert len(set(chosen.values())) == 4


# -------------------------------------------------------------------------------------------- what a figure says


def marks(ax, marker):
    return [line.get_xdata()[0] for line in ax.lines if line.get_marker() == marker]


def test_shares_are_shown_in_percent_and_other_units_as_they_are():
    ax = EXAMPLES["interval_bars"]().axes[0]
    assert marks(ax, "o") == pytest.approx([40, 45, 50, 55])
    assert marks(ax, "D") == [50] * 4
    loss = lines().assign(score=lambda frame: 10 * frame["score"])
    figure = figures.curves(loss, x="tokens", y="score", series="model", x_label="tokens", y_label="loss (nats per token)")
    assert figure.axes[0].get_ylabel() == "loss (nats per token)"
    assert figure.axes[0].lines[0].get_ydata()[0] == loss["score"][0]
    counts = pd.DataFrame({"language": ["en"], "source": ["books"], "documents": [1]})
    bars = figures.stacked_bars(counts, label="language", part="source", value="documents", axis="documents")
    assert bars.axes[0].get_xlabel() == "documents"  # one document is not 100 %


def test_an_estimate_without_interval_is_a_point_alone():
    axes = EXAMPLES["interval_bars"]().axes
    spans = [[line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"] for ax in axes]
    assert [len(found) for found in spans] == [4, 4, 3]
    assert spans[0][0].get_xdata() == pytest.approx([37, 43])


def test_a_forest_is_filled_where_the_interval_leaves_zero_out():
    frame = pd.DataFrame({"step": ["a", "b"], "difference": [0.05, 0.05], "low": [0.01, -0.01], "high": [0.09, 0.11]})
    ax = figures.forest(frame, label="step", difference="difference", low="low", high="high").axes[0]
    faces = [line.get_markerfacecolor() for line in ax.lines if line.get_marker() == "o"]
    assert [face == "white" for face in faces] == [False, True]
    assert [text.get_text() for text in ax.texts] == ["+5.0", "+5.0"]


def test_panels_with_the_same_rows_stand_side_by_side():
    frame = pd.DataFrame({"exam": list("abababcdab"), "claim": np.repeat(["one", "two", "three", "four", "five"], 2)})
    rows = figures._panel_rows(frame, "exam", "claim")
    assert [(labels, [name for name, _ in found]) for labels, found in rows] == [
        (["a", "b"], ["one", "two", "three"]), (["c", "d"], ["four"]), (["a", "b"], ["five"])]


def test_labels_at_line_ends_move_apart_as_little_as_needed():
    moved = figures._spread([50, 50.1, 80, 49.9], 5)
    assert moved == pytest.approx([50, 55, 80, 45], abs=0.2)
    assert (np.diff(np.sort(moved)) >= 4.99).all()


def test_a_missing_cell_of_a_heat_map_stays_empty():
    matrix = pd.DataFrame({"MedQA": [0.5, np.nan], "PubMedQA": [0.6, 0.75]}, index=["a", "b"])
    assert sorted(text.get_text() for text in figures.heat_map(matrix).axes[0].texts) == ["50.0", "60.0", "75.0"]


# ------------------------------------------------------------------------------------------------------------- tables


def test_a_table_is_stable_and_two_tables_do_not_share_a_style():
    frame = scores()
    html = tables.show(frame, percent=["accuracy"], best=["accuracy"]).to_html()
    assert html == tables.show(frame, percent=["accuracy"], best=["accuracy"]).to_html()
    ids = {tables.show(other).to_html().split('id="')[1][:12] for other in (frame, frame.head(3))}
    assert len(ids) == 2


def test_a_table_shows_percent_the_best_value_missing_values_and_counts():
    frame = pd.DataFrame({"model": ["a", None], "accuracy": [0.931, np.nan], "tokens": [1_234_567, 8], "loss": [2.25, 3.5]})
    html = tables.show(frame, percent=["accuracy"], best=["tokens"], lowest=["loss"], caption="Scores").to_html()
    for words in (">93.1<", ">-<", ">1,234,567<", ">2.2<", "accuracy (%)", "<caption>Scores<", "font-weight: bold"):
        assert words in html
    assert html.count(">-<") == 2


def test_text_of_a_table_is_escaped():
    html = tables.show(pd.DataFrame({"<b>": ["<script>alert(1)</script>"]})).to_html()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "<b>" not in html


def test_index_and_columns_of_several_levels_become_plain_headers():
    html = tables.show(reported.wide("MMedLM", "2").head(2)).to_html()
    assert "BLEU-1 · English" in html
    assert ">setting<" in html  # not "setting · "


@pytest.mark.parametrize(("arguments", "comparable", "words"), [
    ((0.854, 1273, 0.861, 0.84, 0.88), None, "within interval"),
    ((0.854, None, 0.861, 0.84, 0.88), None, "within interval"),
    ((0.854, 1273, 0.70, 0.67, 0.73), None, "differs"),
    ((0.02, None, 0.3, 0.2, 0.4), "direction", "direction holds"),
    ((-0.02, None, 0.3, 0.2, 0.4), "direction", "differs"),
    ((-0.02, None, -0.3, -0.4, -0.2), "direction", "direction holds"),
    ((0.02, None, 0.3, -0.1, 0.7), "direction", "not comparable: too few items to tell"),
    ((0.02, None, math.nan, math.nan, math.nan), "direction", "no run yet"),
    ((0.5, 100, 0.9, 0.8, 1.0), "API model", "not comparable: API model"),
    ((0.5, 100, None, None, None), "API model", "not comparable: API model")])
def test_verdicts(arguments, comparable, words):
    assert tables.verdict(*arguments, comparable=comparable) == words


def test_an_unknown_reason_is_refused():
    with pytest.raises(ValueError, match="is no known reason; use one of: other model size"):
        tables.verdict(0.5, 100, 0.5, 0.4, 0.6, comparable="because")


def test_intervals_as_text():
    assert tables.interval_text(0.931, 0.902, 0.954) == "93.1 (90.2-95.4)"
    assert tables.interval_text(-0.0001, -0.03, 0.02) == "-0.0 (-3.0 to 2.0)"
    assert tables.interval_text(math.nan, 0, 1) == "-"
    assert tables.interval_text(2.5, 2, 3, percent=False, decimals=2) == "2.50 (2.00-3.00)"


def test_published_values_get_their_printed_interval_or_that_of_their_count():
    printed = tables.estimates(reported.query("Med-PaLM 2", table="4", row="Med-PaLM 2 (ER)", column="MedQA (USMLE)")).iloc[0]
    assert printed[["score", "low", "high"]].tolist() == pytest.approx([0.854, 0.833, 0.873])
    counted = tables.estimates(reported.query("PMC-LLaMA", table="1", row="LLaMA 7B baseline", column="MedQA")).iloc[0]
    assert counted[["low", "high"]].tolist() == pytest.approx(statistics.wilson(567, 1273))  # 44.54 % of 1,273
    rating = tables.estimates(reported.query("Med-PaLM 2", table="A.2", row="Physician", column="consensus")).iloc[0]
    assert rating[["score", "low", "high"]].tolist() == pytest.approx([0.921, 0.879, 0.964])
    average = tables.estimates(reported.query("PMC-LLaMA", table="2", column="Average"))
    assert average["low"].isna().all()


def test_the_audit_summary_loses_no_finding():
    audit = reported.audit("small")
    for paper in audit["paper"].unique():
        summary = tables.audit_summary("small", paper)
        assert summary["findings"].sum() == (audit["paper"] == paper).sum()
        assert (summary["looked into"] != "").all()


def test_gains_beside_our_own():
    published = reported.claimed_gains("small").query("paper == 'PMC-LLaMA' and table == '1'")
    ours = pd.DataFrame({"row": ["2M + papers"], "exam": ["recall"], "difference": [0.2], "low": [0.1], "high": [0.3]})
    compared = tables.beside(published, ours, claims={"2M + papers": "papers (7B)"}, columns={"recall": "MedMCQA"},
                             reasons={"knowledge graph": "restricted data"}).set_index(["claim", "exam"])
    assert compared.loc[("papers (7B)", "MedMCQA"), "ours (points)"] == "20.0 (10.0-30.0)"
    assert compared.loc[("papers (7B)", "MedMCQA"), "verdict"] == "direction holds"
    assert compared.loc[("papers (7B)", "MedQA"), "verdict"] == "no run yet"
    assert set(compared.loc["knowledge graph", "verdict"]) == {"not comparable: restricted data"}


def test_gain_summary_counts_every_gain_once():
    published = reported.claimed_gains("small").query("paper == 'PMC-LLaMA'")
    summary = tables.gain_summary(published)
    assert summary[list(tables.VERDICTS)].to_numpy().sum() == len(published)
    assert summary["claim"].tolist() == published["claim"].unique().tolist()


def test_our_own_results_may_be_missing(places):
    assert tables.own_results("small").empty
    items = {"Table 1": "04_ablations/table_1", "Table 9": "04_ablations/table_9"}
    assert tables.coverage("small", items)["state"].tolist() == ["no run yet", "no run yet"]
    folder = results.results_root() / "small" / "04_ablations"
    results.write_atomically(folder / "tables" / "table_1.csv", "row,exam\na,recall\n")
    assert tables.own_results("small")["row"].tolist() == ["a"]
    assert tables.coverage("small", items)["state"].tolist() == ["table_1.csv in results/small/04_ablations", "no run yet"]
