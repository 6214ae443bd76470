"""How does one get a large base and a small aligned model with the same vocabulary from a single small file?

By widening: every feed-forward block of a llama GGUF gets `factor` times as many hidden units, whose columns in the
down-projection are zero. The new units compute something and contribute nothing, so the function is unchanged while
weights, memory and time per pass grow. Noise on the weights then makes the wide model disagree with the narrow one.

    python benchmarks/widen.py small.gguf wide.gguf --factor 16 --quantisation Q8_0 --noise 0.1

Tensors are read, widened, quantised and written one at a time, so memory stays near the size of the largest one.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

# What general.file_type says for each choice.
FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
}
FEED_FORWARD = "llama.feed_forward_length"
TEMPLATE = "tokenizer.chat_template"
# Made by the writer itself, or no longer true of the widened model.
NOT_COPIED = {"general.architecture", "general.file_type", "general.quantization_version", "general.size_label"}
ROWS = 4096  # rows quantised at a time: the quantisers make several temporaries the size of their input


@dataclass(frozen=True)
class Plan:
    """How one tensor is written: `tiles` repeats its rows, `blank` appends zero columns, both as multiples."""

    tensor: gguf.ReaderTensor
    type: Type
    tiles: int = 1
    blank: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first, as NumPy has it; GGUF lists the row length first."""
        shape = [int(n) for n in reversed(self.tensor.shape.tolist())]
        shape[-1] *= 1 + self.blank
        shape[0] *= self.tiles
        return tuple(shape)

    @property
    def byte_shape(self) -> tuple[int, ...]:
        return gguf.quant_shape_to_byte_shape(self.shape, self.type)


def widen(
    source: Path,
    target: Path,
    *,
    factor: int = 16,
    quantisation: str = "Q8_0",
    noise: float = 0.0,
    seed: int = 0,
    template: bool = True,
    progress: bool = False,
) -> Path:
    """Write a llama GGUF whose feed-forward blocks are `factor` times as wide and whose function is the same.

    Parameters
    ----------
    source, target : Path
        The file to read, of architecture llama without experts, and the file to write. A failure leaves no target.
    factor : int
        >= 1. With 1 only quantisation and noise act.
    quantisation : str
        "F32", "F16", "Q8_0" or "Q4_0", of all matrices; vectors stay F32.
    noise : float
        Standard deviation of the Gaussian noise on each matrix, as a fraction of that widened matrix's own.
    seed : int
        Of the noise.
    template : bool
        Whether the chat template is copied. A base model has none.
    progress : bool
        One line per layer on stderr.

    Raises
    ------
    ValueError
        An argument out of range, or a source that cannot be widened.
    FileNotFoundError
        No such source.
    """
    source, target = Path(source), Path(target)
    _check(source, target, factor, quantisation, noise, seed)
    reader = _open(source)
    plans = _plan(reader, factor, quantisation)
    part = target.with_name(target.name + ".part")
    try:
        _write(reader, plans, part, factor, quantisation, noise, seed, template, progress)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return target


def _check(source: Path, target: Path, factor: int, quantisation: str, noise: float, seed: int) -> None:
    if factor < 1:
        raise ValueError(f"factor is {factor}; expected a whole number of at least 1")
    if quantisation not in FILE_TYPES:
        raise ValueError(f"quantisation is {quantisation!r}; expected one of {', '.join(FILE_TYPES)}")
    if not 0 <= noise < float("inf"):
        raise ValueError(f"noise is {noise}; expected a finite number of at least 0, 0.1 for example")
    if seed < 0:
        raise ValueError(f"seed is {seed}; expected a whole number of at least 0")
    if not source.is_file():
        raise FileNotFoundError(f"{source} is not a file; give the path of a llama GGUF")
    if source.resolve() == target.resolve():
        raise ValueError(f"source and target are both {source}; give another target")


def _open(source: Path) -> gguf.GGUFReader:
    """The reader, whose complaints about a broken file do not name it and come in several types."""
    try:
        reader = gguf.GGUFReader(source)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise ValueError(f"{source} is not a complete GGUF ({error}); give a llama GGUF") from error
    if "general.architecture" not in reader.fields:
        raise ValueError(f"{source} does not name an architecture; give a llama GGUF")
    return reader


def _plan(reader: gguf.GGUFReader, factor: int, quantisation: str) -> list[Plan]:
    architecture = reader.fields["general.architecture"].contents()
    if architecture != "llama" or FEED_FORWARD not in reader.fields:
        raise ValueError(f"the architecture is {architecture!r}; only 'llama' with feed-forward blocks can be widened")
    plans = []
    for tensor in reader.tensors:
        if "_exps" in tensor.name:
            raise ValueError(f"the file has experts ({tensor.name}); only dense feed-forward blocks can be widened")
        matrix = len(tensor.shape) >= 2
        block = Type[quantisation]
        units = tensor.name.split(".")[-2] in ("ffn_gate", "ffn_up")  # weight and bias alike: one row per unit
        down = tensor.name.endswith("ffn_down.weight")
        plan = Plan(tensor, block if matrix else Type.F32, factor if units else 1, factor - 1 if down else 0)
        if matrix and plan.shape[-1] % gguf.GGML_QUANT_SIZES[block][0]:
            raise ValueError(f"{tensor.name} has rows of {plan.shape[-1]}, which {quantisation} cannot hold; use F16")
        plans.append(plan)
    return plans


def _write(
    reader: gguf.GGUFReader,
    plans: list[Plan],
    path: Path,
    factor: int,
    quantisation: str,
    noise: float,
    seed: int,
    template: bool,
    progress: bool,
) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    try:
        _copy_metadata(reader, writer, factor, noise, template)
        writer.add_file_type(FILE_TYPES[quantisation])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        count = sum(int(np.prod(plan.shape)) for plan in plans)
        writer.add_size_label(f"{count / 1e6:.0f}M" if count < 1e9 else f"{count / 1e9:.1f}B")
        for plan in plans:
            size = int(np.prod(plan.byte_shape))
            writer.add_tensor_info(plan.tensor.name, plan.byte_shape, np.dtype(np.uint8), size, plan.type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        start = time.perf_counter()
        for index, plan in enumerate(plans):
            writer.write_tensor_data(_encode(plan, noise, seed))
            last = index + 1 == len(plans) or _layer(plans[index + 1]) != _layer(plan)
            if progress and last:
                print(f"{_layer(plan)} done, {time.perf_counter() - start:.1f} s", file=sys.stderr)
    finally:
        writer.close()


def _layer(plan: Plan) -> str:
    """The heading a tensor belongs under: "blk.3", or its own name outside the blocks."""
    name = plan.tensor.name
    return ".".join(name.split(".")[:2]) if name.startswith("blk.") else name


def _copy_metadata(reader: gguf.GGUFReader, writer: gguf.GGUFWriter, factor: int, noise: float, template: bool) -> None:
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in NOT_COPIED or (key == TEMPLATE and not template):
            continue
        value = field.contents()
        if key == FEED_FORWARD:
            value = [n * factor for n in value] if isinstance(value, list) else value * factor
        if key == "general.name":
            value = f"{value}, FFN x{factor}" + (f", noise {noise:g}" if noise else "")
        is_array = field.types[0] == gguf.GGUFValueType.ARRAY
        writer.add_key_value(key, value, field.types[0], sub_type=field.types[-1] if is_array else None)


def _encode(plan: Plan, noise: float, seed: int) -> np.ndarray:
    """The bytes of a widened tensor, shape `plan.byte_shape`."""
    values = gguf.quants.dequantize(plan.tensor.data, plan.tensor.tensor_type).reshape(
        [int(n) for n in reversed(plan.tensor.shape.tolist())]
    )
    if plan.type == Type.F32 and values.ndim < 2:
        return np.tile(values.astype(np.float32), plan.tiles).view(np.uint8)
    if noise == 0:
        return _encode_exact(plan, values)
    generator = np.random.default_rng([seed, zlib.crc32(plan.tensor.name.encode())])
    # Var of the widened matrix: zero columns dilute the mean square and the mean, repeated rows change neither.
    share = 1 / (1 + plan.blank)
    mean_square, mean = np.mean(np.square(values, dtype=np.float64)) * share, np.mean(values, dtype=np.float64) * share
    deviation = np.float32(noise * np.sqrt(mean_square - mean * mean))
    tiles = [_noisy_rows(plan, values, deviation, generator) for _ in range(plan.tiles)]
    return np.concatenate(tiles)


def _noisy_rows(plan: Plan, values: np.ndarray, deviation: np.float32, generator: np.random.Generator) -> np.ndarray:
    chunks = []
    for first in range(0, len(values), ROWS):
        rows = values[first : first + ROWS]
        wide = generator.standard_normal((len(rows), plan.shape[-1]), dtype=np.float32)
        wide *= deviation
        wide[:, : rows.shape[1]] += rows
        chunks.append(_bytes(wide, plan.type))
    return np.concatenate(chunks)


def _encode_exact(plan: Plan, values: np.ndarray) -> np.ndarray:
    """Without noise the copies are equal: quantise one and repeat its bytes."""
    rows = np.concatenate([_bytes(values[i : i + ROWS], plan.type) for i in range(0, len(values), ROWS)])
    if plan.blank:
        empty = _bytes(np.zeros((1, values.shape[1]), np.float32), plan.type)
        rows = np.hstack([rows, np.tile(empty, (len(rows), plan.blank))])
    return np.tile(rows, (plan.tiles, 1)) if plan.tiles > 1 else rows


def _bytes(rows: np.ndarray, type_: Type) -> np.ndarray:
    """Rows of float32 as rows of bytes."""
    return np.ascontiguousarray(gguf.quants.quantize(np.ascontiguousarray(rows), type_)).view(np.uint8)


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="widen.py",
        description="Widen the feed-forward blocks of a llama GGUF without changing what it computes.",
    )
    parser.add_argument("source", type=Path, help="a GGUF of architecture llama, without experts")
    parser.add_argument("target", type=Path, help="the GGUF to write")
    parser.add_argument("--factor", type=int, default=16, help="how many times as wide (default: %(default)s)")
    parser.add_argument("--quantisation", choices=FILE_TYPES, default="Q8_0", help="of matrices (default: %(default)s)")
    parser.add_argument(
        "--noise", type=float, default=0.0, help="Gaussian noise, as a share of each matrix's deviation (default: 0)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    parser.add_argument("--no-template", action="store_true", help="leave out the chat template, as a base model does")
    given = parser.parse_args(arguments)
    try:
        widen(
            given.source,
            given.target,
            factor=given.factor,
            quantisation=given.quantisation,
            noise=given.noise,
            seed=given.seed,
            template=not given.no_template,
            progress=True,
        )
    except (ValueError, OSError) as error:
        print(f"widen.py: {error}", file=sys.stderr)
        return 2
    print(f"{given.target}: {given.target.stat().st_size / 1e6:.1f} MB", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
