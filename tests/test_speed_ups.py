"""What makes training faster or smaller leaves its losses and gradients as they are; what goes wrong is said, and nothing trained is lost."""

import errno
import json
from dataclasses import replace

import pytest
import torch
import torch._inductor.config
from safetensors.torch import load_file
from test_training import SMALL, STAGE, random_rows, tensors
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lib import distributed, models, training
from lib.corpora import chunk_documents, train_tokenizer
from lib.models import loss_sum, new_model, speed_up
from lib.profiles import Architecture
from lib.training import read_metrics, train

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path / "runs"))
    monkeypatch.delenv("PROGRESS_FILE", raising=False)
    monkeypatch.setattr(training, "matmul_peak", lambda precision: 1e12)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["0 1 2 3"], 300)


def trained(tokenizer, root, speed_ups=(), *, monkeypatch, base=SMALL, **changes):
    """A small stage in a root of its own."""
    monkeypatch.setenv("RUNS_ROOT", str(root))
    mixture = {"book": (random_rows(), 3), "general": (random_rows(1), 1)}
    return train(replace(STAGE, **changes), mixture, base=base, tokenizer=tokenizer, progress=None, processes=1, speed_ups=speed_ups)


def assert_same(one, other, *, exact, file="model.safetensors"):
    losses = [[row["loss"] for row in read_metrics(folder)] for folder in (one, other)]
    first, second = (load_file(folder / "model" / file) for folder in (one, other))
    assert len(losses[0]) == 6
    assert first.keys() == second.keys()
    if exact:
        assert losses[0] == losses[1]
        assert all(torch.equal(first[name], second[name]) for name in first)
    else:
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)
        for name, tensor in first.items():
            torch.testing.assert_close(second[name], tensor, rtol=1e-3, atol=3e-5)


@pytest.mark.parametrize("name", ["activation_checkpointing", "asynchronous_checkpoints", "variable_length_attention"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_speed_up_gives_the_same_bits(tokenizer, tmp_path, monkeypatch, name, precision):
    """On a processor what is computed again is computed alike, and attention stays what it is; the stage has the same name."""
    plain = trained(tokenizer, tmp_path / "plain", monkeypatch=monkeypatch, precision=precision)
    faster = trained(tokenizer, tmp_path / "faster", (name,), monkeypatch=monkeypatch, precision=precision)
    assert plain.name == faster.name
    assert_same(plain, faster, exact=True)


def test_lora_with_dropout_is_computed_again_with_the_same_draws(tokenizer, tmp_path, monkeypatch):
    base = trained(tokenizer, tmp_path / "base", monkeypatch=monkeypatch) / "model"
    plain, again = (trained(None, tmp_path / str(len(names)), names, monkeypatch=monkeypatch, base=base, lora_rank=4)
                    for names in ((), ("activation_checkpointing",)))
    assert_same(plain, again, exact=True, file="adapter_model.safetensors")


def test_checkpointing_keeps_less(tokenizer):
    """Bytes that the backward pass keeps, counted by torch: fewer with checkpointing, which is its purpose."""
    kept = {}
    for names in ((), ("activation_checkpointing",)):
        model, total = new_model(SMALL, tokenizer, seed=0).train(), []
        speed_up(model, model.model.layers, names)
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor, total=total: (total.append(tensor.nbytes), tensor)[1], lambda tensor: tensor):
            loss_sum(model, *tensors(random_rows(documents=9)))
        kept[names] = sum(total)
    assert kept["activation_checkpointing",] < 0.7 * kept[()]


@pytest.mark.parametrize("names", [("compile",), ("compile", "activation_checkpointing")])
def test_compiled_layers_learn_the_same(tokenizer, tmp_path, monkeypatch, names):
    """Fused kernels round elsewhere: 1e-4 of the loss, 3e-5 of weights that six steps move by up to 0.06."""
    plain = trained(tokenizer, tmp_path / "plain", monkeypatch=monkeypatch)
    torch.compiler.reset()
    assert_same(plain, trained(tokenizer, tmp_path / "compiled", names, monkeypatch=monkeypatch), exact=False)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "nothing was compiled"


def test_what_was_compiled_before_does_not_change_a_stage(tokenizer, tmp_path, monkeypatch):
    """After a stage of another shape torch would compile for all shapes, which rounds elsewhere: the weights must be the same to the bit."""
    first = trained(tokenizer, tmp_path / "first", ("compile",), monkeypatch=monkeypatch)
    other = trained(tokenizer, tmp_path / "other", ("compile",), monkeypatch=monkeypatch, micro_batch_size=2)
    assert other.name != first.name
    assert_same(first, trained(tokenizer, tmp_path / "second", ("compile",), monkeypatch=monkeypatch), exact=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="of processors")
def test_compiled_layers_give_the_same_bits_on_more_cores(tokenizer, tmp_path, monkeypatch):
    """What is summed in parts is summed in as many on every machine: wide enough here that a second thread would take its part."""
    threads, folders = torch.get_num_threads(), []
    wide = Architecture(256, 2, 2, 512, vocabulary_size=300, context=64)
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        folders.append(trained(tokenizer, tmp_path / str(number), ("compile",), monkeypatch=monkeypatch, base=wide, rows_per_step=64, micro_batch_size=64))
    torch.set_num_threads(threads)
    assert_same(*folders[:2], exact=True)
    assert_same(*folders[1:], exact=True)


def test_without_a_compiler_training_goes_on_uncompiled(tokenizer, tmp_path, monkeypatch, capsys):
    """As on a machine that has no g++: a line says so, and the weights are those of plain layers."""
    torch.compiler.reset()
    models.can_compile.cache_clear()
    with torch._inductor.config.patch({"cpp.cxx": (None, "/nowhere/g++"), "force_disable_caches": True}):
        plain, left = (trained(tokenizer, tmp_path / str(len(names)), names, monkeypatch=monkeypatch) for names in ((), ("compile",)))
    models.can_compile.cache_clear()
    assert_same(plain, left, exact=True)
    assert "training goes on without `compile`" in capsys.readouterr().out


def test_attention_of_variable_length_gives_the_same_loss(tokenizer):
    """The forward pass of flex attention runs on a processor, too; flash attention is given one long row, here with the kernel of sdpa."""
    AttentionInterface.register("flash_in_one_row", sdpa_attention_forward)
    AttentionMaskInterface.register("flash_in_one_row", sdpa_mask)
    model, batch = new_model(SMALL, tokenizer, seed=0), tensors(random_rows(documents=9))
    assert len(batch[0]) > 3
    expected = loss_sum(model, *batch)
    gradient, = torch.autograd.grad(expected, model.model.embed_tokens.weight)
    model.config._attn_implementation = "flash_in_one_row"
    flat = loss_sum(model, *batch)
    assert flat.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(torch.autograd.grad(flat, model.model.embed_tokens.weight)[0], gradient, rtol=1e-4, atol=1e-5)
    model.set_attn_implementation("flex_attention")
    with torch.no_grad():
        assert loss_sum(model, *batch).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a speed-up of processors")
@pytest.mark.parametrize("names", [("unfused_attention",), ("unfused_attention", "compile", "activation_checkpointing")])
def test_unfused_attention_learns_the_same(tokenizer, tmp_path, monkeypatch, names):
    """It adds in another order: 1e-4 of the loss, 3e-5 of weights, as for `compile`; the model it saves says nothing of it."""
    plain = trained(tokenizer, tmp_path / "plain", monkeypatch=monkeypatch)
    torch.compiler.reset()
    monkeypatch.setattr(training, "speed_up", lambda model, layers, names, precision: speed_up(model, layers, names))  # also in float32
    faster = trained(tokenizer, tmp_path / "faster", names, monkeypatch=monkeypatch)
    assert plain.name == faster.name
    assert_same(plain, faster, exact=False)
    assert (faster / "model" / "config.json").read_text() == (plain / "model" / "config.json").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a speed-up of processors")
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_unfused_attention_gives_the_gradients_of_float32(tokenizer, kind, precision):
    """Several documents a row, two query heads a key head, a window of five positions (Mistral): the gradients of torch's kernel in float32; in
    bfloat16 no further from them than that kernel is in bfloat16 (half as far again, since both round)."""
    config = AutoConfig.for_model(kind, **{name: getattr(new_model(SMALL, tokenizer, seed=0).config, name) for name in (
        "vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "tie_word_embeddings")}, num_attention_heads=4, num_key_value_heads=2,
        **{"sliding_window": 5} if kind == "mistral" else {})
    torch.manual_seed(0)
    batch, gradients = tensors(random_rows(documents=9)), {}
    assert (batch[2] == 0).sum() > len(batch[2]), "no row holds two documents"
    exact = AutoModelForCausalLM.from_config(config)
    speed_up(exact, exact.model.layers, ["unfused_attention"], "float32")  # there torch's kernel is the faster one
    assert exact.config._attn_implementation == "sdpa"
    for name, names in {"exact": (), "fused": (), "unfused": ("unfused_attention",)}.items():
        model = AutoModelForCausalLM.from_config(config)
        model.load_state_dict(exact.state_dict())
        model.to(torch.float32 if name == "exact" else precision)
        speed_up(model, model.model.layers, names)
        assert model.config._attn_implementation == ("unfused" if names else "sdpa")
        loss_sum(model, *batch).backward()
        gradients[name] = torch.cat([weight.grad.float().flatten() for weight in model.parameters()])
    far = {name: (gradients[name] - gradients["exact"]).norm() / gradients["exact"].norm() for name in ("fused", "unfused")}
    assert far["unfused"] < (1e-5 if precision == torch.float32 else 1.5 * far["fused"])
    assert 0 < far["fused"] < 0.05 or precision == torch.float32


@pytest.mark.skipif(torch.cuda.is_available(), reason="a speed-up of processors")
def test_unfused_attention_does_not_cross_documents(tokenizer):
    """Another first document of a row leaves what the model says of the second as it is, bit for bit."""
    model, (ids, _, positions) = new_model(SMALL, tokenizer, seed=0), tensors(random_rows(documents=9))
    speed_up(model, model.model.layers, ["unfused_attention"])
    row = next(number for number, place in enumerate(positions) if (place == 0).sum() > 1)
    second = (positions[row] == 0).nonzero()[1].item()
    other = ids[row].clone()
    other[1:second] = 7
    assert not torch.equal(other, ids[row])
    with torch.no_grad():
        first, changed = (model(input_ids=each[None], position_ids=positions[row][None], use_cache=False).logits[0] for each in (ids[row], other))
    assert torch.equal(first[second:], changed[second:])
    assert not torch.equal(first[1:second], changed[1:second])


def test_moments_in_bfloat16_are_those_of_adamw_rounded(tokenizer, tmp_path, monkeypatch):
    """One step by torch's own AdamW, its moments rounded after each step, is one step of ours; losses stay within a percent."""
    torch.manual_seed(0)
    start = [torch.randn(7, 5), torch.randn(11)]
    mine, theirs = ([part.clone().requires_grad_() for part in start] for _ in range(2))
    optimizers = [torch.optim.AdamW(masters, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1, fused=True) for masters in (mine, theirs)]
    for _ in range(3):
        gradients = [torch.randn_like(part) for part in start]
        for masters in (mine, theirs):
            for master, gradient in zip(masters, gradients):
                master.grad = gradient.clone()
        training._lean_step(optimizers[0], mine)
        optimizers[1].step()
        for state in optimizers[1].state.values():
            for name in training.MOMENTS:
                state[name] = state[name].bfloat16().float()
    assert {state[name].dtype for state in optimizers[0].state.values() for name in training.MOMENTS} == {torch.bfloat16}
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs))
    assert not torch.equal(mine[0], start[0])
    usual, lean = (trained(tokenizer, tmp_path / kind, monkeypatch=monkeypatch, optimizer=kind) for kind in ("adamw", "adamw_bfloat16"))
    assert usual.name != lean.name
    assert [row["loss"] for row in read_metrics(lean)] == pytest.approx([row["loss"] for row in read_metrics(usual)], rel=0.01)


def test_an_8b_model_fits_on_one_gpu_with_them():
    """Bytes a weight: 2 (bfloat16) + 4 (master) + 4 (gradient) + 4 or 8 (moments): 112 or 145 GB of 141 before any activation."""
    assert 8.03e9 * (2 + 4 + 4 + 4) < 141e9 < 8.03e9 * (2 + 4 + 4 + 8)


def test_names_are_checked_and_can_be_switched_off(tokenizer, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="unknown: warp; speed_ups are of compile, activation_checkpointing"):
        trained(tokenizer, tmp_path, ("warp",), monkeypatch=monkeypatch)
    with pytest.raises(ValueError, match="optimizer is adamw or adamw_bfloat16"):
        trained(tokenizer, tmp_path, monkeypatch=monkeypatch, optimizer="sgd")
    seen, original = [], training.speed_up
    monkeypatch.setattr(training, "speed_up", lambda model, layers, names, precision: seen.append(names) or original(model, layers, names, precision))
    monkeypatch.setenv("SPEED_UPS_OFF", "compile variable_length_attention unfused_attention")
    trained(tokenizer, tmp_path, training.SPEED_UPS, monkeypatch=monkeypatch)
    assert seen == [["activation_checkpointing", "asynchronous_checkpoints"]]


# --- what goes wrong -------------------------------------------------------------------------------------------------

def failing(monkeypatch, error, step):
    """Let the batch of a step fail."""
    original = training.global_batch

    def batch(number, *rest):
        if number == step:
            raise error
        return original(number, *rest)

    monkeypatch.setattr(training, "global_batch", batch)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError(),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")])
def test_out_of_memory_says_what_needs_less(tokenizer, tmp_path, monkeypatch, error):
    """And what was trained is gone on with, to the same bits."""
    through = trained(tokenizer, tmp_path / "through", monkeypatch=monkeypatch)
    with monkeypatch.context() as patch:
        failing(patch, error, 5)
        with pytest.raises(MemoryError, match=r"out of memory .*activation_checkpointing.*adamw_bfloat16.*micro_batch_size.*goes on from the last checkpoint"):
            trained(tokenizer, tmp_path / "runs", monkeypatch=patch)
    assert (tmp_path / "runs" / through.name / "checkpoint-000004" / ".metadata").exists()
    assert_same(through, trained(tokenizer, tmp_path / "runs", monkeypatch=monkeypatch), exact=True)


def test_a_loss_that_is_no_number_stops_before_it_spoils_the_weights(tokenizer, tmp_path, monkeypatch):
    through, original = trained(tokenizer, tmp_path / "through", monkeypatch=monkeypatch), training.loss_sum
    with monkeypatch.context() as patch:
        calls = []
        patch.setattr(training, "loss_sum", lambda *batch: original(*batch) * (float("nan") if calls.append(0) or len(calls) == 4 else 1))
        with pytest.raises(FloatingPointError, match=r"toy: a gradient is nan, so this step is not taken.*Lower peak_learning_rate \(0.01\)"):
            trained(tokenizer, tmp_path / "runs", monkeypatch=patch)
    folder = tmp_path / "runs" / through.name
    assert len(read_metrics(folder)) == 3
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-000002"]
    assert_same(through, trained(tokenizer, tmp_path / "runs", monkeypatch=monkeypatch), exact=True)


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_a_disk_that_takes_nothing_is_named(tokenizer, tmp_path, monkeypatch, number):
    """Read-only from the start, or full on the way: where, and what to set."""
    with monkeypatch.context() as patch:
        patch.setattr(training.Path, "mkdir", lambda *_, **__: (_ for _ in ()).throw(OSError(number, "no")))
        with pytest.raises(OSError, match=r"cannot write .*Free space, or let RUNS_ROOT name a folder"):
            trained(tokenizer, tmp_path / "runs", monkeypatch=patch)
    with monkeypatch.context() as patch:
        original = distributed.dcp.async_save
        patch.setattr(distributed.dcp, "async_save", lambda state, *, checkpoint_id, **how: (_ for _ in ()).throw(OSError(number, "no"))
                      if checkpoint_id.name == "checkpoint-000004" else original(state, checkpoint_id=checkpoint_id, **how))
        with pytest.raises(OSError, match="cannot write"):
            trained(tokenizer, tmp_path / "runs", monkeypatch=patch)
    (folder,) = (tmp_path / "runs").iterdir()
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-000002"]
    assert len(read_metrics(trained(tokenizer, tmp_path / "runs", monkeypatch=monkeypatch))) == 6


def test_another_error_passes_as_it_is(tokenizer, tmp_path, monkeypatch):
    failing(monkeypatch, OSError(errno.ENOENT, "no such file"), 3)
    with pytest.raises(FileNotFoundError, match="no such file"):
        trained(tokenizer, tmp_path, monkeypatch=monkeypatch)


def test_a_folder_begun_with_another_configuration_is_refused(tokenizer, tmp_path, monkeypatch):
    """Another setting is another folder; one that was edited is said to be, and neither is overwritten."""
    with monkeypatch.context() as patch:
        failing(patch, KeyboardInterrupt(), 3)
        with pytest.raises(KeyboardInterrupt):
            trained(tokenizer, tmp_path, monkeypatch=patch)
    (folder,) = tmp_path.iterdir()
    assert trained(tokenizer, tmp_path, monkeypatch=monkeypatch, peak_learning_rate=1e-3) != folder
    said = json.loads((folder / "stage.json").read_text())
    said["stage"]["weight_decay"] = 0.5
    (folder / "stage.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match=r"was begun with another configuration \(stage\); remove it"):
        trained(tokenizer, tmp_path, monkeypatch=monkeypatch)
    assert (folder / "checkpoint-000002" / ".metadata").exists()


def test_packed_and_unpacked_cost_the_same_per_label(tokenizer):
    """The same documents, many in a row and one in a row: the loss of a label in float32, to 1e-6."""
    documents = [[5 + (7 * i + j) % 90 for j in range(3 + i % 9)] for i in range(30)]
    model, found = new_model(SMALL, tokenizer, seed=0), []
    for rows in ([documents], [[document] for document in documents]):
        parts = [tensors(chunk_documents(part, 32, overlap=0, bos=1, eos=2)) for part in rows]
        with torch.no_grad():
            found.append([sum(loss_sum(model, *part).item() for part in parts), sum(int((part[1] >= 0).sum()) for part in parts),
                          sum(len(part[0]) for part in parts)])
    (packed, labels, rows), (alone, labels_alone, rows_alone) = found
    assert labels == labels_alone == sum(len(document) + 1 for document in documents)
    assert 5 < rows < rows_alone == 30
    assert packed / labels == pytest.approx(alone / labels, rel=1e-6)
