"""Several processes train what one trains: the same losses and weights, whatever is sharded, resumed elsewhere or killed in between."""

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from test_training import LENGTH, SMALL, STAGE, random_questions, random_rows

from lib import distributed, training
from lib.corpora import train_tokenizer
from lib.models import load_model, new_model
from lib.profiles import Architecture
from lib.training import read_metrics, train

pytestmark = pytest.mark.slow
TOLERANCE = {"rtol": 1e-3, "atol": 3e-5}  # of float32 weights that six steps move by up to 0.06: sums are taken in another order


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path / "runs"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("PROGRESS_FILE", raising=False)
    monkeypatch.setattr(training, "matmul_peak", lambda precision: 1e12)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["0 1 2 3"], 300)


def run(tokenizer, root, processes, *, sharding="fsdp", mixture=None, base=SMALL, speed_ups=(), **changes):
    """The folder of a small stage below its own root, so that nothing is taken from another one."""
    os.environ["RUNS_ROOT"] = str(root)
    mixture = mixture or {"book": (random_rows(), 3), "general": (random_rows(1), 1)}
    return train(replace(STAGE, **changes), mixture, base=base, tokenizer=tokenizer, progress=None, processes=processes, sharding=sharding,
                 speed_ups=speed_ups)


def weights(folder, name="model.safetensors"):
    return load_file(Path(folder) / "model" / name)


def assert_same(one, other, file="model.safetensors", **tolerance):
    losses = [[row["loss"] for row in read_metrics(folder)] for folder in (one, other)]
    assert len(losses[0]) == STAGE.steps
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    expected, found = weights(one, file), weights(other, file)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, **TOLERANCE | tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("sharding", distributed.SHARDINGS)
@pytest.mark.parametrize("rows", [4, 5])
def test_two_processes_train_what_one_trains(tokenizer, tmp_path, sharding, rows):
    """Also where a step has an odd number of rows, so that one process has a row less; and the model is one that loads."""
    alone = run(tokenizer, tmp_path / "one", 1, rows_per_step=rows, micro_batch_size=2)
    together = run(tokenizer, tmp_path / "two", 2, sharding=sharding, rows_per_step=rows, micro_batch_size=2)
    assert alone.name == together.name, "how many processes there are is no part of what a stage is"
    assert_same(alone, together)
    model, _ = load_model(together / "model")
    assert type(model).__name__ == "LlamaForCausalLM"
    assert not (together / "job.pickle").exists()


@pytest.mark.parametrize("sharding", distributed.SHARDINGS)
def test_uneven_label_counts_weigh_as_in_one_process(tokenizer, tmp_path, sharding):
    """Responses of 1 to 9 tokens: a process with few labels must not count as much as one with many."""
    mixture = {"instructions": (random_questions(), 1)}
    assert_same(run(tokenizer, tmp_path / "one", 1, mixture=mixture), run(tokenizer, tmp_path / "two", 2, sharding=sharding, mixture=mixture))


@pytest.mark.parametrize("sharding", distributed.SHARDINGS)
def test_lora_in_two_processes(tokenizer, tmp_path, sharding):
    """Only the adapter is trained and saved, in the same form; its dropout is drawn by each process, so the numbers differ from one process's."""
    base = run(tokenizer, tmp_path / "base", 1) / "model"
    alone, together = (weights(run(None, tmp_path / str(processes), processes, base=str(base), sharding=sharding, lora_rank=2),
                               "adapter_model.safetensors") for processes in (1, 2))
    assert {name: tensor.shape for name, tensor in alone.items()} == {name: tensor.shape for name, tensor in together.items()}
    assert any(tensor.abs().max() > 0 for name, tensor in together.items() if "lora_B" in name), "nothing was learned"


@pytest.mark.parametrize("sharding", distributed.SHARDINGS)
def test_every_speed_up_at_once_in_two_processes(tokenizer, tmp_path, sharding):
    """Compiled layers that are computed again, sharded after they were compiled: to the tolerance of plain layers. Attention of variable length
    exists on GPUs alone, and is here what it is without."""
    alone = run(tokenizer, tmp_path / "one", 1)
    assert_same(alone, run(tokenizer, tmp_path / "two", 2, sharding=sharding, speed_ups=training.SPEED_UPS))


LOADED = """
import contextlib, json, resource, torch, torch.distributed as dist
from pathlib import Path
from safetensors.torch import load_file
from lib import distributed, models
folder, rank = Path({folder!r}), dist.get_rank()
def refused(*_, **__):
    raise AssertionError("only the first process may read the weights")
if rank:
    models.AutoModelForCausalLM.from_pretrained = refused
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with torch.device("meta") if rank else contextlib.nullcontext():
    model, _ = models.load_model(folder)
model.loss_sum = None
distributed.shard(model, model.model.layers, {sharding!r})
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) * 1024
expected = load_file(folder / "model.safetensors")
same = all(torch.equal(distributed.whole(weight.detach()), expected[name]) for name, weight in model.named_parameters())
own = sum(weight.to_local().numel() for weight in model.parameters())
buffers = {{name: float(buffer.double().sum()) for name, buffer in model.named_buffers()}}
(folder / f"{{rank}}.json").write_text(json.dumps([same, own, grown, buffers, model.lm_head.weight is model.model.embed_tokens.weight]))
"""


@pytest.mark.parametrize("sharding", distributed.SHARDINGS)
def test_the_first_process_alone_reads_the_model(tokenizer, tmp_path, sharding):
    """26 million weights, 103 MB: the second process never holds more than its own part (all of it with "ddp") and a weight beside that."""
    model = new_model(Architecture(512, 8, 8, 1408, vocabulary_size=2000), tokenizer, seed=0)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    weights = model.num_parameters()
    distributed.launch(exec, (LOADED.format(folder=str(tmp_path), sharding=sharding),), tmp_path, processes=2)
    (same, own, _, buffers, tied), (other_same, other_own, grown, other_buffers, other_tied) = (
        json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert [same, other_same] == [True, True], "not the weights of the file, bit by bit"
    assert [tied, other_tied] == [True, True]
    assert own + other_own == (weights if sharding == "fsdp" else 2 * weights)
    assert buffers == other_buffers
    assert len(buffers) >= 1
    assert 0 < grown < (0.8 if sharding == "fsdp" else 1.6) * 4 * weights


@pytest.mark.parametrize(("first", "then"), [((1, "fsdp"), (2, "fsdp")), ((2, "fsdp"), (1, "fsdp")), ((2, "fsdp"), (2, "ddp"))])
def test_a_stage_goes_on_with_another_number_of_processes(tokenizer, tmp_path, monkeypatch, first, then):
    """Stopped after the checkpoint of step 4, gone on with by others: the end is that of an undisturbed run."""
    alone = run(tokenizer, tmp_path / "one", 1)
    folder = tmp_path / "other" / alone.name
    with pytest.raises((RuntimeError, OSError)):
        stop_after_checkpoint(folder, 4, lambda: run(tokenizer, tmp_path / "other", first[0], sharding=first[1]), monkeypatch)
    assert max(path.parent.name for path in folder.glob("checkpoint-*/.metadata")) == "checkpoint-000004"
    assert run(tokenizer, tmp_path / "other", then[0], sharding=then[1]) == folder
    assert_same(alone, folder)


def stop_after_checkpoint(folder, step, start, monkeypatch):
    """Run `start` in a disk that becomes full: the model of the last step cannot be written."""
    folder.mkdir(parents=True)
    (folder / "model.tmp").write_text("in the way")  # save_pretrained cannot make this folder
    monkeypatch.setattr(training.shutil, "rmtree", lambda *_, **__: None)
    try:
        start()
    finally:
        monkeypatch.undo()
        (folder / "model.tmp").unlink(missing_ok=True)
        os.environ["OMP_NUM_THREADS"] = "1"


def test_a_killed_process_ends_the_stage_with_its_cause_and_it_resumes(tokenizer, tmp_path):
    """SIGKILL to one of two processes: the other does not wait for ever, the error says so, the next call finishes."""
    alone = run(tokenizer, tmp_path / "one", 1, steps=60, checkpoint_steps=5)
    folder, killed = tmp_path / "two" / alone.name, []

    def kill():
        deadline, workers = time.monotonic() + 120, []
        while len(workers) < 2 and time.monotonic() < deadline:  # found while they start, so that none is too quick
            lines = {process.pid: " ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])}
            workers = [pid for pid, line in lines.items() if f"-m lib.distributed {folder}" in line and "torch.distributed.run" not in line]
        while not list(folder.glob("checkpoint-*/.metadata")) and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(max(workers), signal.SIGKILL)
        killed.append(max(workers))

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(RuntimeError, match=r"one of the 2 processes of a node ended .*see .*processes.log.*goes on from its last checkpoint"):
        run(tokenizer, tmp_path / "two", 2, steps=60, checkpoint_steps=5)
    thread.join()
    assert killed
    assert not (folder / "done.json").exists()
    assert run(tokenizer, tmp_path / "two", 2, steps=60, checkpoint_steps=5) == folder
    assert [row["step"] for row in read_metrics(folder)] == list(range(1, 61))
    expected, found = weights(alone), weights(folder)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-2, atol=1e-4)


def test_own_rows_are_dealt_evenly(monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: (1, 3))
    assert distributed.own_rows(7) == [1, 4, -1]
    assert distributed.own_rows(6) == [1, 4]
    monkeypatch.setattr(distributed, "world", lambda: (0, 1))
    assert distributed.own_rows(3) == [0, 1, 2]
    assert LENGTH == 16


def test_the_number_of_processes_is_that_of_the_gpus_or_as_told(monkeypatch):
    monkeypatch.delenv("PROCESSES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert distributed.processes() == 8
    monkeypatch.setenv("PROCESSES", "2")
    assert distributed.processes() == 2
    monkeypatch.delenv("PROCESSES")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert distributed.processes() == 1
