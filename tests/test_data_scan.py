"""The scan of image files: what it sees, what it keeps and when it looks again, and which images it finds alike."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from data.checks import scan, scan_cache
from data.checks.lookalikes import MOST_COARSE, MOST_FINE, pairs_alike
from data.checks.scan import look_of, scan_images

LONG_AGO = (1_000_000_000, 1_000_000_000)


def photo(seed: int, size: tuple[int, int] = (200, 150)) -> Image.Image:
    """Soft blots and a little noise, as unlike other seeds as photos are."""
    draw = np.random.default_rng(seed)
    blots = Image.fromarray(draw.integers(0, 256, (6, 8, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noise = draw.integers(-6, 7, (size[1], size[0], 3))
    return Image.fromarray(np.clip(np.asarray(blots) + noise, 0, 255).astype(np.uint8))


def write(path: Path, image: Image.Image | None = None, **options) -> Path:
    """A file that was not written just now."""
    (image or photo(len(path.name))).save(path, **options)
    os.utime(path, LONG_AGO)
    return path


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that are decoded from here on."""
    names, decode = [], scan.pixels_of
    monkeypatch.setattr(scan, "pixels_of", lambda content, path: names.append(path.name) or decode(content, path))
    return names


@pytest.fixture
def kept_in(tmp_path, monkeypatch):
    monkeypatch.setattr(scan_cache, "FOLDER", tmp_path / "scans")
    return tmp_path / "scans"


def test_a_file_is_decoded_once_until_it_changes(tmp_path, decoded):
    first, second = write(tmp_path / "a.jpg"), write(tmp_path / "bb.png", photo(2).convert("LA"))
    seen = scan_images([first, second, first], tmp_path)
    assert sorted(decoded) == ["a.jpg", "bb.png"]
    assert (seen[first].width, seen[first].height, seen[first].error) == (200, 150, None)
    assert seen[second].facts.kinds == ["greyscale", "alpha"]
    decoded.clear()
    assert scan_images([second, first], tmp_path) == seen and decoded == []

    third = write(tmp_path / "ccc.jpg")
    assert scan_images([third], tmp_path)[third].sha256 != seen[first].sha256
    write(first, photo(9))
    os.utime(first, (LONG_AGO[0], LONG_AGO[1] + 1))
    again = scan_images([first, second, third], tmp_path)
    assert decoded == ["ccc.jpg", "a.jpg"] and again[second] == seen[second]
    assert again[first].sha256 != seen[first].sha256


def test_what_was_just_written_or_cannot_be_read_is_looked_at_again(tmp_path, decoded):
    new, bad = tmp_path / "new.png", tmp_path / "bad.jpg"
    photo(1).save(new)
    write(bad)
    bad.write_bytes(bad.read_bytes()[:-500])
    os.utime(bad, LONG_AGO)
    missing = tmp_path / "missing.jpg"
    seen = scan_images([new, bad, missing], tmp_path)
    assert seen[new].error is None and "bad.jpg" in seen[bad].error and "missing.jpg" in seen[missing].error
    content = new.read_bytes()
    photo(2).save(new)
    stat = new.stat()
    new.write_bytes((new.read_bytes() + bytes(len(content)))[: len(content)])  # another content of the same size
    os.utime(new, ns=(stat.st_mtime_ns, stat.st_mtime_ns))
    decoded.clear()
    scan_images([new, bad], tmp_path)
    assert sorted(decoded) == ["bad.jpg", "new.png"]


def test_a_damaged_or_foreign_cache_is_written_anew(tmp_path, kept_in, decoded, monkeypatch):
    path = write(tmp_path / "a.jpg")
    seen = scan_images([path], tmp_path)
    (cache,) = kept_in.iterdir()
    whole = cache.read_bytes()
    for content in (b"", whole[:-1], whole[:40] + b"\xff" + whole[41:], os.urandom(len(whole))):
        cache.write_bytes(content)
        decoded.clear()
        assert scan_images([path], tmp_path) == seen and decoded == ["a.jpg"]
        assert cache.read_bytes() == whole
    monkeypatch.setattr(scan_cache, "FORMAT", scan_cache.FORMAT + 1)
    assert scan_images([path], tmp_path) == seen and decoded == ["a.jpg"] * 2
    assert [each.name for each in kept_in.iterdir()] == [cache.name]


def test_without_a_place_to_write_it_says_so_once_and_scans(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scan_cache, "FOLDER", write(tmp_path / "a-file.png"))
    path = write(tmp_path / "a.jpg")
    for _ in range(2):
        assert scan_images([path], tmp_path)[path].width == 200
    assert capsys.readouterr().err.count("cannot be written") == 1


def test_an_interrupted_scan_keeps_what_it_saw(tmp_path, monkeypatch, decoded):
    paths = [write(tmp_path / f"{'x' * number}.jpg", photo(1)) for number in range(1, 4)]
    monkeypatch.setattr(scan, "AT_ONCE", 1)
    decode = scan.pixels_of

    def interrupted(content, path):
        if path == paths[2]:
            raise KeyboardInterrupt
        return decode(content, path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(scan, "pixels_of", interrupted)
        scan_images(paths, tmp_path)
    decoded.clear()
    scan_images(paths, tmp_path)
    assert decoded == ["xxx.jpg"]


def alike(*images: Image.Image) -> bool:
    looks = b"".join(look_of(np.asarray(image.convert("RGB"))) for image in images)
    return any(len(i) for i, _, _ in pairs_alike(np.frombuffer(looks, np.uint8).reshape(len(images), -1)))


def test_a_photo_saved_otherwise_looks_the_same_and_another_does_not(tmp_path):
    image = photo(0)
    image.save(tmp_path / "poor.jpg", quality=20)
    changed = [
        Image.open(tmp_path / "poor.jpg"),
        image.resize((90, 80)),
        ImageEnhance.Brightness(image).enhance(0.8),
        image.convert("L"),
        image.crop((2, 2, 199, 149)),
    ]
    assert [alike(image, each) for each in changed] == [True] * 5
    assert not alike(*map(photo, range(40)))
    assert look_of(np.full((20, 30, 3), 7, np.uint8)) is None


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.integers(0, 150), st.floats(0, 0.2))
def test_the_search_finds_exactly_the_pairs_within_both_distances(seed, count, share):
    draw = np.random.default_rng(seed)
    looks = draw.integers(0, 256, (5, scan_cache.LOOK_BYTES), np.uint8)[draw.integers(0, 5, count)]
    looks ^= np.packbits(draw.random((count, 8 * scan_cache.LOOK_BYTES)) < share, axis=1)
    bits = np.unpackbits(looks, axis=1)
    differing = (bits[:, None] != bits).astype(int)
    coarse, fine = differing[:, :, :64].sum(axis=2), differing[:, :, 64:].sum(axis=2)
    wanted = np.argwhere(np.triu((coarse <= MOST_COARSE) & (fine <= MOST_FINE), 1)).tolist()
    found = [list(pair) for i, j, _ in pairs_alike(looks) for pair in zip(i.tolist(), j.tolist(), strict=True)]
    assert sorted(found) == wanted
