"""Over 700 hostile files: the build ends, in bounded memory, and tells the truth about each."""

import json
import os
import socket
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from cots_model.images import decode_image
from cots_model.preprocess import resize
from index_builder.content import Location
from index_builder.gallery import Gallery
from index_builder.pipeline.decode import DecodePool
from index_builder.pipeline.limits import IMAGE_MEMORY_BYTES
from index_builder.pipeline.result import Decoded
from index_builder.sources.entry import Candidate, Skip
from index_builder.verify import verify_gallery
from tests.index_builder.conftest import save_picture
from tests.index_builder.damaged import picture_cases, videos
from tests.index_builder.damaged.case import Case, judge

MIB = 2**20


class Memory:
    """Largest memory of this process and of each of its descendants, looked at all the time."""

    def __init__(self) -> None:
        self.most: dict[int, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _run(self):
        me = psutil.Process()
        while not self._stop.wait(0.02):
            for process in [me, *me.children(recursive=True)]:
                try:
                    used = process.memory_info().rss
                except psutil.Error:
                    continue
                self.most[process.pid] = max(self.most.get(process.pid, 0), used)


def difference(img: Image.Image, shows: np.ndarray) -> float:
    """Mean difference of two pictures, both seen as the model sees them."""
    square, expected = (
        np.asarray(resize(one, 64, "squash"), np.float64)
        for one in (img, Image.fromarray(np.ascontiguousarray(shows)))
    )
    return float(abs(square - expected).mean())


def fault_of_picture(case: Case, img: Image.Image) -> str:
    """What is wrong with indexing this picture for that file; empty if nothing is."""
    pictures = [case.shows] if case.shows is not None else []
    judged = judge(case.data) if case.judged else None
    pictures += [judged] if judged is not None else []
    if not pictures:
        return f"{case.name} shows nothing, and was indexed"
    by = min(difference(img, shows) for shows in pictures)
    return f"{case.name} is another picture, by {by:.1f}" if by > case.tolerance else ""


def fault_of_skip(case: Case, reason: str, message: str) -> str:
    """What is wrong with skipping that file for this reason."""
    accepted = ", ".join(sorted(case.reasons)) or "none: it is good"
    return "" if reason in case.reasons else f"{case.name}: {reason} ({message}); true: {accepted}"


def skips_of(report) -> dict[str, tuple[str, str]]:
    records = map(json.loads, Path(report.skipped_file).read_text("utf-8").splitlines())
    return {record["id"]: (record["reason"], record["message"]) for record in records}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Pillow's, of damaged metadata around good pixels
def test_every_damaged_picture_is_skipped_for_a_true_reason_or_indexed_right(
    build, encoder, tmp_path
):
    root = tmp_path / "damaged"
    root.mkdir()
    cases = {}
    for case in picture_cases():
        assert case.name not in cases
        (root / case.name).write_bytes(case.data)
        cases[case.name] = case
    assert len(cases) >= 500
    before_s = time.monotonic()
    base = psutil.Process().memory_info().rss
    with Memory() as memory:
        report = build(root, tmp_path / "g", workers=2, batch_size=16, decode_timeout_s=8.0)
    took_s = time.monotonic() - before_s
    skips = skips_of(report)
    gallery = Gallery.open(tmp_path / "g")
    indexed = set(gallery.ids())
    assert indexed | set(skips) == set(cases)
    assert not indexed & set(skips)
    faults = [fault_of_skip(cases[name], *skip) for name, skip in skips.items()]
    for name in sorted(indexed):
        img = decode_image(cases[name].data)
        faults.append(fault_of_picture(cases[name], img))
        z_E = encoder.encode_images([img])[0]
        np.testing.assert_allclose(gallery.vector(gallery.row(name)), z_E, atol=1e-5)
    assert not [fault for fault in faults if fault]
    assert not any(verify_gallery(tmp_path / "g").values())
    assert took_s < 110
    parent = memory.most.pop(os.getpid())
    assert parent - base < 600 * MIB
    assert max(memory.most.values()) < IMAGE_MEMORY_BYTES + 400 * MIB  # what torch takes, shared


@pytest.mark.slow
def test_every_damaged_video_is_skipped_for_a_true_reason_or_decoded_right(encoder, tmp_path):
    cases = list(videos.cases())
    candidates = []
    for case in cases:
        path = tmp_path / case.name
        path.write_bytes(case.data)
        candidates.append(Candidate(case.name, path.as_uri(), Location(str(path)), case.name))
    assert len(cases) == len({case.name for case in cases}) >= 100
    with (
        Memory() as memory,
        DecodePool(
            encoder.preprocess, workers=2, timeout_s=10.0, window=16, modality="video"
        ) as pool,
    ):
        results = list(pool.decode(iter(candidates)))
    assert [result.number for result in results if result.last] == list(range(len(cases)))
    faults = []
    for result in results:
        case, value = cases[result.number], result.value
        if isinstance(value, Skip):
            faults.append(fault_of_skip(case, value.reason, value.message))
        else:
            faults.append(fault_of_picture(case, first_frame(value, encoder)))
    assert not [fault for fault in faults if fault]
    assert sum(isinstance(result.value, Decoded) for result in results) > 20
    memory.most.pop(os.getpid())
    assert max(memory.most.values()) < 1200 * MIB


def first_frame(decoded: Decoded, encoder) -> Image.Image:
    """The first of the frames that were decoded, normalising undone."""
    normalise = encoder.preprocess.normalise
    mean, std = (np.array(values)[:, None, None] for values in (normalise.mean, normalise.std))
    pixels_CHW = ((decoded.pixels_U[0] * std + mean) * 255).round().clip(0, 255)
    return Image.fromarray(pixels_CHW.astype(np.uint8).transpose(1, 2, 0))


def test_names_that_are_no_files_are_skipped_and_never_waited_for(build, tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    save_picture(root / "good.png")
    save_picture(outside / "secret.png")
    (root / "broken.png").symlink_to(root / "nothing.png")
    (root / "itself.png").symlink_to(root / "itself.png")
    (root / "outside.png").symlink_to(outside / "secret.png")
    (root / "folder.png").mkdir()
    (root / "device.png").symlink_to("/dev/zero")
    os.mkfifo(root / "fifo.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "socket.png"))
        report = build(root, tmp_path / "g", decode_timeout_s=5.0)
    assert Gallery.open(tmp_path / "g").ids() == ["good.png"]
    reasons = {name: reason for name, (reason, _) in skips_of(report).items()}
    assert reasons == {
        "broken.png": "broken_symlink",
        "itself.png": "symlink_loop",
        "outside.png": "symlink_outside",
        "device.png": "symlink_outside",
        "folder.png": "not_a_file",
        "fifo.png": "not_a_file",
        "socket.png": "not_a_file",
    }
