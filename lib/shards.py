"""Build a corpus too large for memory: native files to packed shards on one machine or a cluster, and the shards as training reads them."""
import bisect
import contextlib
import functools
import hashlib
import importlib
import itertools
import json
import os
import sys
from collections import Counter, namedtuple
from pathlib import Path
from types import SimpleNamespace
import numpy as np
import yaml
from lib import corpora, filters, sources
from lib.results import to_json, write_atomically
from lib.world import read_yaml

class Rows:
    """One array of a Packed, (rows, sequence), computed row by row from memory-mapped shards of tokens and bits that mark the starts."""
    def __init__(self, name, shards):
        self.name, self.shards, self.ends = name, shards, list(itertools.accumulate(len(tokens) for tokens, _ in shards))
        self.shape = self.ends[-1], shards[0][0].shape[1]
        self.size = self.shape[0] * self.shape[1]
        self.plain = [[np.asarray(array) for array in shard] for shard in shards]  # a row of a np.memmap takes four times as long
    def __reduce__(self):  # to other processes: the files by name, not their content
        return Rows, (self.name, self.shards)
    def __len__(self):
        return self.shape[0]
    def __getitem__(self, row):
        shard = bisect.bisect_right(self.ends, row)
        tokens, starts = (array[row - self.ends[shard]] for array in self.plain[shard])  # counted from the end of the shard
        tokens = tokens.astype(np.int32)
        if self.name == "input_ids":
            return tokens
        start, place = np.unpackbits(starts, count=len(tokens)).astype(bool), np.arange(len(tokens))
        return np.where(start, corpora.IGNORE_INDEX, tokens) if self.name == "labels" else place - np.maximum.accumulate(np.where(start, place, 0))
# What training reads of a Packed, from the disk: the same rows as `corpora.pack_documents` makes of one task's documents.
Shards = namedtuple("Shards", "input_ids labels position_ids fingerprint tokens")

def write_shard(path, documents, sequence_length, *, bos, eos, vocabulary_size):
    """Write one shard, `path`.tokens (2 bytes a token, 4 for more than 65,536 entries) and `path`.starts (a bit a token), document by document;
    return what the manifest says of it. documents: lists of token ids."""
    path, lengths, digest = Path(path), [], hashlib.sha256()
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = np.uint16 if vocabulary_size <= 1 << 16 else np.uint32
    with open(f"{path}.tmp", "wb") as stream:
        def put(ids):
            content = np.array(ids, kind).tobytes()
            digest.update(content)
            stream.write(content)
            return len(ids)
        lengths = [put([bos, *document, eos]) for document in documents]
        tokens = sum(lengths)
        rows = -(-tokens // sequence_length)
        put([0] * (rows * sequence_length - tokens))
    starts = np.zeros(rows * sequence_length, bool)
    starts[::sequence_length], starts[tokens:], starts[np.cumsum([0, *lengths[:-1]])] = True, True, True
    write_atomically(f"{path}.starts", np.packbits(starts.reshape(rows, sequence_length), axis=1).tobytes())
    os.replace(f"{path}.tmp", f"{path}.tokens")
    return {"rows": rows, "documents": len(lengths), "tokens": tokens, "sha256": digest.hexdigest()}
def load_shards(folder):
    """{source: Shards} of a folder that `build` has finished; ValueError where a shard is missing or has another size than its manifest says."""
    folder = Path(folder)
    manifest, found = json.loads((folder / "manifest.json").read_text(encoding="utf-8")), {}
    length, kind = manifest["sequence_length"], np.uint16 if manifest["vocabulary_size"] <= 1 << 16 else np.uint32
    for source, group in itertools.groupby(manifest["shards"], lambda shard: shard["source"]):
        members, arrays = list(group), []
        for shard in members:
            for suffix, dtype, width in (("tokens", kind, length), ("starts", np.uint8, -(-length // 8))):
                path, size = folder / f"{shard['name']}.{suffix}", shard["rows"] * width * np.dtype(dtype).itemsize
                if not path.exists() or path.stat().st_size != size:
                    raise ValueError(f"{path}: missing, or not the {size:,} bytes of the manifest; delete logs/pack/completions and build again")
                arrays.append(np.memmap(path, dtype, "r", shape=(shard["rows"], width)))
        rows = [Rows(name, list(zip(arrays[::2], arrays[1::2]))) for name in ("input_ids", "labels", "position_ids")]
        print_of = hashlib.sha256("".join(shard["sha256"] for shard in members).encode()).hexdigest()[:16]
        found[source] = Shards(*rows, print_of, sum(shard["tokens"] for shard in members))
    return found

# --- the stages, on an engine (datatrove): native files -> cleaned documents -> no near-duplicates -> packed shards --------------
def _clean_task(_, rank, tasks, *, settings, output):
    """The documents of every tasks-th native file that the filters keep; also written to cleaned/, what was dropped and why to dropped/."""
    from datatrove.data import Document
    words = filters.read_keywords(settings["keywords"]) if settings["keywords"] else None
    questions = [item["question"] for name in settings["exams"] for item in sources.load_exam(settings["data_dir"], name)]
    last, problems = [filters.decontaminate(questions, window=settings["window"])] if questions else [], []
    with _whole_file(output / "dropped" / f"{rank:05d}.jsonl") as drops, _whole_file(output / "cleaned" / f"{rank:05d}.jsonl") as cleaned:
        dropped = SimpleNamespace(append=lambda drop: drops.write(to_json(drop, indent=None)))
        for name in settings["sets"]:
            first = [filters.without_pmc_id] if name == "s2orc" else []
            steps = (*first, *filters.steps_for(sources.SOURCES[name].kind, keywords=words, last=last))
            records = sources.read_records(settings["data_dir"], name, on_error="skip", problems=problems, part=(rank, tasks))
            for record in filters.sift(records, steps, dropped):
                cleaned.write(to_json(record, indent=None))
                yield Document(record["text"], record["id"])
        for problem in problems:
            dropped.append({"id": "", "source": "", "language": "", "reason": "unreadable", "sample": problem})
@contextlib.contextmanager
def _whole_file(path):
    """A text file to write that takes its name when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{path}.tmp", "w", encoding="utf-8") as stream:
        yield stream
    os.replace(f"{path}.tmp", path)
def _cleaned_documents(_, rank, __, *, output):
    """The kept records again, in their order, as the engine's duplicate filter takes them."""
    from datatrove.data import Document
    with open(output / "cleaned" / f"{rank:05d}.jsonl", "rb") as stream:
        for record in map(json.loads, stream):
            yield Document(record["text"], record["id"], metadata={"source": record["source"], "language": record["language"]})
def _pack_task(documents, rank, _, *, settings, output):
    """One shard for each source of this task's documents, with what the manifest says of it."""
    from transformers import AutoTokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a task is one process of many
    tokenizer = AutoTokenizer.from_pretrained(settings["tokenizer"])
    ends, shards = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "vocabulary_size": len(tokenizer)}, []
    for source, group in itertools.groupby(documents, lambda document: document.metadata["source"]):
        languages = Counter()
        def encoded(group=group, languages=languages):
            while block := list(itertools.islice(group, 1000)):
                for document, ids in zip(block, corpora.encode(tokenizer, [document.text for document in block])):
                    languages[document.metadata["language"]] += len(ids)
                    yield ids
        name = f"{source}/{rank:05d}"
        said = write_shard(output / name, encoded(), settings["sequence_length"], **ends)
        shards.append({"source": source, "name": name} | said | {"languages": dict(languages)})
    write_atomically(output / "shards" / f"{rank:05d}.json", to_json(shards))
def _manifest_task(_, __, ___, *, settings, output):
    """manifest.json: the settings, every shard, the reasons for which documents were dropped."""
    shards = [shard for path in sorted((output / "shards").glob("*.json")) for shard in json.loads(path.read_text(encoding="utf-8"))]
    drops = Counter(f"{drop['source']}, {drop['language']}: {drop['reason']}" for path in sorted((output / "dropped").glob("*.jsonl"))
                    for drop in map(json.loads, path.open("rb")))
    write_atomically(output / "manifest.json", to_json(settings | {
        "dropped": dict(sorted(drops.items())), "shards": sorted(shards, key=lambda shard: shard["name"])}))

def build(data_dir, output, *, engine="local", options=None, tasks=1, **settings):
    """Native files of the named sets -> packed shards; every task of every stage is done once, whatever was killed in between.
    settings: sets, tokenizer, sequence_length, exams, window, keywords: see lib/knowledge/corpus.yaml."""
    from datatrove import executor
    from datatrove.pipeline.dedup import MinhashConfig, MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
    from datatrove.utils.hashing import HashConfig
    from datatrove.utils.word_tokenizers import WhitespaceTokenizer
    from transformers import AutoTokenizer
    for name in (*settings["sets"], *settings["exams"]):
        sources.splits(data_dir, name)  # what is missing is said at once, not by each task
    settings["vocabulary_size"] = len(AutoTokenizer.from_pretrained(settings["tokenizer"]))
    output, settings = Path(output).resolve(), settings | {"data_dir": str(data_dir), "tasks": tasks}
    known = json.loads((output / "settings.json").read_text(encoding="utf-8")) if (output / "settings.json").exists() else settings
    if changed := [f"{name} = {known.get(name)!r}, now {value!r}" for name, value in settings.items() if known.get(name) != value]:
        raise ValueError(f"{output} was begun with {'; '.join(changed)}; take another folder, or remove this one")
    write_atomically(output / "settings.json", to_json(settings))
    config = MinhashConfig(num_buckets=filters.BANDS, hashes_per_bucket=filters.ROWS, hash_config=HashConfig(precision=32))
    folder = {name: str(output / "duplicates" / name) for name in ("signatures", "pairs", "removed")}
    sign = MinhashDedupSignature(folder["signatures"], config, WhitespaceTokenizer())  # its own shingles need a model for each language
    sign.get_shingles, sign.get_signature = filters.shingles, lambda grams: filters.signature(grams).tolist()
    own = {"settings": settings, "output": output}
    stages = {"clean": (tasks, [functools.partial(_clean_task, **own), sign]),
              "pairs": (filters.BANDS, [MinhashDedupBuckets(folder["signatures"], folder["pairs"], config=config)]),
              "clusters": (1, [MinhashDedupCluster(folder["pairs"], folder["removed"], config=config)]),
              "pack": (tasks, [functools.partial(_cleaned_documents, output=output), MinhashDedupFilter(folder["removed"]),
                               functools.partial(_pack_task, **own)]), "manifest": (1, [functools.partial(_manifest_task, **own)])}
    kind, last = getattr(executor, f"{engine.capitalize()}PipelineExecutor"), None
    for name, (count, steps) in stages.items():
        last = kind(steps, tasks=count, logging_dir=str(output / "logs" / name), depends=last, **(options or {}))
    return last.run()
def main(arguments):
    """usage: python -m lib.shards SETTINGS (a copy of lib/knowledge/corpus.yaml)"""
    if len(arguments) != 1:
        sys.exit(main.__doc__)
    known = set(read_yaml("corpus.yaml"))
    try:
        settings = yaml.safe_load(Path(arguments[0]).read_text(encoding="utf-8"))
        if not isinstance(settings, dict) or set(settings) != known:
            odd = known.symmetric_difference(settings if isinstance(settings, dict) else ())
            raise ValueError(f"{arguments[0]}: unknown or missing: {', '.join(sorted(odd))}; lib/knowledge/corpus.yaml has them all")
        build(settings.pop("data_dir"), settings.pop("output"), **settings)
    except (ValueError, OSError, yaml.YAMLError) as error:
        sys.exit(f"refused: {error}")

if __name__ == "__main__":
    importlib.import_module("lib.shards").main(sys.argv[1:])  # not __main__: other processes find the tasks by this name
