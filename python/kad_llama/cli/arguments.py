"""The command line: every flag, its help, and what it means to the engine.

Flags are llama.cpp's where it has one. The aligned model's have the same name with an `a` at the end.
"""

from __future__ import annotations

import argparse
from typing import Any

from kad_llama.cli.samplers import add_samplers, sampler_keywords

USAGE = """\
kad-llama -m BASE.gguf -a ALIGNED.gguf [-p TEXT | -f FILE] [options]
       kad-llama --demo [-p TEXT | -f FILE] [options]
       kad-llama explain -m BASE.gguf -a ALIGNED.gguf -p TEXT [options]
       kad-llama perplexity FILE -m BASE.gguf -a ALIGNED.gguf [options]
       kad-llama bench -m BASE.gguf -a ALIGNED.gguf [options]
       kad-llama eval -m BASE.gguf -a ALIGNED.gguf --task FILE|NAME [options]
       kad-llama figures -m BASE.gguf -a ALIGNED.gguf [options]
       kad-llama inspect -m BASE.gguf -a ALIGNED.gguf [options]
       kad-llama rules"""

DESCRIPTION = """\
A large base model, aligned at inference time by a small aligned model.
With no prompt on a terminal: an interactive chat. With -p, -f or piped standard input: one answer.
The text goes to standard output, everything else to standard error."""

EXPLAIN = """\
Answer, and print a table of the tokens: the text, who said it (source), how likely the base (p) and the aligned model (q)
were to say it, the probability that the aligned model speaks there (alpha), that of the token (pi), the probability that the
base said it, and whether it was guessed right or corrected. "-" is what the rule does not have."""

PERPLEXITY = """\
How well the mixture (pi) and either model alone predict a text. The file is read in windows of -c tokens; the second half of
each is scored after the first, as llama.cpp's own tool does. Bits per byte can be compared across vocabularies."""

BENCH = """\
How fast every way to run the pair is on this machine, beside the base alone in llama.cpp: speed, right guesses, tokens per
base pass, time outside evaluation, memory, and the speed that the measured passes and guesses would allow at best. Repeats
are interleaved, and a first one is not counted. Ends with one sentence of advice. Ctrl-C shows what was measured so far."""

MAX_TOKENS = 256

BENCH_PROMPT = "Explain in detail, part by part, how a bicycle works and how to look after it."
BENCH_DRAFTS: tuple[int | str, ...] = (1, 2, 3, 4, 7, 11, 15, "auto")
BENCH_LEAST_TOKENS = 8  # of a shorter text the speed says little

# llama.h's enum llama_load_mode, by (memory map, lock).
_LOAD_MODES = {(False, False): 0, (True, False): 1, (False, True): 2, (True, True): 3}

_FLASH_ATTENTION = {"on": 1, "off": 0, "auto": -1}


def rule_temperature(text: str) -> float | str:
    """The value of --rule-temp: a number, or the word `sampling`."""
    if text == "sampling":
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid value {text!r}: expected a number or 'sampling'") from None


def draft(text: str) -> int | str:
    """The value of --draft: a number, or the word `auto`."""
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid value {text!r}: expected a whole number or 'auto'") from None


def parser() -> argparse.ArgumentParser:
    """The parser of the command itself."""
    return _answering(new_parser("kad-llama", USAGE, DESCRIPTION))


def explain_parser() -> argparse.ArgumentParser:
    """The parser of `kad-llama explain`: the flags of an answer."""
    return _answering(
        new_parser("kad-llama explain", "kad-llama explain -m BASE.gguf -a ALIGNED.gguf -p TEXT [options]", EXPLAIN)
    )


def perplexity_parser() -> argparse.ArgumentParser:
    """The parser of `kad-llama perplexity`."""
    result = new_parser(
        "kad-llama perplexity", "kad-llama perplexity FILE -m BASE.gguf -a ALIGNED.gguf [options]", PERPLEXITY
    )
    result.add_argument("file", metavar="FILE", help="a UTF-8 text, read as it stands")
    add_models(result)
    _add_rule(result)
    group = result.add_argument_group("how it is scored")
    group.add_argument("--temp", type=float, default=1.0, metavar="X", help="temperature of each model (default 1.0)")
    group.add_argument("--chunks", type=positive, metavar="N", help="stop after N windows (default: the whole file)")
    group.add_argument("--reproducible", action="store_true", help="rows as a reproducible run makes them")
    add_llama(result, 512)
    group = result.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print one JSON object")
    group.add_argument("--verbose", action="store_true", help="show llama.cpp's log")
    return result


def bench_parser() -> argparse.ArgumentParser:
    """The parser of `kad-llama bench`."""
    result = new_parser("kad-llama bench", "kad-llama bench -m BASE.gguf -a ALIGNED.gguf [options]", BENCH)
    add_models(result)
    _add_rule(result)
    group = result.add_argument_group("what is measured")
    group.add_argument(
        "-p", "--prompt", metavar="TEXT", default=BENCH_PROMPT, help="what is answered; long answers help"
    )
    group.add_argument(
        "-n", "--max-tokens", type=_enough, default=64, metavar="N", help="tokens of a run, 8 or more (default 64)"
    )
    group.add_argument("--repeats", type=positive, default=5, metavar="N", help="runs of each that count (default 5)")
    group.add_argument(
        "--drafts", type=_drafts, metavar="N,N,...", help="values of --draft to try (default 1,2,3,4,7,11,15,auto)"
    )
    group.add_argument("--temp", type=float, default=1.0, metavar="X", help="temperature of each model (default 1.0)")
    group.add_argument("-s", "--seed", type=seed, default=1, metavar="N", help="of the first repeat (default 1)")
    group.add_argument("--reproducible", action="store_true", help="run the pair as reproducible runs do")
    group.add_argument("--demo", action="store_true", help="measure the demo pair; needs the `demo` extra")
    add_llama(result)
    group = result.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print one JSON object")
    group.add_argument("--verbose", action="store_true", help="show llama.cpp's log")
    return result


def _enough(text: str) -> int:
    if not text.isdecimal() or not BENCH_LEAST_TOKENS <= int(text) < 2**31:
        raise argparse.ArgumentTypeError(
            f"invalid value {text!r}: expected a whole number of at least {BENCH_LEAST_TOKENS}"
        )
    return int(text)


def _drafts(text: str) -> tuple[int | str, ...]:
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if part != "auto" and not (part.isdecimal() and 1 <= int(part) < 2**31):
            raise argparse.ArgumentTypeError(
                f"invalid value {part!r}: expected whole numbers of at least 1 and 'auto', with commas between them"
            )
    return tuple(part if part == "auto" else int(part) for part in parts)


def seed(text: str) -> int:
    """The value of --seed."""
    if not text.isdecimal() or int(text) >= 2**64:
        raise argparse.ArgumentTypeError(f"invalid value {text!r}: expected a whole number 0 to 2**64 - 1")
    return int(text)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"invalid value {text!r}: expected a whole number of at least 1")
    return int(text)


def _answering(result: argparse.ArgumentParser) -> argparse.ArgumentParser:
    add_models(result)
    _add_prompt(result)
    _add_sampling(result)
    add_samplers(result)
    _add_rule(result)
    _add_speed(result)
    add_llama(result)
    _add_output(result)
    return result


def inspect_parser() -> argparse.ArgumentParser:
    """The parser of `kad-llama inspect`."""
    result = new_parser(
        "kad-llama inspect",
        "kad-llama inspect [-m BASE.gguf] [-a ALIGNED.gguf] [options]",
        "What two files are, what they need, and how they fit together.",
    )
    add_models(result)
    result.add_argument("-p", "--prompt", metavar="TEXT", default="Why is the sky blue?", help="the sample prompt")
    add_llama(result)
    group = result.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print one JSON object")
    group.add_argument("--verbose", action="store_true", help="show llama.cpp's log")
    return result


def rules_parser() -> argparse.ArgumentParser:
    """The parser of `kad-llama rules`."""
    return new_parser("kad-llama rules", "kad-llama rules", "Print the table of rules: which tokens the base keeps.")


def new_parser(name: str, usage: str, description: str) -> argparse.ArgumentParser:
    """A parser as every command has it."""
    # No abbreviations: a flag added later must not change what a script means.
    return argparse.ArgumentParser(
        prog=name,
        usage=usage,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_models(result: argparse.ArgumentParser) -> None:
    """-m and -a."""
    group = result.add_argument_group("models")
    group.add_argument("-m", "--model", metavar="FILE", help="GGUF of the base model, large and unaligned")
    group.add_argument("-a", "--aligned", metavar="FILE", help="GGUF of the aligned model, small")


def _add_prompt(result: argparse.ArgumentParser) -> None:
    group = result.add_argument_group("prompt")
    source = group.add_mutually_exclusive_group()
    source.add_argument("-p", "--prompt", metavar="TEXT", help="answer this and leave")
    source.add_argument("-f", "--file", metavar="FILE", help="answer what the file holds; - is standard input")
    group.add_argument("--system", metavar="TEXT", help="a system message before the conversation")
    group.add_argument("--raw", action="store_true", help="no templates: both models continue the text as it stands")
    group.add_argument(
        "--stop", metavar="TEXT", action="append", help="end the text before this string; may be repeated"
    )
    group.add_argument("--demo", action="store_true", help="run the demo pair; needs the `demo` extra")


def _add_sampling(result: argparse.ArgumentParser) -> None:
    group = result.add_argument_group("sampling")
    group.add_argument(
        "-n", "--max-tokens", type=int, metavar="N", help="most tokens of an answer (default 256; the demo's: 120)"
    )
    group.add_argument(
        "--temp", type=float, default=1.0, metavar="X", help="temperature; 0 = each speaker's best token (default 1.0)"
    )
    group.add_argument("--top-k", type=int, default=0, metavar="N", help="keep the N best tokens (default 0: off)")
    group.add_argument("--top-p", type=float, default=1.0, metavar="X", help="nucleus sampling (default 1.0: off)")
    group.add_argument(
        "--min-p", type=float, default=0.0, metavar="X", help="drop tokens below X of the best (default 0.0: off)"
    )
    group.add_argument("-s", "--seed", type=int, metavar="N", help="same seed, same text (default: drawn)")


def _add_rule(result: argparse.ArgumentParser) -> None:
    group = result.add_argument_group("who speaks")
    group.add_argument("--rule", default="dual", metavar="NAME", help="see `kad-llama rules` (default dual)")
    group.add_argument("--threshold", type=float, metavar="X", help="the rule's parameter (default: the rule's own)")
    group.add_argument(
        "-r",
        "--reference",
        metavar="FILE",
        help="for implicit-reward: GGUF of the small model before its alignment; the aligned model's llama.cpp flags apply",
    )
    group.add_argument(
        "--rule-temp",
        type=rule_temperature,
        default=1.0,
        metavar="X|sampling",
        help="temperature at which the rule compares (default 1.0); sampling = the one of --temp",
    )


def _add_speed(result: argparse.ArgumentParser) -> None:
    group = result.add_argument_group("how it runs")
    group.add_argument(
        "--draft",
        type=draft,
        default="auto",
        metavar="N|auto",
        help="tokens guessed ahead; 0 = lazy, no guesses; auto = chosen at every round (default)",
    )
    group.add_argument("--no-ngram", action="store_true", help="with --draft auto: guesses of the aligned model alone")
    group.add_argument(
        "--no-spec", action="store_true", help="plain: both models at every token; with --rule base, the base alone"
    )
    group.add_argument(
        "--reproducible", action="store_true", help="the text does not depend on the mode, --draft, or what ran before"
    )


def add_llama(result: argparse.ArgumentParser, n_ctx: int = 4096) -> None:
    """llama.cpp's own flags, for both models."""
    group = result.add_argument_group("llama.cpp")
    group.add_argument(
        "-c", "--ctx-size", type=int, default=n_ctx, metavar="N", help=f"context in tokens, per model (default {n_ctx})"
    )
    group.add_argument("-t", "--threads", type=int, metavar="N", help="threads (default: the physical cores)")
    group.add_argument("-ngl", "--n-gpu-layers", type=int, default=-1, metavar="N", help="layers on the GPU; -1 = all")
    _add_model_flags(group, "", "")
    group = result.add_argument_group("llama.cpp, for the aligned model")
    group.add_argument("-ngla", type=int, default=-1, metavar="N", help="layers on the GPU; -1 = all")
    _add_model_flags(group, "a", "_aligned")


def _add_model_flags(group: Any, suffix: str, where: str) -> None:
    """The flags that each model has for itself; `suffix` ends their names, `where` their destinations."""

    def add(short: str, long: str, name: str, **keywords: Any) -> None:
        names = [short + suffix] if suffix else [short, long]
        group.add_argument(*names, dest=name + where, **keywords)

    add("-fa", "--flash-attn", "flash_attn", choices=list(_FLASH_ATTENTION), help="flash attention")
    add("-ctk", "--cache-type-k", "type_k", metavar="TYPE", help="type of the K cache: f16, q8_0 ...")
    add("-ctv", "--cache-type-v", "type_v", metavar="TYPE", help="type of the V cache")
    add("-b", "--batch-size", "n_batch", type=int, metavar="N", help="tokens per batch")
    add("-ub", "--ubatch-size", "n_ubatch", type=int, metavar="N", help="tokens per physical batch")
    group.add_argument(
        "--no-mmap" + suffix, dest="no_mmap" + where, action="store_true", help="read the file instead of mapping it"
    )
    group.add_argument("--mlock" + suffix, dest="mlock" + where, action="store_true", help="keep the model in memory")


def _add_output(result: argparse.ArgumentParser) -> None:
    group = result.add_argument_group("output")
    group.add_argument(
        "--color",
        choices=["auto", "always", "never"],
        default="auto",
        help="colour the aligned model's tokens (default auto: on a terminal)",
    )
    group.add_argument("--stats", action="store_true", help="print statistics after each answer")
    group.add_argument("--json", action="store_true", help="print one JSON object instead of the text")
    group.add_argument("--verbose", action="store_true", help="show llama.cpp's log")
    group.add_argument("--version", action="store_true", help="print versions and backends and leave")


def check(command: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse combinations that contradict each other (exit status 2)."""
    if arguments.demo:
        if arguments.model or arguments.aligned:
            command.error("--demo brings its own two models: leave out -m and -a")
        if arguments.prompt is None and arguments.file is None:
            for flag, given in (
                ("--json", arguments.json),
                ("--raw", arguments.raw),
                ("--system", arguments.system is not None),
                ("--rule", arguments.rule != "dual"),
            ):
                if given:
                    command.error(f"--demo answers a fixed prompt three times: with {flag} add -p TEXT")
    else:
        if needs_base(arguments) and not arguments.model:
            command.error("-m FILE, the base model, is missing (try --demo for a pair of small models)")
        if needs_aligned(arguments) and not arguments.aligned:
            hint = "; rule base works without it under --no-spec" if arguments.rule == "base" else ""
            command.error(f"-a FILE, the aligned model, is missing{hint}")
    if arguments.rule == "implicit-reward" and not arguments.reference:
        command.error("-r FILE is missing: rule implicit-reward needs the small model before its alignment")
    if arguments.reference and arguments.rule != "implicit-reward":
        command.error(f"-r is for rule implicit-reward; rule {arguments.rule} uses no third model")
    if arguments.raw and arguments.system is not None:
        command.error("--raw uses no templates, so --system has no place: write it into the prompt")


def needs_base(arguments: argparse.Namespace) -> bool:
    """Whether this run evaluates the base model."""
    return bool(arguments.rule != "aligned")


def needs_aligned(arguments: argparse.Namespace) -> bool:
    """Whether this run evaluates the aligned model: under rule `base` it only guesses."""
    return not (arguments.rule == "base" and arguments.no_spec)


def model_params(arguments: argparse.Namespace, where: str = "") -> dict[str, Any]:
    """llama.cpp's own fields for one model, those that were given; `where` is "" or "_aligned"."""

    def given(name: str) -> Any:
        return getattr(arguments, name + where)

    params = {name: given(name) for name in ("type_k", "type_v", "n_batch", "n_ubatch") if given(name) is not None}
    if given("flash_attn") is not None:
        params["flash_attn_type"] = _FLASH_ATTENTION[given("flash_attn")]
    if given("no_mmap") or given("mlock"):
        params["load_mode"] = _LOAD_MODES[not given("no_mmap"), given("mlock")]
    return params


def llama_keywords(arguments: argparse.Namespace) -> dict[str, Any]:
    """KadLlama's keywords that `inspect` and the command share."""
    return {
        "n_ctx": arguments.ctx_size,
        "n_threads": arguments.threads,
        "n_gpu_layers": arguments.n_gpu_layers,
        "n_gpu_layers_aligned": arguments.ngla,
        "base_params": model_params(arguments) or None,
        "aligned_params": model_params(arguments, "_aligned") or None,
        "verbose": arguments.verbose,
    }


def engine_keywords(arguments: argparse.Namespace) -> dict[str, Any]:
    """All of KadLlama's keywords but the progress function."""
    reference = {}
    if arguments.reference:
        reference = {"reference": arguments.reference, "reference_params": model_params(arguments, "_aligned") or None}
    return {
        "rule": arguments.rule,
        "threshold": arguments.threshold,
        "rule_temperature": arguments.rule_temp,
        "reproducible": arguments.reproducible,
        **reference,
        **llama_keywords(arguments),
    }


def answer_keywords(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keywords of KadLlama.stream()."""
    return {
        "max_tokens": MAX_TOKENS if arguments.max_tokens is None else arguments.max_tokens,
        "temperature": arguments.temp,
        "top_k": arguments.top_k,
        "top_p": arguments.top_p,
        "min_p": arguments.min_p,
        **sampler_keywords(arguments),
        "seed": arguments.seed,
        "stop": arguments.stop,
        "draft": arguments.draft,
        "ngram": not arguments.no_ngram,
        "spec": not arguments.no_spec,
        "raw": arguments.raw,
    }
