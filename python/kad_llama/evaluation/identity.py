"""Which file is this? Its SHA-256, computed once and kept, since models are large."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import platformdirs

from kad_llama.errors import FileError

__all__ = ["model_identity"]

_BLOCK = 1 << 22
_SHARD = re.compile(r"-00001-of-(\d{5})\.gguf$")


def model_identity(path: str | os.PathLike[str], reading: Callable[[str], object]) -> dict[str, Any]:
    """Return name, size and SHA-256 of a GGUF, all its shards in their order. `reading` is told before a file is read."""
    parts = _shards(Path(path))
    try:
        stats = [part.stat() for part in parts]
        key = json.dumps([[os.path.realpath(p), s.st_size, s.st_mtime_ns] for p, s in zip(parts, stats, strict=True)])
        kept = (
            Path(platformdirs.user_cache_dir("kad-llama")) / "digests" / hashlib.sha256(key.encode()).hexdigest()[:32]
        )
        digest = _kept(kept)
        if digest is None:
            reading(f"reading {parts[0].name}")
            digest = _digest(parts)
            _keep(kept, digest)
    except OSError as error:
        raise FileError(f"cannot read {os.fspath(path)!r}: {error.strerror}; expected a GGUF file") from error
    return {"name": parts[0].name, "size": sum(s.st_size for s in stats), "sha256": digest}


def _shards(path: Path) -> list[Path]:
    match = _SHARD.search(path.name)
    if match is None:
        return [path]
    stem = path.name[: match.start()]
    return [path.with_name(f"{stem}-{i:05d}-of-{match.group(1)}.gguf") for i in range(1, int(match.group(1)) + 1)]


def _digest(parts: list[Path]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        with open(part, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def _kept(path: Path) -> str | None:
    try:
        text = path.read_text()
    except (OSError, ValueError):
        return None
    return text if re.fullmatch("[0-9a-f]{64}", text) else None


def _keep(path: Path, digest: str) -> None:
    """A folder that cannot be written only means reading again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_text(digest)
        part.replace(path)
    except OSError:
        pass
