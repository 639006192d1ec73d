"""Show tables in one house style, and say in fixed words how a result of ours stands to a published value."""
import hashlib
import math
import numpy as np
import pandas as pd
from lib import reported, results, statistics
from lib.world import read_yaml
REASONS = ("other model size", "other item set", "API model", "ambiguous metric", "restricted data", "controlled world",
           "weights not public", "too few items to tell")
NO_RUN = "no run yet"
VERDICTS = ("distinguishable", "unknown without the items", "not distinguishable")  # of a published difference
STYLES = read_yaml("figures.yaml")["tables"]

def show(frame, *, percent=(), best=(), lowest=(), decimals=1, caption=None):
    """A frame as a page shows it: shares in percent, thousands parted, the best value bold, "-" where one is missing.
    percent (columns that hold 0-1), best, lowest (value in bold): names, or True for all numbers. The same frame always gives the same HTML."""
    frame = frame.reset_index(drop=all(name is None for name in frame.index.names))
    frame = frame.set_axis([_header(name) for name in frame.columns], axis=1)
    numbers = [name for name in frame if pd.api.types.is_numeric_dtype(frame[name]) and frame[name].dtype != bool]
    percent, best, lowest = (numbers if names is True else [_header(name) for name in names] for names in (percent, best, lowest))
    formats = {name: _number_format(frame[name], 100 if name in percent else 1, decimals) for name in numbers}
    style = frame.style.hide(axis="index").format(formats, na_rep="-", escape="html")
    texts = [name for name in frame if name not in numbers]
    style = style.format(escape="html", na_rep="-", subset=texts).set_properties(texts, **{"text-align": "left"})
    style = style.set_td_classes(frame.map(lambda cell: "long" if isinstance(cell, str) and len(cell) > 24 else ""))
    highest, least = ([name for name in names if frame[name].notna().any()] for names in (best, lowest))
    style = style.highlight_max(highest, props="font-weight: bold").highlight_min(least, props="font-weight: bold")
    style = style.format_index(lambda name: f"{name} (%)" if name in percent else name, axis=1, escape="html")
    key = frame.to_csv() + str((percent, best, lowest, decimals, caption))  # two tables of a page must not share a style
    heads = [{"selector": f"th.col{place}", "props": "text-align: left"} for place, name in enumerate(frame) if name in texts]
    style = style.set_table_styles([*STYLES, *heads]).set_uuid(hashlib.sha256(key.encode()).hexdigest()[:10])
    return style.set_caption(caption) if caption else style
def _header(name):
    return " · ".join(str(part) for part in name if part != "") if isinstance(name, tuple) else str(name)
def _number_format(column, factor, decimals):
    whole = factor == 1 and (column.dropna() % 1 == 0).all()
    return lambda number: f"{factor * number:,.{0 if whole else decimals}f}"

def interval_text(value, low, high, *, percent=True, decimals=1):
    """A value with its interval as text, in percent or as it is; "-" where there is none.
    >>> interval_text(0.931, 0.902, 0.954), interval_text(0.012, -0.03, 0.055)
    ('93.1 (90.2-95.4)', '1.2 (-3.0 to 5.5)')"""
    if value is None or math.isnan(value):
        return "-"
    value, low, high = (f"{(100 if percent else 1) * number + 0.0:.{decimals}f}" for number in (value, low, high))
    return f"{value} ({low}{' to ' if '-' in low else '-'}{high})"

def verdict(published, n, ours, low, high, *, comparable=None):
    """How a result of ours stands to a published one (0-1), in one of a fixed list of words.
    comparable: None if both measure the same; "direction" for gains of which only the sign can be compared; else a reason of REASONS. n:
    items behind the published value, None: exact. "within interval": by that of the difference (square-and-add, Zou and Donner 2008).
    >>> verdict(0.854, 1273, 0.861, 0.84, 0.88), verdict(0.854, 1273, 0.6, 0.57, 0.63)
    ('within interval', 'differs')
    >>> verdict(0.011, None, 0.31, 0.24, 0.37, comparable="direction")
    'direction holds'
    >>> verdict(0.5, 100, 0.9, 0.8, 1, comparable="controlled world"), verdict(0.5, 100, None, None, None)
    ('not comparable: controlled world', 'no run yet')"""
    if comparable not in (None, "direction", *REASONS):
        raise ValueError(f"verdict: {comparable!r} is no known reason; use one of: {', '.join(REASONS)}")
    if comparable in REASONS:
        return f"not comparable: {comparable}"
    if ours is None or math.isnan(ours):
        return NO_RUN
    if comparable == "direction":
        if low <= 0 <= high:
            return "not comparable: too few items to tell"
        return "direction holds" if (low > 0) == (published > 0) else "differs"
    below, above = statistics.wilson(round(published * n), n) if n else (published, published)
    ours_reach, their_reach = (ours - low, above - published) if ours > published else (high - ours, published - below)
    return "within interval" if abs(ours - published) <= math.hypot(ours_reach, their_reach) else "differs"

def estimates(frame):
    """Published values (lines of `reported.read`) as shares: score, low, high (0-1): the printed interval, else Wilson's for n items, else none."""
    scale = np.where(frame["metric"] == "proportion", 1, 100)
    n = frame["n"].where(frame["metric"].isin(reported.SCALE))
    bounds = statistics.wilson(np.minimum((frame["value"] / scale * n.fillna(1)).round(), n.fillna(1)), n.fillna(1))
    low, high = (pd.Series(bound, frame.index).where(n.notna()) for bound in bounds)
    return frame.assign(score=frame["value"] / scale, low=(frame["interval_low"] / scale).fillna(low),
                        high=(frame["interval_high"] / scale).fillna(high))

def audit_summary(profile, paper):
    """What the rules of `reported.audit` found in a paper, findings of one kind in one line, with the explanation."""
    found, lines = reported.audit(profile, paper), []
    for (rule, table, why), part in found.groupby(["rule", "table", "explanation"], sort=False):
        where = [f"{cell.row}, {cell.column}: {cell.printed:g}" + f" (expected {cell.expected:.4g})" * bool(np.isfinite(cell.expected))
                 for cell in part.head(3).itertuples()] + [f"and {len(part) - 3} more"] * (len(part) > 3)
        why = why or part["finding"].iloc[0]
        lines.append({"rule": rule, "table": table, "findings": len(part), "printed": "; ".join(where), "looked into": why})
    return pd.DataFrame(lines)

def gain_summary(gains):
    """How many of the gains of each claim are distinguishable from none, and the median of the items needed."""
    counts = pd.crosstab(gains["claim"], gains["verdict"]).reindex(columns=VERDICTS, fill_value=0)
    needed = gains.groupby("claim")[["items_needed", "items_at_best"]].median().round()
    return counts.join(needed).loc[gains["claim"].unique()].rename_axis(columns=None).reset_index()

def own_results(profile, notebook="04_ablations", name="table_1"):
    """A table of one of our own notebooks, or an empty frame where it has not run yet."""
    try:
        return results.read_table(profile, notebook, name)
    except FileNotFoundError:
        return pd.DataFrame(columns=["row", "size", "exam", "accuracy", "difference", "low", "high", "items"])

def beside(gains, ours, *, claims, columns, reasons=None):
    """Published gains with our own difference and the verdict; claims, columns: our row -> claim, our exam -> column.
    reasons: claim -> why it cannot be compared (one of REASONS). Without a run of ours the verdict is "no run yet"."""
    own = {(claims.get(step["row"]), columns.get(step["exam"])): step for step in ours.to_dict("records")}
    nothing, lines = dict.fromkeys(("difference", "low", "high"), math.nan), []
    for gain in gains.to_dict("records"):
        step = own.get((gain["claim"], gain["column"]), nothing)
        mine = [step[name] for name in nothing]
        words = verdict(gain["difference"], None, *mine, comparable=(reasons or {}).get(gain["claim"], "direction"))
        lines.append({"claim": gain["claim"], "exam": gain["column"], "published (points)": interval_text(*(gain[name] for name in nothing)),
                      "ours (points)": interval_text(*mine), "at the published n": gain["verdict"], "verdict": words})
    return pd.DataFrame(lines)

def coverage(profile, items):
    """Which table of our notebooks answers for each table and figure of a paper, and whether it is there: {item: "notebook/table"}."""
    root, named = results.results_root() / profile, [(item, *each.split("/")) for item, each in items.items()]
    return pd.DataFrame([{"of the paper": item, "ours": notebook, "state": f"{table}.csv in results/{profile}/{notebook}"
                          if (root / notebook / "tables" / f"{table}.csv").exists() else NO_RUN} for item, notebook, table in named])
