"""`kad-llama inspect`: what two files are, what they need, and how they fit together."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any, Literal

from kad_llama.cli import answer, output
from kad_llama.cli import arguments as flags
from kad_llama.errors import KadError

if TYPE_CHECKING:
    from kad_llama.files import FileInfo
    from kad_llama.session import KadLlama

Role = Literal["base", "aligned"]

LARGER = "the aligned file is the larger one: a large base and a small aligned model are meant; are -m and -a swapped?"
NO_TEMPLATE = "the aligned file has no chat template: it gets the base's plain transcript; is it an aligned model?"


def run(arguments: argparse.Namespace) -> int:
    """Inspect and print. Answers the exit status."""
    from kad_llama.files import inspect_file

    paths: dict[Role, str] = {"base": arguments.model, "aligned": arguments.aligned}
    files = {role: inspect_file(path) for role, path in paths.items() if path}
    report: dict[str, Any] = {
        "files": {role: _file(paths[role], info) for role, info in files.items()},
        "memory": _memory(files, arguments.ctx_size),
        "warnings": _warnings(files),
    }
    # Headers first: when loading is refused for want of memory, the figures stand above the refusal.
    if not arguments.json:
        _show_files(report)
    report.update(_loaded(arguments))
    if not arguments.json:
        _show_loaded(report)
    report["passes"] = {role: _passes(paths[role], role, arguments) for role in files}
    if arguments.json:
        output.dump(report)
    else:
        _show_passes(report)
    for warning in report["warnings"]:
        output.note(f"kad-llama: warning: {warning}")
    return 0


def _file(path: str, info: FileInfo) -> dict[str, Any]:
    return {
        "path": path,
        "name": info.name,
        "architecture": info.architecture,
        "quantisation": info.quantisation,
        "file_bytes": info.file_bytes,
        "tensor_bytes": info.tensor_bytes,
        "shards": info.n_shards,
        "layers": info.n_layer,
        "vocabulary": info.n_vocab,
        "trained_context": info.n_ctx_train,
        "chat_template": bool(info.has_chat_template),
    }


def _memory(files: dict[Role, FileInfo], n_ctx: int) -> dict[str, Any]:
    """Bytes that weights and caches take, from the headers; caches in F16, llama.cpp's own buffers not counted."""
    n_ctx = min([n_ctx] + [info.n_ctx_train for info in files.values() if info.n_ctx_train])
    roles = {
        role: {"weights": info.tensor_bytes, "cache": info.cache_bytes_per_token * n_ctx}
        for role, info in files.items()
    }
    return {"n_ctx": n_ctx, "roles": roles, "total": sum(part["weights"] + part["cache"] for part in roles.values())}


def _warnings(files: dict[Role, FileInfo]) -> list[str]:
    base, aligned = files.get("base"), files.get("aligned")
    warnings = []
    if base is not None and aligned is not None and aligned.tensor_bytes > base.tensor_bytes:
        warnings.append(LARGER)
    if aligned is not None and not aligned.has_chat_template:
        warnings.append(NO_TEMPLATE)
    return warnings


def _loaded(arguments: argparse.Namespace) -> dict[str, Any]:
    """What is known only once the models are loaded."""
    keywords = flags.llama_keywords(arguments)
    if not arguments.aligned:
        keywords["rule"] = "base"
    elif not arguments.model:
        keywords["rule"] = "aligned"
    with answer.open_engine(arguments.model, arguments.aligned, **keywords) as kad:
        return {
            "models": {role: info for role in ("base", "aligned") if (info := _model(kad, role)) is not None},
            "vocabularies": _vocabularies(kad) if arguments.model and arguments.aligned else None,
            "prompt": _prompt(kad, arguments.prompt),
        }


def _model(kad: KadLlama, role: str) -> dict[str, Any] | None:
    info = getattr(kad, role)
    if info is None:
        return None
    return {
        "description": info.description,
        "parameters": info.n_params,
        "weight_bytes": info.weight_bytes,
        "cache_bytes": info.cache_bytes,
        "type_k": info.type_k,
        "type_v": info.type_v,
        "flash_attention": {1: "on", 0: "off"}.get(info.flash_attn, "auto"),
        "context": info.n_ctx,
        "can_rewind": bool(info.can_rewind),
        "devices": info.devices,
        "add_bos": bool(info.add_bos),
        "bos": info.bos_text,
        "eos": info.eos_text,
        "chat_template": info.chat_template,
    }


def _vocabularies(kad: KadLlama) -> dict[str, Any]:
    vocab = kad.vocab
    return {
        "equal": bool(vocab.equal),
        "overlap": vocab.overlap,
        "differing_ids": vocab.n_differing,
        "first_differing": [token for token in vocab.differing if token >= 0],
    }


def _prompt(kad: KadLlama, text: str) -> dict[str, Any]:
    prompt = kad.prompt(text)
    result: dict[str, Any] = {"stops": prompt.stops}
    if prompt.base_ids is not None:
        result["base"] = {"text": prompt.base_text, "ids": prompt.base_ids}
    if prompt.aligned_ids is not None:
        result["aligned"] = {"text": prompt.aligned_text, "ids": prompt.aligned_ids}
    return result


def _passes(path: str, role: Role, arguments: argparse.Namespace) -> dict[str, Any]:
    """Up to how many rows per pass the logits are bit-equal. A model that cannot be measured says why.

    Measured under the settings of a run with the same flags, so that --reproducible finds the answer on disk.
    """
    from kad_llama.files import measure_passes

    if output.is_terminal(sys.stderr):
        output.note(f"measuring the {role} model ...")
    try:
        info = measure_passes(
            path,
            role,
            n_ctx=arguments.ctx_size,
            n_threads=arguments.threads,
            n_gpu_layers=arguments.n_gpu_layers if role == "base" else arguments.ngla,
            params=flags.model_params(arguments, "" if role == "base" else "_aligned"),
        )
    except KadError as error:
        return {"error": str(error)}
    return {"max_pass": info.max_pass, "type_k": info.type_k, "type_v": info.type_v, "tested": info.tested}


# ---- For people --------------------------------------------------------------------------------------------------


def _show(title: str, columns: dict[str, dict[str, str]]) -> None:
    """A table with one column per model."""
    names = list(next(iter(columns.values())))
    rows = [[name, *(column[name] for column in columns.values())] for name in names]
    output.table(rows, ["", *columns], title)


def _show_files(report: dict[str, Any]) -> None:
    memory = report["memory"]
    columns = {}
    for role, info in report["files"].items():
        part = memory["roles"][role]
        columns[role] = {
            "file": info["path"],
            "name": info["name"] or "-",
            "architecture": info["architecture"],
            "quantisation": info["quantisation"],
            "size": size(info["file_bytes"]) + (f", {info['shards']} shards" if info["shards"] > 1 else ""),
            "layers": str(info["layers"]),
            "vocabulary": f"{info['vocabulary']} tokens",
            "trained for": f"{info['trained_context']} tokens",
            "chat template": _yes(info["chat_template"]),
            "weights": size(part["weights"]),
            f"cache of {memory['n_ctx']} tokens, F16": size(part["cache"]),
        }
    _show("Files", columns)
    print(f"Memory needed, weights and caches: {size(memory['total'])}\n", flush=True)


def _show_loaded(report: dict[str, Any]) -> None:
    columns = {
        role: {
            "model": info["description"],
            "parameters": f"{info['parameters'] / 1e6:.0f} M",
            "layers lie on": info["devices"],
            "cache": f"{size(info['cache_bytes'])}, K {info['type_k']}, V {info['type_v']}",
            "flash attention": info["flash_attention"],
            "context": f"{info['context']} tokens",
            "cache can rewind": _yes(info["can_rewind"]) + ("" if info["can_rewind"] else ": no speculation"),
            "BOS": f"{info['bos']!r}, {'added' if info['add_bos'] else 'not added'}",
            "EOS": repr(info["eos"]),
        }
        for role, info in report["models"].items()
    }
    _show("Loaded", columns)
    _show_vocabularies(report["vocabularies"])
    for role, info in report["models"].items():
        if info["chat_template"]:
            print(f"Chat template of the {role} model:\n{info['chat_template'].rstrip()}\n")
    prompt = report["prompt"]
    for role in ("base", "aligned"):
        if role in prompt:
            text, ids = prompt[role]["text"], prompt[role]["ids"]
            print(f"Sample prompt of the {role} model:\n{text}\nas {len(ids)} ids: {' '.join(map(str, ids))}\n")
    if prompt["stops"]:
        print(f"Stop strings of the transcript: {', '.join(map(repr, prompt['stops']))}\n")


def _show_vocabularies(vocab: dict[str, Any] | None) -> None:
    if vocab is None:
        return
    if vocab["equal"]:
        print("Vocabularies: equal; both models get the same ids.\n")
        return
    first = ", ".join(str(token) for token in vocab["first_differing"])
    print(
        f"Vocabularies: different; the base has {100 * vocab['overlap']:.1f} % of the aligned model's tokens.\n"
        f"{vocab['differing_ids']} ids differ, the first of them {first}. The models meet as text.\n"
    )


def _show_passes(report: dict[str, Any]) -> None:
    for role, info in report["passes"].items():
        if "error" in info:
            print(f"Reproducible passes of the {role} model: not measured: {info['error']}")
        elif info["max_pass"] <= 1:
            print(f"Reproducible passes of the {role} model: 1 row only; with --reproducible it runs plain or lazy.")
        else:
            print(
                f"Reproducible passes of the {role} model: up to {info['max_pass']} rows are bit-equal "
                f"(K {info['type_k']}, V {info['type_v']}; tried up to {info['tested']})."
            )


def size(n_bytes: int) -> str:
    """Bytes for people: 253 MB."""
    value, unit = float(n_bytes), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if value >= 100 or unit == "B" else f"{value:.1f} {unit}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
