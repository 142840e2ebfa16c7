"""What JPEGs are plain, and that the way a GPU takes with them (here the CPU too) agrees."""

import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from cots_model.encoder import Encoder
from cots_model.errors import InputError
from cots_model.images import decode_image
from cots_model.preprocess import PackedPreprocess
from index_builder.content import Location
from index_builder.pipeline.decode import DecodePool
from index_builder.pipeline.gpu_jpeg import JpegDecoder, is_plain_jpeg
from index_builder.pipeline.result import Decoded
from index_builder.sources.entry import Candidate, Skip
from tests.index_builder.damaged.case import saved, scene

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(scope="module")
def photos(shared_data) -> list[bytes]:
    with tarfile.open(shared_data / "flickr8k/val-00000.tar") as archive:
        members = [member for member in archive if member.name.endswith(".jpg")][:16]
        return [archive.extractfile(member).read() for member in members]


@pytest.fixture(scope="module")
def larger(photos) -> list[bytes]:
    """As photos come: 500 pixels long, upright and lying."""
    sizes = [(500, 333), (375, 500)]
    imgs = [decode_image(data).resize(sizes[n % 2]) for n, data in enumerate(photos)]
    return [saved(img, "JPEG", quality=90) for img in imgs]


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_vectors_agree_with_those_of_the_usual_way(photos, larger, device):
    encoder = Encoder.load("cots-mini", device="cpu")
    decoder = JpegDecoder(encoder.preprocess, device)
    for jpegs in (photos[:8], larger[:8]):
        z_BE = encoder.encode_images([decode_image(jpeg) for jpeg in jpegs])
        pixels = np.stack(decoder.pixels(jpegs))
        other_BE = encoder.encode_pixels(torch.from_numpy(pixels))
        assert float((z_BE * other_BE).sum(axis=1).min()) >= 0.999
        assert float((z_BE[0] * z_BE[1]).sum()) < 0.99  # not that all are alike


def turned(img, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(img, "JPEG", exif=exif)


def test_only_whole_upright_baseline_pictures_are_plain():
    img = Image.fromarray(scene(1))
    plain = saved(img, "JPEG")
    assert is_plain_jpeg(plain)
    assert is_plain_jpeg(saved(img.convert("L"), "JPEG"))
    assert is_plain_jpeg(turned(img, 1))
    others = {
        "turned": turned(img, 6),
        "progressive": saved(img, "JPEG", progressive=True),
        "cmyk": saved(img.convert("CMYK"), "JPEG"),
        "several": saved(img, "MPO", save_all=True, append_images=[img]),
        "png": saved(img, "PNG"),
        "cut": plain[:-2],
        "cut further": plain[: len(plain) // 2],
        "text": b"\xff\xd8 and no more \xff\xd9",
        "empty": b"",
        "large": saved(Image.new("L", (5000, 4000)), "JPEG"),
    }
    assert not [name for name, data in others.items() if is_plain_jpeg(data)]


def test_a_picture_that_the_device_cannot_decode_does_not_spoil_its_batch(encoder):
    good = saved(Image.fromarray(scene(1)), "JPEG")
    decoder = JpegDecoder(encoder.preprocess, "cpu")
    pixels = decoder.pixels([good, b"\xff\xd8\xff\xd9", good])
    assert [one is None for one in pixels] == [False, True, False]
    assert decoder.pixels([]) == []


@pytest.mark.parametrize("device", DEVICES)
def test_the_pool_mixes_both_ways_in_order(encoder, tmp_path, device):
    img = Image.fromarray(scene(1, 200, 150))
    contents = []
    for number in range(80):
        kinds = [
            saved(img, "JPEG"),
            saved(img, "PNG"),
            turned(img, 6),
            saved(img, "JPEG")[:900],
        ]
        contents.append(kinds[number % 4] if number % 5 else kinds[0])
    candidates = []
    for number, data in enumerate(contents):
        path = tmp_path / f"{number:02d}.jpg"
        path.write_bytes(data)
        candidates.append(Candidate(path.name, path.as_uri(), Location(str(path)), path.name))
    options = {"workers": 2, "timeout_s": 60.0, "window": 50}
    with DecodePool(encoder.preprocess, **options) as usual:
        expected = list(usual.decode(iter(candidates)))
    with DecodePool(encoder.preprocess, **options, jpeg_decoder="gpu", jpeg_device=device) as pool:
        results = list(pool.decode(iter(candidates)))
    assert [result.number for result in results] == list(range(80))
    num_decoded = 0
    for one, other in zip(expected, results, strict=True):
        if isinstance(one.value, Skip):
            assert one.value == other.value
            continue
        assert isinstance(other.value, Decoded)
        assert other.value.candidate == one.value.candidate
        assert (other.value.sha256, other.value.stamp) == (one.value.sha256, one.value.stamp)
        assert other.value.pixels_U.shape == one.value.pixels_U.shape
        assert abs(other.value.pixels_U - one.value.pixels_U).mean() < 0.05
        num_decoded += 1
    assert num_decoded > 50


def test_an_ensemble_is_told_to_take_the_usual_way(encoder):
    packed = PackedPreprocess([encoder.preprocess])
    with pytest.raises(InputError, match="--jpeg-decoder cpu"):
        JpegDecoder(packed, "cpu")
