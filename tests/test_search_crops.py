"""Random resized crops lie in their images, have the recipe's sizes, and depend on draws alone."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hurricane.ops.backbone import load_backbone
from hurricane.search import data as data_module
from hurricane.search.crops import NUMBERS, TRIES, Crop, RandomResizedCrop
from hurricane.search.data import Augmentation, ImageData, load_data
from hurricane.search.images import StoredImages

RECIPE = RandomResizedCrop()
SIDE = 80
LARGE = replace(load_backbone("cifar32"), input_height=SIDE, input_width=SIDE, classes=2)

numbers = st.lists(st.floats(0, 1, exclude_max=True), min_size=NUMBERS, max_size=NUMBERS)
sides = st.integers(1, 5000)


def is_middle(crop: Crop) -> bool:
    """Whether it is what stands in where no try fitted."""
    width, height = crop.image
    return (crop.left, crop.top) == ((width - crop.width) // 2, (height - crop.height) // 2)


@given(numbers=numbers, width=sides, height=sides)
def test_a_crop_lies_in_its_image(numbers: list[float], width: int, height: int):
    crop = RECIPE.place(numbers, width, height)
    assert crop.width >= 1
    assert crop.height >= 1
    assert 0 <= crop.left <= crop.left + crop.width <= width
    assert 0 <= crop.top <= crop.top + crop.height <= height
    assert crop.mirrored == (numbers[-1] < 0.5)
    assert RECIPE.place(numbers, width, height) == crop


@given(numbers=numbers, width=st.integers(40, 5000), height=st.integers(40, 5000))
def test_a_crop_has_the_recipes_size_and_shape_or_is_the_middle(
    numbers: list[float], width: int, height: int
):
    crop = RECIPE.place(numbers, width, height)
    w, h = crop.width, crop.height
    # Sides are rounded to whole pixels.
    fits = (w + 0.51) * (h + 0.51) >= 0.08 * width * height
    fits &= (w + 0.51) / (h - 0.51) >= 3 / 4 and (w - 0.51) / (h + 0.51) <= 4 / 3
    assert fits or is_middle(crop)


@given(
    numbers=numbers,
    width=st.integers(8, 4000),
    height=st.integers(8, 4000),
    shrunk=st.sampled_from([1, 2, 4, 8]),
)
def test_a_crop_is_the_same_part_of_an_image_that_is_decoded_smaller(
    numbers: list[float], width: int, height: int, shrunk: int
):
    crop = RECIPE.place(numbers, width, height)
    size = (math.ceil(width / shrunk), math.ceil(height / shrunk))
    left, top, right, bottom = crop.box(size)
    assert 0 <= left < right <= size[0]
    assert 0 <= top < bottom <= size[1]
    assert left / size[0] == pytest.approx(crop.left / width, abs=1e-9)
    assert (bottom - top) / size[1] == pytest.approx(crop.height / height, abs=1e-6)


def test_crops_are_spread_over_sizes_shapes_and_places():
    drawn = RECIPE.draw(4000, torch.Generator().manual_seed(0))
    crops = [RECIPE.place(row.tolist(), 400, 300) for row in drawn]
    areas = torch.tensor([c.width * c.height / 120_000 for c in crops])
    assert 0.079 < float(areas.min()) < 0.1
    assert 0.9 < float(areas.max()) <= 1
    shapes = torch.tensor([math.log(c.width / c.height) for c in crops])
    assert float(shapes.mean()) == pytest.approx(0, abs=0.03)
    assert float(shapes.std()) == pytest.approx(2 * math.log(4 / 3) / 12**0.5, rel=0.1)
    assert {c.left == 0 for c in crops} == {c.top + c.height == 300 for c in crops} == {True, False}
    assert sum(c.mirrored for c in crops) / 4000 == pytest.approx(0.5, abs=0.04)
    free = [c.left / (400 - c.width) for c in crops if c.width < 300]
    assert sum(free) / len(free) == pytest.approx(0.5, abs=0.03)


def test_where_nothing_fits_the_middle_is_taken():
    whole = [0.999] * (2 * TRIES) + [0.3, 0.3, 0.7]  # the whole area, wider than the image
    assert RECIPE.place(whole, 300, 300) == Crop(0, 0, 300, 300, False, (300, 300))
    assert RECIPE.place(whole, 3000, 300) == Crop(1300, 0, 400, 300, False, (3000, 300))
    assert RECIPE.place(whole, 300, 3000) == Crop(0, 1300, 300, 400, False, (300, 3000))


# On images


def gradient(width: int, height: int) -> Image.Image:
    """Red tells the column, green the row, in 1/255 of the image."""
    across = torch.linspace(0, 255, width).expand(height, width)
    down = torch.linspace(0, 255, height)[:, None].expand(height, width)
    pixels = torch.stack([across, down, torch.zeros_like(down)], 2).round().to(torch.uint8)
    return Image.fromarray(pixels.numpy())


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Photographs much larger than what is asked for, so that they are decoded smaller."""
    for part, count in (("train", 12), ("test", 2)):
        for label in ("cat", "dog"):
            (tmp_path / part / label).mkdir(parents=True)
            for number in range(count):
                file = tmp_path / part / label / f"{number:03d}.jpg"
                exif = Image.Exif()
                exif[data_module.ORIENTATION] = 6 if number % 2 else 1
                gradient(640, 480).save(file, quality=95, exif=exif)
    return tmp_path


def seen(image: torch.Tensor) -> tuple[float, float, float, float]:
    """Left, right, top and bottom of what an upright gradient shows, as shares."""
    red, green = image[0].float() / 255, image[1].float() / 255
    return red[:, 0].mean(), red[:, -1].mean(), green[0].mean(), green[-1].mean()  # type: ignore


def test_photographs_are_shown_in_the_parts_that_were_drawn(photos: Path):
    data = load_data(f"folder:{photos}", LARGE)
    assert isinstance(data.train.images, StoredImages)
    chosen = torch.arange(len(data.train))
    shown = data.augmentation.show(data.train.images, chosen, torch.Generator().manual_seed(4))
    assert (shown.dtype, shown.shape) == (torch.uint8, (len(chosen), 3, SIDE, SIDE))
    drawn = RECIPE.draw(len(chosen), torch.Generator().manual_seed(4))
    names = sorted((photos / "train").rglob("*.jpg"))
    kept = [names[int(i)] for i in data.train.images.numbers]
    for image, row, file in zip(shown, drawn.tolist(), kept, strict=True):
        turned = int(file.stem) % 2 == 1
        width, height = (480, 640) if turned else (640, 480)
        crop = RECIPE.place(row, width, height)
        sides = [crop.left / width, (crop.left + crop.width) / width]
        if crop.mirrored:
            sides.reverse()
        ends = [crop.top / height, (crop.top + crop.height) / height]
        if turned:  # clockwise: the sensor's rows, from below, are columns now
            left, right, top, bottom = seen(image[[1, 0, 2]])
            assert [1 - left, 1 - right] == pytest.approx(sides, abs=0.02)
            assert [top, bottom] == pytest.approx(ends, abs=0.02)
        else:
            assert list(seen(image)) == pytest.approx([*sides, *ends], abs=0.02)


def test_a_crop_depends_on_its_draw_alone(photos: Path):
    data = load_data(f"folder:{photos}", LARGE)

    def show(seed: int, chosen: list[int]) -> torch.Tensor:
        drawn = torch.Generator().manual_seed(seed)
        return data.augmentation.show(data.train.images, torch.tensor(chosen), drawn)

    assert torch.equal(show(1, [3, 1]), show(1, [3, 1]))
    assert torch.equal(show(1, [3, 1, 0])[:2], show(1, [3, 1]))
    assert not torch.equal(show(2, [3, 1]), show(1, [3, 1]))


def test_images_to_score_by_are_whole_and_in_memory_where_they_fit(
    photos: Path, monkeypatch: pytest.MonkeyPatch
):
    data = load_data(f"folder:{photos}", LARGE)
    for split in (data.validation, data.test):
        assert isinstance(split.images, torch.Tensor)
        red, green = (split.images[0, c].float() / 255 for c in (0, 1))
        # The middle 480 of the sensor's 640 columns, and all of its rows.
        assert [float(red.min()), float(red.max())] == pytest.approx([1 / 8, 7 / 8], abs=0.02)
        assert [float(green.min()), float(green.max())] == pytest.approx([0, 1], abs=0.02)
    image = 3 * SIDE * SIDE
    monkeypatch.setattr(data_module, "IN_MEMORY_BYTES", image * len(data.validation))
    less = load_data(f"folder:{photos}", LARGE)
    assert isinstance(less.validation.images, torch.Tensor)
    assert isinstance(less.test.images, StoredImages)


def test_small_images_and_those_that_are_no_photographs_are_shifted(photos: Path):
    small = replace(LARGE, input_height=64, input_width=64)
    found: dict[str, ImageData] = {
        "small": load_data(f"folder:{photos}", small),
        "cifar": load_data(f"cifar10:{photos}", LARGE),
        "large": load_data(f"folder:{photos}", LARGE),
    }
    assert found["small"].augmentation == Augmentation(8, flip=True)
    assert found["cifar"].augmentation == Augmentation(SIDE // 8, flip=True)
    assert found["large"].augmentation == RandomResizedCrop()
    assert isinstance(found["small"].train.images, torch.Tensor)


def test_images_in_memory_cannot_be_cropped():
    with pytest.raises(TypeError, match="have lost"):
        RECIPE.show(torch.zeros(2, 3, 8, 8), torch.tensor([0]), torch.Generator())
    stored = StoredImages(lambda n: torch.zeros(len(n), 1), torch.arange(2))
    with pytest.raises(TypeError, match="cannot be cropped"):
        RECIPE.show(stored, torch.tensor([0]), torch.Generator())
