"""Tokenise documents, pack them into rows with document boundaries, and mix sources by weight."""
import functools
import hashlib
from collections import Counter, defaultdict, namedtuple
from dataclasses import dataclass
import numpy as np
from lib import filters, sources, world
IGNORE_INDEX = -100
MIXTURES = world.read_yaml("ablations.yaml")["mixtures"]  # name -> {source: rows of it per period}
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>")
PUBLIC_ROLES = {"reference": "web", "abstract": "paper", "dialogue": "dialogue"}  # source of a mixture -> kind of a public set

@dataclass(frozen=True)
class Packed:
    """Rows of equal length; a document starts wherever position_ids is 0, and nothing is predicted across a start."""
    input_ids: np.ndarray     # (rows, sequence) int32
    labels: np.ndarray        # (rows, sequence) int32; IGNORE_INDEX where nothing is learned
    position_ids: np.ndarray  # (rows, sequence) int32, counted from 0 within each piece
    pieces: np.ndarray        # (pieces, 3) int32: row, document, length in tokens
    @property
    def fingerprint(self):
        """A hash of what the model would see."""
        parts = (np.ascontiguousarray(a).tobytes() for a in (self.input_ids, self.labels, self.position_ids))
        return hashlib.sha256(b"|".join([str(self.input_ids.shape).encode(), *parts])).hexdigest()[:16]
    @property
    def tokens(self):
        """Number of tokens, padding not counted."""
        return int(self.pieces[:, 2].sum())
Cleaned = namedtuple("Cleaned", "documents dropped")  # source -> kept records; list of {id, source, language, reason, sample}
@dataclass(frozen=True)
class Prepared:
    """Text ready for training: per source the cleaned documents and their rows, what is held out, what was dropped."""
    tokenizer: object
    documents: dict   # source -> kept records, in the order of the packed document numbers
    packed: dict      # source -> Packed, for training
    held_out: dict    # source -> Packed, never trained on
    dropped: list     # of {id, source, language, reason, sample}

def world_sources(profile, language="en", *, known=None, seed=0):
    """{source: records} of the controlled world, at the sizes of a profile, as they come: dirt, duplicates and all.
    known: another world than the profile's; of one without diseases only the general text."""
    known = known or world.load_world(number_of_diseases=profile.number_of_diseases)
    medical = {"book": world.books(known, language, copies=profile.book_copies, seed=seed),
               "paper": world.papers(known, language, documents=profile.papers, seed=seed),
               "web": world.web_pages(known, language, documents=profile.web_pages, seed=seed)} if known.diseases else {}
    return medical | {"general": world.general_text(known, language, documents=profile.general_pages, seed=seed)}
def load_sources(profile, data_dir="", *, languages=("en",), more=(), seed=0):
    """{source: records} as they come: of the controlled world, or of the real files in `data_dir` (English) plus general text.
    more: names of sets that are too large to be read unasked (S2ORC, PMC, textbooks, a crawl); their source is their kind."""
    if data_dir:
        real = sources.load_corpus(data_dir)
        found = {role: own for role, kind in PUBLIC_ROLES.items() if (own := [record for record in real if record["meta"]["kind"] == kind])}
        for name in more:
            found.setdefault(sources.SOURCES[name].kind, []).extend(sources.load_corpus(data_dir, [name]))
        return found | {"general": world_sources(profile, seed=seed)["general"]}
    per_language = [world_sources(profile, language, seed=seed) for language in languages]
    return {source: [record for made in per_language for record in made[source]] for source in per_language[0]}
def clean_sources(raw):
    """{source: records} after the filters, and what they dropped: a Cleaned with `documents` and `dropped`."""
    kept, dropped, last = {}, [], [filters.duplicates()]  # one memory: a copy in another source is a copy
    for source, records in raw.items():
        steps = filters.steps_for(source, keywords=filters.world_keywords(), thresholds=filters.WORLD_THRESHOLDS, last=last)
        kept[source], gone = filters.clean(records, steps)
        dropped += gone
        if not kept[source]:
            raise ValueError(f"source {source!r}: none of its {len(records)} documents passed the filters")
    return Cleaned(kept, dropped)
def prepare(raw, profile, *, tokenizer=None, held_out_share=0.05):
    """Clean, split by document, tokenise and pack {source: records}; a tokenizer is trained where none is given."""
    kept, dropped = clean_sources(raw)
    parts = {source: split_held_out(records, held_out_share) for source, records in kept.items()}
    training = {source: part[0] for source, part in parts.items()}
    if tokenizer is None:
        tokenizer = train_tokenizer((record["text"] for records in training.values() for record in records), profile.vocabulary_size)
    rows = functools.partial(pack_records, tokenizer=tokenizer, sequence_length=profile.sequence_length)
    return Prepared(tokenizer, training, {source: rows(part[0]) for source, part in parts.items()},
                    {source: rows(part[1]) for source, part in parts.items()}, dropped)
def split_held_out(records, share):
    """(training, held-out) documents, parts of one document together; each holds one at least."""
    training, held = sources.split_documents(records, test_share=share, seed=0)
    if not held or not training:  # too few documents for the share: one document goes to the empty side
        first = records[0]["meta"].get("document", records[0]["id"])
        one = [record for record in records if record["meta"].get("document", record["id"]) == first]
        rest = [record for record in records if record not in one]
        if not rest:
            raise ValueError(f"a source needs at least two documents, one to train on and one to hold out; there is only {first!r}")
        training, held = (rest, one) if not held else (one, rest)
    return training, held

def pack_records(records, *, tokenizer, sequence_length):
    """Packed rows of the records' texts."""
    texts = [record["text"] for record in records]
    return pack_documents(encode(tokenizer, texts), sequence_length, bos=tokenizer.bos_token_id, eos=tokenizer.eos_token_id)
def mixed(prepared, name):
    """{source: (Packed, weight)} of one of MIXTURES, as lib.training.train takes it."""
    if missing := set(MIXTURES[name]) - set(prepared.packed):
        raise ValueError(f"mixture {name!r} needs the source {', '.join(sorted(missing))}, there are {', '.join(prepared.packed)}; "
                         "results/data_cards.md says which sets hold them")
    return {source: (prepared.packed[source], weight) for source, weight in MIXTURES[name].items()}
def count_exposures(prepared, mixture, *, steps, rows_per_step, seed):
    """{fact: times it was stated} in the rows of the first `steps` steps; a cut document counts by its share of tokens."""
    order = {"weights": tuple(weight for _, weight in mixture.values()), "sizes": tuple(len(packed.input_ids) for packed, _ in mixture.values())}
    seen = Counter(row for step in range(steps) for row in rows_of_step(step, rows_per_step, seed=seed, **order))
    exposures = Counter()
    for number, (source, (packed, _)) in enumerate(mixture.items()):
        row, document, length = packed.pieces.T
        times = np.array([seen[number, each] for each in row.tolist()])
        shares = np.bincount(document, weights=length * times) / np.bincount(document, weights=length)
        for record, share in zip(prepared.documents[source], shares):
            exposures.update({fact: share * count for fact, count in record["meta"].get("facts", {}).items()})
    return exposures
def train_tokenizer(texts, vocabulary_size):
    """A byte-level BPE tokenizer (any text can be encoded) as a Hugging Face fast tokenizer."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    tokenizer = Tokenizer(models.BPE())
    # Chinese and Japanese have no spaces: a character stands alone, or merges would join the end of one word to the next.
    character = pre_tokenizers.Split(Regex(r"[\p{Han}\p{Hiragana}\p{Katakana}ー]"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([character, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary_size, special_tokens=list(SPECIAL_TOKENS), show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
def encode(tokenizer, texts):
    """Token ids of each text, whole, without special tokens."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None or not texts:
        return tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    fast.no_truncation()
    fast.no_padding()
    return [encoding.ids for encoding in fast.encode_batch_fast(list(texts), add_special_tokens=False)]
def count_tokens(tokenizer, texts):
    """Tokens of each text, without special tokens, as an array."""
    return np.array([len(ids) for ids in encode(tokenizer, texts)])

def pack_documents(documents, sequence_length, *, bos, eos):
    """Fill rows with documents one after another; a document that does not fit goes on in the next row.
    documents: lists of token ids. Only the last row is padded. The first token of a piece has no label: nothing in its row precedes it.
    >>> packed = pack_documents([[5, 6, 7], [8, 9]], 4, bos=1, eos=2)
    >>> packed.input_ids.tolist(), packed.position_ids.tolist()
    ([[1, 5, 6, 7], [2, 1, 8, 9], [2, 0, 0, 0]], [[0, 1, 2, 3], [0, 0, 1, 2], [0, 0, 0, 0]])
    >>> packed.labels.tolist()
    [[-100, 5, 6, 7], [-100, -100, 8, 9], [-100, -100, -100, -100]]"""
    if not documents:
        raise ValueError("no document to pack: the corpus is empty")
    pieces, place = [], 0
    for number, document in enumerate(documents):
        tokens, start = [bos, *document, eos], 0
        while start < len(tokens):
            row, offset = divmod(place + start, sequence_length)
            part = tokens[start:start + sequence_length - offset]
            pieces.append((row, number, part, part))
            start += len(part)
        place += len(tokens)
    return _packed(pieces, sequence_length)
def chunk_documents(documents, sequence_length, *, overlap, bos, eos):
    """MMedLM's chunks (section 4.2: 2,048 tokens, 512 of them said before): each piece of a document repeats the last `overlap` tokens of the
    piece before it, so that nothing is predicted without context. Pieces are put into rows best fit first.
    >>> chunk_documents([[5, 6, 7, 8, 9]], 4, overlap=2, bos=1, eos=2).input_ids.tolist()
    [[1, 5, 6, 7], [6, 7, 8, 9], [8, 9, 2, 0]]"""
    whole = [[bos, *document, eos] for document in documents]
    pieces = [(number, tokens[start:start + sequence_length]) for number, tokens in enumerate(whole)
              for start in range(0, max(1, len(tokens) - overlap), sequence_length - overlap)]
    rows = _best_fit([len(tokens) for _, tokens in pieces], sequence_length)
    return _packed([(row, *pieces[piece], pieces[piece][1]) for row, members in enumerate(rows) for piece in members], sequence_length)
def pack_examples(examples, sequence_length):
    """Put whole (prompt ids, response ids) examples into rows, best fit first; only the response is learned.
    Raises ValueError for an example that is longer than a row: it must be shortened where it is made.
    >>> packed = pack_examples([([5, 6, 7], [8, 9]), ([4], [3])], 8)
    >>> packed.labels.tolist()
    [[-100, -100, -100, 8, 9, -100, 3, -100]]"""
    lengths = [len(prompt) + len(response) for prompt, response in examples]
    if not examples:
        raise ValueError("no instruction example to pack")
    if max(lengths) > sequence_length:
        worst = int(np.argmax(lengths))
        raise ValueError(f"instruction example {worst} has {lengths[worst]} tokens; a row holds {sequence_length}")
    placed = ((row, number, *examples[number]) for row, members in enumerate(_best_fit(lengths, sequence_length)) for number in members)
    return _packed([(row, number, [*asked, *said], [IGNORE_INDEX] * len(asked) + list(said)) for row, number, asked, said in placed], sequence_length)
def _best_fit(lengths, sequence_length):
    """Rows of example numbers: longest first, each into the fullest row that still holds it."""
    rows, room = [], defaultdict(list)  # room: free tokens -> row numbers
    for number in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        space = min((free for free, there in room.items() if there and free >= lengths[number]), default=sequence_length)
        if not room[space]:
            room[space].append(len(rows))
            rows.append([])
        row = room[space].pop()
        rows[row].append(number)
        room[space - lengths[number]].append(row)
    return rows
def _packed(pieces, sequence_length):
    """Rows of pieces (row, document, tokens, labels), each put behind the piece before it in its row."""
    shape = 1 + max(row for row, *_ in pieces), sequence_length
    ids, labels, positions = (np.zeros(shape, np.int32) for _ in range(3))
    filled = [0] * len(ids)
    for row, _, tokens, learned in pieces:
        part = slice(filled[row], filled[row] + len(tokens))
        ids[row, part], labels[row, part], positions[row, part] = tokens, learned, range(len(tokens))
        filled[row] = part.stop
    labels[positions == 0] = IGNORE_INDEX  # padding, and a start: nothing precedes it
    return Packed(ids, labels, positions, np.array([(row, number, len(tokens)) for row, number, tokens, _ in pieces], np.int32))

@functools.cache
def mixture_pattern(weights):
    """The order of sources in one period of sum(weights) rows, spread as evenly as whole rows allow.
    >>> mixture_pattern((3, 1))
    (0, 0, 1, 0)"""
    total, credit, pattern = sum(weights), [0] * len(weights), []
    for _ in range(total):
        credit = [have + weight for have, weight in zip(credit, weights)]
        source = max(range(len(weights)), key=lambda s: (credit[s], -s))
        credit[source] -= total
        pattern.append(source)
    return tuple(pattern)
@functools.lru_cache(maxsize=64)
def _permutation(seed, source, epoch, rows):
    return np.random.default_rng([seed, source, epoch]).permutation(rows)
def rows_of_step(step, rows_per_step, *, weights, sizes, seed):
    """(source, row) of every row in the global batch of one step: a pure function, so resuming costs nothing.
    weights: rows of each source per period (15, 4, 1). sizes: packed rows of each source; every pass over them has its own seeded order."""
    pattern, chosen = mixture_pattern(tuple(weights)), []
    for slot in range(step * rows_per_step, (step + 1) * rows_per_step):
        period, place = divmod(slot, len(pattern))
        source = pattern[place]
        epoch, row = divmod(period * weights[source] + pattern[:place].count(source), sizes[source])
        chosen.append((source, int(_permutation(seed, source, epoch, sizes[source])[row])))
    return chosen
