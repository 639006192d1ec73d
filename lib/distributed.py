"""Several processes on one training stage: who we are, what part is ours, how sums meet, and how the others are started."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

SHARDINGS = ("fsdp", "ddp")  # weights, gradients and optimizer states parted among the processes, or whole in each of them

def processes():
    """Processes a stage is trained with on this node: $PROCESSES, else one for each GPU, at least one."""
    return int(os.environ.get("PROCESSES") or torch.cuda.device_count() or 1)

def join():
    """Become one of the processes that torchrun has started (no change in a process that it has not): NCCL on GPUs, gloo on processors."""
    if "TORCHELASTIC_RUN_ID" in os.environ and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")

def world():
    """(number of this process, number of processes)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)

def own_rows(rows):
    """Numbers of the rows of a global batch that this process computes, -1 where it has none left: all processes take equally many."""
    rank, size = world()
    own = list(range(rank, rows, size))
    return own + [-1] * (-(-rows // size) - len(own))

def shard(root, layers):
    """Part the weights of a module among the processes (FSDP2): layer by layer, the rest with the root. Gradients are summed in float32."""
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for module in (*layers, root):
        fully_shard(module, mp_policy=policy)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # a plain sum, which gloo has, too

def parted(tensor, like):
    """The part of a whole tensor that belongs beside `like`: all of it where that is not sharded."""
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements) if isinstance(like, DTensor) else tensor

def whole(tensor):
    """A sharded tensor put together again, in every process."""
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor

def local(tensors):
    """The parts of tensors that lie in this process."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]

def summed(tensors):
    """Sum each tensor over the processes, in place; sharded ones are summed already."""
    if dist.is_initialized():
        for tensor in tensors:
            if not isinstance(tensor, DTensor):
                dist.all_reduce(tensor)

PARTS = ("input_ids", "labels", "position_ids")

def save_mixture(folder, mixture):
    """Write {source: (Packed, weight)} so that every process can map it into its memory."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (packed, _) in enumerate(mixture.values()):
        for part in PARTS:
            rows = getattr(packed, part)
            np.save(folder / f"{number}-{part}.npy", rows if isinstance(rows, np.ndarray) else np.stack([rows[i] for i in range(len(rows))]))
    (folder / "mixture.json").write_text(json.dumps([[name, weight] for name, (_, weight) in mixture.items()]))

def load_mixture(folder):
    """What save_mixture wrote, memory-mapped."""
    named = json.loads((folder / "mixture.json").read_text())
    return {name: (SimpleNamespace(**{part: np.load(folder / f"{number}-{part}.npy", mmap_mode="r") for part in PARTS}), weight)
            for number, (name, weight) in enumerate(named)}

def launch(module, folder, *, processes, log):
    """Run `python -m module folder` in that many processes on this node, on every node of a Slurm allocation where there is one.
    What they print goes to `log`. RuntimeError with its last error line when one of them fails: the others are ended with it."""
    nodes = int(os.environ.get("SLURM_NNODES") or 1)
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    if nodes > 1:
        names = subprocess.run(["scontrol", "show", "hostnames"], capture_output=True, text=True, check=True).stdout.split()
        command = ["srun", "--ntasks-per-node=1", *command, f"--nnodes={nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={names[0]}:29511"]
    else:
        command.append("--standalone")
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // processes))
    with open(log, "w") as stream:
        done = subprocess.run([*command, "-m", module, str(folder)], stdout=stream, stderr=subprocess.STDOUT,
                              env=os.environ | {"OMP_NUM_THREADS": threads})
    if done.returncode:
        lines = Path(log).read_text(errors="replace").splitlines()
        said = [line.strip() for line in lines if "Error: " in line or "Signal" in line or "exitcode" in line]
        raise RuntimeError(f"one of {processes * nodes} processes ended ({said[0] if said else 'no error line'}); see {log}. "
                           "Started again, the stage goes on from its last checkpoint")
