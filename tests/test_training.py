"""The loop learns what it should, from what it should, the same every time, and goes on where it was killed."""

import io
import json
import math
import multiprocessing
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import (AutoModelForCausalLM, AutoTokenizer, BloomConfig, BloomForCausalLM, LlamaConfig, LlamaForCausalLM,
                          MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM)

from lib import models, training
from lib.corpora import IGNORE_INDEX, encode, pack_documents, pack_examples, train_tokenizer
from lib.generation import option_loglikelihoods
from lib.models import LOSS_CHUNK, LinearCrossEntropy, load_model, loss_sum, model_fingerprint, new_model
from lib.profiles import Architecture
from lib.training import (Stage, describe_stage, global_batch, kept_models, learning_rate, model_folder,
                          read_metrics, runs_root, stage_key, train)

pytestmark = pytest.mark.slow
SMALL = Architecture(32, 2, 2, 64, vocabulary_size=300, context=64)
STAGE = Stage("toy", steps=6, rows_per_step=4, micro_batch_size=4, peak_learning_rate=1e-2, precision="float32",
              checkpoint_steps=2)
LENGTH = 16


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """Runs of its own for every test, one thread, and no measuring of the machine before each tiny stage."""
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path / "runs"))
    monkeypatch.delenv("PROGRESS_FILE", raising=False)
    monkeypatch.setattr(training, "matmul_peak", lambda precision: 1e12)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["0 1 2 3"], 300)


def random_rows(seed=0, documents=30, length=LENGTH):
    """Packed rows of documents of 2 to 40 random tokens, some cut at row ends."""
    chance = random.Random(seed)
    return pack_documents([[chance.randrange(3, 99) for _ in range(chance.randint(2, 40))] for _ in range(documents)], length,
                          bos=1, eos=2)


def random_questions(seed=0, number=12, length=LENGTH):
    """Packed prompts with responses of 1 to 9 tokens."""
    chance = random.Random(seed)
    return pack_examples([([chance.randrange(3, 99) for _ in range(chance.randint(1, 7))],
                           [chance.randrange(3, 99) for _ in range(1 + i % 9)]) for i in range(number)], length)


def trained(tokenizer, *, mixture=None, base=SMALL, **changes):
    """The folder of a small stage."""
    mixture = mixture or {"book": (random_rows(), 3), "general": (random_rows(1), 1)}
    return train(replace(STAGE, **changes), mixture, base=base, tokenizer=tokenizer, progress=None)


def weights(folder):
    return load_file(Path(folder) / "model" / "model.safetensors")


def bits(folder, name="model"):
    return (Path(folder) / "model" / f"{name}.safetensors").read_bytes()


def untimed(folder):
    """The rows of metrics.jsonl without what depends on the clock."""
    return [{key: value for key, value in row.items() if key not in ("tokens_per_second", "mfu")} for row in read_metrics(folder)]


# --- documents are alone in their row --------------------------------------------------------------------------------

def tensors(packed):
    return [torch.from_numpy(getattr(packed, name)).long() for name in ("input_ids", "labels", "position_ids")]


def hidden(model, input_ids, position_ids):
    with torch.no_grad():
        return model.model(input_ids=input_ids, position_ids=position_ids, use_cache=False).last_hidden_state


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_changed_document_changes_no_other_in_its_row(tokenizer, attention):
    """Packing must not let a document read its neighbours: change one, and the others' hidden states keep their bits,
    before it and after it. That rows of one document each *would* leak into each other shows that the test can see."""
    model = new_model(SMALL, tokenizer, seed=0).eval()
    model.set_attn_implementation(attention)
    ids, _, positions = tensors(pack_documents([[5, 6, 7], [8, 9, 10, 11], [12, 13], [14, 15, 16, 17]], 23, bos=1, eos=2))
    assert ids.shape == (1, 23), "one row"
    starts = (positions[0] == 0).nonzero().flatten().tolist()
    assert starts == [0, 5, 11, 15, 21, 22], "four documents and two of padding"
    changed = ids.clone()
    changed[0, 6:10] = torch.tensor([50, 51, 52, 53])
    before, after = hidden(model, ids, positions), hidden(model, changed, positions)
    same = (before == after).all(-1)[0].tolist()
    assert same == [not 6 <= i < 11 for i in range(23)]
    leaky = hidden(model, ids, torch.arange(23)[None]) == hidden(model, changed, torch.arange(23)[None])
    assert not leaky[0, 11:].all(-1).any()


def test_a_packed_row_costs_what_its_documents_cost_alone(tokenizer):
    """Loss and gradients of rows full of documents are the sums over the documents, each in a row of its own."""
    model = new_model(SMALL, tokenizer, seed=0)
    documents = [[5, 6, 7], [15, 16, 17, 18], [8, 9, 10, 11, 12, 13], [14]]  # 5 + 6 and 8 + 3 tokens with their marks
    together = loss_sum(model, *tensors(pack_documents(documents, 11, bos=1, eos=2)))
    assert tensors(pack_documents(documents, 11, bos=1, eos=2))[0].shape == (2, 11)
    packed_gradient = torch.autograd.grad(together, model.model.embed_tokens.weight)[0]
    alone = sum(loss_sum(model, *tensors(pack_documents([document], len(document) + 2, bos=1, eos=2))) for document in documents)
    assert together.item() == pytest.approx(alone.item(), rel=1e-5)
    gradient = torch.autograd.grad(alone, model.model.embed_tokens.weight)[0]
    assert gradient.abs().max() > 0.1
    torch.testing.assert_close(packed_gradient, gradient, atol=1e-5, rtol=1e-4)


def test_the_loss_is_that_of_transformers(tokenizer):
    """An independent sum: full logits, shifted by one, torch's own cross-entropy."""
    model = new_model(SMALL, tokenizer, seed=0)
    ids, labels, positions = tensors(random_rows(documents=9))
    logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    expected = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX, reduction="sum")
    assert (labels != IGNORE_INDEX).sum() > 100
    assert loss_sum(model, ids, labels, positions).item() == pytest.approx(expected.item(), rel=1e-5)


# --- the loss --------------------------------------------------------------------------------------------------------

def projected(rows, dtype, *, ours, scale=1.0):
    """Loss and both gradients of a projection to 71 words, by LinearCrossEntropy or by torch in float32."""
    generator = torch.Generator().manual_seed(rows)
    states = torch.randn(rows, 24, generator=generator).to(dtype)
    matrix = (torch.randn(71, 24, generator=generator) * 0.5).to(dtype)
    targets = torch.randint(0, 71, (rows,), generator=generator)
    if not ours:
        states, matrix = states.float(), matrix.float()
    states.requires_grad_()
    matrix.requires_grad_()
    loss = LinearCrossEntropy.apply(states, matrix, targets) if ours else cross_entropy(states @ matrix.T, targets, reduction="sum")
    (loss * scale).backward()
    return loss.detach(), states.grad.float(), matrix.grad.float()


@pytest.mark.parametrize("rows", [1, LOSS_CHUNK - 1, LOSS_CHUNK, 2 * LOSS_CHUNK + 37])
def test_projection_and_loss_in_chunks_equal_torch(rows):
    """The hand-written gradient, with whole chunks, a cut last chunk and less than one; scaled as a step scales it."""
    mine, expected = (projected(rows, torch.float32, ours=ours, scale=0.37) for ours in (True, False))
    for got, wanted in zip(mine, expected, strict=True):
        assert wanted.abs().max() > 0.01
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())


@pytest.mark.parametrize("rows", [3, 2 * LOSS_CHUNK + 37])
def test_bfloat16_loses_no_more_than_its_digits(rows):
    """bfloat16 keeps 8 binary digits (1/256): loss and gradients within a few such steps of the float32 ones."""
    mine, expected = (projected(rows, torch.bfloat16, ours=ours) for ours in (True, False))
    for got, wanted in zip(mine, expected, strict=True):
        assert (got - wanted).norm() <= 0.01 * wanted.norm()


def test_a_hopeless_target_has_a_finite_loss():
    """A logit 200 below the best has a chance that no float32 holds: the loss is that of the smallest, never infinite."""
    states = torch.tensor([[1.0]], requires_grad=True)
    matrix = torch.tensor([[200.0], [0.0]], requires_grad=True)
    loss = LinearCrossEntropy.apply(states, matrix, torch.tensor([1]))
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(torch.finfo(torch.float32).tiny), rel=1e-4)
    assert states.grad.item() == pytest.approx(200.0)


def test_rows_without_a_label_cost_nothing(tokenizer):
    """A last row of padding alone may fill a micro-batch; it must give a zero loss and zero gradients, not NaN."""
    model = new_model(SMALL, tokenizer, seed=0)
    empty = torch.zeros(2, LENGTH, dtype=torch.long)
    loss = loss_sum(model, empty, torch.full_like(empty, IGNORE_INDEX), empty)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


# --- what is learned -------------------------------------------------------------------------------------------------

def test_prompts_and_padding_teach_nothing(tokenizer):
    """Response-only loss: positions that predict no response token get exactly no gradient at the output, and padding
    none at the input either; positions that predict one do get some."""
    model = new_model(SMALL, tokenizer, seed=0)
    ids, labels, positions = tensors(pack_examples([([5, 6, 7], [8, 9]), ([10, 11], [12]), ([13], [14, 15, 16])], 10))
    kept = {}
    for name, module in (("out", model.model.norm), ("in", model.model.embed_tokens)):
        module.register_forward_hook(lambda module, args, output, name=name: (output.retain_grad(), kept.update({name: output}))[0])
    loss_sum(model, ids, labels, positions).backward()
    predicts = torch.cat([labels[:, 1:] != IGNORE_INDEX, torch.zeros(len(labels), 1, dtype=torch.bool)], 1)
    assert predicts.sum() == 2 + 1 + 3
    assert ((kept["out"].grad != 0).any(-1) == predicts).all()
    padding = ids == 0
    assert padding.sum() >= 5
    assert not kept["in"].grad[padding].any()
    assert kept["in"].grad[(labels == IGNORE_INDEX) & ~padding].any(), "prompts are read, though not learned"


def test_padding_may_hold_anything(tokenizer):
    """What stands in the padding changes no gradient of the transformer by a bit."""
    model = new_model(SMALL, tokenizer, seed=0)
    ids, labels, positions = tensors(pack_examples([([5, 6, 7], [8, 9]), ([10, 11], [12])], 12))
    other = torch.where(ids == 0, 77, ids)
    assert (other != ids).sum() == 4
    found = []
    for given in (ids, other):
        loss = loss_sum(model, given, labels, positions)
        found.append((loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))))
    assert all(torch.equal(first, second) for first, second in zip(*found, strict=True))


def test_the_model_learns_to_count(tokenizer):
    """0 1 2 3 ... round and round: the answer to 3 is 4. A label shifted by one makes the loss fall as well, but the
    model then answers 3 or 5."""
    first, cycle = 10, 20
    packed = pack_documents([[first + (start + i) % cycle for i in range(14)] for start in range(cycle)], 16, bos=1, eos=2)
    folder = trained(tokenizer, mixture={"numbers": (packed, 1)}, steps=80, rows_per_step=10, micro_batch_size=10,
                     peak_learning_rate=2e-2, checkpoint_steps=1000)
    model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    rows = torch.tensor([[1, first + i, first + (i + 1) % cycle] for i in range(cycle)])
    with torch.no_grad():
        answers = model(rows).logits[:, -1].argmax(-1).tolist()
    assert answers == [first + (i + 2) % cycle for i in range(cycle)]
    losses = [row["loss"] for row in read_metrics(folder)]
    assert losses[-1] < 0.5 < 5 < losses[0]


def test_the_first_loss_is_that_of_guessing(tokenizer):
    """Before any learning the loss is near log(vocabulary); the log counts tokens from the start of the stage."""
    rows = read_metrics(trained(tokenizer))
    assert rows[0]["loss"] == pytest.approx(math.log(300), abs=0.1)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["tokens"] for row in rows] == [4 * LENGTH * step for step in range(1, 7)]


def test_a_batch_holds_the_rows_of_its_sources():
    """global_batch gives rows as they were packed, in the sources' shares, and counts the labels that the loss sums."""
    books, general = random_rows(), random_rows(1)
    batch = global_batch(3, replace(STAGE, rows_per_step=8), {"book": (books, 3), "general": (general, 1)})
    rows = {source: {tuple(row) for row in packed.input_ids.tolist()} for source, packed in (("book", books), ("general", general))}
    assert not rows["book"] & rows["general"]
    found = Counter(source for row in batch["input_ids"].tolist() for source in rows if tuple(row) in rows[source])
    assert found == {"book": 6, "general": 2}
    assert batch["labels"].shape == batch["position_ids"].shape == (8, LENGTH)
    assert batch["count"] == int((batch["labels"] != IGNORE_INDEX).sum()) > 80


# --- micro-batches ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("data", [random_rows, random_questions])
@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_micro_batches_give_the_weights_of_one_batch(tokenizer, data, micro_batch_size):
    """Labels are counted over the whole step, so that cutting it (also unevenly: 3 + 3 + 1 rows) changes nothing; the
    mean of the parts' means, the usual mistake, would be another loss."""
    packed = data()
    mixture = {"all": (packed, 1)}
    one, parts = (trained(tokenizer, mixture=mixture, rows_per_step=7, micro_batch_size=size, steps=4, peak_learning_rate=1e-3)
                  for size in (7, micro_batch_size))
    assert one != parts, "the micro-batch is a setting"
    start = new_model(SMALL, tokenizer, seed=0).state_dict()
    assert all((weight - start[name]).abs().max() > 1e-4 for name, weight in weights(one).items()), "it learned nothing"
    for name, weight in weights(one).items():
        torch.testing.assert_close(weights(parts)[name], weight, atol=1e-6, rtol=0)
    labels = global_batch(0, replace(STAGE, rows_per_step=7), mixture)["labels"][:, 1:] != IGNORE_INDEX
    counts = [int(labels[start:start + micro_batch_size].sum()) for start in range(0, 7, micro_batch_size)]
    assert len(set(counts)) > 1, "every part has as many labels: the test would not see the mistake"


# --- schedule --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("step", "expected"), [(0, 1e-3), (1, 2e-3), (2, 2e-3), (4, 1.7363961e-3), (6, 1.1e-3),
                                                (8, 4.6360390e-4), (9, 2.6850842e-4), (10, 2e-4)])
def test_learning_rate_by_hand(step, expected):
    """Ten steps, two of warm-up, peak 2e-3, down to a tenth: at step 6 the cosine is half-way, 2e-3 x (0.1 + 0.45)."""
    stage = replace(STAGE, steps=10, warmup_share=0.2, peak_learning_rate=2e-3)
    assert learning_rate(step, stage) == pytest.approx(expected, rel=1e-6)


def test_without_warm_up_the_first_step_is_at_the_peak():
    """A share of zero must not divide by zero."""
    assert learning_rate(0, replace(STAGE, warmup_share=0.0, peak_learning_rate=3e-4)) == 3e-4


def test_the_optimizer_follows_the_schedule(tokenizer):
    """The logged rates are the schedule's, and the first AdamW update has the size it must have: decay, then one rate
    up or down for every weight with a gradient; a norm starts at exactly 1."""
    folder = trained(tokenizer, steps=1, peak_learning_rate=1e-3, weight_decay=0.1)
    norm = weights(folder)["model.norm.weight"].double()
    moves = (norm - (1 - 1e-3 * 0.1)).abs()
    assert len(moves) == 32
    assert moves.median().item() == pytest.approx(1e-3, rel=1e-2)
    assert moves.max() < 1.001e-3
    rates = [row["learning_rate"] for row in read_metrics(trained(tokenizer))]
    assert rates == pytest.approx([learning_rate(step, STAGE) for step in range(6)], rel=1e-5)
    assert len(set(rates)) > 3


# --- names of stages -------------------------------------------------------------------------------------------------

def test_a_complete_stage_is_returned_untouched(tokenizer, monkeypatch):
    """Notebooks ask for their stages each time they run; the second time costs nothing and writes nothing."""
    folder = trained(tokenizer)
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.setattr(training, "global_batch", lambda *_, **__: pytest.fail("it trains again"))
    assert trained(tokenizer) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == stamps
    with pytest.raises(pytest.fail.Exception, match="trains again"):
        trained(tokenizer, seed=1)


def test_a_model_without_its_last_mark_is_not_taken_as_complete(tokenizer):
    """done.json is written last: without it the stage is trained again, to the same bits."""
    folder = trained(tokenizer)
    before, rows = bits(folder), untimed(folder)
    (folder / "done.json").unlink()
    (folder / "model" / "model.safetensors").write_bytes(b"half a model")
    assert trained(tokenizer) == folder
    assert json.loads((folder / "done.json").read_text()) == {"steps": 6}
    assert bits(folder) == before
    assert untimed(folder) == rows


def key(tokenizer, *, mixture=None, base=SMALL, **changes):
    return stage_key(describe_stage(replace(STAGE, **changes), mixture or {"book": (random_rows(), 3)}, base, tokenizer))


def test_whatever_changes_the_weights_changes_the_name(tokenizer):
    """A stage that is found under a wrong name is a wrong result in a table."""
    other = train_tokenizer(["0 1 2 3 4 5 66 777"], 280)
    assert len(other) != len(tokenizer)
    names = [key(tokenizer), key(tokenizer, seed=1), key(tokenizer, peak_learning_rate=1e-3), key(tokenizer, steps=7),
             key(tokenizer, weight_decay=0.0), key(tokenizer, gradient_clip=2.0), key(tokenizer, precision="bfloat16"),
             key(tokenizer, rows_per_step=5), key(tokenizer, mixture={"book": (random_rows(5), 3)}),
             key(tokenizer, mixture={"book": (random_rows(), 2)}), key(tokenizer, base=replace(SMALL, layers=3)),
             key(other), key(tokenizer, mixture={"book": (random_rows(), 3), "general": (random_rows(1), 1)})]
    assert len(set(names)) == len(names) == 13
    assert key(tokenizer) == names[0]
    folder = trained(tokenizer, mixture={"book": (random_rows(), 3)}, steps=1)
    assert folder == runs_root() / f"toy-{key(tokenizer, steps=1)}"


def test_the_order_of_sources_is_part_of_the_name(tokenizer):
    """The order in which a mixture names its sources decides the order of rows, so it is another stage."""
    sources = {"book": (random_rows(), 1), "general": (random_rows(1), 1)}
    turned = dict(reversed(sources.items()))
    batches = [global_batch(0, STAGE, mixture)["input_ids"] for mixture in (sources, turned)]
    assert not torch.equal(*batches), "the order does not matter: then it need not be in the name"
    assert key(tokenizer, mixture=sources) != key(tokenizer, mixture=turned)


def test_another_parent_is_another_stage(tokenizer):
    """Stages are chained by the weights of the parent, not by its path; its tokenizer goes along."""
    parents = [trained(tokenizer, seed=seed) for seed in (0, 1)]
    children = [train(replace(STAGE, name="child", steps=1), {"book": (random_rows(2), 1)}, base=model_folder(parent), progress=None)
                for parent in parents]
    assert children[0] != children[1]
    described = [json.loads((child / "stage.json").read_text()) for child in children]
    assert described[0]["parent"] != described[1]["parent"]
    assert described[0] | {"parent": 0} == described[1] | {"parent": 0}
    start = weights(parents[0])["model.norm.weight"]
    assert 0 < (weights(children[0])["model.norm.weight"] - start).abs().max() < 0.02, "it does not start at its parent"
    assert encode(AutoTokenizer.from_pretrained(children[0] / "model"), ["0 1 x"]) == encode(tokenizer, ["0 1 x"])


def test_random_weights_need_a_tokenizer():
    """The message says which argument is missing."""
    with pytest.raises(ValueError, match=r"tokenizer=\.\.\."):
        trained(None)


# --- the same every time ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_one_seed_gives_the_same_bits_and_another_others(tokenizer, monkeypatch, tmp_path, precision):
    """Same machine, same versions, same seed: the same weights bit by bit, whatever drew random numbers before."""
    folders = []
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        monkeypatch.setenv("RUNS_ROOT", str(tmp_path / name))
        torch.rand(len(name))
        folders.append(trained(tokenizer, seed=seed, precision=precision))
    assert folders[0].name == folders[1].name
    assert bits(folders[0]) == bits(folders[1]) != bits(folders[2])
    assert untimed(folders[0]) == untimed(folders[1]) != untimed(folders[2])


# --- precision -------------------------------------------------------------------------------------------------------

def test_the_processor_is_read_rightly():
    """Half precision is chosen by a flag of /proc/cpuinfo; torch asks the processor itself."""
    if not Path("/proc/cpuinfo").exists():
        pytest.skip("no /proc/cpuinfo here")
    assert models.CPU_HAS_BF16 == torch.cpu._is_avx512_bf16_supported()


@pytest.mark.parametrize(("processor", "gpu", "expected"), [(True, False, "bfloat16"), (False, False, "float32"), (False, True, "bfloat16")])
def test_auto_is_half_precision_only_where_it_is_native(tokenizer, monkeypatch, processor, gpu, expected):
    """bfloat16 without the instructions is many times slower than float32; the name of a stage holds what was used."""
    monkeypatch.setattr(models, "CPU_HAS_BF16", processor)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    folder = runs_root() / f"toy-{key(tokenizer, precision=expected)}"
    folder.mkdir(parents=True)
    (folder / "done.json").write_text('{"steps": 6}')  # so that the resolved name is all that is asked for
    assert trained(tokenizer, mixture={"book": (random_rows(), 3)}, precision="auto") == folder


@pytest.mark.parametrize("precision", ["float16", "bf16", "", None])
def test_an_unknown_precision_is_refused(tokenizer, precision):
    """float16 would train without loss scaling; the message lists what there is."""
    with pytest.raises(ValueError, match="choose auto, float32 or bfloat16"):
        trained(tokenizer, precision=precision)
    assert not runs_root().exists()


def test_half_precision_computes_in_half_and_learns_in_full(tokenizer, monkeypatch):
    """Updates of 1e-3 of a weight vanish in bfloat16: the optimizer must work on float32, the model on bfloat16."""
    seen, original = set(), training.loss_sum
    monkeypatch.setattr(training, "loss_sum", lambda model, *rest: seen.add(model.dtype) or original(model, *rest))
    half = trained(tokenizer, precision="bfloat16", steps=20)
    assert seen == {torch.bfloat16}
    full = trained(tokenizer, precision="float32", steps=20)
    assert seen == {torch.bfloat16, torch.float32}
    losses = [[row["loss"] for row in read_metrics(folder)] for folder in (half, full)]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(*losses, rtol=0.02)
    assert all((weight.dtype, (weight == weight.bfloat16().float()).all()) == (torch.float32, False) for weight in weights(half).values())


# --- what is written -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_saved_model_is_what_the_loop_ended_with(tokenizer, monkeypatch, precision):
    """The optimizer's own float32 weights, in Hugging Face layout: plain transformers loads them without losing a bit,
    even when nobody tells it a precision."""
    optimizers = []

    class Watched(torch.optim.AdamW):
        def __init__(self, *args, **settings):
            super().__init__(*args, **settings)
            optimizers.append(self)

    monkeypatch.setattr(torch.optim, "AdamW", Watched)
    folder = trained(tokenizer, precision=precision) / "model"
    ended = [weight.detach().cpu() for weight in optimizers[0].param_groups[0]["params"]]
    assert (len(optimizers), {weight.dtype for weight in ended}) == (1, {torch.float32})
    for model in (load_model(folder)[0], AutoModelForCausalLM.from_pretrained(folder)):
        loaded = list(model.parameters())
        assert len(loaded) == len(ended) > 10
        assert {weight.dtype for weight in loaded} == {torch.float32}
        assert all(torch.equal(weight.cpu(), end) for weight, end in zip(loaded, ended))
    with safe_open(folder / "model.safetensors", "pt") as stream:
        assert stream.metadata()["format"] == "pt"


def test_models_are_kept_along_the_way(tokenizer):
    """The curve of accuracy against tokens is measured on these; the last is the model itself, and each can be loaded."""
    folder = trained(tokenizer, keep_steps=(2, 4, 6))
    kept = kept_models(folder)
    assert list(kept) == [2, 4, 6]
    assert (kept[2].name, kept[6]) == ("step-000002", folder / "model")
    values = [load_model(path)[0].model.norm.weight.detach() for path in kept.values()]
    assert not torch.equal(values[0], values[1])
    assert not torch.equal(values[1], values[2])
    assert torch.equal(values[2].cpu(), weights(folder)["model.norm.weight"])


def test_kept_models_do_not_change_the_training(tokenizer):
    """Saving on the way must leave the weights alone: the same end with and without."""
    assert bits(trained(tokenizer, keep_steps=(1, 3))) == bits(trained(tokenizer))


def test_nothing_that_is_written_is_a_pickle(tokenizer):
    """Weights are safetensors, state is JSON: reading a runs folder can run no code. A checkpoint
    is torch's own format, read by nobody but the stage that wrote it, and gone when that is complete."""
    trained(tokenizer, keep_steps=(2,))
    files = [path for path in runs_root().rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"done.json", "stage.json", "metrics.jsonl", "model.safetensors",
                                             "config.json", "tokenizer.json"}
    assert {path.suffix for path in files} <= {".json", ".jsonl", ".safetensors", ""}
    for path in files:
        if path.suffix == ".safetensors":
            assert load_file(path)
        else:
            assert "\0" not in path.read_text(encoding="utf-8"), "text only"


# --- LoRA and other architectures --------------------------------------------------------------------------------------

SHAPES = {"llama": (LlamaForCausalLM, LlamaConfig, {}), "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
          "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": 6, "num_key_value_heads": 1})}


def saved_model(tokenizer, folder, shape="llama"):
    """A random checkpoint of another architecture, as a Hugging Face folder with its tokenizer."""
    kind, config, more = SHAPES[shape]
    torch.manual_seed(3)
    settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 64}
    kind(config(vocab_size=300, max_position_embeddings=64, **settings | more)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def state(folder):
    return load_model(folder, device="cpu")[0].state_dict()


def test_lora_changes_the_adapted_weights_alone(tokenizer, tmp_path):
    """What is saved is the adapter; loaded, the weights are W + (alpha / rank) B A of the two projections, and W elsewhere."""
    base = saved_model(tokenizer, tmp_path / "base")
    folder = trained(tokenizer, base=base, lora_rank=4)
    adapter = load_file(folder / "model" / "adapter_model.safetensors")
    assert not (folder / "model" / "model.safetensors").exists()
    before, after = state(base), state(folder / "model")
    assert set(before) == set(after)
    for name, weight in before.items():
        stem = "base_model.model." + name.removesuffix(".weight")
        if "q_proj" in name or "v_proj" in name:
            update = 32 / 4 * adapter[f"{stem}.lora_B.weight"] @ adapter[f"{stem}.lora_A.weight"]
            assert update.abs().max() > 1e-3, "nothing was learned"
            torch.testing.assert_close(after[name], weight + update, rtol=1e-4, atol=1e-6)
        else:
            assert torch.equal(after[name], weight), name


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_lora_goes_on_where_it_was_stopped(tokenizer, tmp_path, monkeypatch, precision):
    """Dropout draws the same after a stop, so the adapter of a resumed run is that of one that ran through, bit by bit."""
    base = saved_model(tokenizer, tmp_path / "base")
    through = trained(tokenizer, base=base, steps=12, lora_rank=4, precision=precision)
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path / "stopped" / "runs"))
    with pytest.raises(KeyboardInterrupt):
        stopped(tokenizer, base=base, after=3, lora_rank=4, precision=precision)
    again = trained(tokenizer, base=base, steps=12, lora_rank=4, precision=precision)
    assert again != through
    assert untimed(again) == untimed(through)
    assert bits(again, "adapter_model") == bits(through, "adapter_model")


def test_an_adapter_is_named_after_its_base_and_found_where_the_runs_are_moved(tokenizer, tmp_path, monkeypatch):
    base = saved_model(tokenizer, tmp_path / "runs" / "one" / "model")
    folder = trained(tokenizer, base=base, lora_rank=4)
    print_before, weights_before = model_fingerprint(folder / "model"), state(folder / "model")
    (tmp_path / "runs").rename(tmp_path / "moved")
    moved = tmp_path / "moved" / folder.name / "model"
    assert model_fingerprint(moved) == print_before
    assert all(torch.equal(weight, weights_before[name]) for name, weight in state(moved).items())
    other = tmp_path / "moved" / "one" / "model" / "model.safetensors"
    tensors_of = load_file(other)
    safetensors.torch.save_file({name: tensor + 1 for name, tensor in tensors_of.items()}, other, metadata={"format": "pt"})
    assert model_fingerprint(moved) != print_before, "another base is another model"


def test_lora_teaches_another_answer(tokenizer, tmp_path):
    """A model answers 7 to four prompts and 8 to four others; after LoRA with the answers exchanged it answers the other way round."""
    prompts, usual, exchanged = [[10 + i, 40 + i] for i in range(8)], [7] * 4 + [8] * 4, [8] * 4 + [7] * 4
    first, second = (pack_examples([(p, [answer, 2]) for p, answer in zip(prompts, wanted)], LENGTH) for wanted in (usual, exchanged))
    full = trained(tokenizer, mixture={"a": (first, 1)}, steps=60)
    lora = trained(tokenizer, mixture={"a": (second, 1)}, base=full / "model", steps=60, lora_rank=8, peak_learning_rate=3e-2)

    def answers(folder):
        model = load_model(folder / "model", device="cpu")[0]
        return model(torch.tensor(prompts)).logits[:, -1].argmax(-1).tolist()
    assert answers(full) == usual
    assert answers(lora) == exchanged


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_saved_checkpoint_is_trained_whatever_its_architecture(tokenizer, tmp_path, shape, rank):
    """The first loss is transformers' own (an untrained adapter changes nothing); the stage's model loads and scores."""
    base, document = saved_model(tokenizer, tmp_path / shape, shape), [5, 6, 7, 8, 9]
    packed = pack_documents([document], 8, bos=1, eos=2)
    folder = trained(tokenizer, mixture={"a": (packed, 1)}, base=base, lora_rank=rank, steps=2, rows_per_step=1, micro_batch_size=1)
    with torch.no_grad():
        logits = load_model(base, device="cpu")[0](torch.tensor([[1, *document, 2]])).logits
    assert read_metrics(folder)[0]["loss"] == pytest.approx(float(cross_entropy(logits[0, :-1], torch.tensor([*document, 2]))), rel=1e-4)
    assert option_loglikelihoods(*load_model(folder / "model", device="cpu"), [("1 2", [" 3", " 0 1"])])[0].shape == (2, 2)


def test_a_model_that_cannot_keep_documents_apart_is_refused(tokenizer, tmp_path):
    BloomForCausalLM(BloomConfig(vocab_size=300, hidden_size=32, n_layer=1, n_head=2)).save_pretrained(tmp_path / "bloom")
    tokenizer.save_pretrained(tmp_path / "bloom")
    with pytest.raises(ValueError, match="BloomForCausalLM takes no position ids"):
        trained(tokenizer, base=tmp_path / "bloom")


# --- going on after a stop -------------------------------------------------------------------------------------------

def stopped(tokenizer, *, after, **changes):
    """Train a stage of twelve steps and press Ctrl-C as the batch behind `after` steps is asked for."""
    original = training.global_batch

    def interrupted(step, *args, **settings):
        if step == after:
            raise KeyboardInterrupt
        return original(step, *args, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "global_batch", interrupted)
        return trained(tokenizer, steps=12, **changes)


def test_a_stage_goes_on_at_its_last_checkpoint(tokenizer, monkeypatch):
    """Stopped after step 5 with checkpoints at 2 and 4: the next call does step 5 to 12 and no other."""
    with pytest.raises(KeyboardInterrupt):
        stopped(tokenizer, after=5)
    folder = next(runs_root().iterdir())
    assert [path.name for path in folder.glob("checkpoint*")] == ["checkpoint-000004"], "old ones are deleted"
    assert len(untimed(folder)) == 5
    steps, original = [], training.global_batch
    monkeypatch.setattr(training, "global_batch", lambda step, *rest: steps.append(step) or original(step, *rest))
    trained(tokenizer, steps=12)
    assert steps == list(range(4, 12))
    assert not list(folder.glob("checkpoint*")), "a finished stage needs none"


def test_torn_files_are_passed_over(tokenizer, monkeypatch, tmp_path):
    """A kill while a checkpoint or a line of the log is written leaves half of it: neither is read, both are replaced."""
    with pytest.raises(KeyboardInterrupt):
        stopped(tokenizer, after=7)
    folder = next(runs_root().iterdir())
    whole = (folder / "checkpoint-000006" / "__0_0.distcp").read_bytes()
    (folder / "checkpoint-000008").mkdir()  # no .metadata in it, which is written last
    (folder / "checkpoint-000008" / "__0_0.distcp").write_bytes(whole[:len(whole) // 2])
    (folder / "model.tmp").mkdir()
    (folder / "model.tmp" / "model.safetensors").write_bytes(b"half")
    with open(folder / "metrics.jsonl", "a") as stream:
        stream.write('{"step": 8, "lo')
    trained(tokenizer, steps=12)
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path / "undisturbed"))
    undisturbed = trained(tokenizer, steps=12)
    assert bits(folder) == bits(undisturbed)
    assert untimed(folder) == untimed(undisturbed)
    assert not [path for path in folder.rglob("*") if "tmp" in path.name]


# --- killed ----------------------------------------------------------------------------------------------------------
# One process imports everything and forks the training processes, so that twenty of them cost one start of torch.

FILE_CALLS = {os.replace, os.rename, os.fsync, os.unlink, os.remove, os.rmdir, os.mkdir, io.open, os.open}
KILLED_STAGE = replace(STAGE, name="killed", steps=24, checkpoint_steps=3, keep_steps=(8, 16))


def _die():
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _kill_at_event(number, *, files_only):
    """SIGKILL of the own process group at the number-th call or return of Python, or of those that touch files."""
    left = [number]

    def count(frame, event, argument):
        if not files_only or (event in ("c_call", "c_return") and argument in FILE_CALLS):
            left[0] -= 1
            if left[0] == 0:
                _die()

    sys.setprofile(count)
    return left


def _child(job):
    """Train in a session of its own, to the end or to a moment of death."""
    os.setsid()
    os.environ["RUNS_ROOT"] = job["root"]
    if job.get("together"):  # both wait until both are there
        mine, all_there = job["together"]
        Path(f"{mine}.ready").touch()
        while not all(Path(f"{name}.ready").exists() for name in all_there):
            time.sleep(0.001)
    number, files_only = job.get("kill", (0, False))
    left = _kill_at_event(number or sys.maxsize, files_only=files_only) if "kill" in job else None
    finished = []
    train(job["stage"], job["mixture"], base=SMALL, tokenizer=job["tokenizer"], progress=finished.append)
    sys.setprofile(None)
    if left:
        Path(f"{job['root']}.events{int(files_only)}").write_text(str(sys.maxsize - left[0]))
    if finished and job.get("together"):
        Path(f"{job['together'][0]}.trained").touch()


def _serve(connection, warm_up):
    """Fork one training process per request ("start", job); ("wait", pid) gives its exit code, negative for a signal."""
    torch.set_num_threads(1)
    training.matmul_peak = lambda precision: 1e12
    os.environ["RUNS_ROOT"] = warm_up["root"]
    train(warm_up["stage"], warm_up["mixture"], base=SMALL, tokenizer=warm_up["tokenizer"], progress=None)
    while True:
        order, argument = connection.recv()
        if order == "stop":
            return
        if order == "wait":
            connection.send(os.waitstatus_to_exitcode(os.waitpid(argument, 0)[1]))
            continue
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                _child(argument)
                code = 0
            except BaseException:
                traceback.print_exc()
            os._exit(code)
        connection.send(pid)


@pytest.fixture(scope="module")
def launch(tokenizer, tmp_path_factory):
    """launch("start", job) -> pid; launch("wait", pid) -> exit code."""
    context = multiprocessing.get_context("spawn")
    connection, other = context.Pipe()
    warm_up = {"root": str(tmp_path_factory.mktemp("warm")), "stage": replace(STAGE, steps=1), "tokenizer": tokenizer,
               "mixture": {"book": (random_rows(), 1)}}
    server = context.Process(target=_serve, args=(other, warm_up), daemon=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")  # a process that has used a GPU cannot fork
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        patch.delenv("PROGRESS_FILE", raising=False)
        server.start()

    def ask(order, argument):
        connection.send((order, argument))
        assert connection.poll(300), "the server of training processes does not answer"
        return connection.recv()

    yield ask
    connection.send(("stop", None))
    server.join(60)


def job(tokenizer, root, precision="float32", **more):
    return {"root": str(root), "stage": replace(KILLED_STAGE, precision=precision), "tokenizer": tokenizer,
            "mixture": {"book": (random_rows(), 3), "general": (random_rows(1), 1)}} | more


def complete(folder):
    """Everything that a finished stage leaves, without the clock."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return files | {"metrics.jsonl": untimed(folder)}


def spoil(folder, chance):
    """What a kill inside a write would leave: half a line, half a checkpoint."""
    if (folder / "metrics.jsonl").exists() and chance.random() < 0.5:
        with open(folder / "metrics.jsonl", "a") as stream:
            stream.write('{"step": 9, "tokens": 5')
    if chance.random() < 0.5:
        (folder / "checkpoint-000021").mkdir(exist_ok=True)
        (folder / "checkpoint-000021" / "__0_0.distcp").write_bytes(b"half")


def kill_from_outside(launch, request, pause):
    """Start, wait until the log changes and `pause` seconds more, SIGKILL the whole process group; the exit code."""
    log = next(Path(request["root"]).glob("*/metrics.jsonl"))
    before, deadline = log.read_bytes(), time.monotonic() + 120
    pid = launch("start", request)
    while log.read_bytes() == before and time.monotonic() < deadline:
        time.sleep(0.0005)
    time.sleep(pause)
    os.killpg(pid, signal.SIGKILL)
    return launch("wait", pid)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_killed_at_random_moments_the_end_is_the_same(launch, tokenizer, tmp_path, precision):
    """SIGKILL of the process group, fourteen times at random calls (every second one among those that touch files, where a
    write would be torn) and then from outside, each time gone on with: every byte that the stage leaves is the byte of an
    undisturbed run, but for the timings."""
    events = {}
    for files_only in (False, True):  # undisturbed, counting the moments at which one could be killed
        root = tmp_path / f"through{int(files_only)}"
        assert launch("wait", launch("start", job(tokenizer, root, precision, kill=(0, files_only)))) == 0
        events[files_only] = int(Path(f"{root}.events{int(files_only)}").read_text())
    through = next((tmp_path / "through0").iterdir())
    assert events[False] > 10_000
    assert events[True] > 50
    chance, root, kills, resumed = random.Random(precision), tmp_path / "killed", 0, 0
    request = job(tokenizer, root, precision)
    root.mkdir()
    for attempt in range(16):
        if attempt >= 14:
            code = kill_from_outside(launch, request, pause=chance.random() * 0.02)
        else:  # within the first quarter of a run, so that many kills fit into one
            moment = chance.randint(1, events[attempt % 2 == 1] // 4)
            code = launch("wait", launch("start", request | {"kill": (moment, attempt % 2 == 1)}))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
        folder = next(root.iterdir(), None)
        if folder:
            assert not (folder / "done.json").exists()
            resumed += bool(list(folder.glob("checkpoint-*/.metadata")))
            spoil(folder, chance)
    assert kills >= 8, "it was finished before it was killed often"
    assert resumed >= 4, "no kill left a checkpoint to go on from"
    assert launch("wait", launch("start", request)) == 0
    killed = next(root.iterdir())
    assert killed.name == through.name
    assert complete(killed) == complete(through)
    assert {"model/model.safetensors", "step-000008/model.safetensors", "done.json"} <= set(complete(killed))


def test_killed_with_the_model_in_place_but_unmarked(launch, tokenizer, tmp_path):
    """The last moments, one after the other from the end: model/ may be there, but without done.json nobody takes it, and
    the next call makes it whole."""
    root = tmp_path / "through"
    assert launch("wait", launch("start", job(tokenizer, root, kill=(0, True)))) == 0
    whole, events = complete(next(root.iterdir())), int(Path(f"{root}.events1").read_text())
    seen = Counter()
    for before_end in range(1, 40, 3):
        other = tmp_path / f"killed{before_end}"
        code = launch("wait", launch("start", job(tokenizer, other, kill=(events - before_end, True))))
        assert code == -signal.SIGKILL
        folder = next(other.iterdir())
        seen[(folder / "model").exists(), (folder / "done.json").exists()] += 1
        if (folder / "done.json").exists():
            assert (folder / "model" / "model.safetensors").read_bytes() == whole["model/model.safetensors"]
        elif seen[(folder / "model").exists(), False] == 1:  # one of each kind is gone on with
            assert launch("wait", launch("start", job(tokenizer, other))) == 0
            assert complete(folder) == whole
    assert set(seen) >= {(False, False), (True, False)}, "no kill fell between the model and its mark"


def test_two_processes_train_a_stage_once(launch, tokenizer, tmp_path):
    """Two notebooks that run at once want the same base model: one trains it, the other waits and takes it."""
    names = [str(tmp_path / name) for name in ("first", "second")]
    pids = [launch("start", job(tokenizer, tmp_path / "both", together=(name, names))) for name in names]
    assert [launch("wait", pid) for pid in pids] == [0, 0]
    assert all(Path(f"{name}.ready").exists() for name in names)
    assert sum(Path(f"{name}.trained").exists() for name in names) == 1
    folder = next((tmp_path / "both").iterdir())
    assert [row["step"] for row in read_metrics(folder)] == list(range(1, 25))
    assert (folder / "done.json").exists()
    assert safetensors.torch.load_file(folder / "model" / "model.safetensors")
