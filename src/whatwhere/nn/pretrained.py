"""timm's backbones by name, and where their pretrained weights come from."""

from __future__ import annotations

import importlib
import logging
import socket
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from whatwhere.errors import UsageError
from whatwhere.nn.encoder import Encoder

RGB = ("red", "green", "blue")
_BARRED = ("checkpoint_path", "cache_dir", "features_only", "in_chans", "scriptable")
_MOST_HEAD_BYTES, _MOST_TENSORS = 2**24, 20_000
_PICKLES = (".pt", ".pth", ".ckpt", ".pkl", ".bin", ".h5", ".npz")
# timm's words for "any image size", in the order tried: plain and windowed transformers have them.
_ANY_SIZE: tuple[Mapping[str, Any], ...] = (
    {"dynamic_img_size": True},
    {"strict_img_size": False},
    {},
)


def make_encoder(
    name: str,
    in_channels: int,
    *,
    pretrained: bool | str | Path = False,
    band_names: Sequence[str] = (),
    arguments: Mapping[str, Any] | None = None,
) -> Encoder:
    """Build one of timm's backbones as an encoder.

    Args:
        name: As timm calls it, with or without a tag: `resnet34`, `resnet34.a1_in1k`.
        in_channels: Bands of the image.
        pretrained: True takes timm's weights from the hub, a path those of a safetensors file.
        band_names: What the bands are called: red, green and blue take their own filters.
        arguments: timm's own, such as `drop_path_rate` or `output_stride`.

    Raises:
        UsageError: The name or an argument is not known, the backbone gives no feature maps of
            several sizes, there are no weights for it, or they cannot be had or do not fit.
    """
    options = dict(arguments or {})
    barred = sorted(key for key in options if key in _BARRED or key.startswith("pretrained"))
    if barred:
        raise UsageError(
            f"{', '.join(barred)} cannot be given to {name}: bands and weights have arguments of "
            "their own (in_channels, pretrained)."
        )
    if isinstance(pretrained, (str, Path)):
        check_weights_file(Path(pretrained))
    body = _create(name, options, in_chans=in_channels)
    if pretrained is not False:
        _take_filters(body, name, options, in_channels, pretrained, band_names)
    return Encoder(body, in_channels, name)


def has_weights(name: str) -> bool:
    """Whether timm has pretrained weights for a backbone."""
    config = _config(name)
    return bool(config is not None and config.has_weights)


def _config(name: str) -> Any:
    """What timm says of the weights of a name; None for a tag that it does not know."""
    import timm

    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError:
        return None


def check_weights_file(path: Path) -> None:
    """Raise `UsageError` unless this is a file of safetensors."""
    if path.suffix.lower() in _PICKLES:
        raise UsageError(
            f"{path}: files of this kind can run code when they are opened, and are not loaded. "
            "Take the safetensors of the same weights, or convert them where you trust them: "
            "safetensors.torch.save_file(torch.load(PATH, weights_only=True), NEW)."
        )
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file of weights.")
    if path.suffix.lower() != ".safetensors":
        raise UsageError(f"{path}: weights are read from .safetensors files.")
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        long = _MOST_HEAD_BYTES < length <= path.stat().st_size
        head = stream.read(min(length, _MOST_HEAD_BYTES))
        if long or head.count(b'"dtype"') > _MOST_TENSORS:
            raise UsageError(
                f"{path}: these are no weights of a backbone: their head is too long. Take others."
            )


def _create(name: str, options: Mapping[str, Any], **more: Any) -> nn.Module:
    """Make timm's feature extractor, with any image size where it can be had."""
    import timm

    refusal = ""
    for extra in _ANY_SIZE:
        try:
            body: nn.Module = timm.create_model(
                name, features_only=True, **{**extra, **options, **more}
            )
        except TypeError as error:
            unknown = next((key for key in extra if f"'{key}'" in str(error)), None)
            if unknown is None:
                raise UsageError(f"{name} cannot be built so: {error}.") from error
        except (RuntimeError, AttributeError, AssertionError, ValueError, KeyError) as error:
            refusal = refusal or str(error) or type(error).__name__
            if extra:
                continue
            raise UsageError(
                f"{name} gives no feature maps for a U-Net ({refusal}). Take a backbone with "
                "several sizes, such as resnet34, convnext_tiny or efficientnet_b0."
            ) from error
        else:
            return body
    raise UsageError(f"{name} cannot be built.")


def _take_filters(
    body: nn.Module,
    name: str,
    options: Mapping[str, Any],
    in_channels: int,
    pretrained: bool | str | Path,
    band_names: Sequence[str],
) -> None:
    """Put pretrained weights into a backbone of any number of bands."""
    source = _load_pretrained(name, options, pretrained)
    names = tuple(band_names) or RGB[:in_channels]
    if in_channels == 1:
        names = ("grey",)
    state = dict(source.state_dict())
    if in_channels != 3 or tuple(names[:3]) != RGB:
        adapted = False
        for key, own in body.state_dict().items():
            filters = state[key]
            over_bands = filters.ndim == 4 and filters.shape[1] == 3
            fits = over_bands and own.shape == (len(filters), in_channels, *filters.shape[2:])
            if fits and not (adapted and own.shape == filters.shape):
                state[key] = adapt_filters(filters, in_channels, names)
                adapted = True
        if not adapted:
            raise UsageError(
                f"the first filters of {name} cannot be fitted to {in_channels} bands. Train "
                "without pretrained weights (--no-pretrained)."
            )
    try:
        body.load_state_dict(state)
    except RuntimeError as error:
        raise UsageError(
            f"the pretrained weights of {name} do not fit {in_channels} bands: {error}"
        ) from error


def adapt_filters(filters: Tensor, in_channels: int, names: Sequence[str] = ()) -> Tensor:
    """Fit filters learned on red, green and blue to other bands.

    Bands named red, green and blue take their own, all others the mean of the three. All are
    rescaled by 3 / `in_channels`, so that the response to an image whose bands are alike keeps its
    size; so one band gets the sum of the three.

    Args:
        filters: `(O, 3, kH, kW)`.
        in_channels: Bands of the image.
        names: What they are called; where they are not named, the first three are red, green, blue.

    Returns:
        `(O, in_channels, kH, kW)`.
    """
    mean = filters.mean(dim=1)
    named = [name.lower() for name in names]
    if not set(named) & set(RGB) and in_channels > 1:
        named = list(RGB[:in_channels])  # by position
    planes = [
        filters[:, RGB.index(named[i])] if i < len(named) and named[i] in RGB else mean
        for i in range(in_channels)
    ]
    return torch.stack(planes, dim=1) * (3 / in_channels)


def _load_pretrained(
    name: str, options: Mapping[str, Any], pretrained: bool | str | Path
) -> nn.Module:
    """Build a backbone for three bands with pretrained weights."""
    from safetensors import SafetensorError

    file = str(fetch_weights(name) if isinstance(pretrained, bool) else pretrained)
    log = logging.getLogger("timm")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns of the classifier, which a U-Net has no use for
    try:
        body = _create(
            name, options, in_chans=3, pretrained=True, pretrained_cfg_overlay={"file": file}
        )
    except (UsageError, RuntimeError, OSError, SafetensorError) as error:
        lines = str(error.__cause__ or error).splitlines()
        told = " ".join(line.strip() for line in lines[:2])
        raise UsageError(f"{file}: these weights do not fit {name}: {told}") from error
    finally:
        log.setLevel(level)
    if not isinstance(pretrained, bool):
        _require_taken(body, name, Path(file))
    return body


def _require_taken(body: nn.Module, name: str, path: Path) -> None:
    """Raise `UsageError` unless most filters are those of a file: timm leaves out what is missing.

    They are compared by their numbers, for timm knows files by other names too.
    """
    from safetensors.torch import load_file

    def digests(tensors: Mapping[str, Tensor]) -> set[bytes]:
        found = (one for one in tensors.values() if one.ndim > 1 and one.is_floating_point())
        return {sha256(one.detach().float().numpy().tobytes()).digest() for one in found}

    own = digests(body.state_dict())
    taken = len(own & digests(load_file(path)))
    if 2 * taken < len(own):
        raise UsageError(
            f"{path}: these weights do not fit {name}: {taken} of its {len(own)} filters are in "
            "the file. Take a file of this backbone."
        )


def fetch_weights(name: str) -> Path:
    """Return the safetensors file of timm's pretrained weights, from the hub or its local cache.

    Raises:
        UsageError: There are none, or none as safetensors, or the hub cannot be reached.
    """
    import timm
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    config = _config(name)
    ways = (
        "Train without them (--no-pretrained, pretrained=False), or from a safetensors file "
        "(--pretrained-path FILE, pretrained=FILE)."
    )
    if config is None or not config.hf_hub_id:
        tags = timm.list_pretrained(f"{name.split('.')[0]}.*")
        known = f" There are: {', '.join(tags[:5])}." if tags else ""
        raise UsageError(f"there are no pretrained weights for {name} on the hub.{known} {ways}")
    repository, file = str(config.hf_hub_id), "model.safetensors"
    try:
        return Path(str(hf_hub_download(repository, file, local_files_only=True)))
    except LocalEntryNotFoundError:
        pass
    refusals: tuple[type[BaseException], ...] = (HfHubHTTPError, OSError, *_network_errors())
    try:
        _require_host(constants.ENDPOINT)
        return Path(str(hf_hub_download(repository, file)))
    except refusals as error:
        raise UsageError(
            f"the pretrained weights of {name} cannot be fetched from {constants.ENDPOINT} "
            f"({_first_line(error)}). {ways}"
        ) from error


def _require_host(url: str) -> None:
    """Raise `OSError` at once where the hub cannot be reached; its client tries for a minute."""
    if urllib.request.getproxies():
        return  # who asks through a proxy cannot be asked directly
    parts = urllib.parse.urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    socket.create_connection((parts.hostname or "", port), timeout=10).close()


def _network_errors() -> tuple[type[Exception], ...]:
    """What the transport of the hub's client may raise beyond OSError."""
    found: list[type[Exception]] = []
    for name in ("httpx", "httpx2"):
        try:
            found.append(importlib.import_module(name).HTTPError)
        except (ImportError, AttributeError):
            continue
    return tuple(found)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
