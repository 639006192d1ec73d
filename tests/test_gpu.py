"""On a GPU: packed as unpacked, compiled as eager, resumed as run through. In minutes: ./run_all.sh tests tests/test_gpu.py."""

from dataclasses import replace

import pytest
import torch
from test_training import STAGE, random_rows, tensors

from lib import training
from lib.corpora import chunk_documents, train_tokenizer
from lib.models import loss_sum, new_model, speed_up
from lib.profiles import Architecture
from lib.training import read_metrics, train

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]
MODEL = Architecture(256, 4, 4, 512, vocabulary_size=300, context=512)
LONG = replace(STAGE, name="gpu", steps=20, checkpoint_steps=5, precision="bfloat16", peak_learning_rate=1e-3)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["0 1 2 3"], 300)


def losses(tokenizer, root, monkeypatch, speed_ups=(), **changes):
    monkeypatch.setenv("RUNS_ROOT", str(root))
    mixture = {"book": (random_rows(documents=200, length=256), 1)}
    folder = train(replace(LONG, **changes), mixture, base=MODEL, tokenizer=tokenizer, progress=None, processes=1, speed_ups=speed_ups)
    return [row["loss"] for row in read_metrics(folder)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_as_unpacked_with_attention_of_variable_length(tokenizer, dtype):
    """The same documents, many in a row and one in a row: the same loss of a label, and no hidden state sees a neighbour."""
    documents = [[5 + (7 * i + j) % 90 for j in range(30 + 9 * (i % 9))] for i in range(40)]
    model, found = new_model(MODEL, tokenizer, seed=0).cuda().to(dtype), []
    speed_up(model, model.model.layers, ["variable_length_attention"])
    for rows in ([documents], [[document] for document in documents]):
        parts = [[part.cuda() for part in tensors(chunk_documents(row, 256, overlap=0, bos=1, eos=2))] for row in rows]
        with torch.no_grad():
            found.append(sum(loss_sum(model, *part).item() for part in parts))
    assert found[0] == pytest.approx(found[1], rel=1e-5 if dtype == torch.float32 else 1e-3)


@pytest.mark.parametrize("names", [("compile",), ("activation_checkpointing",), ("variable_length_attention",), training.SPEED_UPS])
def test_a_speed_up_learns_the_same(tokenizer, tmp_path, monkeypatch, names):
    plain = losses(tokenizer, tmp_path / "plain", monkeypatch)
    assert losses(tokenizer, tmp_path / "faster", monkeypatch, names) == pytest.approx(plain, rel=0.02)
    assert plain[-1] < plain[0]


def test_a_resumed_stage_ends_as_one_that_ran_through(tokenizer, tmp_path, monkeypatch):
    through, original = losses(tokenizer, tmp_path / "through", monkeypatch), training.global_batch

    def stopped(step, *rest):
        if step == 12:
            raise KeyboardInterrupt
        return original(step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(training, "global_batch", stopped)
        with pytest.raises(KeyboardInterrupt):
            losses(tokenizer, tmp_path / "runs", patch)
    assert losses(tokenizer, tmp_path / "runs", monkeypatch) == pytest.approx(through, rel=0.01)


def test_out_of_memory_is_told(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "global_batch", lambda *_: torch.empty(1 << 50, device="cuda"))
    with pytest.raises(MemoryError, match="activation_checkpointing"):
        losses(tokenizer, tmp_path, monkeypatch)
