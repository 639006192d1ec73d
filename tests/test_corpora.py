"""Rows and mixtures: packing by hand, every book row once before any twice."""

import random
import re
from collections import Counter

import numpy as np
import pytest
from transformers import AutoTokenizer

from lib.corpora import (IGNORE_INDEX, MIXTURES, Packed, Prepared, count_exposures, count_tokens, encode, load_sources, mixed,
                         mixture_pattern, pack_documents, pack_examples, pack_records, prepare, rows_of_step,
                         split_held_out, train_tokenizer)
from lib.profiles import get_profile

NOT = IGNORE_INDEX
RECORD = {"text": "Gout is painful.", "source": "book", "language": "en", "id": "a", "meta": {}}
SENTENCES = {"en": "Metformin treats type 2 diabetes; 5 mg, twice a day .", "zh": "二甲双胍用于治疗2型糖尿病。", "ja": "痛風の特徴は、足の親指の腫れです。",
             "fr": "L’œdème aigu du poumon est grave : « urgence »!", "ru": "Подагра — это болезнь суставов.",
             "es": "¿Qué fármaco trata la gota? ¡La colchicina!"}
ODD = ["two  spaces\tand a tab\n\nand lines \r\n", " leading and trailing ", "emoji 🩺 and e\u0301 combined", "I don 't know , yes .",
       "a\u2028b\u0085c", "", "\u200f\u05e9\u05dc\u05d5\u05dd \x00 zero"]


def records(number, **changes):
    return [RECORD | {"id": f"d{i}", "text": f"Document number {i}."} | changes for i in range(number)]


# --- held-out documents ----------------------------------------------------------------------------------------------

def ids(part):
    return {record["id"] for record in part}


def test_held_out_documents_are_disjoint_and_do_not_depend_on_order():
    """Perplexity on a document that was trained on is no perplexity; another order of files is the same split."""
    given = records(400)
    training, held = split_held_out(given, 0.1)
    assert ids(training) | ids(held) == ids(given)
    assert not ids(training) & ids(held)
    assert 20 <= len(held) <= 60, "about a tenth"
    mixed_up = random.Random(0).sample(given, len(given))
    assert mixed_up != given
    again = split_held_out(mixed_up, 0.1)
    assert (ids(again[0]), ids(again[1])) == (ids(training), ids(held))


@pytest.mark.parametrize("number", range(2, 12))
def test_few_documents_are_split_without_overlap_too(number):
    """With few documents the hash may hold out none; the one that is then taken must leave the training part."""
    given = records(number)
    training, held = split_held_out(given, 0.05)
    assert len(training) + len(held) == number
    assert min(len(training), len(held)) >= 1
    assert not ids(training) & ids(held)


# --- packing by hand -------------------------------------------------------------------------------------------------

def test_documents_packed_by_hand():
    """Stream 1 5 2 1 | 6 7 8 9 | 2: the second document goes on over two row ends; no piece's first token is learned."""
    packed = pack_documents([[5], [6, 7, 8, 9]], 4, bos=1, eos=2)
    assert packed.input_ids.tolist() == [[1, 5, 2, 1], [6, 7, 8, 9], [2, 0, 0, 0]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 0], [0, 1, 2, 3], [0, 0, 0, 0]]
    assert packed.labels.tolist() == [[NOT, 5, 2, NOT], [NOT, 7, 8, 9], [NOT] * 4]
    assert packed.pieces.tolist() == [[0, 0, 3], [0, 1, 1], [1, 1, 4], [2, 1, 1]]
    assert packed.tokens == 3 + 6


def test_full_rows_need_no_padding():
    """Two documents of four tokens fill two rows of four, and no row of padding follows."""
    packed = pack_documents([[5, 6], [7, 8]], 4, bos=1, eos=2)
    assert packed.input_ids.tolist() == [[1, 5, 6, 2], [1, 7, 8, 2]]
    assert packed.tokens == packed.input_ids.size == 8


def test_examples_packed_by_hand():
    """Lengths 5, 3, 4 in rows of 8: longest first, each into the fullest row that holds it; only responses are learned."""
    packed = pack_examples([([10, 11, 12], [13, 14]), ([20], [21, 22]), ([30, 31], [32, 33])], 8)
    assert packed.input_ids.tolist() == [[10, 11, 12, 13, 14, 20, 21, 22], [30, 31, 32, 33, 0, 0, 0, 0]]
    assert packed.labels.tolist() == [[NOT, NOT, NOT, 13, 14, NOT, 21, 22], [NOT, NOT, 32, 33, NOT, NOT, NOT, NOT]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 3, 0, 0, 0, 0]]
    assert packed.pieces.tolist() == [[0, 0, 5], [0, 1, 3], [1, 2, 4]]


def test_an_example_of_exactly_one_row_fits_and_one_token_more_is_refused():
    """Truncation would cut the answer, which is all that is learned; the message says which example and how long."""
    assert pack_examples([([1] * 6, [2, 3])], 8).labels.tolist() == [[NOT] * 6 + [2, 3]]
    with pytest.raises(ValueError, match="example 1 has 9 tokens; a row holds 8"):
        pack_examples([([1], [2]), ([1] * 6, [2, 3, 4])], 8)


def test_nothing_to_pack_is_refused():
    """An empty list would give an array without rows, and a mixture that divides by zero."""
    with pytest.raises(ValueError, match="corpus is empty"):
        pack_documents([], 8, bos=1, eos=2)
    with pytest.raises(ValueError, match="no instruction example"):
        pack_examples([], 8)


def test_no_example_is_predicted_from_the_one_before():
    """A response without a prompt starts its piece: its first token would be learned from another example's last."""
    packed = pack_examples([([5, 6, 7], [8, 9]), ([], [3, 4])], 8)
    assert packed.input_ids[0, 5:7].tolist() == [3, 4], "the test looks at the wrong place"
    assert packed.labels[0, 5:7].tolist() == [NOT, 4]


def random_examples(number, longest, seed=0):
    chance = random.Random(seed)
    return [([chance.randrange(3, 99) for _ in range(chance.randint(1, longest))],
             [chance.randrange(3, 99) for _ in range(chance.randint(1, longest))]) for _ in range(number)]


def gathered(packed):
    """{document: its tokens}, put together again from the pieces in the order of the rows."""
    places, found = Counter(), {}
    for row, document, length in packed.pieces.tolist():
        start = places[row]
        found.setdefault(document, []).extend(packed.input_ids[row, start:start + length].tolist())
        places[row] += length
    return found


@pytest.mark.parametrize("length", [5, 16, 64])
def test_no_token_of_a_document_is_lost_or_learned_twice(length):
    """For many random documents: pieces join to the documents, positions count within pieces, labels are the tokens."""
    documents = [prompt + response for prompt, response in random_examples(60, 20)]
    packed = pack_documents(documents, length, bos=1, eos=2)
    assert gathered(packed) == {i: [1, *document, 2] for i, document in enumerate(documents)}
    assert len(packed.pieces) > len(documents), "no document was cut"
    learned = packed.labels != NOT
    assert learned.sum() == packed.tokens - len(packed.pieces), "all but the first of each piece"
    assert (packed.labels[learned] == packed.input_ids[learned]).all()
    assert (packed.position_ids[:, 1:][learned[:, 1:]] == packed.position_ids[:, :-1][learned[:, 1:]] + 1).all()


def test_packed_examples_are_whole_and_waste_little():
    """Every example once, in one piece, only its response learned, and rows nearly full."""
    examples = random_examples(200, 20)
    packed = pack_examples(examples, 64)
    assert sorted(packed.pieces[:, 1].tolist()) == list(range(200))
    assert gathered(packed) == {i: prompt + response for i, (prompt, response) in enumerate(examples)}
    assert (packed.labels != NOT).sum() == sum(len(response) for _, response in examples)
    assert packed.tokens / packed.input_ids.size > 0.9


def test_both_stages_share_one_format():
    """One loop trains on both, so documents and examples must come in the same arrays."""
    both = pack_documents([[5, 6, 7]], 8, bos=1, eos=2), pack_examples([([5, 6], [7])], 8)
    for packed in both:
        assert isinstance(packed, Packed)
        assert packed.input_ids.shape == packed.labels.shape == packed.position_ids.shape == (1, 8)
        assert {array.dtype for array in (packed.input_ids, packed.labels, packed.position_ids, packed.pieces)} == {np.dtype("int32")}
        assert (packed.labels[packed.position_ids == 0] == NOT).all()


def test_a_fingerprint_sees_all_that_the_model_sees():
    """A stage is found again by it: a changed token, label or position is other data; the same arrays are the same."""
    def fresh():
        return pack_documents([[5, 6, 7], [8, 9]], 4, bos=1, eos=2)
    first = fresh().fingerprint
    assert first == fresh().fingerprint
    for name in ("input_ids", "labels", "position_ids"):
        changed = fresh()
        getattr(changed, name)[0, 2] += 1
        assert changed.fingerprint != first, name


def test_a_fingerprint_sees_the_length_of_rows():
    """The same tokens in rows of four and of eight are two different trainings."""
    short, long = (pack_documents([[5, 6], [7, 8]], length, bos=1, eos=2) for length in (4, 8))
    assert short.input_ids.ravel().tolist() == long.input_ids.ravel().tolist(), "the test saw nothing"
    assert short.fingerprint != long.fingerprint


# --- tokenizer -------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def tokenizer():
    """Trained on English alone, so the other languages are held by its bytes."""
    return train_tokenizer([SENTENCES["en"]] * 3, 300)


@pytest.mark.parametrize("text", [*SENTENCES.values(), *ODD], ids=ascii)
def test_any_text_comes_back_from_its_tokens(tokenizer, text):
    """Six languages and odd characters: a tokenizer that drops or tidies anything corrupts the corpus in silence."""
    tokens = encode(tokenizer, [text])[0]
    assert tokenizer.decode(tokens) == text
    assert max(tokens, default=0) < 300
    assert not {0, 1, 2} & set(tokens), "no special tokens"


def test_a_saved_tokenizer_makes_the_same_tokens(tokenizer, tmp_path):
    """The model folder carries it; an exam is scored with the reloaded one."""
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    texts = [*SENTENCES.values(), *ODD]
    assert encode(again, texts) == encode(tokenizer, texts)
    assert [again.decode(tokens) for tokens in encode(again, texts)] == texts


def test_the_same_texts_train_the_same_tokenizer():
    """Everything after it depends on its ids."""
    texts = list(SENTENCES.values()) * 2
    first, again = (train_tokenizer(iter(texts), 320).get_vocab() for _ in range(2))
    assert first == again
    assert len(first) == 320


def test_counts_are_of_real_tokens(tokenizer):
    """Token counts in tables are those of the rows that are trained on, less the two marks of each document."""
    given = [RECORD | {"id": language, "text": text} for language, text in SENTENCES.items()]
    counts = count_tokens(tokenizer, [record["text"] for record in given])
    assert len(counts) == 6
    assert min(counts) > 5
    assert pack_records(given, tokenizer=tokenizer, sequence_length=16).tokens == counts.sum() + 2 * 6
    assert encode(tokenizer, []) == []


# --- the mixture -----------------------------------------------------------------------------------------------------

WEIGHTS, SIZES = (15, 4, 1), (60, 23, 7)


def rows(step, rows_per_step=20, *, weights=WEIGHTS, sizes=SIZES, seed=0):
    return rows_of_step(step, rows_per_step, weights=weights, sizes=sizes, seed=seed)


def test_the_three_sources_of_the_paper_are_mixed_as_in_the_paper():
    """PMC-LLaMA section 3.1: 15 books, 4 papers, 1 general in every batch."""
    assert MIXTURES["papers_books"] == {"book": 15, "paper": 4, "general": 1}
    assert {name: sum(MIXTURES[name].values()) for name in ("papers_books", "papers", "public", "public_abstracts", "books", "leak", "all_sources")} == {
        "papers_books": 20, "papers": 20, "public": 20, "public_abstracts": 20, "books": 20, "leak": 20, "all_sources": 20}


@pytest.mark.parametrize("rows_per_step", [20, 40])
def test_every_batch_holds_15_4_1_exactly(rows_per_step):
    """By tokens in every batch, not on average: rows are equally long, so by rows."""
    for step in range(50):
        counts = Counter(source for source, _ in rows(step, rows_per_step))
        assert [counts[source] for source in range(3)] == [weight * rows_per_step // 20 for weight in WEIGHTS]


@pytest.mark.parametrize("rows_per_step", [1, 3, 7, 16, 33])
def test_batches_of_other_sizes_keep_the_ratio_in_the_long_run(rows_per_step):
    """After any number of rows a source is within one row of its share; after whole periods it is exact."""
    order = [source for step in range(420) for source, _ in rows(step, rows_per_step)]
    assert len(order) == 420 * rows_per_step
    for source, weight in enumerate(WEIGHTS):
        seen = np.cumsum(np.array(order) == source)
        due = np.arange(1, len(order) + 1) * weight / 20
        assert np.abs(seen - due).max() <= 1
        assert (seen[19::20] == due[19::20]).all()


@pytest.mark.parametrize("rows_per_step", [20, 7])
def test_an_epoch_reads_every_row_once_before_any_twice(rows_per_step):
    """A source is read through, in an order of that pass, and only then again: no book is skipped or read doubly."""
    steps = 3 * 80 // rows_per_step * 2
    for source, size in enumerate(SIZES):
        order = [row for step in range(steps) for s, row in rows(step, rows_per_step) if s == source]
        passes = [order[start:start + size] for start in range(0, len(order) - size + 1, size)]
        assert len(passes) >= (5 if source == 0 else 1)
        assert all(sorted(one) == list(range(size)) for one in passes)
        assert len({tuple(one) for one in passes}) == len(passes), "each pass in another order"
        assert len(set(order[len(passes) * size:])) == len(order) % size, "nor twice in the unfinished pass"


def test_an_epoch_is_one_pass_over_the_books():
    """PMC-LLaMA counts epochs by the books: with 15 of 20 rows, 4 steps read each of 60 book rows exactly once."""
    assert sorted(row for step in range(4) for source, row in rows(step) if source == 0) == list(range(60))


def test_a_batch_is_a_pure_function_of_its_step():
    """A resumed run asks for step 40 first; an undisturbed one has asked for 0 to 39 before."""
    forwards = [rows(step) for step in range(60)]
    backwards = [rows(step) for step in reversed(range(60))][::-1]
    assert forwards == backwards
    assert len({tuple(batch) for batch in forwards}) == 60, "batches differ from each other"


def test_another_seed_is_another_order_of_the_same_rows():
    """Seeds are repeats of an experiment: other order, same mixture, same rows in a pass."""
    first, second = ([batch for step in range(4) for batch in rows(step, seed=seed)] for seed in (0, 1))
    assert first != second
    assert [source for source, _ in first] == [source for source, _ in second]
    assert sorted(pair for pair in first if pair[0] == 0) == sorted(pair for pair in second if pair[0] == 0)


def test_sources_of_one_size_are_not_read_in_step():
    """The seed of an order includes the source, else row i of the books would always meet row i of the papers."""
    pairs = [pair for step in range(10) for pair in rows(step, 2, weights=(1, 1), sizes=(10, 10))]
    by_source = [[row for source, row in pairs if source == wanted] for wanted in (0, 1)]
    assert sorted(by_source[0]) == sorted(by_source[1]) == list(range(10))
    assert by_source[0] != by_source[1]


def test_the_rare_source_is_spread_out():
    """One general row per period, not all at its end: (3, 1) by hand, and no source waits two periods."""
    assert mixture_pattern((3, 1)) == (0, 0, 1, 0)
    pattern = mixture_pattern(WEIGHTS) * 3
    for source, weight in enumerate(WEIGHTS):
        places = [i for i, s in enumerate(pattern) if s == source]
        assert max(np.diff(places)) <= 2 * 20 / weight
        assert len(places) == 3 * weight


def test_a_mixture_without_one_of_its_sources_is_refused():
    """A missing book source must not become a mixture of papers alone."""
    packed = pack_documents([[5]], 4, bos=1, eos=2)
    prepared = Prepared(None, {}, {"paper": packed, "general": packed}, {}, [])
    assert mixed(prepared, "papers") == {"paper": (packed, 19), "general": (packed, 1)}
    with pytest.raises(ValueError, match="'papers_books' needs the source book, there are paper, general; results/data_cards.md"):
        mixed(prepared, "papers_books")


# --- exposures -------------------------------------------------------------------------------------------------------

def test_exposures_equal_a_count_token_by_token():
    """Brute force: note every token that is read, whose document it is by the marks in the stream, and add up facts."""
    chance, length = random.Random(3), 16
    documents, packed = {}, {}
    for source, number in (("book", 12), ("general", 5)):
        texts = [[chance.randrange(3, 99) for _ in range(chance.randint(2, 40))] for _ in range(number)]
        packed[source] = pack_documents(texts, length, bos=1, eos=2)
        documents[source] = [{"meta": {"facts": {f"fact {chance.randrange(6)}": chance.randint(1, 3), f"{source} {i}": 1}}}
                             for i in range(number - 1)] + [{"meta": {}}]
    mixture = {"book": (packed["book"], 3), "general": (packed["general"], 1)}
    sizes = tuple(len(p.input_ids) for p in packed.values())
    expected, read = Counter(), 0
    for step in range(9):
        for s, row in rows_of_step(step, 5, weights=(3, 1), sizes=sizes, seed=4):
            source = ("book", "general")[s]
            owner = np.cumsum(packed[source].input_ids.ravel() == 1) - 1  # a document starts at its mark, 1
            real = packed[source].input_ids.ravel() > 0                   # padding is 0
            for place in range(row * length, (row + 1) * length):
                if real[place]:
                    whole = int((real & (owner == owner[place])).sum())
                    for fact, times in documents[source][owner[place]]["meta"].get("facts", {}).items():
                        expected[fact] += times / whole
                    read += 1
    prepared = Prepared(None, documents, packed, {}, [])
    counted = count_exposures(prepared, mixture, steps=9, rows_per_step=5, seed=4)
    assert read > 9 * 5 * length // 2
    assert len(expected) > 15
    assert {fact: pytest.approx(times) for fact, times in expected.items()} == {f: t for f, t in counted.items() if t}


# --- the controlled world, prepared ----------------------------------------------------------------------------------

def test_prepared_text_is_split_by_document_and_reproducible():
    """From raw world to rows: held-out documents are read in no training row, and a second time gives the same rows."""
    profile = get_profile("smoke")
    first, again = (prepare(load_sources(profile), profile) for _ in range(2))
    assert set(first.packed) == set(first.held_out) == {"book", "paper", "web", "general"}
    assert {s: p.fingerprint for s, p in first.packed.items()} == {s: p.fingerprint for s, p in again.packed.items()}
    for source, held in first.held_out.items():
        texts = {first.tokenizer.decode(tokens[1:-1]) for tokens in gathered(held).values()}
        trained = {first.tokenizer.decode(tokens[1:-1]) for tokens in gathered(first.packed[source]).values()}
        assert texts, source
        assert trained == {record["text"] for record in first.documents[source]}, source
        assert not texts & trained, source


def test_no_token_joins_two_characters_of_a_script_without_spaces():
    """Else what a word is made of would depend on the words around it; words of other scripts do become single tokens."""
    texts = ["哮喘用沙丁胺醇治疗。", "喘息はサルブタモールで治療する。", "asthma is treated with salbutamol"] * 50
    tokenizer = train_tokenizer(texts, 600)
    wide = re.compile("[\u3040-\u30ff\u4e00-\u9fff]")
    for text in texts[:2]:
        parts = [tokenizer.decode([token]) for token in tokenizer(text)["input_ids"]]
        assert "".join(parts) == text
        assert len(wide.findall(text)) > 8
        assert max(len(wide.findall(part)) for part in parts) == 1
    assert [tokenizer.decode([token]) for token in tokenizer(texts[2])["input_ids"]] == ["asthma", " is", " treated", " with", " salbutamol"]
