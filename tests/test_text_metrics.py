"""Text metrics against values worked out by hand, and against rouge-score, nltk and sacrebleu."""

import math
import random
import warnings

import numpy as np
import pytest
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_score import rouge_scorer
from sacrebleu.metrics import BLEU

from lib import text_metrics
from lib.text_metrics import COLUMNS, rationale_scores, words
from lib.world import LANGUAGES

STOCK = {"en": "the The heart renal beta-blocker 2.5 mg, of _x_ O'Neil naïve K İ 鉄 й \0 — Σ".split(" "),
         "fr": "l'été le foie Œdème anémie e\u0301te\u0301 à 2,5 mg/j où _x_ ﬁbre \0 — ΣΑΣ".split(" "),
         "ru": "за́мок Сердце почка йод и\u0306од в Ёж не 2,5 мг _x_ \0 — CT №5".split(" "),
         "es": "el riñón Corazón sin\u0303 anemia ¿qué? 2,5 mg la _x_ \0 — ﬁ º".split(" "),
         "zh": ["患者", "缺铁", "性", "贫血", "CT25", "，", "口服", "2.5mg", "。", "的", " ", "\0", "ＣＴ", "_"],
         "ja": ["患者", "は", "鉄欠乏", "性貧血", "ビタミン", "ﾋﾞﾀﾐﾝ", "、", "CT", "です", "。", "ー", "\0", "か\u3099", "_"]}


def random_pairs(language, number, *, seed=0):
    """References of 2 to 61 words out of few, so that much is repeated; predictions are such a text changed, another, both, equal, empty."""
    draw, joint, pairs = random.Random(f"{language} {seed}"), "" if language in ("zh", "ja") else " ", []
    for _ in range(number):
        reference, other = ([*draw.choices(STOCK[language], k=draw.choice((1, 2, 3, 8, 30, 60))), "mg"] for _ in range(2))
        changed = [draw.choice(STOCK[language]) if draw.random() < 0.25 else word for word in reference]
        prediction = draw.choice((changed, changed, changed, changed[:9], other, changed + other, other[:1], reference, [], ["!"]))
        pairs.append((joint.join(prediction), joint.join(reference)))
    return pairs


class Words:
    """Our words, in the form in which rouge-score takes a tokeniser."""

    def __init__(self, language):
        self.language = language

    def tokenize(self, text):
        return words(text, self.language)


def one(prediction, reference, language="en"):
    return rationale_scores([(prediction, reference)], language).iloc[0]


# ---------------------------------------------------------------------------------------------------------- by hand


def test_values_worked_out_by_hand():
    """a b c d against a b x d e: 3 of 4 words, 1 of 3 bigrams, none longer; LCS a b d; brevity exp(1 - 5/4)."""
    score, brevity = one("a b c d", "A b x d, e."), math.exp(-1 / 4)
    expected = {"bleu_1": brevity * 3 / 4, "bleu_2": brevity * math.sqrt(3 / 4 * 1 / 3), "bleu_3": 0, "bleu_4": 0,
                "bleu": brevity * (3 / 4 + 1 / 2) / 4, "bleu_4_method1": brevity * (3 / 4 * 1 / 3 * 0.1 / 2 * 0.1) ** 0.25,
                "rouge_1": 2 * 3 / 9, "rouge_2": 2 * 1 / 7, "rouge_l": 2 * 3 / 9}
    assert tuple(expected) == COLUMNS
    assert score.to_dict() == pytest.approx(expected, abs=1e-15)


def test_a_repeated_word_counts_as_often_as_the_reference_has_it():
    """Papineni 2002, example 2: seven times "the" against a reference with two."""
    score = one("the the the the the the the", "The cat is on the mat.")
    assert score["bleu_1"] == pytest.approx(2 / 7)
    assert score["rouge_1"] == pytest.approx(2 * 2 / 13)
    assert score["rouge_l"] == pytest.approx(2 * 2 / 13)


def test_order_counts_for_the_subsequence_alone():
    score = one("c b a", "a b c")
    assert (score["bleu_1"], score["rouge_1"], score["rouge_2"], score["rouge_l"]) == pytest.approx((1, 1, 0, 1 / 3))


def test_a_single_word():
    """Equal, and yet there is no bigram: ROUGE-2 and BLEU-2 are 0, as rouge-score and BLEU define them."""
    score = one("iron", "Iron.")
    assert score[["bleu_1", "rouge_1", "rouge_l"]].tolist() == [1, 1, 1]
    assert score[["bleu_2", "bleu_4", "rouge_2"]].tolist() == [0, 0, 0]
    assert score["bleu_4_method1"] == pytest.approx(0.001 ** 0.25)


@pytest.mark.parametrize(("language", "text"), [
    ("en", "Iron is low in blood."), ("fr", "L'été, le fer est très bas."), ("es", "El riñón está bien hoy."),
    ("ru", "Железо в крови низкое."), ("zh", "患者缺铁性贫血。"), ("ja", "ビタミンが不足です。")])
def test_equal_texts_score_one_in_every_language(language, text):
    assert one(text, text, language).tolist() == pytest.approx([1] * len(COLUMNS))
    assert one(text[:-3], text, language)[["bleu_1", "rouge_1", "rouge_l"]].between(0.3, 0.9).all()


def test_words():
    assert words("L'Œdème_aigu e\u0301te\u0301", "fr") == ["l", "œdème", "aigu", "été"]
    assert words("за́мок йод и\u0306од", "ru") == ["замок", "йод", "йод"]
    assert words("缺铁，Hb 90g/L。", "zh") == ["缺", "铁", "hb", "90g", "l"]
    assert words("ﾋﾞﾀﾐﾝＣ", "ja") == ["ビ", "タ", "ミ", "ン", "c"]
    assert words("a\0b", "en") == words("a\0b", "es") == ["a", "b"]
    assert words("患者", "en") == []


# --------------------------------------------------------------------------------------- against other implementations


def test_rouge_is_rouge_score_to_the_last_digit():
    """English against its own tokeniser without stemmer; the others with our words handed to it."""
    for language in LANGUAGES:
        pairs = random_pairs(language, 150)
        peer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=None if language == "en" else Words(language))
        theirs = np.array([[peer.score(reference, prediction)[name].fmeasure for name in peer.rouge_types] for prediction, reference in pairs])
        assert (rationale_scores(pairs, language)[["rouge_1", "rouge_2", "rouge_l"]].to_numpy() == theirs).all()
        assert len(np.unique(theirs.round(6))) > 60, "the texts are too alike to tell"
        assert ((theirs > 0) & (theirs < 1)).mean() > 0.4


def test_bleu_is_nltk_and_sacrebleu():
    for language in LANGUAGES:
        pairs, method1, seen = random_pairs(language, 100, seed=1), SmoothingFunction().method1, []
        peers = [BLEU(tokenize="none", smooth_method="none", max_ngram_order=n) for n in (1, 2, 3, 4)]
        for (prediction, reference), (_, row) in zip(pairs, rationale_scores(pairs, language).iterrows()):
            ours, theirs = words(prediction, language), words(reference, language)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # nltk says that an order without a match makes 0
                expected = [sentence_bleu([theirs], ours, [1 / n] * n) for n in (1, 2, 3, 4)]
                smoothed = sentence_bleu([theirs], ours, smoothing_function=method1)
            assert row[:4].tolist() == pytest.approx(expected, rel=1e-12, abs=1e-50)  # nltk's 0 is about 1e-77
            assert row["bleu"] == pytest.approx(np.mean(expected), abs=1e-12)
            assert row["bleu_4_method1"] == pytest.approx(smoothed, rel=1e-12, abs=1e-15)
            assert row[:4].tolist() == pytest.approx([
                peer.corpus_score([" ".join(ours)], [[" ".join(theirs)]]).score / 100 if len(ours) >= n else 0
                for n, peer in enumerate(peers, start=1)], abs=1e-12)
            seen.append((row["bleu_1"], row["bleu_4"], smoothed))
        between = ((np.array(seen) > 0.01) & (np.array(seen) < 0.99)).mean(0)
        assert (between > 0.1).all(), f"{language}: too few values that are neither 0 nor 1: {between}"


def test_one_pair_at_a_time_gives_the_same(monkeypatch):
    """Neither the pairs that are scored together nor the splitting of a chunk of too many words changes a value."""
    pairs = random_pairs("fr", 200) + [(" ".join(f"p{number}" for number in range(9000)), "p3 p5 p4")]
    together = rationale_scores(iter(pairs), "fr")
    assert together["rouge_l"].iloc[-1] == pytest.approx(2 * 2 / 9003)
    monkeypatch.setattr(text_metrics, "CHUNK", 1)
    assert together.equals(rationale_scores(pairs, "fr"))


# ------------------------------------------------------------------------------------------------------------- edges


def test_an_empty_prediction_scores_zero_and_nothing_gives_an_empty_table():
    assert one("", "iron").tolist() == one("!?", "iron").tolist() == one("鉄", "iron").tolist() == [0] * len(COLUMNS)
    empty = rationale_scores([], "zh")
    assert (len(empty), tuple(empty.columns)) == (0, COLUMNS)


@pytest.mark.parametrize("before", [0, 3, 200])
def test_an_empty_reference_is_named(before):
    with pytest.raises(ValueError, match=rf"^pair {before}, language 'en': the reference '鉄。' holds no word"):
        rationale_scores([("iron", "iron")] * before + [("iron", "鉄。"), ("a", "")], "en")


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match="language 'de'; known are en, zh, ja, fr, ru, es"):
        rationale_scores([], "de")
    with pytest.raises(ValueError, match="pair 1: 33000 different words"):
        rationale_scores([("a", "a"), (" ".join(map(str, range(33000))), "1")], "en")
