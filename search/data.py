"""Image data for training and search: three splits, in memory where they are small.

Specs: ``digits`` (scikit-learn's, embedded), ``cifar10:PATH`` and ``folder:PATH``, each with an
optional ``?limit=N`` that keeps N images of every split. The validation split, on which a search
scores its candidates, is a fixed class-balanced part of the training images, never the test set.
Folders and archives of more than `IN_MEMORY_BYTES` stay on the disk and are decoded when needed.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import torch
from torch import Tensor

from ..ops.backbone import Backbone
from ..ops.errors import BadRequest
from .crops import Crop, RandomResizedCrop
from .images import DECODERS, Images, StoredImages, decoders, pick, take, to_device

KINDS = ("digits", "cifar10", "folder")
SPLIT_FOLDERS = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
"""Splits by the folders that hold them."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")

VALIDATION_SHARE = 0.1
"""Part of the training images that is set aside where the data has no validation split."""

SPLIT_SEED = 0
"""Draws the splits that the data does not come with, and the images that ``?limit`` keeps: the
same for every seed of a search, so that figures of different seeds are of the same images."""

DIGITS_TEST_PER_CLASS = 36
DIGITS_VALIDATION_PER_CLASS = 30
"""Digits has about 180 images a class: a fifth for test, a sixth for validation."""

CIFAR_SIDE = 32
IN_MEMORY_BYTES = 1 << 30
"""Up to this size splits are decoded once and kept: validation first, then test, then training."""

CROPPED_ABOVE = 64
"""Photographs of a folder are shown as random resized crops where a side is longer than this."""

STATISTICS_IMAGES = 10_000
"""Training images that mean and deviation are taken of where they are not in memory."""

ORIENTATION = 0x0112
"""Exif's tag of how a camera was held; from 5 on width and height change places."""

TEST_SHARE = 0.2
"""Part of each class that is set aside for test where class folders are all there is."""


@dataclass(frozen=True)
class Split:
    """Images of one split.

    Attributes:
        images: uint8 [N, channels, height, width], in memory or on the disk.
        labels: int64 [N], indices into the data's classes.
    """

    images: Images
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def balanced(self, count: int) -> Split:
        """A fixed draw of images, the classes in turn, each in random order.

        Args:
            count: how many; all, if there are no more.
        """
        fixed = torch.Generator().manual_seed(SPLIT_SEED)
        order = torch.randperm(len(self), generator=fixed)
        labels = self.labels[order]
        turn = torch.empty_like(labels)
        for label in torch.unique(labels):
            members = labels == label
            turn[members] = torch.arange(int(members.sum()))
        chosen = order[torch.argsort(turn, stable=True)[:count]]
        return Split(take(self.images, chosen), self.labels[chosen])


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training image each time it is shown.

    Attributes:
        shift: largest shift in pixels, drawn evenly for each axis; the border is repeated.
        flip: whether half of the images are mirrored left to right.
    """

    shift: int = 0
    flip: bool = False

    def show(self, images: Images, chosen: Tensor, generator: torch.Generator) -> Tensor:
        """Some of the images [N, C, H, W], augmented."""
        return self.apply(pick(images, chosen), generator)

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augments a batch [N, C, H, W] of any type; every image draws its own shift and flip."""
        if not self.shift and not self.flip:
            return images
        n, _, height, width = images.shape
        shifts = torch.randint(-self.shift, self.shift + 1, (2, n, 1), generator=generator)
        rows = (torch.arange(height) + shifts[0]).clamp_(0, height - 1)
        columns = (torch.arange(width) + shifts[1]).clamp_(0, width - 1)
        if self.flip:
            mirrored = torch.rand((n, 1), generator=generator) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        device = images.device
        batch = torch.arange(n, device=device)[:, None, None]
        rows, columns = to_device(rows, device)[:, :, None], to_device(columns, device)[:, None, :]
        return images.permute(0, 2, 3, 1)[batch, rows, columns].permute(0, 3, 1, 2)


@dataclass(frozen=True)
class ImageData:
    """A data set, ready for a backbone.

    Attributes:
        spec: the text it was loaded from.
        kind: ``digits``, ``cifar10`` or ``folder``; selects the presets of training.
        classes: class names; a label is an index into them.
        train, validation, test: the splits, disjoint.
        mean, std: of the training images by channel, in units of 1 (white).
        augmentation: for training images.
        seed: of draws from the training images, such as those BatchNorm is recalibrated on.
    """

    spec: str
    kind: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation | RandomResizedCrop
    seed: int

    def normalise(self, images: Tensor) -> Tensor:
        """From uint8 [N, C, H, W] to float32 with the training images' mean 0 and deviation 1."""
        device = images.device
        mean = to_device(torch.tensor(self.mean), device).view(1, -1, 1, 1) * 255
        scale = 1 / (to_device(torch.tensor(self.std), device).view(1, -1, 1, 1) * 255)
        return (images.float() - mean) * scale

    def describe(self) -> dict[str, Any]:
        """What a report or a checkpoint keeps of the data."""
        return {
            "spec": self.spec,
            "classes": len(self.classes),
            "train": len(self.train),
            "validation": len(self.validation),
            "test": len(self.test),
            "seed": self.seed,
        }


def load_data(spec: str, backbone: Backbone, seed: int = 0) -> ImageData:
    """Reads a data set at the size and with the channels of a backbone's input.

    Args:
        spec: ``digits``, ``cifar10:PATH`` (a zip or folder of ``train/<class>/*.jpg`` and
            ``test/<class>/…``, or CIFAR-10's python batches as folder or tar.gz) or
            ``folder:PATH`` (folder or archive with ``train/``, ``test/`` and perhaps
            ``validation/``, ``valid/`` or ``val/``, a folder for each class in each; with
            ``train/`` and ``val/`` alone, as ImageNet has them, the latter is the test split;
            or with class folders alone); ``?limit=N`` keeps N images a split.
        backbone: gives height, width, channels and the number of classes.
        seed: of later draws from the training images; the splits do not depend on it.

    Returns:
        The data set; an equal spec and backbone give equal splits.

    Raises:
        BadRequest: unknown spec, missing path, unreadable image, splits whose classes differ,
            too few images, or a number of classes that is not the backbone's.
    """
    kind, path, limit = _parse(spec)
    if backbone.input_channels not in (1, 3):
        raise BadRequest(
            f"backbone {backbone.name} takes {backbone.input_channels} channels; "
            "images come with 1 (grey) or 3 (colour)"
        )
    if kind == "digits":
        classes, pools = _load_digits(backbone)
        augmentation = Augmentation(shift=max(1, backbone.input_height // 16))
    else:
        source = _open(path, spec)
        batches = _cifar_batches(source) if kind == "cifar10" else None
        if batches is not None:
            classes, pools = _from_batches(batches, backbone)
        else:
            classes, pools = _from_folders(source, backbone, spec)
        augmentation = Augmentation(shift=max(1, backbone.input_height // 8), flip=True)
        if kind == "folder" and max(backbone.input_height, backbone.input_width) > CROPPED_ABOVE:
            augmentation = RandomResizedCrop()
    if len(classes) != backbone.classes:
        raise BadRequest(
            f"{spec} has {len(classes)} classes, the head of {backbone.name} has "
            f"{backbone.classes}; copy the backbone's file, set classes = {len(classes)} "
            "and name the copy"
        )
    if "test" not in pools:
        smallest = int(torch.bincount(pools["train"].labels, minlength=len(classes)).min())
        pools["test"], pools["train"] = pools["train"].divide(max(1, round(TEST_SHARE * smallest)))
    if "validation" not in pools:
        share = _share_per_class(pools["train"].labels, len(classes))
        pools["validation"], pools["train"] = pools["train"].divide(share)
    if limit is not None:
        per_class = max(1, limit // len(classes))
        pools = {name: pool.divide(per_class)[0] for name, pool in pools.items()}
    for name, pool in pools.items():
        _check_counts(pool.labels, name, classes, spec)
    image = backbone.input_channels * backbone.input_height * backbone.input_width
    splits = _load(pools, image, isinstance(augmentation, RandomResizedCrop))
    train = splits["train"]
    if isinstance(train.images, StoredImages):
        train = train.balanced(STATISTICS_IMAGES)
    mean, std = _statistics(train.images)
    return ImageData(
        spec=spec,
        kind=kind,
        classes=tuple(classes),
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        mean=mean,
        std=std,
        augmentation=augmentation,
        seed=seed,
    )


def _parse(spec: str) -> tuple[str, Path, int | None]:
    body, _, query = spec.partition("?")
    kind, _, path = body.partition(":")
    options = dict(parse_qsl(query, keep_blank_values=True))
    limit = options.pop("limit", None)
    if kind not in KINDS or options:
        what = f"option {next(iter(options))!r}" if options else f"kind {kind!r}"
        raise BadRequest(
            f"data {spec!r}: {what} is unknown; use digits, cifar10:PATH or folder:PATH, "
            "each perhaps with ?limit=N"
        )
    if kind == "digits" and path:
        raise BadRequest(f"data {spec!r}: digits is embedded and takes no path")
    if kind != "digits" and not path:
        raise BadRequest(f"data {spec!r}: name the folder or zip, as in {kind}:PATH")
    if limit is not None and (not limit.isdecimal() or len(limit) > 12 or int(limit) < 1):
        raise BadRequest(f"data {spec!r}: limit must be a whole number of at least 1")
    return kind, Path(os.path.expanduser(path)), None if limit is None else int(limit)


# Splits


@dataclass(frozen=True)
class _Pool:
    """Images that may become a split: their labels, and how to get the pixels of some.

    Splits are drawn from the labels alone, so that only the images kept are decoded.

    Attributes:
        labels: int64 [N].
        indices: int64 [N], what `fetch` knows the images by.
        fetch: from indices to uint8 [n, channels, height, width].
        stored: whether it gets them from the disk.
        crop: as in `StoredImages`.
    """

    labels: Tensor
    indices: Tensor
    fetch: Callable[[Tensor], Tensor]
    stored: bool = False
    crop: Callable[[Tensor, Tensor], Tensor] | None = None

    @classmethod
    def of(cls, labels: Tensor, fetch: Callable[[Tensor], Tensor]) -> _Pool:
        return cls(labels, torch.arange(len(labels)), fetch)

    def divide(self, per_class: int) -> tuple[_Pool, _Pool]:
        """Draws up to `per_class` images of every class; gives (drawn, rest), each in old order."""
        fixed = torch.Generator().manual_seed(SPLIT_SEED)
        order = torch.randperm(len(self.labels), generator=fixed)
        drawn = torch.zeros(len(self.labels), dtype=torch.bool)
        labels = self.labels[order]
        for label in torch.unique(labels):
            drawn[order[labels == label][:per_class]] = True
        return (
            replace(self, labels=self.labels[drawn], indices=self.indices[drawn]),
            replace(self, labels=self.labels[~drawn], indices=self.indices[~drawn]),
        )

    def load(self, in_memory: bool) -> Split:
        images = StoredImages(self.fetch, self.indices, self.crop)
        return Split(images[:] if in_memory else images, self.labels)


def _load(pools: Mapping[str, _Pool], image: int, cropped: bool) -> dict[str, Split]:
    """Splits in memory, as far as they fit there.

    Args:
        pools: by the splits' names.
        image: bytes of a decoded image.
        cropped: training images are shown in parts, which have to be decoded each time.
    """
    room, splits = IN_MEMORY_BYTES, {}
    for name in ("validation", "test", "train"):
        pool = pools[name]
        size = image * len(pool.labels)
        kept = not pool.stored or (size <= room and not (cropped and name == "train"))
        room -= size if kept else 0
        splits[name] = pool.load(kept)
    return splits


def _share_per_class(labels: Tensor, classes: int) -> int:
    """Images a class to set aside for validation, at most half of the smallest class."""
    smallest = int(torch.bincount(labels, minlength=classes).min())
    return min(max(1, round(VALIDATION_SHARE * len(labels) / classes)), smallest // 2)


def _check_counts(labels: Tensor, name: str, classes: Sequence[str], spec: str) -> None:
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    if min(counts) < 1:
        raise BadRequest(
            f"{spec}: class {classes[counts.index(0)]!r} has no image for the {name} split; "
            "every class needs at least 2 training images and 1 test image"
        )


def _statistics(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by channel, from integer histograms: exact and in any order."""
    parts = [
        torch.stack([torch.bincount(c.flatten().int(), minlength=256) for c in part.unbind(1)])
        for part in images.split(1024)
    ]
    means, deviations = [], []
    levels = torch.arange(256, dtype=torch.float64) / 255
    for histogram in torch.stack(parts).sum(0).double():
        share = histogram / histogram.sum()
        mean = float((share * levels).sum())
        means.append(mean)
        variance = float((share * (levels - mean) ** 2).sum())
        deviations.append(max(variance**0.5, 1 / 255))
    return tuple(means), tuple(deviations)


# Digits


def _load_digits(backbone: Backbone) -> tuple[list[str], dict[str, _Pool]]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise BadRequest(
            "digits needs scikit-learn: pip install 'hurricane-nas[search]'"
        ) from error
    digits: Any = load_digits()
    raw = torch.from_numpy(digits.images).float()[:, None]  # [1797, 1, 8, 8], 0 to 16
    scaled = torch.nn.functional.interpolate(
        raw, (backbone.input_height, backbone.input_width), mode="bilinear", align_corners=False
    )
    images = (scaled * (255 / 16)).round().clamp(0, 255).to(torch.uint8)
    images = images.expand(-1, backbone.input_channels, -1, -1).contiguous()
    everything = _Pool.of(torch.from_numpy(digits.target).long(), images.__getitem__)
    test, rest = everything.divide(DIGITS_TEST_PER_CLASS)
    validation, train = rest.divide(DIGITS_VALIDATION_PER_CLASS)
    names = [str(name) for name in digits.target_names]
    return names, {"train": train, "validation": validation, "test": test}


# Folders and zips


@dataclass(frozen=True)
class _Source:
    """Files by their path inside a folder or archive, and how to read one."""

    where: str
    names: tuple[str, ...]
    read: Callable[[str], bytes]


def _open(path: Path, spec: str) -> _Source:
    if path.is_dir():
        found = sorted(f.relative_to(path).as_posix() for f in path.rglob("*") if f.is_file())
        return _without_top_folder(
            _Source(str(path), tuple(found), lambda n: (path / n).read_bytes())
        )
    if not path.exists():
        raise BadRequest(f"data {spec!r}: {path} does not exist")
    try:
        if zipfile.is_zipfile(path):
            archive = zipfile.ZipFile(path)
            found = sorted(n for n in archive.namelist() if not n.endswith("/"))
            return _without_top_folder(_Source(str(path), tuple(found), archive.read))
        if tarfile.is_tarfile(path):
            with tarfile.open(path) as archive:
                members = [m for m in archive if m.isfile()]
                content = {m.name: _member(archive, m) for m in members}
            return _without_top_folder(
                _Source(str(path), tuple(sorted(content)), content.__getitem__)
            )
    except Exception as error:  # archives fail on damaged bytes with whatever comes
        raise BadRequest(f"data {spec!r}: cannot read {path}: {error}") from error
    raise BadRequest(f"data {spec!r}: {path} is neither a folder nor a zip or tar file")


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None  # only files are asked for
    return file.read()


def _without_top_folder(source: _Source) -> _Source:
    """Archives often hold one folder that holds everything: look inside it."""
    tops = {PurePosixPath(n).parts[0] for n in source.names}
    if len(tops) != 1 or any("/" not in n for n in source.names) or "train" in tops:
        return source
    prefix = f"{tops.pop()}/"
    names = tuple(n.removeprefix(prefix) for n in source.names)
    return _Source(source.where, names, lambda n: source.read(prefix + n))


def _from_folders(
    source: _Source, backbone: Backbone, spec: str
) -> tuple[list[str], dict[str, _Pool]]:
    files: dict[str, dict[str, list[str]]] = {}
    alone: dict[str, list[str]] = {}
    for name in source.names:
        place, _, file = name.rpartition("/")
        if not place or os.path.splitext(file)[1].lower() not in IMAGE_SUFFIXES:
            continue
        top, *below = place.split("/")
        part = SPLIT_FOLDERS.get(top)
        if part is None:
            alone.setdefault(top, []).append(name)
        elif below:
            files.setdefault(part, {}).setdefault(below[0], []).append(name)
    if "train" in files and "test" not in files and "validation" in files:
        files["test"] = files.pop("validation")  # ImageNet's layout: labels of its test are secret
    lone = not files and bool(alone)
    if lone:
        files["train"] = alone
    for part in ("train",) if lone else ("train", "test"):
        if part not in files:
            raise BadRequest(
                f"data {spec!r}: {source.where} holds no images in {part}/<class>/ "
                f"({', '.join(IMAGE_SUFFIXES)})"
            )
    classes = sorted(files["train"])
    for name in classes:
        if not _is_text(name):
            raise BadRequest(
                f"data {spec!r}: the class folder {name!r} of {source.where} has a name that is "
                "no UTF-8 text; rename it"
            )
    for part, found in files.items():
        odd = sorted(set(found) ^ set(classes))
        if odd:
            raise BadRequest(
                f"data {spec!r}: class {odd[0]!r} is in only one of train/ and {part}/ of "
                f"{source.where}; every split needs the same class folders"
            )
    pools = {}
    for part, found in files.items():
        names = [n for c in classes for n in found[c]]
        labels = torch.tensor([i for i, c in enumerate(classes) for _ in found[c]])
        fetch = partial(_decode_all, source, names, backbone)
        pools[part] = _Pool(labels, torch.arange(len(labels)), fetch, stored=True, crop=fetch)
    return classes, pools


def _is_text(name: str) -> bool:
    """Whether a file's name was UTF-8: Python keeps other bytes as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _decode_all(
    source: _Source,
    names: Sequence[str],
    backbone: Backbone,
    indices: Tensor,
    drawn: Tensor | None = None,
) -> Tensor:
    """uint8 [N, channels, height, width] of the files with these indices, decoded in threads.

    Args:
        source: of the files.
        names: of all of them.
        backbone: gives the size.
        indices: int64 [N].
        drawn: float64 [N, crops.NUMBERS], for random crops; None cuts out the middles.
    """
    size = (backbone.input_height, backbone.input_width, backbone.input_channels)
    images = np.empty((len(indices), *size), dtype=np.uint8)  # as decoders give them
    chosen = [names[int(i)] for i in indices]

    def decode(numbers: range) -> None:
        for i in numbers:
            crop = None if drawn is None else drawn[i].tolist()
            images[i] = _decode(source, chosen[i], *size, crop)

    # Enough tasks for all threads, and not so many that scheduling them counts.
    step = max(1, min(64, len(chosen) // (4 * DECODERS)))
    chunks = [range(i, min(i + step, len(chosen))) for i in range(0, len(chosen), step)]
    list(decoders().map(decode, chunks))
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def _decode(
    source: _Source,
    name: str,
    height: int,
    width: int,
    channels: int,
    drawn: Sequence[float] | None = None,
) -> np.ndarray:
    """One image as uint8 [height, width, channels].

    Its middle is cut to the aspect asked for, or the crop taken that was drawn.
    """
    from PIL import Image, ImageOps

    crop = None
    try:
        with Image.open(io.BytesIO(source.read(name))) as opened:
            if drawn is not None:
                crop = _draft(opened, drawn, height, width)
            ImageOps.exif_transpose(opened, in_place=True)
            mode = "L" if channels == 1 else "RGB"
            image = opened if opened.mode == mode else opened.convert(mode)
            image.load()
    except Exception as error:  # decoders fail on damaged bytes with whatever comes
        raise BadRequest(
            f"{source.where}: cannot read image {name} ({error}); replace or remove it"
        ) from error
    if crop is not None:
        image = image.resize((width, height), Image.Resampling.BILINEAR, crop.box(image.size))
        image = ImageOps.mirror(image) if crop.mirrored else image
    elif image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[:, :, None] if channels == 1 else pixels


def _draft(opened: Any, drawn: Sequence[float], height: int, width: int) -> Crop:
    """Where the crop that was drawn lies; a JPEG is set to be decoded no larger than that needs."""
    turned = opened.getexif().get(ORIENTATION, 1) >= 5
    size = opened.size[::-1] if turned else opened.size
    crop = RandomResizedCrop().place(drawn, *size)
    shrink = max(width / crop.width, height / crop.height)
    opened.draft(None, tuple(math.ceil(side * shrink) for side in opened.size))
    return crop


# CIFAR-10's python batches

_TRAIN_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_BATCHES = (*_TRAIN_BATCHES, "test_batch", "batches.meta")


class _ArrayUnpickler(pickle.Unpickler):
    """Reads pickled arrays and plain containers, and refuses everything that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module.endswith("core.multiarray"):
            return np.empty(0).__reduce__()[0]
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return lambda text, _: text.encode("latin1")
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a CIFAR-10 batch")


def _cifar_batches(source: _Source) -> dict[str, dict[bytes, Any]] | None:
    """The batches by name; None where the source holds none of them."""
    present = [name for name in _BATCHES if name in source.names]
    if not present:
        return None
    if len(present) < len(_BATCHES):
        missing = next(name for name in _BATCHES if name not in present)
        raise BadRequest(f"{source.where}: CIFAR-10's file {missing} is missing")
    batches = {}
    highest = 0
    for name in _BATCHES:  # names of labels come last
        try:
            content = _ArrayUnpickler(io.BytesIO(source.read(name)), encoding="bytes").load()
            if name != "batches.meta":
                labels = np.asarray(content[b"labels"], dtype=np.int64)
                content[b"data"].astype(np.uint8).reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE)
                if len(labels) != len(content[b"data"]) or not (labels >= 0).all():
                    raise ValueError("labels and images do not fit")
                highest = max(highest, int(labels.max(initial=0)))
            elif len([label.decode() for label in content[b"label_names"]]) <= highest:
                raise ValueError(f"images have the label {highest}, which has no name")
        except Exception as e:  # an unpickler fails on damaged bytes with whatever comes
            raise BadRequest(f"{source.where}: {name} is not a CIFAR-10 batch: {e}") from e
        batches[name] = content
    return batches


def _from_batches(
    batches: Mapping[str, dict[bytes, Any]], backbone: Backbone
) -> tuple[list[str], dict[str, _Pool]]:
    def join(names: Sequence[str]) -> _Pool:
        pixels = np.concatenate([batches[n][b"data"] for n in names])
        images = torch.from_numpy(pixels.reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE).astype(np.uint8))
        labels = torch.tensor([label for n in names for label in batches[n][b"labels"]])
        return _Pool.of(labels, lambda indices: _fitted(images[indices], backbone))

    classes = [name.decode() for name in batches["batches.meta"][b"label_names"]]
    return classes, {"train": join(_TRAIN_BATCHES), "test": join(["test_batch"])}


def _fitted(images: Tensor, backbone: Backbone) -> Tensor:
    """uint8 colour images at the backbone's size and channels."""
    if backbone.input_channels == 1:
        weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)  # ITU-R 601 luma
        images = (images.float() * weights).sum(1, keepdim=True).round().to(torch.uint8)
    size = (backbone.input_height, backbone.input_width)
    if images.shape[2:] == size:
        return images.contiguous()
    parts = [
        torch.nn.functional.interpolate(p.float(), size, mode="bilinear", antialias=True)
        .round()
        .clamp(0, 255)
        .to(torch.uint8)
        for p in images.split(1024)
    ]
    return torch.cat(parts)
