"""Several processes on one training stage: who we are, what part is ours, what is saved, and how the others are started."""
import contextlib
import copyreg
import errno
import os
import pickle
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from lib.models import best_device
from lib.results import KNOWLEDGE
warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # a checkpoint of one process
DISK_ERRORS = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT)
SHARDINGS = ("fsdp", "ddp")  # weights, gradients and optimizer states parted among the processes, or whole in each of them

def processes():
    """Processes a stage is trained with on this node: $PROCESSES, else one for each GPU, at least one."""
    return int(os.environ.get("PROCESSES") or torch.cuda.device_count() or 1)
def world():
    """(number of this process, number of processes)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
def own_rows(rows):
    """Numbers of the rows of a global batch that this process computes, -1 where it has none left: all processes take equally many."""
    rank, size = world()
    own = list(range(rank, rows, size))
    return own + [-1] * (-(-rows // size) - len(own))

def shard(model, layers, sharding):
    """Part the weights of a model among the processes (FSDP2), layer by layer, the rest with the root; "ddp": each part is the whole, in all of
    them. The first process has loaded them, the model of the others is on the meta device. Gradients are summed in float32."""
    (rank, size), device, loaded = world(), best_device(), dict(model.named_parameters())
    mesh = dist.device_mesh.init_device_mesh(device.type, (size,) if sharding == "fsdp" else (size, 1),
                                             mesh_dim_names=("shard",) if sharding == "fsdp" else ("replicate", "shard"))
    for module in (*layers, model):
        fully_shard(module, mesh=mesh, mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32))
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # a plain sum, which gloo has, too
    if rank:
        model.to_empty(device=device).tie_weights()
    for name, weight in model.named_parameters():  # no process but the first ever holds more than one of them whole
        full = torch.empty(weight.shape, dtype=weight.dtype, device=device) if rank else loaded[name].detach()
        weight.detach().copy_(distribute_tensor(full, weight.device_mesh, weight.placements))
    for buffer in model.buffers():
        dist.broadcast(buffer, 0)
    register_fsdp_forward_method(model, "loss_sum")
def whole(tensor):
    """A sharded tensor put together again, in every process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
def summed(number):
    """The sum of a tensor over the processes."""
    if dist.is_initialized():
        dist.all_reduce(number)
    return number

@contextlib.contextmanager
def checkpoints(folder, *, asynchronous):
    """A function that saves (step, state), each process its part: beside the training, which goes on with a copy left behind, or before it returns.
    What has failed is raised by the next call or at the end. A checkpoint is whole when its .metadata is there, which is written last."""
    pending, own = [], dist.new_group(backend="gloo") if dist.is_initialized() else None  # or its calls would meet those of the training
    def settle():
        while pending:
            saved, done = pending.pop()
            saved.result()
            for old in {*folder.glob("checkpoint-*")} - {done} if not world()[0] else ():
                shutil.rmtree(old)
    def save(step, state):
        settle()
        path = folder / f"checkpoint-{step:06d}"
        pending.append((dcp.async_save(state, checkpoint_id=path, process_group=own, no_dist=own is None), path))
        if not asynchronous:
            settle()
    try:
        yield save
    finally:
        settle()
def last_checkpoint(folder):
    """The step of the newest whole checkpoint, 0 where there is none."""
    return max((int(path.parent.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*/.metadata")), default=0)
def load_checkpoint(folder, step, state):
    """Read a checkpoint into the tensors of `state`, however many processes have written it."""
    dcp.load(state, checkpoint_id=folder / f"checkpoint-{step:06d}", no_dist=not dist.is_initialized())
@contextlib.contextmanager
def explained(folder):
    """Say of a failure of memory or disk what to change; what was trained so far is in the folder, for the next call to go on with."""
    kept = f"What was trained so far is kept; the next call goes on from the last checkpoint in {folder}"
    try:
        yield
    except (RuntimeError, MemoryError, OSError, SafetensorError, dcp.CheckpointException) as error:
        said = " ".join(str(error).split())[-300:]
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "t allocate memory" in said:
            raise MemoryError(f"out of memory ({said}). Less is needed with more processes, the speed-up activation_checkpointing, the optimizer "
                              f"adamw_bfloat16, or a smaller micro_batch_size (micro_batch_tokens of the profile). {kept}") from error
        if isinstance(error, (SafetensorError, dcp.CheckpointException)) or getattr(error, "errno", None) in DISK_ERRORS:
            raise OSError(f"cannot write ({said}). Free space, or let RUNS_ROOT name a folder on a disk that can be written. {kept}") from error
        raise
def launch(function, arguments, folder, *, processes):
    """Call a function in that many processes (lib/knowledge/torchrun.sh); what they print goes to processes.log in the folder.
    RuntimeError with the first error line when one of them fails: the others are ended with it."""
    copyreg.pickle(np.memmap, lambda array: (np.memmap, (array.filename, array.dtype, "r", array.offset, array.shape)))  # its name, not its content
    log, job = folder / "processes.log", folder / "job.pickle"
    job.write_bytes(pickle.dumps((function, arguments)))
    with open(log, "w") as stream:
        done = subprocess.run(["bash", str(KNOWLEDGE / "torchrun.sh"), str(processes), "lib.distributed", str(folder)], stdout=stream,
                              stderr=subprocess.STDOUT, env=os.environ | {"PYTHON": sys.executable})
    job.unlink()
    if done.returncode:
        said = re.findall(r".*(?:Error: |Signal|exitcode).*", log.read_text(errors="replace"))
        raise RuntimeError(f"one of the {processes} processes of a node ended ({said[0].strip() if said else 'no error line'}); see {log}. "
                           "Started again, the stage goes on from its last checkpoint")

if __name__ == "__main__":  # one of the processes that `launch` has started: NCCL on GPUs, gloo on processors
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    given, arguments = pickle.loads((Path(sys.argv[1]) / "job.pickle").read_bytes())
    with explained(Path(sys.argv[1])):
        given(*arguments)
