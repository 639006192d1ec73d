"""Statistics against published examples, scipy and statsmodels, exact enumeration, and simulation."""

import time
from itertools import product

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats import inter_rater, multitest, proportion

from lib import statistics

NAN = float("nan")


# ------------------------------------------------------------------------------------------ published examples


def test_intervals_of_a_proportion_in_newcombe_1998():
    """Newcombe 1998 (Statistics in Medicine 17, 857), 81 of 263: methods 3 (Wilson), 5 (Clopper-Pearson)."""
    assert np.round(statistics.wilson(81, 263), 4).tolist() == [0.2553, 0.3662]
    assert np.round(statistics.clopper_pearson(81, 263), 4).tolist() == [0.2527, 0.3676]


@pytest.mark.parametrize(("counts", "expected"), [
    ((56, 70, 48, 80), (0.0524, 0.3339)),
    ((9, 10, 3, 10), (0.1705, 0.8090)),
    ((10, 10, 0, 10), (0.6075, 1.0000)),
    ((0, 10, 0, 10), (-0.2775, 0.2775)),
])
def test_intervals_of_a_difference_in_newcombe_1998(counts, expected):
    """Newcombe 1998 (Statistics in Medicine 17, 873), Table II, method 10."""
    assert np.allclose(statistics.newcombe(*counts), expected, atol=1e-4)


def test_kappas_of_the_fleiss_example():
    """Fleiss 1971 as in every textbook: 10 subjects, 14 raters, 5 categories; Randolph from its P = 0.378. Notebook 08 takes it from statsmodels."""
    counts = [[0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
              [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]]
    assert inter_rater.fleiss_kappa(counts, method="fleiss") == pytest.approx(0.210, abs=5e-4)
    assert inter_rater.fleiss_kappa(counts, method="randolph") == pytest.approx((0.378 - 0.2) / 0.8, abs=1e-3)
    assert inter_rater.fleiss_kappa([[3, 0], [3, 0]], method="randolph") == 1  # free margins: full agreement does exist


def test_holm_by_hand():
    """As the notebooks call it: 4 x 0.005, 3 x 0.01, 2 x 0.03, and never below the one before."""
    assert np.allclose(multitest.multipletests([0.01, 0.04, 0.03, 0.005], method="holm")[1], [0.03, 0.06, 0.06, 0.02])


@pytest.mark.parametrize(("metric", "expected"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_of_the_krippendorff_example(metric, expected):
    """Krippendorff 2011, Computing Krippendorff's alpha-reliability, section E: 4 observers, 12 units, gaps."""
    ratings = np.array([[1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN], [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
                        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN], [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN]]).T
    assert statistics.krippendorff_alpha(ratings, metric) == pytest.approx(expected, abs=5e-4)


def test_items_needed_for_five_points():
    """Fleiss, Levin and Paik 2003 without continuity correction: 1,565 a group for 0.55 against 0.50, 80 % power."""
    assert statistics.items_needed(0.55, 0.50) == 1565


def test_mcnemar_by_hand():
    """2 of 12 discordant pairs: 2 x (1 + 12 + 66) / 4096."""
    assert statistics.mcnemar(10, 2) == 2 * (1 + 12 + 66) / 4096
    assert statistics.mcnemar([3, 0, 5], [0, 0, 5]).tolist() == [0.25, 1, 1]


# --------------------------------------------------------------------------------- against scipy and enumeration


def test_mcnemar_is_the_binomial_test():
    for wins, losses in [(5, 5), (7, 1), (30, 12), (1, 0)]:
        expected = stats.binomtest(wins, wins + losses).pvalue
        assert statistics.mcnemar(wins, losses) == pytest.approx(expected)


def test_exact_permutation_equals_scipy():
    rng = np.random.default_rng(3)
    differences = rng.normal(0.4, 1, 11)
    expected = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided").pvalue
    assert statistics.paired_permutation(differences, seed=0) == pytest.approx(expected)


def test_drawn_permutation_is_near_the_exact_one():
    differences = np.random.default_rng(4).normal(0.5, 1, 13)
    exact = statistics.paired_permutation(differences, seed=0)  # 2^13 = 8,192 swaps: enumerated
    drawn = statistics.paired_permutation(differences, seed=0, replicates=8_000)
    assert exact * 8192 % 1 == 0
    assert drawn == pytest.approx(exact, abs=0.015)


def test_clusters_are_swapped_whole():
    """Four ratings an answer that all agree are one observation: 2 of 2^3 swaps, not of 2^12."""
    differences, answers = np.repeat([1.0, 1.0, 1.0], 4), np.repeat([0, 1, 2], 4)
    assert statistics.paired_permutation(differences, clusters=answers, seed=0) == 0.25
    assert statistics.paired_permutation(differences, seed=0) == 2 / 2**12


def test_blocked_permutation_equals_enumeration():
    """Two questions with three ratings of one model and one of the other: 4 x 4 places for the lone rating."""
    values = np.array([1.0, 1, 0, 0, 1, 0, 1, 0])
    groups, blocks = np.array([1, 1, 1, 0, 1, 1, 1, 0]), np.repeat([0, 1], 4)

    def gap(i, j):
        lone = values[i] + values[4 + j]
        return (values.sum() - lone) / 6 - lone / 2

    gaps = np.array([gap(i, j) for i, j in product(range(4), range(4))])
    exact = (np.abs(gaps) >= abs(gap(3, 3)) - 1e-9).mean()
    drawn = [statistics.blocked_permutation(values, groups, blocks=blocks, seed=seed) for seed in range(5)]
    assert np.mean(drawn) == pytest.approx(exact, abs=0.01)
    shuffled = np.random.default_rng(0).permutation(8)  # the order of the ratings does not matter
    again = statistics.blocked_permutation(values[shuffled], groups[shuffled], blocks=blocks[shuffled], seed=0)
    assert again == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize("method", ["kendall", "spearman", "pearson"])
def test_every_resampled_correlation_is_that_of_scipy(method):
    """A resample is weights on the items; scipy gets the items repeated."""
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 6, 30).astype(float), rng.normal(size=30).round(1)
    weights = rng.multinomial(30, np.ones(30) / 30, size=20).astype(float)
    ours = statistics._correlations(x, y, weights, method)
    scipy_test = {"kendall": stats.kendalltau, "spearman": stats.spearmanr, "pearson": stats.pearsonr}[method]
    theirs = [scipy_test(np.repeat(x, w.astype(int)), np.repeat(y, w.astype(int)))[0] for w in weights]
    assert np.allclose(ours, theirs, atol=1e-6)


def test_correlation_interval_by_scipy():
    """The percentile interval of Pearson's r agrees with scipy's own bootstrap; copies drawn together add nothing."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=60)
    y = x + rng.normal(size=60)
    ours = statistics.correlation(x, y, "pearson", seed=0)
    theirs = stats.bootstrap((x, y), lambda a, b, axis: stats.pearsonr(a, b, axis=axis).statistic, paired=True,
                             method="percentile", n_resamples=5_000, rng=0).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)
    copies = np.repeat(np.arange(60), 4)
    four = statistics.correlation(x[copies], y[copies], "pearson", clusters=copies, seed=0)
    assert (four.low, four.high, four.n) == pytest.approx((ours.low, ours.high, 60), abs=1e-9)


def test_bootstrap_of_clusters_by_a_plain_loop():
    """Pooled mean of ratings, missing ones left out, answers drawn whole."""
    rng = np.random.default_rng(7)
    ratings = np.where(rng.random((40, 3)) < 0.2, np.nan, rng.random((40, 3)) < rng.random((40, 1)))
    estimate = statistics.bootstrap_mean(ratings.ravel(), clusters=np.repeat(np.arange(40), 3), seed=0)
    loop = [np.nanmean(ratings[rng.integers(0, 40, 40)]) for _ in range(4_000)]
    assert estimate.value == pytest.approx(np.nanmean(ratings))
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.quantile(loop, [0.025, 0.975])), abs=0.02)


def test_axes_and_single_vectors_agree():
    a, b = (np.random.default_rng(8).random((2, 50, 3)) < 0.6).astype(float)
    together = statistics.paired_difference(a, b, seed=2)
    alone = statistics.paired_difference(a[:, 1], b[:, 1], seed=2)
    assert alone == tuple(field[1] if np.ndim(field) else field for field in together)


def test_power_is_that_of_statsmodels():
    needed = proportion.samplesize_proportions_2indep_onetail(0.04, 0.6, 0.8, alternative="two-sided")
    assert statistics.items_needed(0.64, 0.60) == np.ceil(needed)


def test_paired_power_by_simulation():
    """12 % won and 4 % lost: with the items that the formula asks for, the exact test shows the difference about as often as wanted."""
    needed = int(statistics.items_needed(0.68, 0.60, discordance=0.16))
    outcomes = np.random.default_rng(9).multinomial(needed, [0.12, 0.04, 0.84], size=4_000)
    shown = (statistics.mcnemar(outcomes[:, 0], outcomes[:, 1]) < 0.05).mean()
    assert shown == pytest.approx(0.77, abs=0.03)  # a little less than 0.8: the exact test is careful


def test_grim_by_hand():
    """Of 43 items one is 2.33 points: 67.44 is 29/43, 67.00 is nothing; a half may go either way (1/8 = 12.5)."""
    assert statistics.grim([67.44, 67.00], 43, decimals=2).tolist() == [True, False]
    assert statistics.grim([12.0, 13.0], 8, decimals=0).tolist() == [True, True]
    assert statistics.grim(0.929, 140, decimals=3, scale=1)


def test_two_metrics_are_compared_on_shared_resamples():
    """The difference is that of the two correlations; its interval is far narrower than theirs would give where the metrics are alike."""
    draw = np.random.default_rng(3)
    people = draw.standard_normal(120)
    a, items = people + draw.standard_normal(120), np.repeat(np.arange(40), 3)
    b = a + 0.1 * draw.standard_normal(120)
    one = statistics.correlation_difference(a, b, people, "pearson", seed=0, clusters=items)
    first, second = (statistics.correlation(x, people, "pearson", seed=0, clusters=items) for x in (a, b))
    assert one.value == pytest.approx(first.value - second.value)
    assert one.high - one.low < 0.3 * (first.high - first.low)
    assert one.low <= one.value <= one.high
    worse = statistics.correlation_difference(a, draw.standard_normal(120), people, seed=0, replicates=1_000)
    assert (worse.low > 0, worse.p_value) == (True, pytest.approx(2 / 1001))


# ----------------------------------------------------------------------------------------------- simulation


def test_coverage_of_the_intervals_of_a_proportion():
    """Exact coverage at n = 60, mean over p: Clopper-Pearson never below 95 %, Wilson near it."""
    k, shares = np.arange(61), np.linspace(0.05, 0.95, 91)
    chance = stats.binom.pmf(k, 60, shares[:, None])  # (shares, k)
    coverage = {}
    for method in (statistics.clopper_pearson, statistics.wilson):
        low, high = method(k, 60)
        coverage[method.__name__] = (chance * ((low <= shares[:, None]) & (shares[:, None] <= high))).sum(axis=1)
    assert coverage["clopper_pearson"].min() >= 0.95
    assert coverage["wilson"].mean() == pytest.approx(0.95, abs=0.01)


def test_coverage_of_newcombe():
    rng = np.random.default_rng(10)
    k_a, k_b = rng.binomial(80, 0.7, 4_000), rng.binomial(120, 0.6, 4_000)
    low, high = statistics.newcombe(k_a, 80, k_b, 120)
    assert ((low <= 0.1) & (high >= 0.1)).mean() == pytest.approx(0.95, abs=0.012)


def ratings_of_answers(rng, answers, raters, *, shift=0.0):
    """0/1 ratings (answers x raters,) that agree within an answer, and the answer of each."""
    quality = rng.beta(1.4, 0.6, (answers, 1)) + shift
    return (rng.random((answers, raters)) < quality).astype(float).ravel(), np.repeat(np.arange(answers), raters)


def test_coverage_of_the_clustered_bootstrap():
    """Mean 0.7 of 100 answers x 4 ratings: near 95 % with clusters, far below when ratings count as independent."""
    rng, hits = np.random.default_rng(11), np.zeros(2)
    for seed in range(400):
        ratings, answers = ratings_of_answers(rng, 100, 4)
        for i, clusters in enumerate((answers, None)):
            estimate = statistics.bootstrap_mean(ratings, clusters=clusters, seed=seed, replicates=400)
            hits[i] += estimate.low <= 0.7 <= estimate.high
    assert hits[0] / 400 == pytest.approx(0.945, abs=0.03)
    assert hits[1] / 400 < 0.88


def test_coverage_and_type_one_error_of_the_paired_difference():
    """Two equal models on 150 items: the interval holds 0 in about 95 % of cases, exact McNemar rejects at most 5 %."""
    rng = np.random.default_rng(12)
    easy = rng.beta(2, 1, (150, 1))
    a, b = (rng.random((2, 150, 600)) < easy).astype(float)  # 600 pairs of models as axes
    result = statistics.paired_difference(a, b, seed=0, replicates=1_000)
    assert ((result.low <= 0) & (result.high >= 0)).mean() == pytest.approx(0.95, abs=0.025)
    assert 0.005 < (result.p_value < 0.05).mean() <= 0.05


def test_type_one_error_of_the_clustered_permutation():
    """No difference, four ratings an answer: 5 % with clusters; far more when they are forgotten."""
    rng, hits = np.random.default_rng(13), np.zeros(2)
    for seed in range(400):
        (a, answers), (b, _) = ratings_of_answers(rng, 60, 4), ratings_of_answers(rng, 60, 4)
        for i, clusters in enumerate((answers, None)):
            hits[i] += statistics.paired_permutation(a - b, clusters=clusters, seed=seed, replicates=400) < 0.05
    assert hits[0] / 400 == pytest.approx(0.05, abs=0.025)
    assert hits[1] / 400 > 0.12


def test_type_one_error_of_the_blocked_permutation():
    """Three ratings against one on 40 questions of unequal difficulty, no difference between the models."""
    rng, blocks, groups = np.random.default_rng(14), np.repeat(np.arange(40), 4), np.tile([1, 1, 1, 0], 40)
    values = (rng.random((160, 500)) < np.repeat(rng.random(40), 4)[:, None]).astype(float)  # 500 axes
    p_values = statistics.blocked_permutation(values, groups, blocks=blocks, seed=0, replicates=1_000)
    assert (p_values < 0.05).mean() == pytest.approx(0.05, abs=0.02)


def test_coverage_of_kendall():
    """Bivariate normal with correlation 0.5: tau is 1/3."""
    rng, hits = np.random.default_rng(15), 0
    for seed in range(60):
        x, noise = rng.normal(size=(2, 40))
        estimate = statistics.correlation(x, 0.5 * x + np.sqrt(0.75) * noise, seed=seed)
        hits += estimate.low <= 1 / 3 <= estimate.high
    assert hits >= 52  # 57 expected; fewer than 52 has a chance of 1 %


# --------------------------------------------------------------------------------- bad input and documented NaN


@pytest.mark.parametrize(("call", "words"), [
    (lambda: statistics.clopper_pearson(0, 0), "n >= 1|1 <= n"),
    (lambda: statistics.wilson([1, 11], [10, 10]), "k = 11"),
    (lambda: statistics.wilson(0.854, 1273), "whole numbers"),
    (lambda: statistics.wilson(NAN, 10), "whole numbers"),
    (lambda: statistics.wilson(5, 10, level=95), "between 0 and 1"),
    (lambda: statistics.newcombe(1, 10, 2, 0), "n = 0"),
    (lambda: statistics.mcnemar(3, -1), "whole numbers"),
    (lambda: statistics.mcnemar(0, -1), "whole numbers"),
    (lambda: statistics.bootstrap_mean([], seed=0), "holds|number for every item"),
    (lambda: statistics.bootstrap_mean([[1, NAN], [0, NAN]], seed=0), "no value at all"),
    (lambda: statistics.bootstrap_mean([1, 0], seed=0, replicates=10), "at least 100"),
    (lambda: statistics.bootstrap_mean([1, 0, 1], seed=0, clusters=[1, 2]), "one group for each of 3"),
    (lambda: statistics.paired_difference([1, 0], [1, 0, 1], seed=0), "same items"),
    (lambda: statistics.paired_difference([1, NAN], [1, 0], seed=0), "every item"),
    (lambda: statistics.paired_permutation([1, np.inf], seed=0), "every item"),
    (lambda: statistics.blocked_permutation([1, 0], [0, 2], blocks=[0, 0], seed=0), "0 or 1"),
    (lambda: statistics.blocked_permutation([1, 0], [0, 1], blocks=[0, 1], seed=0), "nothing to permute"),
    (lambda: statistics.bootstrap(np.mean, [1], seed=0), "two rows"),
    (lambda: statistics.krippendorff_alpha([[1, NAN], [NAN, 2]]), "two ratings"),
    (lambda: statistics.krippendorff_alpha([[1, 2]], "ratio"), "nominal, ordinal or interval"),
    (lambda: statistics.correlation([1, 2], [1, 2], seed=0), "3 or more"),
    (lambda: statistics.correlation([1, 2, 3], [1, 2, NAN], seed=0), "finite"),
    (lambda: statistics.correlation([1, 2, 3], [1, 2, 3], "cosine", seed=0), "kendall"),
    (lambda: statistics.items_needed(55, 50), "not percent"),
    (lambda: statistics.items_needed(0.6, 0.5, power=80), "between 0 and 1"),
    (lambda: statistics.items_needed(0.6, 0.5, discordance=0.05), "discordance"),
    (lambda: statistics.grim(56.36, 0, decimals=2), "n = 0"),
    (lambda: statistics.grim(156.0, 100, decimals=1), "between 0 and 100"),
])
def test_bad_input_says_what_is_wrong(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.filterwarnings("error")
def test_what_does_not_exist_is_nan():
    assert np.isnan(statistics.correlation([1, 1, 1, 1], [1, 2, 3, 4], seed=0)[:3]).all()  # all ties
    assert np.isnan(statistics.correlation_difference([1, 1, 1, 1], [4, 2, 3, 1], [1, 2, 3, 4], seed=0)[:3]).all()
    assert np.isnan(statistics.krippendorff_alpha([[2, 2], [2, 2]]))
    assert np.isnan(statistics.bootstrap_mean([0.4, 0.4, 0.4], seed=0)[1:3]).all()
    assert np.isnan(statistics.paired_difference([0.4, 0.5, 0.7], [0.2, 0.3, 0.5], seed=0)[1:3]).all()  # not 2e-17 wide
    assert np.isnan(statistics.correlation([0.3, 0.1 + 0.2, 0.3], [1, 2, 3], seed=0).value)
    assert np.isinf(statistics.items_needed(0.5, 0.5))


@pytest.mark.filterwarnings("error")
def test_constant_zero_one_scores_get_an_exact_interval():
    """30 of 30 right is not 100 % for sure; two models that never differ may still differ by a few points."""
    assert statistics.bootstrap_mean(np.ones(30), seed=0)[:3] == pytest.approx((1, *statistics.clopper_pearson(30, 30)))
    assert statistics.bootstrap_mean(np.zeros(30), seed=0)[2] == pytest.approx(statistics.clopper_pearson(0, 30)[1])
    limit = statistics.clopper_pearson(0, 30)[1]
    same = statistics.paired_difference(np.ones(30), np.ones(30), seed=0)
    assert same == (0, -limit, limit, 30, 1, 0, 0)
    always = statistics.paired_difference(np.ones(30), np.zeros(30), seed=0)
    assert (always.low, always.high) == pytest.approx((1 - 2 * limit, 1))


def test_the_same_seed_gives_the_same_answer_and_another_seed_another():
    scores = np.random.default_rng(16).random(40)
    assert statistics.bootstrap_mean(scores, seed=1) == statistics.bootstrap_mean(scores, seed=1)
    assert statistics.bootstrap_mean(scores, seed=1) != statistics.bootstrap_mean(scores, seed=2)


def test_bootstrap_and_permutation_are_fast():
    """1,066 answers x 9 axes x 10,000 replicates: the floor is 10 s, the goal 3 s, both together."""
    preferences = np.random.default_rng(17).integers(-1, 2, (1066, 9)).astype(float)
    start = time.process_time()  # of this process: other work on the machine does not count
    estimate = statistics.bootstrap_mean(preferences, seed=0)
    p_values = statistics.paired_permutation(preferences, seed=0)
    assert time.process_time() - start < 10
    assert estimate.low.shape == p_values.shape == (9,)
