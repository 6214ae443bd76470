"""How much memory does a run take beyond two llama.cpp contexts?

    python benchmarks/memory.py [--pairs demo,Q8_0] [--n-ctx 4096] [--tokens 200] [--keep]

Two processes per line, one after the other: one opens KadLlama and writes an answer; the other holds both models in
llama.cpp contexts of the same size and batch, with attention as llama.cpp chooses, and only evaluates the same prompts.
Compared is the peak of resident memory, which this process reads from outside (psutil) a hundred times a second. `--keep`
adds the table to docs/results.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import common
import psutil

QUESTION = "Here is a list of words. " + "tree river stone cloud bridge lamp " * 60 + "Write a long story with them."
MODES: dict[str, dict[str, Any]] = {"plain": {"spec": False}, "draft 3": {"draft": 3}, "auto": {"draft": "auto"}}


def write_answer(task: dict[str, Any]) -> None:
    """The child that runs kad-llama; without tokens it only tells the prompt's ids."""
    from kad_llama import KadLlama

    with KadLlama(task["base"], task["aligned"], rule=task["rule"], n_ctx=task["n_ctx"]) as kad:
        if task["tokens"] == 0:
            prompt = kad.prompt(task["question"])
            print(json.dumps([prompt.base_ids, prompt.aligned_ids]))
            return
        stats = kad.generate(task["question"], seed=1, max_tokens=task["tokens"], **task["keywords"]).stats
        print(json.dumps(stats.tokens))


def hold_contexts(task: dict[str, Any]) -> None:
    """The child that knows nothing of kad-llama: both models, both contexts, both prompts."""
    import llama_cpp

    held = []
    for path, ids in zip((task["base"], task["aligned"]), task["ids"], strict=True):
        model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = task["n_ctx"], 512, 512
        params.n_seq_max, params.n_outputs_max = 1, 64
        params.swa_full = params.no_perf = True
        params.n_threads = params.n_threads_batch = task["threads"]
        context = llama_cpp.llama_init_from_model(model, params)
        for first in range(0, len(ids), 512):
            part = (llama_cpp.llama_token * len(ids[first : first + 512]))(*ids[first : first + 512])
            llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(part, len(part)))
        llama_cpp.llama_synchronize(context)
        held.append((model, context))
    print(json.dumps(len(held)))


def peak(task: dict[str, Any]) -> tuple[int, Any]:
    """Bytes at the peak of a child, and what it said."""
    command = [sys.executable, __file__, "--child", json.dumps(task)]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as child,
    ):
        most, process = 0, psutil.Process(child.pid)
        while child.poll() is None:
            try:
                most = max(most, process.memory_info().rss)
            except psutil.Error:
                break
            time.sleep(0.01)
        output = child.communicate()[0]
        errors.seek(0)
        complaint = errors.read().strip()
    if child.returncode:
        raise SystemExit(f"a child process failed with status {child.returncode}: {complaint}")
    return most, json.loads(output.splitlines()[-1])


def measure(name: str, rule: str, given: argparse.Namespace) -> list[tuple[list[str], float]]:
    """One row per mode, and MiB beyond."""
    import running

    from kad_llama.files import default_threads

    files = running.pair(name)
    task = {"base": str(files.base), "aligned": str(files.aligned), "rule": rule, "n_ctx": given.n_ctx}
    task["question"] = QUESTION
    _, ids = peak(task | {"tokens": 0})
    alone, _ = peak(task | {"ids": ids, "threads": default_threads()})
    rows = []
    for mode in given.modes.split(","):
        whole, said = peak(task | {"tokens": given.tokens, "keywords": MODES[mode]})
        beyond = (whole - alone) / 2**20
        cells = [
            name,
            rule,
            mode,
            str(len(ids[0])),
            str(said),
            f"{alone / 2**20:.0f}",
            f"{whole / 2**20:.0f}",
            f"{beyond:.0f}",
        ]
        rows.append((cells, beyond))
    return rows


HEADER = ("pair", "rule", "mode", "prompt tokens", "tokens", "both contexts, MiB", "kad-llama, MiB", "beyond, MiB")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", default="demo,Q8_0")
    parser.add_argument("--rules", default="dual")
    parser.add_argument("--modes", default="plain,auto", help=f"of {', '.join(MODES)} (default: %(default)s)")
    parser.add_argument("--n-ctx", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    common.keep_arguments(parser)
    given = parser.parse_args()
    if given.child:
        (hold_contexts if "ids" in given.child else write_answer)(given.child)
        return
    rows = [
        row for name in given.pairs.split(",") for rule in given.rules.split(",") for row in measure(name, rule, given)
    ]
    title = f"Memory at the peak, context of {given.n_ctx} tokens"
    common.show(
        given, "memory", title, HEADER, [cells for cells, _ in rows], memory_mib=max(beyond for _, beyond in rows)
    )


if __name__ == "__main__":
    main()
