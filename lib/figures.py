"""Draw every kind of figure of this project with one call, in one house style; each function returns the figure.

Scores are 0-1 in the data and shown in percent: an axis title without a unit, over values of at most 1, is a share. Any other quantity
names its unit, as in "loss (nats per token)". Rows, panels and series keep the order of the frame. A label that names a model has the
colour of its family in every figure. In a notebook, end the line with `;`: the open figure is shown once, below."""
import re
import textwrap
from itertools import cycle
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import seaborn
from matplotlib.colors import to_hex, to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from lib.world import read_yaml
WIDTH = 7.0  # inches: the text width of a page
PER_ROW = 3  # panels side by side
INK, PALE = "#333333", "#8a8a8a"  # text; chance and zero lines
STYLE = read_yaml("figures.yaml")  # colours of the model families, of everything else, and matplotlib's settings
PALETTE = {name: colour for name, (colour, _) in STYLE["families"].items()}
CYCLE = STYLE["cycle"]
MARKERS = "osD^vP*X"
DASHED = {"color": PALE, "linewidth": 0.8, "linestyle": (0, (4, 3))}  # the chance level
matplotlib.rcParams.update(STYLE["settings"])

def family(name) -> str | None:
    """The model family of a name, None where it names no model.
    >>> [family(name) for name in ("MMed-Llama 3", "PMC-LLaMA_K 7B", "GPT-4 (5-shot)", "Llama 3", "MedMCQA")]
    ['MMed', 'PMC-LLaMA', 'GPT', 'LLaMA', None]"""
    return next((key for key, (_, pattern) in STYLE["families"].items() if re.search(pattern, str(name), re.IGNORECASE)), None)

def colours(names) -> dict:
    """A colour for every line or part: its family's, paler from the second on; names of no model take the cycle.
    >>> colours(["Med-PaLM 2", "papers"])
    {'Med-PaLM 2': '#009E73', 'papers': '#0072B2'}"""
    names = list(dict.fromkeys(names))
    taken = {PALETTE[key] for key in map(family, names) if key}
    chosen, members, free = {}, {}, cycle([colour for colour in CYCLE if colour not in taken] or CYCLE)
    for name in names:
        key = family(name)
        members[key] = members.get(key, -1) + 1
        strength = 1 - min(0.35 * members[key], 0.6)
        chosen[name] = to_hex([1 - (1 - part) * strength for part in to_rgb(PALETTE[key])]).upper() if key else next(free)
    return chosen
def _scaled(axis, values=()):
    """(axis title, factor): a title without a unit, over values between -1 and 1, is a share and shown in percent."""
    share = "(" not in axis and np.size(values) > 0 and not np.nanmax(np.abs(np.nan_to_num(values))) > 1
    return f"{axis} (%)" if share else axis, 100 if share or "%" in axis or "(points)" in axis else 1
def _number(value):
    """Three digits, thousands parted."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
def _wrap(text, width=36):
    return "\n".join(textwrap.wrap(str(text), width, break_long_words=False)) or " "
def _beside(ax, at, words, **look):
    """Small text behind the right end of a row."""
    ax.text(1.01, at, words, transform=ax.get_yaxis_transform(), fontsize=7, va="center", **look)
def _rows(ax, labels, **limits):
    """Name the rows of an axis, first row on top."""
    ax.set(yticks=range(len(labels)), yticklabels=[_wrap(name) for name in labels], **limits)
    ax.tick_params(axis="y", length=0)
def _titled(fig, title, handles=()):
    """Title and legend in one block at the upper left."""
    if handles:
        short = sum(len(handle.get_label()) + 6 for handle in handles) < 100
        fig.legend(handles=handles, title=title, loc="outside upper left", ncols=len(handles) if short else 3, alignment="left",
                   columnspacing=1.4, handletextpad=0.5, title_fontproperties={"size": 10, "weight": "bold"})
    elif title:
        fig.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return fig
def _panel_rows(frame, label, group):
    """Panels in rows of at most PER_ROW that share their labels: [(labels, [(name, part), ...]), ...]."""
    rows = []
    for name, part in [(None, frame)] if group is None else frame.groupby(group, sort=False):
        own = list(dict.fromkeys(part[label]))
        last = rows[-1] if rows else ([], [])
        if len(last[1]) in range(1, PER_ROW) and len(set(own) & set(last[0])) >= len(own) / 2:
            last[0].extend(item for item in own if item not in last[0])
            last[1].append((name, part))
        else:
            rows.append((own, [(name, part)]))
    return rows
def _panels(frame, *, label, group, row_height, axis_title, share="all"):
    """A figure of labelled rows, and (axes, part of the frame, row labels) of each of its panels."""
    rows, panels, heights = _panel_rows(frame, label, group), [], []
    width = max(len(parts) for _, parts in rows)
    for labels, _ in rows:
        lines = max(1 + _wrap(name).count("\n") for name in labels)
        heights.append(len(labels) * max(row_height, 0.06 + 0.13 * lines) + 0.35 + 0.2 * (group is not None))
    fig, grid = plt.subplots(len(rows), width, layout="constrained", figsize=(WIDTH, sum(heights) + 0.55), squeeze=False, sharex=share,
                             height_ratios=heights)
    for (labels, parts), axes in zip(rows, grid):
        for ax, (name, part) in zip(axes, parts):
            _rows(ax, labels, ylim=(len(labels) - 0.5, -0.5))
            ax.tick_params(labelbottom=True, labelleft=ax is axes[0])
            ax.grid(axis="x")
            ax.set_title(_wrap(name, 60 // width) if name is not None else "")
            panels.append((ax, part, labels))
        for ax in axes[len(parts):]:
            ax.set_axis_off()
    grid[-1][0].set_xlabel(axis_title) if width == 1 else fig.supxlabel(axis_title, fontsize=8.5)
    return fig, panels
def _point(ax, at, estimate, **look):
    """A value with its interval as a line (none where low or high is missing)."""
    value, low, high = estimate
    if np.isfinite([low, high]).all():
        ax.plot([low, high], [at, at], color=look["color"], linewidth=1.8, alpha=0.65, solid_capstyle="butt")
    ax.plot([value], [at], linestyle="none", markersize=4.5, **look)

def interval_bars(frame, *, label, value, low, high, group=None, series=None, reference=None,
                  reference_label="published", chance=None, axis="accuracy", title=None):
    """Rows of estimates with intervals: one row a label, one panel a group, one mark in a row a series.
    value, low, high, reference (drawn hollow): columns. chance: a number, or a column that holds one a panel."""
    scaled = list(dict.fromkeys(filter(None, [value, low, high, reference])))
    axis, factor = _scaled(axis, frame[scaled].astype(float))
    frame = frame.assign(**{name: factor * frame[name].astype(float) for name in scaled})
    names = list(dict.fromkeys(frame[series])) if series else [None]
    look, height = colours(names), max(0.2, 0.12 * len(names) + 0.1)
    fig, panels = _panels(frame, label=label, group=group, row_height=height, axis_title=axis)
    for ax, part, labels in panels:
        for cell in part.to_dict("records"):
            place = names.index(cell[series]) if series else 0
            at = labels.index(cell[label]) + (place - (len(names) - 1) / 2) * 0.75 / len(names)
            colour = look[cell[series]] if series else PALETTE.get(family(cell[label]), CYCLE[0])
            _point(ax, at, (cell[value], cell[low], cell[high]), color=colour, marker=MARKERS[place % len(MARKERS)])
            if reference:
                ax.plot([cell[reference]], [at], "D", markersize=5, color=INK, markerfacecolor="white", zorder=1.5)
            if not series and np.isfinite(cell[value]):
                _beside(ax, at, f"{cell[value]:.1f}" if factor == 100 else _number(cell[value]))
        if series:
            ax.hlines(np.arange(1, len(labels)) - 0.5, 0, 1, transform=ax.get_yaxis_transform(), color="0.9", lw=0.6)
        if chance is not None:
            ax.axvline(factor * (part[chance].iloc[0] if isinstance(chance, str) else chance), zorder=1, **DASHED)
    handles = [Line2D([], [], color=look[name], marker=marker, markersize=4.5, label=name) for marker, name in zip(cycle(MARKERS), names) if series]
    handles += [Line2D([], [], label=reference_label, color=INK, marker="D", ms=5, mfc="white", linestyle="none")] * bool(reference)
    return _titled(fig, title, handles + [Line2D([], [], label="chance", **DASHED)] * (chance is not None))

def forest(frame, *, label, difference, low, high, group=None, note=None, axis="difference (points)", title=None):
    """Differences with intervals, filled where the interval leaves zero out; note: a column of marks such as "†"."""
    frame = frame.assign(**{name: _scaled(axis)[1] * frame[name].astype(float) for name in (difference, low, high)})
    fig, panels = _panels(frame, label=label, group=group, row_height=0.2, axis_title=axis, share="row")
    for ax, part, labels in panels:
        ax.axvline(0, color=PALE, linewidth=1, zorder=1)
        ax.xaxis.set_major_locator(MaxNLocator(5, prune="both" if len(panels) > 1 else None))
        for cell in part.to_dict("records"):
            at, estimate = labels.index(cell[label]), (cell[difference], cell[low], cell[high])
            colour = CYCLE[0] if cell[difference] >= 0 else PALETTE["this project"]
            _point(ax, at, estimate, color=colour, marker="o", markerfacecolor=colour if cell[low] > 0 or cell[high] < 0 else "white")
            _beside(ax, at, f"{cell[difference]:+.1f}{cell[note] if note else ''}".replace("-", "\u2212"))
    return _titled(fig, title, [Line2D([], [], color=CYCLE[0], marker="o", ms=4.5, markerfacecolor=fill, label=words)
                                for fill, words in ((CYCLE[0], "95 % interval without zero"), ("white", "with zero"))])
def _spread(places, gap):
    """Places moved apart by at least gap, as little as it takes, in their order."""
    order, moved = np.argsort(places, kind="stable"), np.array(places, float)
    for _ in range(200):
        for lower, upper in zip(order, order[1:]):
            if (short := gap - (moved[upper] - moved[lower])) > 1e-9:
                moved[lower], moved[upper] = moved[lower] - short / 2, moved[upper] + short / 2
    return moved

def curves(frame, *, x, y, series, low=None, high=None, x_label, y_label, chance=None, title=None):
    """One line a series, its interval as a band, its name at its end."""
    y_label, factor = _scaled(y_label, frame[y].astype(float))
    fig, ax = plt.subplots(layout="constrained", figsize=(WIDTH, 3.6))
    look, ends = colours(frame[series]), []
    for marker, (name, part) in zip(cycle(MARKERS), frame.sort_values(x, kind="stable").groupby(series, sort=False)):
        ax.plot(part[x], factor * part[y], color=look[name], marker=marker, markersize=3.5)
        if low and high:
            ax.fill_between(part[x], factor * part[low], factor * part[high], color=look[name], alpha=0.18, linewidth=0)
        ends.append((name, factor * part[y].iloc[-1]))
    if chance is not None:
        ax.axhline(factor * chance, **DASHED)
        ends, look["chance"] = [*ends, ("chance", factor * chance)], PALE
    ax.set(xlabel=x_label, ylabel=y_label)
    ax.grid()
    bottom, top = ax.get_ylim()
    gap = 0.052 * (top - bottom) * max(1 + _wrap(name, 26).count("\n") for name, _ in ends)
    for (name, end), at in zip(ends, _spread([end for _, end in ends], gap)):
        ax.annotate(_wrap(name, 26), (1, end), (1.03, at), xycoords=ax.get_yaxis_transform(), fontsize=8, va="center",
                    textcoords=ax.get_yaxis_transform(), color=look[name], annotation_clip=False,
                    arrowprops={"arrowstyle": "-", "color": look[name], "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0})
    ax.set_ylim(bottom, top)
    return _titled(fig, title)

def stacked_bars(frame, *, label, part, value, axis, title=None):
    """Horizontal bars made of parts, with the number inside a part that has room for it and the total at the end."""
    labels, parts = (list(dict.fromkeys(frame[name])) for name in (label, part))
    table = frame.pivot_table(index=label, columns=part, values=value, aggfunc="sum").reindex(labels, columns=parts)
    table, look = _scaled(axis)[1] * table.fillna(0), colours(parts)
    fig, ax = plt.subplots(layout="constrained", figsize=(WIDTH, (0.3 if len(labels) < 13 else 0.2) * len(labels) + 1.0))
    longest = table.sum(axis=1).max()
    table.plot.barh(stacked=True, ax=ax, color=look, width=0.72, edgecolor="white", legend=False, ylabel="")
    for name, bars in zip(parts, ax.containers):
        shown = table[name].where(table.gt(0).sum(axis=1) > 1, 0)  # of a bar of one part the total says it
        words = [_number(number) if number > 0.012 * longest * (2 + len(_number(number))) else "" for number in shown]
        ax.bar_label(bars, words, label_type="center", fontsize=7, color="white" if np.dot(to_rgb(look[name]), (0.3, 0.6, 0.1)) <= 0.55 else INK)
    ax.bar_label(ax.containers[-1], table.sum(axis=1).map(_number), padding=3, fontsize=7.5, fontweight="bold")
    _rows(ax, labels, ylim=(len(labels) - 0.45, -0.55), xlabel=axis, xlim=(0, 1.08 * longest))
    ax.xaxis.set_major_formatter(lambda number, _: f"{number:,.9g}")
    return _titled(fig, title, [Patch(color=look[name], label=name) for name in parts] if len(parts) > 1 else ())

def heat_map(matrix, *, axis_label="accuracy", title=None):
    """A frame of scores as coloured cells with their numbers; missing cells stay white."""
    axis_label, factor = _scaled(axis_label, matrix.astype(float))
    room = 72 // len(matrix.columns)  # letters over a column; where a word is longer, the names are slanted
    slant = max(len(word) for name in matrix.columns for word in str(name).split()) > room
    fig, ax = plt.subplots(layout="constrained", figsize=(WIDTH, 0.21 * len(matrix) + 1.1))
    seaborn.heatmap(factor * matrix.astype(float), ax=ax, cmap="cividis", annot=True, fmt=".1f", annot_kws={"size": 7},
                    cbar_kws={"label": axis_label, "fraction": 0.03, "pad": 0.01},
                    xticklabels=[_wrap(name, 36 if slant else room) for name in matrix.columns], yticklabels=[_wrap(name) for name in matrix.index])
    ax.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    ax.set(xlabel="", ylabel="")
    plt.setp(ax.get_xticklabels(), **{"rotation": 35, "ha": "left", "rotation_mode": "anchor"} if slant else {"rotation": 0})
    return _titled(fig, title)
