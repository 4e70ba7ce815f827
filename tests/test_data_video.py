"""Videos: the frames a player shows, every kind of damage named, and new ones that are whole or not there."""

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from data.records import DataError
from data.video import SUFFIXES, new_video, read_frames, read_header

FRAMES, RATE, SIZE = 20, 5, (128, 96)  # size: width, height
FOURCC = {".avi": "XVID", ".webm": "VP80", ".wmv": "WMV2", ".mkv": "XVID"}  # OpenCV writes mp4v into the others


def pictures(count: int = FRAMES) -> list[np.ndarray]:
    """A bright square that wanders to the right over noise, which keeps the frames from shrinking to nothing."""
    noise = np.random.default_rng(0).integers(0, 90, (count, SIZE[1], SIZE[0], 3), dtype=np.uint8)
    for index, picture in enumerate(noise):
        picture[20:50, 4 * index : 4 * index + 30] = (250, 200, 40)
    return list(noise)


def by_opencv(path: Path) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*FOURCC.get(path.suffix, "mp4v")), RATE, SIZE)
    for picture in pictures():
        writer.write(np.ascontiguousarray(picture[:, :, ::-1]))
    writer.release()
    return path


def by_pyav(path: Path, codec: str = "h264", rotation: int = 0, **options: str) -> Path:
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for picture in pictures():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def cut(path: Path, part: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    return path


def as_opencv_shows(path: Path) -> list[np.ndarray]:
    capture, frames = cv2.VideoCapture(str(path)), []
    while (frame := capture.read()[1]) is not None:
        frames.append(frame[:, :, ::-1])
    return frames


@pytest.mark.parametrize("suffix", sorted(set(SUFFIXES) - {".mpg", ".mpeg", ".mts"}))
def test_every_kind_gives_its_frames_with_their_times(tmp_path, suffix):
    path = by_opencv(tmp_path / f"clip{suffix}")
    frames = list(read_frames(path))
    assert [frame.index for frame in frames] == list(range(FRAMES))
    assert [frame.seconds for frame in frames] == pytest.approx([index / RATE for index in range(FRAMES)])
    assert read_header(path).frames == FRAMES
    for frame, expected in zip(frames, as_opencv_shows(path), strict=True):
        np.testing.assert_array_equal(frame.pixels, expected)


@pytest.mark.parametrize("suffix", [".mpg", ".mts"])
def test_streams_without_a_count_give_their_frames(tmp_path, suffix):
    path = by_pyav(tmp_path / f"clip{suffix}", "mpeg2video")
    assert len(list(read_frames(path))) == FRAMES


def test_a_stride_leaves_frames_out_and_not_their_numbers(tmp_path):
    path = by_opencv(tmp_path / "clip.mp4")
    every = list(read_frames(path))
    third = list(read_frames(path, stride=3))
    assert [frame.index for frame in third] == list(range(0, FRAMES, 3))
    for frame in third:
        np.testing.assert_array_equal(frame.pixels, every[frame.index].pixels)
        assert frame.seconds == every[frame.index].seconds


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_a_telephones_rotation_is_applied(tmp_path, rotation):
    path = by_pyav(tmp_path / "clip.mp4", rotation=rotation)
    frames = list(read_frames(path))
    assert frames[0].pixels.shape[:2] == (SIZE if rotation in (90, -90) else SIZE[::-1])
    np.testing.assert_array_equal(frames[3].pixels, as_opencv_shows(path)[3])


@pytest.mark.parametrize(
    "whole",
    [
        lambda folder: by_opencv(folder / "clip.avi"),
        lambda folder: by_pyav(folder / "clip.mp4", movflags="faststart"),  # the index lies before the frames
        lambda folder: by_pyav(folder / "clip.mkv"),
        lambda folder: by_pyav(folder / "clip.webm", codec="libvpx"),
    ],
    ids=["avi", "mp4", "mkv", "webm"],
)
def test_a_video_that_breaks_off_gives_what_it_has_and_says_where(tmp_path, whole):
    path = whole(tmp_path)
    before = list(read_frames(path))
    cut(path, 0.6)
    frames = []
    with pytest.raises(DataError, match=r"clip.* breaks off after (\d+) frames, at .* of 4.0 seconds") as error:
        frames.extend(read_frames(path))
    assert f"after {len(frames)} frames" in str(error.value)
    assert 5 <= len(frames) < 15
    for frame, expected in zip(frames[:5], before, strict=False):
        np.testing.assert_array_equal(frame.pixels, expected.pixels)


def test_damage_in_the_middle_ends_a_video(tmp_path):
    path = by_pyav(tmp_path / "clip.mp4", movflags="faststart")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    with av.open(str(path)) as container:
        whole = sum(packet.pos + packet.size <= middle for packet in container.demux(video=0) if packet.size)
    content[middle : middle + 20000] = bytes(20000)
    path.write_bytes(content)
    frames = []
    with pytest.raises(DataError, match="Invalid data"):
        frames.extend(read_frames(path))
    assert 5 <= whole <= len(frames) <= whole + 1  # the decoder mends a frame that is there in part


def test_what_a_cut_in_an_editor_hides_is_not_missing(tmp_path):
    """An edit list keeps the frames since the last key frame in the file, but shows and counts them not."""
    source, trimmed = by_pyav(tmp_path / "clip.mp4"), tmp_path / "trimmed.mp4"
    with av.open(str(source)) as old, av.open(str(trimmed), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                shift = round(1.6 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                new.mux(packet)
    frames = list(read_frames(trimmed))
    assert len(frames) == read_header(trimmed).frames == FRAMES - 8


def write_sound(container: av.container.OutputContainer, stream: av.AudioStream, seconds: int) -> None:
    for index in range(seconds * 48000 // 1024):
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate, sound.pts = 48000, 1024 * index
        container.mux(stream.encode(sound))
    container.mux(stream.encode(None))


def sound_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        write_sound(container, container.add_stream("aac", rate=48000), seconds=1)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_sound_that_goes_on_after_the_last_frame_is_no_damage(tmp_path, suffix):
    path, source = tmp_path / f"sound{suffix}", by_pyav(tmp_path / "clip.mp4")
    with av.open(str(source)) as silent, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(silent.streams.video[0])
        sound = container.add_stream("aac", rate=48000)
        for packet in silent.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
        write_sound(container, sound, seconds=7)
    assert len(list(read_frames(path))) == read_header(path).frames == FRAMES


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("text.mp4", lambda path: path.write_text("no video\n" * 1000)),
        ("text.m4v", lambda path: path.write_text("no video\n" * 1000)),
        ("empty.mkv", lambda path: path.write_bytes(b"")),
        ("empty.m4v", lambda path: path.write_bytes(b"")),
        ("no-index.mp4", lambda path: cut(by_pyav(path), 0.6)),
        ("folder.mp4", lambda path: path.mkdir()),
        ("absent.mp4", lambda path: None),
        ("sound.mp4", sound_only),
    ],
)
def test_what_is_no_video_is_named(tmp_path, capfd, name, make):
    make(tmp_path / name)
    with pytest.raises(DataError, match=f"{tmp_path / name}"):
        list(read_frames(tmp_path / name))
    assert capfd.readouterr() == ("", "")  # FFmpeg itself says nothing beside the message


@pytest.mark.parametrize(
    "name", ["a:b.mp4", "http:clip.mp4", "a\nb c.mp4", "früh 早.mp4", b"\xff.mp4".decode("utf-8", "surrogateescape")]
)
def test_any_name_is_a_file(tmp_path, monkeypatch, name):
    by_opencv(tmp_path / "clip.mp4").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert sum(1 for _ in read_frames(Path(name))) == FRAMES


@pytest.mark.parametrize("size", [(64, 48), (63, 48), (64, 47), (63, 47)])
def test_a_new_video_has_the_rate_and_the_pictures(tmp_path, size):
    """H.264 takes even sides only: an odd one grows by a pixel."""
    path, levels = tmp_path / "new.mp4", range(40, 240, 20)
    with new_video(path, Fraction(30000, 1001) / 2, size) as add:
        for level in levels:
            add(np.full((size[1], size[0], 3), level, np.uint8))
    assert [file.name for file in tmp_path.iterdir()] == ["new.mp4"]
    frames = list(read_frames(path))
    assert read_header(path).rate == Fraction(15000, 1001)
    assert frames[0].pixels.shape[:2] == (48, 64)
    assert [float(frame.pixels.mean()) for frame in frames] == pytest.approx(list(levels), abs=3)


def test_a_video_that_fails_leaves_no_file_and_the_old_one_in_place(tmp_path):
    path = tmp_path / "new.mp4"
    path.write_bytes(b"the old one")
    with pytest.raises(KeyboardInterrupt), new_video(path, Fraction(5), (64, 48)) as add:
        add(np.zeros((48, 64, 3), np.uint8))
        raise KeyboardInterrupt
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"the old one"]
