"""The process that imports everything once and forks a rank for each part of a run.

Started as ``python -m tests.pool.template <fd> <parent pid>``, where fd is one end of a socket pair. Each
message ``fork`` brings one connection per rank as file descriptors; the answer is the ranks' process ids. It
ends when the socket closes.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import signal
import socket
import sys
import traceback
import warnings

from tests.pool.protocol import die_with_parent

MAX_RANKS = 8
# What a training step imports, at once or lazily: left to the ranks it costs each a second of processor time.
_PRELOAD = (
    "numpy",
    "pytest",
    "torch",
    "torch.distributed",
    "megatron.core",
    "megatron.core.distributed",
    "megatron.core.models.gpt",
    "megatron.core.models.mimo.model",
    "megatron.core.optimizer",
    "megatron.core.pipeline_parallel",
    "megatron.core.tensor_parallel",
    "megatron.core.tokenizers.text.text_tokenizer",
    "megatron.training",
    "megatron.training.checkpointing",
    "megatron.training.training",
    "torch.profiler",
)


def _preload() -> None:
    """Import what every rank needs; the CPU answers for Megatron's CUDA calls before Megatron is imported."""
    import torch

    torch.set_num_threads(1)
    if importlib.util.find_spec("megatron_moo.training.platform_cpu"):
        importlib.import_module("megatron_moo.training.platform_cpu").install()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in _PRELOAD:
            importlib.import_module(name)
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise RuntimeError(
            f"imports started {threads - 1} threads: a process with threads must not be forked"
        )


def _fork_rank(descriptor: int, others: list[int]) -> int:
    template = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        die_with_parent(template)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for other in others:
            os.close(other)
        from tests.pool.worker import serve

        serve(descriptor)
    finally:
        os._exit(1)


def _serve(control: socket.socket) -> None:
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 64, MAX_RANKS)
        if not message:
            return
        pids = []
        for mine in descriptors:
            others = [fd for fd in descriptors if fd != mine]
            pids.append(_fork_rank(mine, [*others, control.fileno()]))
        for descriptor in descriptors:
            os.close(descriptor)
        control.sendall(json.dumps(pids).encode() + b"\n")


def main() -> None:
    """Say ``ready`` (or why not) and fork on demand until the tests process goes away."""
    control = socket.socket(fileno=int(sys.argv[1]))
    die_with_parent(int(sys.argv[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests process, which ends us.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # Linux reaps ended ranks by itself.
    try:
        _preload()
    except BaseException:
        control.sendall(json.dumps({"error": traceback.format_exc()}).encode() + b"\n")
        return
    control.sendall(json.dumps({"ready": os.getpid()}).encode() + b"\n")
    _serve(control)


if __name__ == "__main__":
    main()
