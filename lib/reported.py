"""The published values of the four papers: read and query them, what an audit found in them, and what the claimed gains are worth."""
from pathlib import Path
import pandas as pd
from lib import results
FOLDER = Path(__file__).resolve().parents[1] / "results" / "reported"
KEY = ["paper", "table", "setting", "row", "column", "metric"]
AVERAGES = ("Average", "Avg.")
SCALE = {"accuracy": 100, "accuracy/F1": 100, "proportion": 1}  # metrics that are k/n, and what 1 is printed as

def read() -> pd.DataFrame:
    """Every published value, one a line: KEY; model and exam (spelt alike in all tables); value (percent or share) and decimals as printed, step
    (largest rounding error); interval_low, interval_high; n; n_stated if the paper states another; source; note; flag (rules of the audit it breaks).
    >>> row = read().query("model == 'pmc-llama13b' and column == 'Average'"); print(row["value"].item(), *row["flag"])
    64.43 averages"""
    files = [file for file in sorted(FOLDER.glob("*.csv")) if file.stem not in ("claims", "explanations")]
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

def audit(profile: str, paper: str = "") -> pd.DataFrame:
    """What the rules of notebook 00 find in the tables of one paper or of all: rule, KEY and value (printed) of the first accused cell, expected
    value, finding, cells (index of all accused in `read()`, parted by blanks), explanation (what looking into it showed)."""
    return _derived(profile, "audit", paper)

def claimed_gains(profile: str, paper: str = "") -> pd.DataFrame:
    """Every claimed gain (claims.csv), or those of one paper, as a difference of two printed scores (0-1) with 95 % interval, from notebook 00.
    design: "same items" are not published, so the interval is Newcombe's for different items, mostly too wide; a gain it does not show is unknown
    if it would show had no item got worse. "ratings": Newcombe takes ratings of one answer as independent, so too narrow. "preferences": all votes
    are printed. items_needed: for 80 % power, unpaired but for preferences; items_at_best: if none got worse. n of a mean: J^2 / sum(1 / n_j)."""
    return _derived(profile, "gains", paper)
def _derived(profile, name, paper):
    frame = results.read_table(profile, "00_published_values", name).fillna({"flag": "", "explanation": ""})
    return frame[frame["paper"].isin([paper] if paper else frame["paper"])].reset_index(drop=True)
