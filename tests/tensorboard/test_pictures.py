"""Pictures of routing: their size, and the colours of their cells."""

import io

import numpy as np
import pytest
from PIL import Image

from moebench.tensorboard.pictures import heatmap, partners


@pytest.mark.parametrize(("num_domains", "num_experts"), [(1, 1), (1, 8), (13, 16), (40, 128)])
def test_a_heatmap_of_any_shape_is_small(num_domains: int, num_experts: int) -> None:
    random = np.random.default_rng(0)
    counts = random.integers(0, 50, (num_domains, num_experts))
    counts[0] = 0  # a domain without assignments
    names = [f"domain {number}" for number in range(num_domains)]
    png, height, width = heatmap(counts, names, "title")
    image = Image.open(io.BytesIO(png))
    assert image.size == (width, height)
    assert max(image.size) < 1600
    assert len(png) < 110_000


def test_a_heatmap_has_the_colours_of_its_scale() -> None:
    """One expert a domain, an even domain and one without tokens, at the middle of each cell."""
    counts = np.concatenate([np.eye(8) * 9, np.ones((1, 8)), np.zeros((1, 8))])
    image = Image.open(io.BytesIO(heatmap(counts, ["x"] * 10, "title").png)).convert("RGB")
    # the frame, and to its right that of the scale, are all black that reaches across
    black = (np.asarray(image) == 0).all(2)
    (top, bottom), (left, right) = (
        np.flatnonzero(black.sum(axis) > 0.5 * black.shape[axis])[:2] for axis in (1, 0)
    )
    row, column = (bottom - top) / 10, (right - left) / 8
    found = [
        [image.getpixel((left + (x + 0.5) * column, top + (y + 0.5) * row)) for x in range(8)]
        for y in range(10)
    ]
    most, none, even, empty = (122, 0, 25), (127, 178, 217), (255, 255, 255), (153, 153, 153)
    for y in range(8):
        assert found[y] == [most if x == y else none for x in range(8)]
    assert found[8] == [even] * 8
    assert set(found[9]) == {empty}


def test_partners_show_a_fixed_pair_and_chance() -> None:
    """Colours: white for chance, the darkest for a pair that is always together."""
    counts = np.ones((1, 1, 8))
    chance = np.full((8, 8), 10)
    pairs = np.kron(np.eye(4), np.ones((2, 2))) * 70
    np.fill_diagonal(chance, 70)

    def colours(together: np.ndarray) -> dict[tuple[int, ...], int]:
        image = Image.open(io.BytesIO(partners(together[None], counts, "title").png))
        image = image.convert("RGB")
        cells = image.crop((100, 60, image.width // 2, image.height // 2))
        return {colour: number for number, colour in cells.getcolors(1 << 20)}  # pyright: ignore

    dark = (122, 0, 25)
    assert colours(chance).get(dark, 0) == 0
    assert sum(number for colour, number in colours(chance).items() if min(colour) > 245) > 1000
    assert colours(pairs)[dark] > 1000


def test_partners_of_many_experts_have_a_pixel_each() -> None:
    together = np.ones((5, 400, 400), dtype=np.int64)
    picture = partners(together, np.ones((5, 1, 400)), "title")
    assert picture.width < 1600
    assert len(picture.png) < 110_000
