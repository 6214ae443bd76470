"""What GGUF files say of themselves before they are loaded, and what was measured of them on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import platformdirs
import psutil

from kad_llama._binding import ffi, lib
from kad_llama._binding.calls import Progress, check, text
from kad_llama.errors import InvalidArgumentError

__all__ = ["FileInfo", "PassInfo", "default_threads", "inspect_file", "measure_passes"]

Role = Literal["base", "aligned", "reference"]


@dataclass(frozen=True)
class FileInfo:
    """The header of a GGUF. Sizes are bytes; `cache_bytes_per_token` is for F16 K and V, all layers."""

    path: str
    architecture: str
    name: str
    quantisation: str
    file_bytes: int
    tensor_bytes: int
    cache_bytes_per_token: int
    n_layer: int
    n_ctx_train: int
    n_vocab: int
    has_chat_template: bool
    n_shards: int


@dataclass(frozen=True)
class PassInfo:
    """Up to `max_pass` rows per pass are bit-equal to rows one by one, with caches of these types; `tested` were tried."""

    max_pass: int
    type_k: str
    type_v: str
    tested: int


def c_path(path: str | os.PathLike[str]) -> bytes:
    """Return a path as C reads it. A NUL would end it early and name another file."""
    data = os.fsencode(path)
    if b"\0" in data:
        raise InvalidArgumentError(f"the path {path!r} has a NUL character; expected the path of a GGUF file")
    return data


def inspect_file(path: str | os.PathLike[str]) -> FileInfo:
    """Read the header of a GGUF without loading it.

    Raises
    ------
    FileError
        For a path that is missing, unreadable, a directory, no GGUF, truncated, or a shard other than the first.
    ModelError
        For a model that cannot generate.
    """
    info = ffi.new("kad_file_info *")
    check(lib.kad_file_inspect(c_path(path), info))
    return FileInfo(
        os.fspath(path),
        text(info.architecture),
        text(info.name),
        text(info.quantisation),
        info.file_bytes,
        info.tensor_bytes,
        info.cache_bytes_per_token,
        info.n_layer,
        info.n_ctx_train,
        info.n_vocab,
        bool(info.has_chat_template),
        info.n_shards,
    )


def default_threads() -> int:
    """Return the physical cores that this process may use, at least 1."""
    try:
        usable = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        usable = os.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or usable, usable))


def fields_of(params: Mapping[str, Any] | None, name: str) -> dict[str, float]:
    """Return llama.cpp's fields as numbers; cache types may be given by name ("q8_0")."""
    fields: dict[str, float] = {}
    if params is not None and not isinstance(params, Mapping):
        raise InvalidArgumentError(f"{name} is {params!r}; expected a dict of llama.cpp's fields")
    for field, value in (params or {}).items():
        if not isinstance(field, str) or "\0" in field:
            raise InvalidArgumentError(f"{name} has the key {field!r}; expected names of llama.cpp's fields")
        if field in ("type_k", "type_v") and isinstance(value, str):
            number = lib.kad_cache_type(value.lower().encode())
            if number < 0:
                raise InvalidArgumentError(
                    f"{name}[{field!r}] is {value!r}, which no cache can be; expected f32, f16, bf16, q8_0, q4_0, q4_1, "
                    "iq4_nl, q5_0 or q5_1"
                )
            fields[field] = number
        elif isinstance(value, (bool, int, float)):
            try:
                fields[field] = float(value)
            except OverflowError:
                raise InvalidArgumentError(f"{name}[{field!r}] is out of range of any number") from None
        else:
            raise InvalidArgumentError(f"{name}[{field!r}] is {value!r}; expected a number")
    return fields


def fill_model(target: Any, path: str | os.PathLike[str], n_gpu_layers: int, fields: Mapping[str, float]) -> list[Any]:
    """Fill a ``kad_model_params``. What is returned must live as long as it."""
    c_name = ffi.new("char[]", c_path(path))
    names = [ffi.new("char[]", field.encode()) for field in fields]
    c_names = ffi.new("char *[]", names)
    c_values = ffi.new("double[]", list(fields.values()))
    target.path = c_name
    target.n_gpu_layers = n_gpu_layers
    target.n_fields = len(names)
    target.field_names = c_names
    target.field_values = c_values
    return [c_name, names, c_names, c_values]


def measure_passes(
    path: str | os.PathLike[str],
    role: Role,
    *,
    n_ctx: int = 4096,
    n_parallel: int = 1,
    n_threads: int | None = None,
    n_gpu_layers: int = -1,
    params: Mapping[str, Any] | None = None,
    progress: Callable[[float], object] | None = None,
) -> PassInfo:
    """Measure up to how many rows per pass are bit-equal, and with which cache types; keep the answer on disk.

    With `n_parallel` above 1 also the rows of two texts in one pass.

    The first time loads the model and takes seconds. The answer is kept per file, build, machine and settings in the
    user's cache folder.
    """
    fields = fields_of(params, f"{role}_params")
    threads = n_threads or default_threads()
    info = inspect_file(path)
    kept = _kept_file(info, fields, threads, n_gpu_layers, n_parallel > 1)
    try:
        return PassInfo(**json.loads(kept.read_text()))
    except (OSError, ValueError, TypeError):
        pass  # not measured yet, or not by this version
    engine = ffi.new("kad_engine_params *", lib.kad_engine_default_params())
    number = {"base": lib.KAD_ROLE_BASE, "aligned": lib.KAD_ROLE_ALIGNED, "reference": lib.KAD_ROLE_REFERENCE}[role]
    alive = fill_model(getattr(engine, role), path, n_gpu_layers, fields)
    engine.n_ctx, engine.n_threads, engine.n_parallel = n_ctx, threads, max(1, n_parallel)
    out = ffi.new("kad_pass_info *")
    report = Progress(engine, progress)
    report.check(lib.kad_measure_passes(engine, number, out))
    del alive
    found = PassInfo(
        out.max_pass, text(lib.kad_cache_type_name(out.type_k)), text(lib.kad_cache_type_name(out.type_v)), out.tested
    )
    _keep(kept, found)
    return found


def _kept_file(info: FileInfo, fields: Mapping[str, float], n_threads: int, n_gpu_layers: int, several: bool) -> Path:
    library = ffi.new("kad_library_info *")
    check(lib.kad_library(library))
    status = os.stat(info.path)
    key = [
        "measured at 24, 250, 505 and 530 cells",
        os.path.realpath(info.path),
        info.file_bytes,
        status.st_mtime_ns,
        text(lib.kad_version()),
        text(library.loaded_llama_version),
        text(library.loaded_llama_commit),
        text(library.backends),
        text(library.system_info),
        platform.node(),
        platform.machine(),
        sorted(fields.items()),
        n_threads,
        n_gpu_layers,
        several,
    ]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    return Path(platformdirs.user_cache_dir("kad-llama")) / "passes" / f"{digest[:32]}.json"


def _keep(path: Path, found: PassInfo) -> None:
    """Write the answer; a folder that cannot be written only means measuring again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(asdict(found)))
        part.replace(path)
    except OSError:
        pass
