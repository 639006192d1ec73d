"""Text metrics against values worked out by hand, and against rouge-score, nltk and sacrebleu."""

import math
import random
import warnings

import numpy as np
import pytest
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_score import rouge_scorer
from sacrebleu.metrics import BLEU
from seqeval.metrics import f1_score as seqeval_f1
from sklearn.metrics import f1_score
from sklearn.preprocessing import MultiLabelBinarizer

from lib import text_metrics
from lib.text_metrics import COLUMNS, entity_list, item_scores, rationale_scores, words
from lib.world import LANGUAGES

STOCK = {"en": "the The heart renal beta-blocker 2.5 mg, of _x_ O'Neil naïve K İ 鉄 й \0 — Σ".split(" "),
         "fr": "l'été le foie Œdème anémie e\u0301te\u0301 à 2,5 mg/j où _x_ ﬁbre \0 — ΣΑΣ".split(" "),
         "ru": "за́мок Сердце почка йод и\u0306од в Ёж не 2,5 мг _x_ \0 — CT №5".split(" "),
         "es": "el riñón Corazón sin\u0303 anemia ¿qué? 2,5 mg la _x_ \0 — ﬁ º".split(" "),
         "zh": ["患者", "缺铁", "性", "贫血", "CT25", "，", "口服", "2.5mg", "。", "的", " ", "\0", "ＣＴ", "_"],
         "ja": ["患者", "は", "鉄欠乏", "性貧血", "ビタミン", "ﾋﾞﾀﾐﾝ", "、", "CT", "です", "。", "ー", "\0", "か\u3099", "_"]}


def random_pairs(language, number, *, seed=0, most=60):
    """References of 2 to 61 words (`most` and one) out of few, so that much is repeated; predictions are such a text changed, another, both, equal, empty."""
    draw, joint, pairs = random.Random(f"{language} {seed}"), "" if language in ("zh", "ja") else " ", []
    for _ in range(number):
        reference, other = ([*draw.choices(STOCK[language], k=min(most, draw.choice((1, 2, 3, 8, 30, 60)))), "mg"] for _ in range(2))
        changed = [draw.choice(STOCK[language]) if draw.random() < 0.25 else word for word in reference]
        prediction = draw.choice((changed, changed, changed, changed[:9], other, changed + other, other[:1], reference, [], ["!"]))
        pairs.append((joint.join(prediction), joint.join(reference)))
    return pairs


class Split:
    """Words that stand on lines of their own, in the form in which rouge-score takes a tokeniser."""

    def tokenize(self, text):
        return text.split("\n") if text else []


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


@pytest.mark.parametrize("language", [*LANGUAGES, "zh_jieba", "ja_janome"])
def test_a_thousand_pairs_are_scored_as_by_rouge_score_nltk_and_sacrebleu(language):
    """ROUGE to the last digit, English against rouge-score's own tokeniser without stemmer, the others with our words handed to it.
    BLEU against sacrebleu's counts of n-grams, which give every order at once, and against nltk for a tenth of the pairs."""
    pairs, zero = random_pairs(language[:2], 1000, most=20), np.zeros(4)
    ours = rationale_scores(pairs, language)
    split = [[words(text, language) for text in pair] for pair in pairs]
    peer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=None if language == "en" else Split())
    texts = pairs if language == "en" else [["\n".join(each) for each in pair] for pair in split]
    rouge = np.array([[peer.score(reference, prediction)[name].fmeasure for name in peer.rouge_types] for prediction, reference in texts])
    assert (ours[["rouge_1", "rouge_2", "rouge_l"]].to_numpy() == rouge).all()
    sacre = BLEU(tokenize="none", smooth_method="none")
    made = [sacre.corpus_score([" ".join(prediction)], [[" ".join(reference)]]) for prediction, reference in split]
    precisions = np.array([np.divide(each.counts, each.totals, out=zero.copy(), where=np.array(each.totals) > 0) for each in made])
    with np.errstate(divide="ignore"):
        bleu = np.array([each.bp for each in made])[:, None] * np.exp(np.log(precisions).cumsum(1) / (1, 2, 3, 4))
    assert ours[["bleu_1", "bleu_2", "bleu_3", "bleu_4"]].to_numpy() == pytest.approx(bleu, abs=1e-12)
    assert ours["bleu"].to_numpy() == pytest.approx(bleu.mean(1), abs=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nltk says that an order without a match makes 0
        method1 = [sentence_bleu([reference], prediction, smoothing_function=SmoothingFunction().method1) for prediction, reference in split]
        plain = [sentence_bleu([reference], prediction) for prediction, reference in split[::10]]
    assert ours["bleu_4_method1"].to_numpy() == pytest.approx(method1, rel=1e-12, abs=1e-15)
    assert ours["bleu_4"].to_numpy()[::10] == pytest.approx(plain, rel=1e-12, abs=1e-50)  # nltk's 0 is about 1e-77
    assert len(np.unique(rouge.round(6))) > 100, "the texts are too alike to tell"
    assert (((rouge > 0) & (rouge < 1)).mean(0) > 0.3).all()
    assert (((bleu > 0.01) & (bleu < 0.99)).mean(0) > 0.1).all()


def random_entities(number, *, seed):
    """(found, right): lists of entities out of few, often the same, some empty."""
    draw, pool = random.Random(seed), [f"drug {letter}" for letter in "abcdefghijkl"]
    for _ in range(number):
        right = draw.sample(pool, draw.choice((0, 1, 1, 2, 3, 6)))
        yield sorted({*draw.sample(right, draw.randint(0, len(right))), *draw.sample(pool, draw.choice((0, 0, 1, 2)))}), sorted(right)


def test_a_thousand_entity_lists_are_scored_as_by_scikit_learn():
    """The mean over items is the sample-averaged F1 of a multi-label problem, nothing found where nothing is being right."""
    both = list(random_entities(1000, seed=0))
    ours = item_scores([(entity_list(found), entity_list(right).upper() if right else entity_list([])) for found, right in both], "labels")
    names = MultiLabelBinarizer().fit([each for pair in both for each in pair])
    found, right = (names.transform([pair[side] for pair in both]) for side in (0, 1))
    assert ours.mean() == pytest.approx(f1_score(right, found, average="samples", zero_division=1.0), abs=1e-12)
    assert list(ours[:50]) == pytest.approx(
        [f1_score(right[i:i + 1], found[i:i + 1], average="samples", zero_division=1.0) for i in range(50)])
    assert ((ours > 0) & (ours < 1)).sum() > 300


def test_a_thousand_sentences_are_scored_as_by_seqeval():
    """Entities as tagged spans, each text at a place of its own, so that sets of texts are sets of spans; the entities of two words must be whole."""
    both = list(random_entities(1000, seed=1))
    places = {name: 3 * number for number, name in enumerate(sorted({each for pair in both for part in pair for each in part}))}

    def tags(entities):
        row = ["O"] * 3 * len(places)
        for each in entities:
            row[places[each]:places[each] + 2] = ["B-X", "I-X"]
        return row
    ours = item_scores([(entity_list(found), entity_list(right)) for found, right in both], "entities")
    theirs = [seqeval_f1([tags(right)], [tags(found)], zero_division=1) for found, right in both]
    named = np.array([bool(found or right) for found, right in both])  # where there is nothing at all, seqeval has no value of its own
    assert ours[named] == pytest.approx(np.array(theirs)[named], abs=1e-12)
    assert (ours[~named] == 1).all()
    assert 900 < named.sum() < 1000


def test_dictionary_words():
    """What jieba and janome split, less punctuation, in small letters; a text's words do not depend on its neighbours."""
    assert words("患者缺铁性贫血，口服CT25。", "zh_jieba") == ["患者", "缺铁性", "贫血", "口服", "ct25"]
    assert words("すもももももももものうち。", "ja_janome") == ["すもも", "も", "もも", "も", "もも", "の", "うち"]
    assert words("a\0b", "ja_janome") == ["a", "b"]


def test_one_pair_at_a_time_gives_the_same(monkeypatch):
    """The pairs that are scored together change no value."""
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


def test_a_text_of_very_many_different_words():
    """Numbers of n-grams stay small, whatever the vocabulary."""
    long = " ".join(map(str, range(40000)))
    assert rationale_scores([("a", "a"), (long, long)], "en").loc[1, ["bleu_4", "rouge_2", "rouge_l"]].tolist() == pytest.approx([1, 1, 1])
