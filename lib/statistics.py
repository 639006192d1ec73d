"""Say how sure a score is: intervals, paired tests, agreement, rank correlation, power and GRIM.

Functions take numpy arrays or plain numbers, and a seed where they draw. Scores are 0-1, tests two-sided. Bad input raises a ValueError
that says what was wrong; a value that does not exist (no variation, all ties) is NaN."""
from typing import NamedTuple
import krippendorff
import numpy as np
from scipy import stats
from statsmodels.stats import proportion
from statsmodels.stats import power as normal_power
REPLICATES = 10_000  # as Med-PaLM 2, section 3.6
CELLS = 1 << 22  # replicates x rows held at once: 32 MiB of float64

class Estimate(NamedTuple):
    """A mean, difference or correlation with its 95 % bootstrap interval; arrays where several axes were given."""
    value: float
    low: float
    high: float
    n: int  # independent units: items, or clusters where they were given
    p_value: float = float("nan")
    wins: int = 0  # of a paired difference a - b: items on which a scores higher
    losses: int = 0  # items on which b does
def _counts(k, n, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """k and n as float arrays, once they can be counts and level a level."""
    k, n = np.asarray(k, float), np.asarray(n, float)
    k, n = k + 0 * n, n + 0 * k  # same shape
    bad = ~((k >= 0) & (k <= n) & (n >= 1) & (k % 1 == 0) & (n % 1 == 0) & (0 < level < 1))
    if bad.any():
        raise ValueError(f"need whole numbers 0 <= k <= n and 1 <= n, got k = {k[bad][0]:g}, n = {n[bad][0]:g} "
                         f"(level {level}, which must lie between 0 and 1)")
    return k, n
def clopper_pearson(k, n, level: float = 0.95):
    """(low, high) of the proportion k/n, exact: the intervals of Med-PaLM 2, Table 4 (Nature Medicine).
    >>> low, high = clopper_pearson(1087, 1273); print(f"{low:.3f} {high:.3f}")   # 85.4 %
    0.833 0.873"""
    return proportion.proportion_confint(*_counts(k, n, level), alpha=1 - level, method="beta")
def wilson(k, n, level: float = 0.95):
    """(low, high) of k/n by the score interval; good at any n, also at k = 0 and k = n.
    >>> low, high = wilson(0, 10); print(f"{low:.3f} {high:.3f}")
    0.000 0.278"""
    return proportion.proportion_confint(*_counts(k, n, level), alpha=1 - level, method="wilson")
def newcombe(k_a, n_a, k_b, n_b, level: float = 0.95):
    """(low, high) of k_a/n_a - k_b/n_b on different items (the same: `paired_difference`), hybrid score: Med-PaLM 2, Tables 6 and A.1.
    >>> low, high = newcombe(1076, 1261, 11, 12); print(f"{low:.3f} {high:.3f}")   # MedQA, 512 characters
    -0.135 0.208"""
    (k_a, n_a), (k_b, n_b) = _counts(k_a, n_a, level), _counts(k_b, n_b, level)
    return proportion.confint_proportions_2indep(k_a, n_a, k_b, n_b, method="newcomb", alpha=1 - level)

def mcnemar(wins, losses):
    """Exact p-value that wins and losses on the same items are equally likely; 1 without any.
    >>> mcnemar(10, 2)
    0.03857421875"""
    differ = np.maximum(np.add(wins, losses), 1)  # 0 of 1 where none differ: p = 1
    return _plain(np.minimum(1, 2 * stats.binom.cdf(np.minimum(_counts(wins, differ)[0], _counts(losses, differ)[0]), differ, 0.5)))
def _plain(array):
    """A number where there is one, the array otherwise."""
    return np.asarray(array).item() if np.size(array) == 1 else np.asarray(array)
def _rows(values, *, missing: bool = False) -> np.ndarray:
    """values as a float array (items, axes); a vector becomes one axis."""
    rows = np.asarray(values, float)
    rows = rows[:, None] if rows.ndim == 1 else rows
    if rows.ndim != 2 or not rows.size or np.isinf(rows).any() or (np.isnan(rows).any() and not missing):
        raise ValueError(f"need (items,) or (items, axes), a finite number for every item, got shape {rows.shape}")
    return rows
def _members(clusters, n: int) -> tuple[np.ndarray, int]:
    """Cluster number of each of n items, and how many clusters there are; None: every item is its own."""
    labels, members = np.unique(np.arange(n) if clusters is None else np.asarray(clusters), return_inverse=True)
    if members.shape != (n,):
        raise ValueError(f"clusters and blocks must name one group for each of {n} items, got shape {members.shape}")
    return members, len(labels)
def _sums(rows: np.ndarray, members: np.ndarray, n_clusters: int) -> np.ndarray:
    """Sum of the rows of each cluster: (clusters, axes)."""
    return np.stack([np.bincount(members, axis, n_clusters) for axis in rows.T], axis=1)
def _pieces(n: int, seed: int, replicates: int):
    """Yield a random generator and how many replicates to draw from it at once: their (replicates, n) table fits in memory."""
    if replicates < 100:
        raise ValueError(f"replicates must be at least 100, got {replicates}")
    rng, step = np.random.default_rng(seed), max(1, CELLS // n)
    yield from ((rng, min(step, replicates - start)) for start in range(0, replicates, step))
def _resamples(n: int, seed: int, replicates: int):
    """Yield how often each of n units is drawn: (some replicates, n)."""
    for rng, size in _pieces(n, seed, replicates):
        yield np.bincount((rng.integers(0, n, (size, n)) + n * np.arange(size)[:, None]).ravel(), minlength=size * n).reshape(size, n).astype(float)
def _percentiles(drawn: np.ndarray) -> np.ndarray:
    """2.5 and 97.5 % of each axis; NaN for an axis that never varies: its spread is unknown, not zero."""
    drawn = np.where(np.isnan(drawn).all(axis=0), 0, drawn)
    varies = np.nanmax(drawn, axis=0) - np.nanmin(drawn, axis=0) > 1e-12  # less is only the order of adding
    return np.where(varies, np.nanquantile(drawn, [0.025, 0.975], axis=0), np.nan)

def bootstrap_mean(values, *, seed: int, clusters=None, replicates: int = REPLICATES) -> Estimate:
    """Mean of each axis with its percentile interval, drawing whole clusters (say, the ratings of an answer).
    values: (items,) or (items, axes), NaN where missing. An axis of only 0 or only 1 gets the Clopper-Pearson interval of its clusters.
    >>> estimate = bootstrap_mean([1, 1, 0, 1, 0, 1, 1, 0], seed=0); print(estimate.value, estimate.low)
    0.625 0.25"""
    rows = _rows(values, missing=True)
    members, n = _members(clusters, len(rows))
    there = ~np.isnan(rows)
    if not there.any(axis=0).all():
        raise ValueError("an axis holds no value at all")
    total, count = _sums(np.where(there, rows, 0), members, n), _sums(there, members, n)
    with np.errstate(invalid="ignore"):  # a replicate may draw only empty clusters: NaN, left out
        drawn = np.concatenate([(w @ total) / (w @ count) for w in _resamples(n, seed, replicates)])
    value, (low, high) = total.sum(axis=0) / count.sum(axis=0), _percentiles(drawn)
    alike = (np.nanmin(rows, axis=0) == np.nanmax(rows, axis=0)) & np.isin(value, (0, 1))
    reach = np.where(alike, clopper_pearson(0, (count > 0).sum(axis=0))[1], np.nan)
    low, high = np.where(alike, [np.maximum(value - reach, 0), np.minimum(value + reach, 1)], [low, high])
    return Estimate(*map(_plain, (value, low, high)), n)

def crossed_mean(values, *, seed: int, replicates: int = 2_000) -> Estimate:
    """Mean of values (facts, repeats) with an interval for other facts and other repeats (seeds of training): both are drawn (Owen 2007's
    pigeonhole bootstrap); of one repeat, the facts alone. Where nothing varies it is the Clopper-Pearson limit of 0/n to either side.
    >>> print([round(float(number), 2) for number in crossed_mean([[1, 1], [0, 1], [1, 0], [1, 1]], seed=0)[:3]])
    [0.75, 0.5, 1.0]"""
    rows, rng = _rows(values), np.random.default_rng(seed)
    facts, repeats = (rng.multinomial(n, np.full(n, 1 / n), replicates) / n for n in rows.shape)
    low, high = _percentiles(np.einsum("rf,fs,rs->r", facts, rows, repeats, optimize=True)[:, None])
    value, reach = float(rows.mean()), float(clopper_pearson(0, len(rows))[1])
    return Estimate(value, *((value - reach, value + reach) if np.isnan(low[0]) else (float(low[0]), float(high[0]))), len(rows))

def paired_difference(a, b, *, seed: int, clusters=None, replicates: int = REPLICATES) -> Estimate:
    """Mean of a - b over the same items, (items,) or (items, axes), scores 0/1 or any, with bootstrap interval and p-value.
    clusters: items that stand or fall together (ratings of one answer). p-value: exact McNemar for 0/1 scores without clusters, else
    `paired_permutation`. 0/1 scores that differ alike on every item get the Clopper-Pearson limit of 0/n either way, other constants NaN.
    >>> result = paired_difference([1, 1, 1, 0, 1, 1], [1, 0, 0, 0, 1, 0], seed=0)
    >>> print(result.value, result.p_value, result.wins, result.losses)
    0.5 0.25 3 0"""
    a, b = _rows(a), _rows(b)
    if a.shape != b.shape:
        raise ValueError(f"a and b must score the same items, got shapes {a.shape} and {b.shape}")
    draws = {"seed": seed, "clusters": clusters, "replicates": replicates}
    value, low, high, n, *_ = bootstrap_mean(a - b, **draws)
    wins, losses = (a > b).sum(axis=0), (a < b).sum(axis=0)
    binary = np.isin([a, b], (0, 1)).all()
    alike = np.ptp(a - b, axis=0) < 1e-12
    reach = clopper_pearson(0, n)[1] * (1 + np.abs(value)) if binary else np.nan  # from +1 an item can fall to -1
    low, high = (np.where(alike, np.clip(value + s * reach, -1, 1), v) for s, v in ((-1, low), (1, high)))
    p_value = mcnemar(wins, losses) if binary and clusters is None else paired_permutation(a - b, **draws)
    return Estimate(*map(_plain, (value, low, high, n, p_value, wins, losses)))

def paired_permutation(differences, *, seed: int, clusters=None, replicates: int = REPLICATES):
    """p-value of the mean difference when the two sides may be swapped within each cluster (item, answer).
    differences: (items,) or (items, axes), a - b or a preference +1/0/-1. Exact up to 2^clusters = replicates; else (1 + as extreme) / (1 + drawn).
    >>> paired_permutation([2, 3, 1, 3, 4], seed=0)   # 2 of 32 swaps
    0.0625"""
    rows = _rows(differences)
    members, n = _members(clusters, len(rows))
    sums = _sums(rows, members, n)
    observed = np.abs(sums.sum(axis=0)) - 1e-9 * np.abs(sums).sum(axis=0)  # the order of adding must not decide
    if n < 32 and 2**n <= replicates:
        return _plain((np.abs((1 - 2 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)) @ sums) >= observed).mean(axis=0))
    drawn = (np.unpackbits(rng.integers(0, 256, (size, n // 8 + 1), dtype=np.uint8), axis=1, count=n) for rng, size in _pieces(n, seed, replicates))
    return _plain((1 + sum((np.abs((2.0 * bits - 1) @ sums) >= observed).sum(axis=0) for bits in drawn)) / (1 + replicates))

def blocked_permutation(values, groups, *, blocks, seed: int, replicates: int = REPLICATES):
    """p-value of mean(values of group 1) - mean(values of group 0), groups permuted within blocks.
    values: (ratings,) or (ratings, axes); groups: 0/1 a rating; blocks: its question. For unequal numbers of ratings.
    >>> round(blocked_permutation([1, 1, 0, 1, 1, 0], [1, 1, 0, 1, 1, 0], blocks=[1, 1, 1, 2, 2, 2], seed=1), 1)
    0.1"""
    values, groups = _rows(values), np.asarray(groups)
    if groups.shape != (len(values),) or not np.isin(groups, (0, 1)).all():
        raise ValueError("groups must give 0 or 1 for every rating")
    members, _ = _members(blocks, len(values))
    if not (np.bincount(members, groups) % np.bincount(members)).any():
        raise ValueError("no block holds ratings of both groups, so there is nothing to permute")
    values, groups, members = (array[np.argsort(members)] for array in (values, groups, members))
    weight = np.where(groups, 1 / groups.sum(), -1 / (1 - groups).sum())
    observed = np.abs(weight @ values) - 1e-9 * np.abs(values).mean(axis=0)
    drawn = (rng.random((size, len(values))) for rng, size in _pieces(len(values), seed, replicates))
    orders = (np.argsort(keys + members, axis=1) for keys in drawn)  # sorted keys stay in their block
    return _plain((1 + sum((np.abs(weight[order] @ values) >= observed).sum(axis=0) for order in orders)) / (1 + replicates))

def bootstrap(statistic, rows, *, seed: int, replicates: int = 1_000) -> Estimate:
    """Any statistic of a table (items, ...) with its percentile interval: kappa, alpha, ICC.
    >>> print(bootstrap(np.median, [1, 2, 2, 3, 9], seed=0))
    Estimate(value=2.0, low=1.0, high=9.0, n=5, p_value=nan, wins=0, losses=0)"""
    rows, rng = np.asarray(rows), np.random.default_rng(seed)
    if len(rows) < 2 or replicates < 100:
        raise ValueError("a bootstrap needs at least two rows and 100 replicates")
    drawn = np.array([[statistic(rows[rng.integers(0, len(rows), len(rows))])] for _ in range(replicates)])
    return Estimate(float(statistic(rows)), *map(_plain, _percentiles(drawn)), len(rows))

def krippendorff_alpha(ratings, metric: str = "ordinal") -> float:
    """Krippendorff's alpha (2011) of numbers (items, raters), NaN where a rater gave none: "nominal", "ordinal", "interval". NaN if all are equal.
    >>> round(krippendorff_alpha([[1, 1], [2, 3], [3, 3], [4, 4]]), 2)
    0.91"""
    ratings = _rows(ratings, missing=True)
    ratings = ratings[(~np.isnan(ratings)).sum(axis=1) >= 2]  # a lone rating agrees with nobody
    if metric not in ("nominal", "ordinal", "interval") or not len(ratings):
        raise ValueError("alpha needs an item with two ratings, and a metric: nominal, ordinal or interval")
    return float("nan") if np.nanmin(ratings) == np.nanmax(ratings) else float(krippendorff.alpha(ratings.T, level_of_measurement=metric))
def correlation(x, y, method: str = "kendall", *, seed: int, clusters=None, replicates: int = REPLICATES) -> Estimate:
    """Kendall tau-b, Spearman or Pearson correlation of x and y (items,) with its bootstrap interval: MMedLM, Fig. 4.
    clusters: items drawn together (answers to one question); the p-value is scipy's and ignores them. NaN when x or y is constant.
    >>> round(correlation([1, 2, 3, 4, 5], [1, 3, 2, 5, 4], seed=0).value, 2)
    0.6"""
    value, p_value, n, drawn = _drawn_correlations(x, y, method, seed=seed, clusters=clusters, replicates=replicates)
    return Estimate(float(value), *map(float, _percentiles(drawn)), n, float(p_value))

def correlation_difference(a, b, y, method: str = "kendall", *, seed: int, clusters=None, replicates: int = REPLICATES) -> Estimate:
    """Correlation of a with y minus that of b with y, all (items,), on shared resamples; p-value: twice the smaller share of them beyond 0.
    >>> correlation_difference([1, 2, 3, 4, 5], [2, 1, 3, 5, 4], [1, 2, 3, 4, 5], seed=0).value.__round__(2)
    0.4"""
    draws = {"seed": seed, "clusters": clusters, "replicates": replicates}
    (value_a, _, n, drawn_a), (value_b, _, _, drawn_b) = (_drawn_correlations(x, y, method, **draws) for x in (a, b))
    drawn = drawn_a - drawn_b
    tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
    return Estimate(float(value_a - value_b), *map(float, _percentiles(drawn)), n, min(1.0, 2 * (1 + tail) / (1 + np.isfinite(drawn).sum())))
def _drawn_correlations(x, y, method, *, seed, clusters, replicates):
    """(value, p-value, independent units, value of every resample); all NaN where x or y is constant."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    tests = {"kendall": stats.kendalltau, "spearman": stats.spearmanr, "pearson": stats.pearsonr}
    if method not in tests or x.ndim != 1 or x.shape != y.shape or len(x) < 3 or not np.isfinite([x, y]).all():
        raise ValueError(f"need two equally long vectors of 3 or more finite numbers, and one of {', '.join(tests)}")
    members, n = _members(clusters, len(x))
    if min(np.ptp(x) / (np.abs(x).max() or 1), np.ptp(y) / (np.abs(y).max() or 1)) < 1e-12:
        return np.nan, np.nan, n, np.full(1, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):  # a replicate may be constant: NaN, left out
        drawn = [_correlations(x, y, w[:, members], method) for w in _resamples(n, seed, replicates)]
    return *tests[method](x, y), n, np.concatenate(drawn)
def _correlations(x: np.ndarray, y: np.ndarray, weights: np.ndarray, method: str) -> np.ndarray:
    """The correlation of every resample: x, y (items,), weights (replicates, items) say how often each is in it."""
    if method == "kendall":  # concordant minus discordant pairs over the untied
        sign_x, sign_y = (np.sign(np.subtract.outer(v, v)).astype(np.float32) for v in (x, y))
        light = weights.astype(np.float32)  # small whole numbers: exact, and twice as fast
        both, in_x, in_y = ((light @ m * weights).sum(axis=1) for m in (sign_x * sign_y, sign_x**2, sign_y**2))
        return both / np.sqrt(in_x * in_y)
    if method == "spearman":  # ranks within the resample, ties sharing their mean rank
        places = [stats.rankdata(v, "dense") - 1 for v in (x, y)]
        held = [weights @ np.eye(place.max() + 1)[place] for place in places]  # (replicates, distinct values)
        x, y = ((np.cumsum(h, axis=1) - h / 2)[:, place] for h, place in zip(held, places, strict=True))
    x, y = (v - (weights * v).sum(axis=1, keepdims=True) / weights.sum(axis=1, keepdims=True) for v in (x, y))
    return (weights * x * y).sum(axis=1) / np.sqrt((weights * x * x).sum(axis=1) * (weights * y * y).sum(axis=1))

def items_needed(p_a, p_b, *, discordance=None, power: float = 0.8, level: float = 0.95):
    """Items that show p_a to differ from p_b with this power, infinite for p_a = p_b: in each of two sets or, with a discordance (share that one
    model alone gets right), the same for both.
    >>> print(items_needed(0.55, 0.50), items_needed(0.55, 0.50, discordance=0.15))
    1565.0 469.0"""
    p_a, p_b = np.asarray(p_a, float), np.asarray(p_b, float)
    gap, either = np.abs(p_a - p_b), np.minimum(p_a + p_b, 2 - p_a - p_b)
    share = p_a * (1 - p_b) + p_b * (1 - p_a) if discordance is None else np.asarray(discordance, float)
    inside = (abs(p_a - 0.5) <= 0.5) & (abs(p_b - 0.5) <= 0.5) & (share >= gap - 1e-9) & (share <= either + 1e-9)
    if not inside.all() or not 0 < level < 1 or not 0 < power < 1:
        raise ValueError("accuracies, level and power must lie between 0 and 1 (not percent), discordance between "
                         "|p_a - p_b| and min(p_a + p_b, 2 - p_a - p_b)")
    null = share - gap**2 / 2 if discordance is None else share  # two sets of items: 2 x pooled variance
    spreads = np.sqrt(null), np.sqrt(np.maximum(share - gap**2, 0))  # of sqrt(n) times the difference: if there were none, and as it is
    with np.errstate(divide="ignore", invalid="ignore"):
        n = normal_power.normal_sample_size_one_tail(gap, power, (1 - level) / 2, *spreads)
    return np.where(gap == 0, np.inf, np.ceil(n))[()]

def grim(value, n, *, decimals, scale: float = 100):
    """Can the printed value be k/n x scale, rounded to these decimals, halves either way? Brown and Heathers 2017.
    >>> grim([56.36, 44.54], 1273, decimals=2).tolist()   # PMC-LLaMA Table 1, MedQA
    [False, True]"""
    value, n = np.asarray(value, float), _counts(0, n)[1]
    if not ((value >= 0) & (value <= scale)).all():
        raise ValueError(f"printed values must lie between 0 and {scale:g}")
    return np.abs(np.round(value * n / scale) / n * scale - value) <= 0.5 * 10.0 ** -np.asarray(decimals) + 1e-9
