"""Who is measured, and how one run of each is made: kad-llama's modes, the base alone, outside programs.

Every candidate answers the same call, ``candidate.run(question, seed, temperature, tokens) -> Run``, from the same
prompt ids with the same number of threads, context and cache types. Time starts when the prompt is evaluated and ends
with the last token.
"""

from __future__ import annotations

import platform
import re
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import common
import llama_cpp
import peers_build
import psutil

from kad_llama import KadLlama
from kad_llama.cli.alone import ModelAlone
from kad_llama.files import default_threads

N_CTX = 1024
QUESTIONS = (
    "Why is the sky blue?",
    "Tell me a long story about a fox who wanted to learn to swim.",
    "Explain step by step how a bicycle stays upright.",
    "Describe a day in the life of a lighthouse keeper.",
    "What are the main causes of the seasons? Write several paragraphs.",
    "Write an essay about the history of bread.",
    "How does a vaccine work? Explain it to a ten-year-old.",
    "Give me a detailed plan for growing tomatoes on a balcony.",
    "Write a letter from a sailor to his sister about a storm.",
    "Compare trains and aeroplanes for a journey of 500 kilometres.",
    "What should I see in Rome in three days? Make a plan with reasons.",
    "Explain the difference between weather and climate with examples.",
    "Write a short play about two neighbours who argue over a tree.",
    "How is paper made, from the forest to the notebook?",
    "Describe how the heart works and what keeps it healthy.",
    "Tell me about the planets of the solar system, one after the other.",
)


@dataclass(frozen=True)
class Run:
    """One run. Seconds and passes count from the end of the prompt; outside programs have no passes."""

    tokens: int
    seconds: float
    base_passes: int = 0
    aligned_passes: int = 0
    base_eval_s: float = 0.0
    aligned_eval_s: float = 0.0
    drafted: int = 0
    accepted: int = 0
    guesses: str = ""  # one letter per event: r(ight), c(orrected), n(ot guessed)


class Refused(Exception):
    """A candidate that cannot run this pair or setting; the message says why."""


class Candidate(Protocol):
    """What runs. `about` is how it is called, for the page."""

    about: str

    def run(self, question: str, seed: int, temperature: float, tokens: int) -> Run: ...


# ---- Pairs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A base and an aligned file.

    Names: `demo`, or what the base is: its format, how many times as wide (16 when nothing is said), and the noise on it:
    `Q8_0`, `Q8_0-0.1`, `Q4_0x64`.
    """

    name: str
    base: Path
    aligned: Path


def widening(name: str) -> tuple[str, int, float]:
    """Format, factor and noise of a widened pair's name."""
    found = re.fullmatch(r"(F32|F16|Q8_0|Q4_0)(?:x(\d+))?(?:-(\d*\.?\d+))?", name)
    if not found:
        raise SystemExit(f"{name!r} is no pair; expected demo, or for example F16, Q8_0-0.1, Q4_0x64")
    return found[1], int(found[2] or 16), float(found[3] or 0)


def pair(name: str) -> Pair:
    """The files of a pair by its name, made the first time."""
    base = common.demo_base_file() if name == "demo" else common.widened_file(*widening(name))
    return Pair(name, base, common.aligned_file())


def machine(threads: int) -> dict[str, Any]:
    """The machine in words that name no one: processor, cores, memory, system."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        found = re.search(r"model name\s*:\s*(.+)", info.read_text(encoding="utf-8"))
        model = found.group(1).strip() if found else model
    return {
        "processor": model,
        "architecture": platform.machine(),
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "threads": threads,
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "system": platform.system(),
        "instructions": instructions(),
        "backend": backend(),
    }


def instructions() -> str:
    """The widest vectors that this libllama uses: processors of one name may differ in them, and so may their builds."""
    known = re.findall(r"(\w+) = 1", llama_cpp.llama_print_system_info().decode())
    names = {"AMX_INT8": "AMX", "AVX512": "AVX-512", "AVX2": "AVX2", "SVE": "SVE", "NEON": "NEON"}
    return next((name for feature, name in names.items() if feature in known), "no vectors")


def backend() -> str:
    """What evaluates: CPU, or the card by its driver's name for it."""
    if not llama_cpp.llama_supports_gpu_offload():
        return "CPU"
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "GPU"
    return "; ".join(found.split("\n")).strip("; ")


# ---- Candidates -------------------------------------------------------------------------------------------------------


@dataclass
class Kad:
    """kad-llama with some keywords of `generate`. `exactly` is the mode that must have run, "" for any."""

    kad: KadLlama
    keywords: dict[str, Any]
    exactly: str = ""
    about: str = field(init=False)

    def __post_init__(self) -> None:
        self.about = "generate(" + ", ".join(f"{name}={value!r}" for name, value in self.keywords.items()) + ")"

    def run(self, question: str, seed: int, temperature: float, tokens: int) -> Run:
        settings = {"seed": seed, "temperature": temperature, "max_tokens": tokens} | self.keywords
        generation = self.kad.generate(question, **settings)
        stats = generation.stats
        if self.exactly and stats.mode != self.exactly:
            raise Refused(stats.note or f"ran {stats.mode}")
        return Run(
            stats.tokens,
            stats.tokens / stats.tokens_per_second if stats.tokens_per_second else 0.0,
            stats.base_passes,
            stats.aligned_passes,
            stats.base_eval_s,
            stats.aligned_eval_s,
            stats.drafted,
            stats.accepted,
            "".join(token.guess[0] for token in generation.tokens),
        )


@dataclass
class BaseAlone:
    """The base in a plain loop of llama_decode and llama.cpp's own sampler chain. It goes on after an end of the text."""

    kad: KadLlama
    base: Path
    threads: int
    about: str = "llama_decode, then temp and dist (greedy at 0), one token per pass"
    _loops: dict[float, ModelAlone] = field(default_factory=dict)

    def run(self, question: str, seed: int, temperature: float, tokens: int) -> Run:
        if temperature not in self._loops:
            self.close()  # the weights once only
            loop = ModelAlone(self.base, n_ctx=N_CTX, n_threads=self.threads, temperature=temperature)
            self._loops = {temperature: loop}
        found = self._loops[temperature](self.kad.prompt(question).base_ids or [], tokens, seed)
        return Run(len(found.ids), found.seconds, len(found.ids) - 1, base_eval_s=found.eval_s)

    def close(self) -> None:
        for loop in self._loops.values():
            loop.close()


@dataclass
class Llama:
    """llama-cpp-python's class on the base alone, as it comes; time per token from the first token to the last."""

    kad: KadLlama
    base: Path
    threads: int
    about: str = (
        "create_completion(top_k=0, top_p=1, min_p=0, repeat_penalty=1), logits_all off, other settings its own"
    )

    def __post_init__(self) -> None:
        threads = {"n_threads": self.threads, "n_threads_batch": self.threads}
        self._llama = llama_cpp.Llama(str(self.base), n_ctx=N_CTX, n_gpu_layers=-1, verbose=False, **threads)

    def run(self, question: str, seed: int, temperature: float, tokens: int) -> Run:
        marks: list[float] = []

        def mark(_ids: Any, _scores: Any) -> bool:
            marks.append(time.perf_counter())
            return False

        self._llama.create_completion(
            self.kad.prompt(question).base_ids,
            max_tokens=tokens,
            temperature=temperature,
            top_k=0,
            top_p=1.0,
            min_p=0.0,
            repeat_penalty=1.0,
            seed=seed,
            stopping_criteria=mark,  # called after every token
        )
        return Run(len(marks) - 1, marks[-1] - marks[0])

    def close(self) -> None:
        self._llama.close()


@dataclass
class Program:
    """One of llama.cpp's speculative programs; `draft` is its draft length."""

    kad: KadLlama
    files: Pair
    name: str
    draft: int
    threads: int
    about: str = field(init=False)

    def __post_init__(self) -> None:
        self.about = " ".join(["llama-" + self.name, *self.flags(0.0, 0, 0)[:-6], "--temp T -n N -s SEED"])

    def flags(self, temperature: float, tokens: int, seed: int) -> list[str]:
        """Everything but the files. What is not drawn from the whole distribution is turned off."""
        kind = ["--spec-type", "draft-simple"] if self.name == "speculative-simple" else ["-np", "1"]
        draft = ["--spec-draft-n-max", self.draft, "--spec-draft-n-min", 0, "--spec-draft-p-min", 0]
        threads = ["-t", self.threads, "-tb", self.threads, "-td", self.threads, "-tbd", self.threads]
        given = ["--temp", temperature, "-n", tokens, "-s", seed]
        return [
            str(word)
            for word in [
                *kind,
                *draft,
                "--samplers",
                "temperature",
                "-c",
                N_CTX,
                "-b",
                512,
                "-ub",
                512,
                *threads,
                *given,
            ]
        ]

    def run(self, question: str, seed: int, temperature: float, tokens: int) -> Run:
        prompt = self.kad.prompt(question)
        with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8", newline="") as file:
            file.write((prompt.base_text or "") + "\n")  # the programs take one newline off the end
            file.flush()
            files = ["-m", str(self.files.base), "-md", str(self.files.aligned), "-f", file.name, "--no-escape"]
            command = [str(peers_build.build() / f"llama-{self.name}"), *files, *self.flags(temperature, tokens, seed)]
            done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=3600)
        output = (done.stdout + b"\n" + done.stderr).decode("utf-8", "replace")
        run, encoded = read_program(output, done.returncode)
        if encoded != len(prompt.base_ids or []):
            raise Refused(f"read the prompt as {encoded} tokens, kad-llama as {len(prompt.base_ids or [])}")
        return run


# The reason, an error of the log (time, level, text), an exception.
COMPLAINTS = (r"(draft model .* must match [^\n]*)", r"^[\d.]+ E (.*)", r"what\(\):\s*(.*)")


def read_program(output: str, status: int = 0) -> tuple[Run, int]:
    """The run that a speculative program reports, and how many tokens it read the prompt as."""
    decoded = re.search(r"decoded\s+(\d+) tokens in\s+([\d.]+) seconds", output)
    encoded = re.search(r"encoded\s+(\d+) tokens", output)
    if status or not decoded or not encoded:
        said = (re.search(pattern, output, re.M) for pattern in COMPLAINTS)
        raise Refused(
            next((found.group(1).strip() for found in said if found), f"nothing decoded, exit status {status}")
        )

    def count(name: str) -> int:
        found = re.search(rf"{name}\s*=\s*(\d+)", output)
        return int(found.group(1)) if found else 0

    run = Run(int(decoded.group(1)), float(decoded.group(2)), drafted=count("n_drafted"), accepted=count("n_accept"))
    return run, int(encoded.group(1))


# ---- Names ------------------------------------------------------------------------------------------------------------

BASE, LLAMA, PLAIN, LAZY, AUTO = "base alone", "Llama", "plain", "lazy", "auto"
OUTSIDE = ("speculative-simple", "speculative")


def length(name: str) -> int | None:
    """The draft length in a candidate's name: "k=3", "speculative k=3"; None without one."""
    found = re.search(r"k=(\d+)$", name)
    return int(found.group(1)) if found else None


def is_exact(name: str, temperature: float) -> bool:
    """Whether the candidate draws from the law it is asked for."""
    return not (name.startswith("speculative k=") and temperature > 0)


def make(name: str, kad: KadLlama, files: Pair, threads: int) -> Candidate:
    """The candidate of a name."""
    draft = length(name)
    makers: dict[str, Callable[[], Candidate]] = {
        BASE: lambda: BaseAlone(kad, files.base, threads),
        LLAMA: lambda: Llama(kad, files.base, threads),
        PLAIN: lambda: Kad(kad, {"spec": False}),
        LAZY: lambda: Kad(kad, {"draft": 0}, "lazy"),
        AUTO: lambda: Kad(kad, {"draft": "auto"}),
    }
    if name in makers:
        return makers[name]()
    if draft is None:
        raise SystemExit(f"{name!r} is no candidate; there are {', '.join(makers)}, k=N, speculative k=N and so on")
    program = name.rpartition(" ")[0]
    return Program(kad, files, program, draft, threads) if program else Kad(kad, {"draft": draft}, "speculative")


def open_pair(files: Pair, rule: str, threads: int | None = None, n_ctx: int = N_CTX) -> KadLlama:
    """KadLlama on a pair."""
    return KadLlama(files.base, files.aligned, rule=rule, n_ctx=n_ctx, n_threads=threads or default_threads())
