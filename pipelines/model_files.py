"""Find a model's folder and say what is in it, before any weight is loaded.

Enters: a `ModelSpec`. Leaves: a local folder that holds config, tokenizer and safetensors weights, and the hash
that names those files. Pickled weights, remote code and tokenizer-less folders are refused here, once, for every
model: transformers would silently build a 5-token tokenizer for the last, and score garbage at full speed.
"""

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.errors import ModelError

__all__ = ["check_positions", "copy_tokenizer", "model_config", "resolve_model", "tokenizer_hash", "weights_hash"]

_TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
_TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
_DOWNLOADED = ["*.json", "*.safetensors", "*.txt", "*.model"]


def resolve_model(model_id: str, revision: str | None = None, *, roots: Sequence[Path] = ()) -> Path:
    """The local folder of a model, checked.

    Args:
        model_id: `package:<python package>` whose files hold the weights; a folder, absolute or below one of `roots`;
            else a Hugging Face hub id, downloaded (safetensors, JSON and vocabulary files only).
        revision: hub commit, tag or branch; refused for folders and packages, which have none.
        roots: folders in which relative paths are looked up, in this order.

    Raises:
        ModelError: nothing is there, or the folder lacks config, tokenizer or safetensors.
    """
    folder = _from_package(model_id) if model_id.startswith("package:") else _from_roots(model_id, roots)
    if folder is None:
        folder = _from_hub(model_id, revision)
    elif revision is not None:
        raise ModelError(f"model {model_id!r} is local and has no revisions, got revision {revision!r}")
    _check_folder(folder, model_id)
    return folder


def _from_package(model_id: str) -> Path:
    name = model_id.removeprefix("package:")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"model {model_id!r}: there is no installed Python package {name!r}")
    package = Path(next(iter(spec.submodule_search_locations)))
    for folder in (package, *sorted(path for path in package.iterdir() if path.is_dir())):
        if (folder / "config.json").is_file():
            return folder
    raise ModelError(f"model {model_id!r}: package {name!r} carries no model folder (no config.json)")


def _from_roots(model_id: str, roots: Sequence[Path]) -> Path | None:
    for place in [Path(model_id)] if Path(model_id).is_absolute() else [root / model_id for root in roots]:
        if place.is_dir():
            return place.resolve()
    if model_id.startswith((".", "/", "~")):
        raise ModelError(f"model {model_id!r}: there is no such folder below {[str(root) for root in roots]}")
    return None


def _from_hub(model_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model_id, revision=revision, allow_patterns=_DOWNLOADED))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"model {model_id!r} is no local folder, and the hub did not give revision {revision or 'main'!r}: {error}"
        ) from error


def _check_folder(folder: Path, model_id: str) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(f"model {model_id!r}: {folder.name}/config.json is missing")
    try:
        config = model_config(folder)
    except ValueError as error:
        raise ModelError(f"model {model_id!r}: {folder.name}/config.json is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"model {model_id!r}: {folder.name}/config.json holds no mapping")
    if remote := config.get("auto_map"):
        raise ModelError(
            f"model {model_id!r}: config.json has auto_map {remote}: it asks for trust_remote_code, and code that "
            "comes with a model is never run; remove auto_map if transformers' own class is the right one"
        )
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        hint = f"; pickled weights {pickled} are never loaded" if pickled else ""
        raise ModelError(f"model {model_id!r}: no *.safetensors file in {folder.name}/{hint}")
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelError(
            f"model {model_id!r}: {folder.name}/ has no tokenizer (looked for {', '.join(_TOKENIZER_FILES)})"
        )


def model_config(folder: Path) -> dict[str, Any]:
    """The parsed config.json of a checked model folder."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


def weights_hash(folder: Path) -> str:
    """SHA-256 (hex) over everything that decides a score: weights, config and tokenizer files, by name and content."""
    weights = {path.name for path in folder.glob("*.safetensors")} | {"config.json"}
    return _hash_of(folder, weights | _tokenizer_names(folder))


def tokenizer_hash(folder: Path) -> str:
    """SHA-256 (hex) over the tokenizer's files: what decides token ids, whatever the weights are."""
    return _hash_of(folder, _tokenizer_names(folder))


def copy_tokenizer(source: Path, target: Path) -> None:
    """Give `target` the tokenizer files of `source`, byte for byte: whoever wrote them anew would change their hash."""
    for name in _tokenizer_names(target):
        (target / name).unlink()
    for name in _tokenizer_names(source):
        shutil.copyfile(source / name, target / name)


def _tokenizer_names(folder: Path) -> set[str]:
    return {name for name in (*_TOKENIZER_FILES, *_TOKENIZER_SETTINGS) if (folder / name).is_file()}


def _hash_of(folder: Path, names: set[str]) -> str:
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(name.encode())
        with (folder / name).open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def check_positions(model: Any, max_length: int, *, field: str) -> None:
    """Refuse a length for which a loaded model has no position embeddings: it would fail at the first long text.

    Args:
        model: a transformers model. One without a table of absolute positions (rotary, relative) takes any length.
        max_length: tokens.
        field: the spec's field that asks for it.

    Raises:
        ModelError: with both numbers.
    """
    tables = (module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    for table in tables:
        rows = getattr(table, "num_embeddings", None)
        if rows is None:
            continue
        # RoBERTa and its kin count positions from the padding index on.
        usable = rows - (0 if table.padding_idx is None else table.padding_idx + 1)
        if max_length > usable:
            raise ModelError(f"{field} is {max_length}, the model has positions for {usable} tokens")
