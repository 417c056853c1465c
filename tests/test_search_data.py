"""Data sets come in three fixed, disjoint splits at the backbone's size."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hurricane.ops.backbone import load_backbone
from hurricane.ops.errors import BadRequest
from hurricane.search.data import Augmentation, ImageData, Split, load_data
from hurricane.search.images import StoredImages, read_ahead, take

DIGITS = load_backbone("digits32")
SMALL = replace(load_backbone("cifar32"), input_height=8, input_width=8, classes=2)
CLASSES = ("cat", "dog")


def write_images(
    folder: Path, part: str, count: int, classes: tuple[str, ...] = CLASSES, side: int = 8
) -> None:
    """Images whose red is the class, green the number, blue the split."""
    for label, name in enumerate(classes):
        place = folder / part / name
        place.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            colour = (label * 100, number, len(part))
            Image.new("RGB", (side, side), colour).save(place / f"{number:03d}.png")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_images(tmp_path / "photos", "train", 20)
    write_images(tmp_path / "photos", "test", 5)
    return tmp_path / "photos"


def keys(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_digits_are_split_into_disjoint_parts_with_every_class_alike():
    data = load_data("digits", DIGITS)
    assert (len(data.train), len(data.validation), len(data.test)) == (1137, 300, 360)
    assert data.validation.labels.bincount().tolist() == [30] * 10
    assert data.test.labels.bincount().tolist() == [36] * 10
    assert data.train.images.shape[1:] == (1, 32, 32)
    assert data.train.images.dtype == torch.uint8
    parts = [keys(split.images) for split in (data.train, data.validation, data.test)]
    assert parts[0].isdisjoint(parts[1])
    assert parts[2].isdisjoint(parts[0] | parts[1])


def test_the_splits_are_the_same_for_every_seed(photos: Path):
    for spec, backbone in (
        ("digits", DIGITS),
        ("digits?limit=50", DIGITS),
        (f"folder:{photos}", SMALL),
    ):
        one, other = (load_data(spec, backbone, seed) for seed in (3, 4))
        for part in ("train", "validation", "test"):
            images, same = getattr(one, part).images, getattr(other, part).images
            assert torch.equal(images, same)
    digits = load_data("digits", DIGITS)
    assert not torch.equal(digits.test.images[:300], digits.validation.images)


def test_normalisation_comes_from_the_training_images():
    data = load_data("digits", DIGITS)
    ready = data.normalise(data.train.images)
    assert ready.mean().item() == pytest.approx(0, abs=1e-4)
    assert ready.std().item() == pytest.approx(1, abs=1e-3)


def test_limit_keeps_as_many_of_every_class_in_every_split():
    data = load_data("digits?limit=50", DIGITS)
    for split in (data.train, data.validation, data.test):
        assert split.labels.bincount().tolist() == [5] * 10
    whole = load_data("digits", DIGITS)
    assert keys(data.validation.images) < keys(whole.validation.images)


def test_a_folder_gives_validation_images_out_of_its_training_images(photos: Path):
    data = load_data(f"folder:{photos}", SMALL)
    assert data.classes == CLASSES
    assert (len(data.train), len(data.validation), len(data.test)) == (36, 4, 10)
    assert data.validation.labels.bincount().tolist() == [2, 2]
    for split, part in ((data.train, "train"), (data.validation, "train"), (data.test, "test")):
        assert (split.images[:, 0, 0, 0] == split.labels * 100).all()
        assert (split.images[:, 2] == len(part)).all()
    assert keys(data.train.images).isdisjoint(keys(data.validation.images))


def test_a_folder_with_validation_images_keeps_its_splits(photos: Path):
    write_images(photos, "validation", 3)
    data = load_data(f"folder:{photos}", SMALL)
    assert (len(data.train), len(data.validation), len(data.test)) == (40, 6, 10)
    assert (data.validation.images[:, 2] == len("validation")).all()


def test_photographs_are_mirrored_in_training_and_digits_are_not(photos: Path):
    assert load_data(f"folder:{photos}", SMALL).augmentation == Augmentation(1, flip=True)
    assert load_data("digits", DIGITS).augmentation == Augmentation(2, flip=False)


def test_a_balanced_draw_takes_the_classes_in_turn():
    labels = torch.tensor([0] * 30 + [1] * 6 + [2] * 2)
    split = Split(torch.arange(38, dtype=torch.uint8).view(-1, 1, 1, 1), labels)
    assert split.balanced(6).labels.bincount().tolist() == [2, 2, 2]
    assert split.balanced(14).labels.bincount().tolist() == [6, 6, 2]
    drawn = split.balanced(10)
    assert torch.equal(labels[drawn.images.flatten().long()], drawn.labels)
    assert torch.equal(split.balanced(10).images, drawn.images)
    assert len(split.balanced(100)) == 38


def test_the_middle_of_a_wide_photograph_is_taken_and_it_is_not_squeezed(photos: Path):
    wide = Image.new("RGB", (24, 8), "black")
    wide.paste((200, 200, 200), (8, 0, 16, 8))
    for path in photos.rglob("*.png"):
        wide.save(path)
    assert (load_data(f"folder:{photos}", SMALL).train.images == 200).all()


def test_a_photograph_stands_as_it_was_taken(photos: Path):
    """A camera held on its side stores the sensor's rows and says how it was held."""
    image = Image.new("RGB", (8, 8), "black")
    image.paste((200, 200, 200), (0, 0, 4, 8))  # left half
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned clockwise, so that left becomes top
    for path in photos.rglob("*.png"):
        image.save(path, exif=exif)
    images = load_data(f"folder:{photos}", SMALL).train.images
    assert (images[:, :, :4] == 200).all()
    assert (images[:, :, 4:] == 0).all()


def test_a_zip_with_a_folder_around_it_reads_like_the_folder(photos: Path, tmp_path: Path):
    archive = tmp_path / "photos.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in photos.rglob("*.png"):
            file.write(path, Path("photos") / path.relative_to(photos))
    zipped, folder = load_data(f"cifar10:{archive}", SMALL), load_data(f"folder:{photos}", SMALL)
    assert torch.equal(zipped.train.images, folder.train.images)
    assert torch.equal(zipped.validation.labels, folder.validation.labels)


def test_images_of_other_sizes_and_channels_fit_the_backbone(tmp_path: Path):
    for part in ("train", "test"):
        write_images(tmp_path, part, 4, side=21)
    grey = load_data(f"folder:{tmp_path}", replace(SMALL, input_channels=1))
    assert grey.train.images.shape[1:] == (1, 8, 8)
    colour = load_data(f"folder:{tmp_path}", SMALL)
    assert (colour.train.images[:, 0, 4, 4] == colour.train.labels * 100).all()


def batch_files(count: int) -> dict[str, bytes]:
    """CIFAR-10's python batches as the original has them, with two classes."""
    rng = np.random.default_rng(0)
    files = {}
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        pixels = rng.integers(0, 256, (count, 3072)).astype(np.uint8)
        content = {b"data": pixels, b"labels": [i % 2 for i in range(count)]}
        files[name] = pickle.dumps(content, protocol=2)
    files["batches.meta"] = pickle.dumps({b"label_names": [b"cat", b"dog"]}, protocol=2)
    return files


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def test_python_batches_read_from_a_tar_file_and_from_a_folder(tmp_path: Path):
    backbone = replace(SMALL, input_height=32, input_width=32)
    files = batch_files(10)
    write_tar(tmp_path / "cifar.tar.gz", files)
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    packed = load_data(f"cifar10:{tmp_path / 'cifar.tar.gz'}", backbone)
    loose = load_data(f"cifar10:{folder}", backbone)
    assert packed.classes == ("cat", "dog")
    assert (len(packed.train), len(packed.validation), len(packed.test)) == (46, 4, 10)
    assert torch.equal(packed.train.images, loose.train.images)
    original = pickle.loads(files["test_batch"])[b"data"].reshape(-1, 3, 32, 32)
    assert np.array_equal(packed.test.images.numpy(), original)


class Harmful:
    def __reduce__(self):
        return (os.system, ("exit 1",))


def test_a_batch_that_would_run_code_is_refused(tmp_path: Path):
    files = batch_files(4) | {"test_batch": pickle.dumps(Harmful())}
    write_tar(tmp_path / "bad.tar.gz", files)
    with pytest.raises(BadRequest, match=r"test_batch is not a CIFAR-10 batch.*system"):
        load_data(f"cifar10:{tmp_path / 'bad.tar.gz'}", SMALL)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("digits:here", "takes no path"),
        ("faces:here", "kind 'faces' is unknown"),
        ("folder:", "name the folder"),
        ("digits?limit=none", "whole number"),
        ("digits?limits=3", "option 'limits' is unknown"),
        ("folder:/nowhere/at/all", "does not exist"),
        (f"folder:{__file__}", "neither a folder nor a zip"),
    ],
)
def test_a_wrong_spec_is_explained(spec: str, words: str):
    with pytest.raises(BadRequest, match=words):
        load_data(spec, DIGITS)


def test_a_broken_image_is_named(photos: Path):
    (photos / "train" / "dog" / "007.png").write_bytes(b"not a picture")
    with pytest.raises(BadRequest, match=r"cannot read image train/dog/007\.png"):
        load_data(f"folder:{photos}", SMALL)


def test_splits_with_different_classes_are_refused(photos: Path):
    (photos / "test" / "dog").rename(photos / "test" / "wolf")
    with pytest.raises(BadRequest, match="only one of train/ and test/"):
        load_data(f"folder:{photos}", SMALL)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_the_validation_folder_has_the_names_that_people_give_it(photos: Path, name: str):
    write_images(photos, name, 3)
    data = load_data(f"folder:{photos}", SMALL)
    assert (len(data.train), len(data.validation), len(data.test)) == (40, 6, 10)
    assert (data.validation.images[:, 2] == len(name)).all()


def test_without_a_test_folder_the_validation_folder_is_the_test_split(tmp_path: Path):
    """ImageNet's own layout: the labels of its test images are secret."""
    write_images(tmp_path, "train", 20)
    write_images(tmp_path, "val", 5)
    data = load_data(f"folder:{tmp_path}", SMALL)
    assert (len(data.train), len(data.validation), len(data.test)) == (36, 4, 10)
    assert (data.test.images[:, 2] == len("val")).all()
    assert (data.validation.images[:, 2] == len("train")).all()


def test_class_folders_alone_are_split_by_class(tmp_path: Path):
    write_images(tmp_path / "photos", ".", 20)
    data = load_data(f"folder:{tmp_path}/photos", SMALL)
    assert data.classes == CLASSES
    for split, count in ((data.train, 14), (data.validation, 2), (data.test, 4)):
        assert split.labels.bincount().tolist() == [count] * 2
        assert (split.images[:, 0, 0, 0] == split.labels * 100).all()
    parts = [keys(split.images) for split in (data.train, data.validation, data.test)]
    assert len(set().union(*parts)) == sum(map(len, parts)) == 40
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as file:
        for path in (tmp_path / "photos").rglob("*.png"):
            file.write(path, path.relative_to(tmp_path))
    zipped = load_data(f"folder:{tmp_path}/photos.zip", SMALL)
    assert torch.equal(zipped.test.images, data.test.images)


def on_the_disk(spec: str, monkeypatch: pytest.MonkeyPatch) -> ImageData:
    with monkeypatch.context() as patch:
        patch.setattr("hurricane.search.data.IN_MEMORY_BYTES", 0)
        return load_data(spec, SMALL)


def test_what_does_not_fit_into_memory_stays_on_the_disk(
    photos: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = load_data(f"folder:{photos}", SMALL)
    data = on_the_disk(f"folder:{photos}", monkeypatch)
    for name in ("train", "validation", "test"):
        stored, images = getattr(data, name).images, getattr(whole, name).images
        assert isinstance(stored, StoredImages)
        assert torch.equal(getattr(data, name).labels, getattr(whole, name).labels)
        assert torch.equal(stored[:], images)
        assert torch.equal(stored[torch.tensor([3, 1])], images[[3, 1]])
        assert torch.equal(take(stored, torch.tensor([3, 1]))[:], images[[3, 1]])
        batches = list(stored.split(3))
        assert torch.equal(torch.cat(batches), images)
        assert [len(b) for b in batches] == [len(b) for b in images.split(3)]
    assert (data.mean, data.std) == (whole.mean, whole.std)
    assert torch.equal(data.train.balanced(6).images[:], whole.train.balanced(6).images)
    # Nothing is kept: what changes on the disk changes here.
    write_images(photos, "test", 5, side=9)
    Image.new("RGB", (8, 8), (1, 2, 3)).save(photos / "test" / "cat" / "000.png")
    assert data.test.images[:1].flatten(2)[0, :, 0].tolist() == [1, 2, 3]


def test_a_broken_image_on_the_disk_is_named_when_it_is_read(
    photos: Path, monkeypatch: pytest.MonkeyPatch
):
    data = on_the_disk(f"folder:{photos}", monkeypatch)
    (photos / "test" / "dog" / "004.png").write_bytes(b"not a picture")
    with pytest.raises(BadRequest, match=r"cannot read image test/dog/004\.png"):
        list(data.test.images.split(4))


def test_reading_ahead_keeps_the_order_and_a_limit():
    begun: list[int] = []

    def fetch(number: int) -> int:
        begun.append(number)
        return 10 * number

    found = read_ahead(fetch, iter(range(50)), depth=3)
    assert [next(found) for _ in range(4)] == [0, 10, 20, 30]
    assert len(begun) <= 7
    assert list(found) == [10 * n for n in range(4, 50)]
    assert sorted(begun) == list(range(50))
    stopped = read_ahead(fetch, iter(range(50)), depth=3)
    next(stopped)
    stopped.close()
    assert len(begun) < 60


def test_a_folder_without_test_images_is_refused(tmp_path: Path):
    write_images(tmp_path, "train", 3)
    with pytest.raises(BadRequest, match="no images in test/"):
        load_data(f"folder:{tmp_path}", SMALL)


def test_one_training_image_is_too_few(tmp_path: Path):
    write_images(tmp_path, "train", 1)
    write_images(tmp_path, "test", 1)
    with pytest.raises(BadRequest, match="no image for the validation split"):
        load_data(f"folder:{tmp_path}", SMALL)


def test_the_head_must_have_the_datas_classes(photos: Path):
    with pytest.raises(BadRequest, match="has 2 classes, the head of cifar32 has 10"):
        load_data(f"folder:{photos}", replace(SMALL, classes=10))


def test_augmentation_shifts_and_flips_each_image_by_its_own_draw():
    image = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8)
    batch = image.expand(200, -1, -1, -1)
    flipped = Augmentation(flip=True).apply(batch, torch.Generator().manual_seed(0))
    straight = (flipped == image).flatten(1).all(1)
    mirrored = (flipped == image.flip(3)).flatten(1).all(1)
    assert (straight ^ mirrored).all()
    assert 60 < int(mirrored.sum()) < 140
    shifted = Augmentation(shift=2).apply(batch, torch.Generator().manual_seed(0))
    # An image's pixel (4, 4) tells by how much it moved: all 25 shifts occur.
    assert {int(p) for p in shifted[:, 0, 4, 4]} == {
        8 * (4 + dy) + 4 + dx for dy in range(-2, 3) for dx in range(-2, 3)
    }


def test_real_photographs_load_at_the_backbones_size(data_folder: Path):
    path = data_folder / "images" / "clothing10_128.zip"
    data = load_data(f"folder:{path}?limit=100", load_backbone("cifar32"))
    assert len(data.classes) == 10
    assert data.train.images.shape == (100, 3, 32, 32)
    assert 0.1 < min(data.std) < max(data.std) < 0.5


def test_a_class_folder_whose_name_is_no_text_is_refused(tmp_path: Path) -> None:
    """No file could tell the class: training would end with an error."""
    write_images(tmp_path, "train", 2)
    write_images(tmp_path, "test", 1)
    for part in ("train", "test"):
        (tmp_path / part / CLASSES[0]).rename(tmp_path / part / os.fsdecode(b"caf\xe9"))
    with pytest.raises(BadRequest, match=r"class folder 'caf\\udce9'.*rename it"):
        load_data(f"folder:{tmp_path}", SMALL)
