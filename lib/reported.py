"""The published values of the four papers: read and query them, what an audit found in them, and weigh the claimed gains."""
from pathlib import Path
import numpy as np
import pandas as pd
from lib import statistics
FOLDER = Path(__file__).resolve().parents[1] / "results" / "reported"
KEY = ["paper", "table", "setting", "row", "column", "metric"]
AVERAGES = ("Average", "Avg.")
SCALE = {"accuracy": 100, "accuracy/F1": 100, "proportion": 1}  # metrics that are k/n, and what 1 is printed as
SCORES = (*SCALE, "BLEU-1", "ROUGE-1", "ROUGE-L(printed ROUGE)")

def read() -> pd.DataFrame:
    """Every published value, one a line: KEY; model and exam (spelt alike in all tables); value (percent or share) and decimals as printed, step
    (largest rounding error); interval_low, interval_high; n; n_stated if the paper states another; source; note; flag (rules of the audit it breaks).
    >>> row = read().query("model == 'pmc-llama13b' and column == 'Average'"); print(row["value"].item(), *row["flag"])
    64.43 averages"""
    files = [file for file in sorted(FOLDER.glob("*.csv")) if file.stem not in ("claims", "audit")]
    if not files:
        raise FileNotFoundError(f"no published values in {FOLDER}: restore this folder, it belongs to the repository")
    frame = pd.concat([pd.read_csv(file, dtype=str, keep_default_na=False) for file in files], ignore_index=True)
    frame["decimals"] = frame["value"].str.partition(".")[2].str.len()
    frame["step"] = 0.5 * 10.0 ** -frame["decimals"].astype(float)
    numbers = ["value", "interval_low", "interval_high", "n", "n_stated"]
    frame[numbers] = frame[numbers].apply(pd.to_numeric)
    return frame

def query(paper: str, *, table=None, row=None, column=None, metric=None) -> pd.DataFrame:
    """The values of a paper, narrowed by one name or a list of names; an unknown name raises and lists the known.
    >>> query("Med-PaLM 2", table="5", row="ER (11+33)", column="MedQA (USMLE)")["value"].item()
    85.4"""
    frame = read()
    for key, wanted in {"paper": paper, "table": table, "row": row, "column": column, "metric": metric}.items():
        wanted = [wanted] if isinstance(wanted, str) else wanted
        if unknown := set(wanted or ()) - set(frame[key]):
            raise ValueError(f"no {key} {sorted(unknown)} here; there are: {', '.join(frame[key].unique())}")
        frame = frame if wanted is None else frame[frame[key].isin(wanted)]
    return frame

def wide(paper: str, table: str, *, metric=None, values: str = "value") -> pd.DataFrame:
    """A table as printed: (setting, row) x column, or x (metric, column) where it holds several metrics.
    >>> wide("Med-PaLM 2", "5").loc[("prompting", "5-shot")].round().astype(int).tolist()
    [80, 79, 71, 88, 90, 78, 95, 94, 81]"""
    frame = query(paper, table=table, metric=metric)
    across = ["column"] if frame["metric"].nunique() == 1 else ["metric", "column"]
    columns, rows = (frame.set_index(keys).index.unique() for keys in (across, ["setting", "row"]))
    return frame.set_index(["setting", "row", *across])[values].unstack(across).reindex(index=rows, columns=columns)

def audit(paper: str = "") -> pd.DataFrame:
    """What the rules of tests/audit.py find in the tables of one paper or of all (results/reported/audit.csv): rule, KEY and value of the first
    accused cell, expected value, finding, cells (index of all accused in `read()`), explanation (what looking into it showed)."""
    found = pd.read_csv(FOLDER / "audit.csv", dtype=dict.fromkeys((*KEY, "explanation"), str), keep_default_na=False,
                        na_values={"expected": [""]})
    found = found[found["paper"].isin([paper] if paper else found["paper"])].reset_index(drop=True)
    return found.assign(cells=found["cells"].str.split().map(lambda cells: [int(cell) for cell in cells]))
def _gain(a, b, n_a, n_b, design) -> dict:
    """Two printed scores (0-1) as a difference: interval, verdict, and the items that 80 % power would take."""
    k_a, k_b, needed = round(a * n_a), round(b * n_b), statistics.items_needed(a, b)
    if design == "preferences":  # wins, losses and ties are printed, so the items can be laid out again
        items, needed = np.arange(n_a), statistics.items_needed(a, b, discordance=a + b)
        low, high = statistics.paired_difference(items < k_a, items >= n_a - k_b, seed=0, replicates=2_000)[1:3]
    else:
        low, high = statistics.newcombe(k_a, n_a, k_b, n_b)
    best, verdict = needed, "distinguishable" if low > 0 or high < 0 else "not distinguishable"
    if design == "same items":  # if no item got worse
        best = min(needed, statistics.items_needed(a, b, discordance=abs(a - b)))
        if verdict == "not distinguishable" and statistics.mcnemar(abs(k_a - k_b), 0) <= 0.05:
            verdict = "unknown without the items"
    return {"value_a": a, "value_b": b, "n_a": n_a, "n_b": n_b, "difference": a - b, "low": low, "high": high,
            "verdict": verdict, "items_needed": needed, "items_at_best": best}

def claimed_gains(paper: str = "") -> pd.DataFrame:
    """Every claimed gain (results/reported/claims.csv), or those of one paper, as a difference of two printed scores (0-1), 95 % interval.
    design: "same items" are not published, so the interval is Newcombe's for different items, mostly too wide; a gain it does not show is unknown
    if it would show had no item got worse. "ratings": Newcombe takes ratings of one answer as independent, so too narrow. "preferences": all votes
    are printed. items_needed: for 80 % power, unpaired but for preferences; items_at_best: if none got worse. n of a mean: J^2 / sum(1 / n_j)."""
    frame, claims, gains = read(), pd.read_csv(FOLDER / "claims.csv", keep_default_na=False, dtype=str), []
    rows = dict(list(frame[frame["metric"].isin(SCALE)].groupby(KEY[:4])))
    said = frame[frame["table"] == "text"].set_index(["paper", "row", "column"])["value"]
    languages = frame[frame["setting"] == "test items"]["value"]  # MMedLM Table 4 prints averages over these only
    for claim in claims[claims["paper"].isin([paper] if paper else claims["paper"])].to_dict("records"):
        sides = []
        for side in "ab":
            part = rows[claim["paper"], claim["table"], claim[f"setting_{side}"], claim[f"row_{side}"]]
            exams = ~part["column"].isin(AVERAGES)
            sizes = part["n"][exams] if exams.any() else languages
            sides.append(part.assign(n=part["n"].where(exams, len(sizes) ** 2 // (1 / sizes).sum(skipna=False))))
        both = sides[0].merge(sides[1], on=["column", "metric"], suffixes=("_a", "_b")).dropna(subset=["n_a", "n_b"])
        for cell in both.to_dict("records"):
            a, b = (cell[f"value_{side}"] / SCALE[cell["metric"]] for side in "ab")
            gains.append({**{key: claim[key] for key in ("paper", "claim", "table")}, "column": cell["column"],
                          "design": claim["design"], **_gain(a, b, cell["n_a"], cell["n_b"], claim["design"]),
                          "printed_gain": said.get((claim["paper"], claim["claim"], cell["column"]), np.nan),
                          "flag": "; ".join(sorted({cell["flag_a"], cell["flag_b"]} - {""}))})
    return pd.DataFrame(gains)
