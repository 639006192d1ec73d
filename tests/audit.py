"""What follows from the published values: the rules that audit them, and the claimed gains with their intervals.

Run `python -m tests.audit` to write results/reported/audit.csv and gains.csv, which `lib.reported` reads. A rule takes all values and yields (cells it accuses, value it expects, what it found). A new finding needs its explanation: what looking into it
showed, written into the last column of the file, where a rerun keeps it."""

from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats import proportion

from lib import statistics
from lib.reported import AVERAGES, FOLDER, KEY, SCALE, read
from lib.results import write_atomically

SETTINGS = {"full": "full FT", "ablation": "full FT", "zero": "zero-shot", "prompting": "multiple-choice"}  # the same
SCORES = (*SCALE, "BLEU-1", "ROUGE-1", "ROUGE-L(printed ROUGE)")
METHODS = {"clopper_pearson": "beta", "wald": "normal", "wilson": "wilson"}


def averages(frame):
    """A printed average is the mean of its row, within rounding."""
    for _, table in frame.groupby(["paper", "table", "metric"], sort=False):
        wrong, averaged = [], table["column"].isin(AVERAGES)
        for index, average in table[averaged].iterrows():
            own = table[~averaged & (table["row"] == average["row"]) & (table["setting"] == average["setting"])]
            error = average["step"] + own["step"].max() + 1e-9
            if len(own) > 1 and abs(average["value"] - own["value"].mean()) > error:
                wrong.append((index, average["value"], own.set_index("column")["value"], error))
        kept = _kept(wrong)
        for index, printed, cells, _ in wrong:
            mean, only = cells.mean(), f", it is the mean of {', '.join(kept)} only" if kept else ""
            yield [index], mean, f"{printed - mean:+.3f} off the mean of its {len(cells)} cells, {mean:.3f}{only}"


def _kept(wrong) -> list[str]:
    """The columns whose mean explains every wrong average of a table, if there are at least three to explain."""
    columns = list(wrong[0][2].index) if len(wrong) > 2 else []
    subsets = (list(kept) for size in range(len(columns) - 1, 1, -1) for kept in combinations(columns, size))
    return next((kept for kept in subsets if all(abs(printed - cells.reindex(kept).mean()) <= error for _, printed, cells, error in wrong)), [])


def totals(frame):
    """Parts add up to their printed total; shares of win, loss and tie to 1."""
    for _, part in frame[frame["metric"] != "p"].groupby(["paper", "table", "setting"], sort=False):
        by = "row" if "total" in set(part["column"]) else "column"
        for label, cells in part.groupby(by, sort=False) if by == "row" or "Tie" in set(part["row"]) else ():
            parts, total = cells[cells["column"] != "total"], cells[cells["column"] == "total"]["value"].sum()
            if abs(parts["value"].sum() - (total if by == "row" else 1)) > cells["step"].sum() + 1e-9:
                yield list(cells.index), parts["value"].sum(), f"the parts of {label} do not add up"


def grim(frame):
    """A printed accuracy or share is k/n, for the n of its test set and for the n that the paper states."""
    cells = frame[frame["metric"].isin(SCALE) & ~frame["column"].isin(AVERAGES)]
    for column, what in (("n", "items"), ("n_stated", "ratings that the paper states")):
        known = cells[cells[column].notna()]
        value, n, scale = known["value"], known[column], known["metric"].map(SCALE).to_numpy()
        nearest = (value * n / scale).round() / n * scale
        for index in known.index[~statistics.grim(value, n, decimals=known["decimals"], scale=scale)]:
            yield [index], nearest[index], f"no k/n of {n[index]:.0f} {what} is printed like this"


def explained_intervals(frame):
    """Yield (paper, table, cells with an interval, the method that gives most of the intervals, which it gives)."""
    cells = frame[frame["interval_low"].notna() & frame["metric"].isin(SCALE) & frame["n"].notna()]
    for (paper, table), part in cells.groupby(["paper", "table"], sort=False):
        n, scale = part["n"].to_numpy(), part["metric"].map(SCALE).to_numpy(float)
        k, step = np.round(part["value"].to_numpy() / scale * n), part["step"].min() + 1e-6
        found = {name: proportion.proportion_confint(k, n, method=how) for name, how in METHODS.items()}
        found["bootstrap of independent ratings"] = stats.binom.ppf([[0.025], [0.975]], n, k / n) / n
        noise = (1 + 0.08 * np.sqrt(k * (1 - k / n))) / n * scale  # one rating, 3 standard errors of 10,000 replicates
        printed = part[["interval_low", "interval_high"]].to_numpy().T
        fits = {method: np.abs(np.array(pair) * scale - printed).max(axis=0) <= step + noise * method.startswith("boot")
                for method, pair in found.items()}
        best = max(fits, key=lambda method: fits[method].sum())
        yield paper, table, part, best, fits[best]


def intervals(frame):
    """All intervals of a table come from one method and k/n."""
    for _, _, part, best, fits in explained_intervals(frame):
        yield from (([index], np.nan, f"not {best}, as {fits.sum()} of {len(fits)} are") for index in part.index[~fits])


def overlaps(frame):
    """A delta is the difference of its two groups with Newcombe's interval, and the groups make up a printed score."""
    scores = frame[(frame["paper"] == "Med-PaLM 2") & frame["table"].isin(["4", "5"])]
    deltas = frame[frame["row"].isin(["without overlap", "with overlap", "delta"])]
    for (_, column), part in deltas.groupby(["table", "column"], sort=False):
        a, b, delta = (part.set_index("row").loc[row] for row in ("without overlap", "with overlap", "delta"))
        k_a, k_b = round(a["value"] * a["n"] / 100), round(b["value"] * b["n"] / 100)
        found = 100 * np.array([k_a / a["n"] - k_b / b["n"], *statistics.newcombe(k_a, a["n"], k_b, b["n"])])
        error = 0.051 + sum(max(0, 0.05 - 50 / n) for n in (a["n"], b["n"]))  # several k print alike in a large group
        if np.abs(found - delta[["value", "interval_low", "interval_high"]].astype(float)).max() > error:
            yield list(part.index), found[0], "this delta and interval do not follow from the two groups"
        whole = 100 * (k_a + k_b) / (a["n"] + b["n"])
        same = set(scores[(scores["column"] == column) & ((scores["value"] - whole).abs() <= 0.051)]["row"])
        if "Med-PaLM 2 (ER)" not in same:
            which = ", ".join(sorted(same & {"5-shot", "CoT+SC (11)"})) or "no printed score"
            yield list(part.index[:2]), whole, f"the two groups make {whole:.1f}: {which}, not the ER score"


def weighted(frame):
    """A row for all is its parts weighted by their n."""
    for _, part in frame[frame["n"].notna()].groupby(["paper", "table", "row", "column", "metric"], sort=False):
        whole = part["setting"].str.endswith(" All")
        for index, total in part[whole].iterrows() if len(part) > 2 else ():
            mean, n = np.average(part["value"][~whole], weights=part["n"][~whole]), part["n"][~whole].sum()
            if abs(mean - total["value"]) > 2 * total["step"] or n != total["n"]:
                yield [index], mean, f"its parts, weighted by their n, give {mean:.4f} of {n:.0f}"


def duplicates(frame):
    """Two rows do not share more cells of a table than chance allows (1 in 20, over all pairs of the table)."""
    for _, part in frame[frame["metric"].isin(SCORES)].groupby(["paper", "table", "setting"], sort=False):
        grain = (part["metric"].map(SCALE) / part["n"]).fillna(0).clip(lower=2 * part["step"])
        cells = part.assign(cell=part["column"] + part["metric"], grain=grain).set_index("cell")
        table, grain = cells.set_index("row", append=True)["value"].unstack("cell"), cells.groupby("cell").grain.max()
        chance = (grain / (3.5 * table.std())).clip(upper=1).to_numpy()  # that two rows tie in a column
        pairs = list(combinations(table.index, 2))
        for a, b in pairs:
            x, y = table.loc[a].to_numpy(), table.loc[b].to_numpy()
            shared, both = table.columns[x == y], ~np.isnan(x + y)
            if len(shared) > 1 and len(pairs) * stats.poisson.sf(len(shared) - 1, chance[both].sum()) < 0.05:
                accused = part.index[part["row"].isin([a, b]) & cells.index.isin(shared)]
                yield list(accused), np.nan, f"{a} and {b} share {len(shared)} of {both.sum()} cells"


def swaps(frame):
    """No model turns the usual order of two exams round so far that swapping its two cells would restore it."""
    frame = frame[frame["metric"].isin(SCORES) & ~frame["column"].isin(AVERAGES)]
    for metric, part in frame.groupby(frame["metric"].str.removesuffix("/F1"), sort=False):
        table = part.reset_index().pivot(index=["paper", "table", "setting", "row"], columns="exam", values="index")
        table = table.loc[:, table.notna().sum() >= 15]
        values = table.apply(pd.Series.map, args=(part["value"],))
        for a, b in combinations(table.columns, 2):
            gap = (values[a] - values[b]).to_numpy()  # NaN where one of the two is missing
            usual = np.unique(gap[~np.isnan(gap)])  # a row copied into another table counts once
            if len(usual) < 15:
                continue
            centre, spread = np.median(usual), stats.median_abs_deviation(usual, scale="normal")
            odd = (np.abs(gap - centre) > 4 * spread) & (np.abs(gap + centre) < spread)
            for index in table.loc[odd, [a, b]].to_numpy(int):
                yield list(index), np.nan, f"{metric} of {a} and {b} would fit {len(usual)} other rows if swapped"


def copies(frame):
    """A model's cell that appears in two tables is the same in both."""
    cells = frame[frame["metric"].isin(SCORES) & ~frame["table"].str.startswith(("v1", "Fig", "overview"))]
    cells = cells.assign(setting=cells["setting"].replace(SETTINGS), metric=cells["metric"].str.removesuffix("/F1"))
    both = cells.reset_index().merge(cells.reset_index(), on=["model", "exam", "metric"], suffixes=("", "_b"))
    same_paper = both["paper"] == both["paper_b"]
    both = both[(both["index"] < both["index_b"]) & (both["table"] != both["table_b"])
                & np.where(same_paper, both["setting"] == both["setting_b"], ~both["column"].isin(AVERAGES))]
    step, gap = np.maximum(both["step"], both["step_b"]), (both["value"] - both["value_b"]).abs()
    both["same"] = gap <= np.where(both["step"] == both["step_b"], 0, step) + 1e-9
    for _, rows in both.groupby(["model", "paper", "table", "setting", "paper_b", "table_b", "setting_b"], sort=False):
        copied = rows["same"].sum() >= max(2, len(rows) / 2)
        for _, cell in rows[~rows["same"] & (copied | (gap[rows.index] <= 3 * rows["step"]))].iterrows():
            other = f"{cell['value_b']:g} in {cell['paper_b']} {cell['table_b']}; {sum(rows['same'])} of {len(rows)}"
            yield [cell["index"], cell["index_b"]], cell["value_b"], f"{other} shared cells are the same"


def overviews(frame):
    """An overview cell is the average of the table it names."""
    tables = frame[frame["table"].str.fullmatch(r"\d\w* .+")]
    for index, cell in frame[frame["table"] == "overview"].iterrows():
        named = tables["table"].str.lower().str.endswith(" " + cell["column"].lower().removesuffix("(f1)"))
        own = tables[named & (tables["model"] == cell["model"]) & (tables["metric"] == cell["metric"])]
        last = own[own["column"].isin(AVERAGES) | own["column"].str.contains("F1")]
        mean = (own if last.empty else last)["value"].mean()
        if abs(mean - cell["value"]) > cell["step"] + 1e-6:
            yield [index], mean, f"its own table gives {mean:.2f}"


def p_values(frame):
    """A permutation p-value is not 0, and not far above what the two intervals beside it imply."""
    shares = frame[frame["metric"] == "proportion"].set_index(["table", "setting", "column", "row"])[["value", "interval_low", "interval_high"]]
    for index, cell in frame[frame["metric"] == "p"].iterrows():
        if cell["value"] == 0:
            yield [index], 0.001, "printed as 0, but 10,000 permutations can only say below 0.001"
        if " vs " in cell["row"] and "<" not in cell["note"]:
            (a, low_a, high_a), (b, low_b, high_b) = (shares.loc[(*cell[["table", "setting", "column"]], row)] for row in cell["row"].split(" vs "))
            implied = 2 * stats.norm.sf(3.92 * abs(a - b) / np.hypot(high_a - low_a, high_b - low_b))
            if cell["value"] > 5 * max(implied, 0.0002):  # 0.0002: the smallest that 10,000 permutations print
                yield [index], implied, f"the two intervals imply p = {implied:.4f}"

RULES = (averages, totals, grim, intervals, overlaps, weighted, duplicates, swaps, copies, overviews, p_values)


def audit(paper=""):
    """What the rules find in the tables of one paper or of all, with the explanations of the file."""
    frame, why = read(), pd.read_csv(FOLDER / "audit.csv", dtype=str)[["rule", *KEY, "explanation"]]
    own = frame[frame["paper"].isin([paper] if paper else frame["paper"])]  # swaps and copies compare papers with each other
    found = [(rule.__name__, *frame.loc[cells[0], [*KEY, "value"]], expected, words, [int(cell) for cell in cells])
             for rule in RULES for cells, expected, words in rule(frame if rule in (swaps, copies) else own) if cells[0] in own.index]
    return pd.DataFrame(found, columns=["rule", *KEY, "printed", "expected", "finding", "cells"]).merge(why.drop_duplicates(["rule", *KEY]), how="left")


def _gain(a, b, n_a, n_b, design):
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


def claimed_gains(paper=""):
    """Every claimed gain, or those of one paper, as described in `lib.reported.claimed_gains`."""
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


def write():
    """Both files."""
    write_atomically(FOLDER / "gains.csv", claimed_gains().to_csv(index=False, lineterminator="\n", na_rep="nan"))
    table = audit()
    table["cells"] = [" ".join(map(str, cells)) for cells in table["cells"]]
    write_atomically(FOLDER / "audit.csv", table.to_csv(index=False, lineterminator="\n", na_rep="nan"))


if __name__ == "__main__":
    write()
