"""Hits with their moment: in whole videos, in segments, and texts for pictures."""

import functools

import numpy as np
import pytest

from cots_model.errors import InputError
from cots_model.videos import decode_frame, iter_clips
from index_builder.gallery import Gallery
from index_builder.search import FrameScore, search_gallery
from tests.galleries import publish_texts, publish_videos
from tests.videos import scene_of, write_clip


class PatchEncoder:
    """A picture's vector is its patches of colour: a random model takes all pictures for one."""

    name, fingerprint, dim = "patches", "0" * 64, 36

    def encode_images(self, imgs):
        patches = [np.asarray(img.resize((4, 3))).reshape(-1) / 255 - 0.5 for img in imgs]
        return self._unit(np.array(patches))

    def encode_texts(self, texts):
        seeds = [[*text.encode()] for text in texts]
        return self._unit(np.array([np.random.default_rng(s).normal(size=36) for s in seeds]))

    def _unit(self, values_NE):
        return (values_NE / np.linalg.norm(values_NE, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def encoder():
    return PatchEncoder()


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Clips of 2, 20 and 85 tenths of a second."""
    folder = tmp_path_factory.mktemp("clips")
    for count in (2, 20, 85):
        paint = functools.partial(scene_of, film=count)
        write_clip(folder / f"{count}.mp4", count, paint=paint)
    return folder


@pytest.fixture(scope="module")
def videos(clips, encoder, tmp_path_factory):
    return Gallery.open(publish_videos(tmp_path_factory.mktemp("g") / "clips", encoder, clips))


@pytest.fixture(scope="module")
def segments(clips, encoder, tmp_path_factory):
    root = tmp_path_factory.mktemp("g") / "segments"
    return Gallery.open(publish_videos(root, encoder, clips, segment_s=2))


def test_the_moment_is_the_frame_that_is_looked_for(videos, clips, encoder):
    """Searched by a frame of its own, a video gives that frame."""
    for name in ("20.mp4", "85.mp4"):
        [clip] = iter_clips(clips / name)
        for number in (0, 6, 15):
            query_1E = encoder.encode_images([clip.frames[number]])
            [hits] = search_gallery(videos, query_1E, k=3, rank_by="frame")
            assert hits[0].id == name
            assert hits[0].moment.frame == number
            assert hits[0].moment.time_s == clip.times_s[number]
            assert hits[0].score == hits[0].moment.score == pytest.approx(1, abs=2e-3)
            shown = decode_frame(clips / name, hits[0].moment.time_s)
            assert shown.tobytes() == clip.frames[number].tobytes()


@pytest.mark.parametrize("rank_by", ["mean", "frame"])
def test_scores_are_of_the_mean_or_of_the_best_frame(videos, encoder, rank_by):
    query_QE = encoder.encode_texts(["a dog", "red snow"])
    for query_E, hits in zip(
        query_QE, search_gallery(videos, query_QE, k=9, rank_by=rank_by), strict=True
    ):
        assert sorted(hit.id for hit in hits) == ["2.mp4", "20.mp4", "85.mp4"]
        assert [hit.score for hit in hits] == sorted((h.score for h in hits), reverse=True)
        for hit in hits:
            row = videos.row(hit.id)
            of_frames_F = videos.frames.vectors(row) @ query_E
            assert hit.moment.score == pytest.approx(of_frames_F.max(), abs=1e-6)
            assert hit.moment.time_s == videos.frames.times(row)[hit.moment.frame]
            own = videos.vector(row) @ query_E if rank_by == "mean" else of_frames_F.max()
            assert hit.score == pytest.approx(own, abs=1e-6)
            assert hit.frames is None


def test_all_frames_are_told_if_asked_for(videos, encoder):
    [hits] = search_gallery(videos, encoder.encode_texts(["x"]), k=1, with_frames=True)
    frames = hits[0].frames
    assert len(frames) == 16
    moment = hits[0].moment
    assert frames[moment.frame] == FrameScore(moment.time_s, moment.score)
    assert max(frame.score for frame in frames) == moment.score


def test_a_segment_is_found_and_its_times_count_from_the_start_of_the_video(
    segments, clips, encoder
):
    assert [segments.item(row).id for row in range(len(segments))] == [
        "2.mp4",
        "20.mp4",
        "85.mp4#t=0,2",
        "85.mp4#t=2,4",
        "85.mp4#t=4,6",
        "85.mp4#t=6,8.5",
    ]
    sixth = list(iter_clips(clips / "85.mp4", segment_s=2))[2].frames[6]
    query_1E = encoder.encode_images([sixth])
    [hits] = search_gallery(segments, query_1E, k=1, rank_by="frame")
    assert (hits[0].id, hits[0].start_s, hits[0].end_s) == ("85.mp4#t=4,6", 4.0, 6.0)
    assert hits[0].moment.frame == 6
    assert hits[0].moment.time_s == 4.8


@pytest.mark.parametrize("rank_by", ["mean", "frame"])
def test_pages_and_cut_offs_are_parts_of_the_whole(segments, encoder, rank_by):
    query_1E = encoder.encode_texts(["a dog"])
    [everything] = search_gallery(segments, query_1E, k=6, rank_by=rank_by)
    pages = [
        search_gallery(segments, query_1E, k=4, offset=o, rank_by=rank_by)[0] for o in (0, 4, 8)
    ]
    assert [hit for page in pages for hit in page] == everything
    cutoff = everything[2].score
    for offset in (0, 1, 5):
        [above] = search_gallery(
            segments, query_1E, k=6, offset=offset, min_score=cutoff, rank_by=rank_by
        )
        assert above == [hit for hit in everything if hit.score >= cutoff][offset:]


def test_a_video_gallery_takes_no_query_of_another_width(videos):
    for rank_by in ("mean", "frame"):
        with pytest.raises(InputError, match="accepted here"):
            search_gallery(videos, np.zeros((1, 3), np.float32), k=1, rank_by=rank_by)


def test_a_picture_finds_its_text(encoder, tmp_path):
    texts = ["a dog runs", "two red cats\nin snow", "a woman on the beach"]
    source = tmp_path / "texts.txt"
    source.write_text("\n".join(texts))
    gallery = Gallery.open(publish_texts(tmp_path / "g", encoder, texts, source))
    query_1E = encoder.encode_texts([texts[1]])
    [hits] = search_gallery(gallery, query_1E, k=3)
    assert (hits[0].text, hits[0].metadata) == (texts[1], {"line": 1})
    assert (hits[0].moment, hits[0].start_s, hits[0].frames) == (None, None, None)
    assert gallery.read_content(gallery.row("001")) == texts[1].encode()
    with pytest.raises(InputError, match="holds text items, which have no frames"):
        search_gallery(gallery, query_1E, k=1, rank_by="frame")


def test_originals_that_were_touched_are_hashed_once(encoder, clips, tmp_path, monkeypatch):
    """And never read into memory."""
    import index_builder.content as module

    source = tmp_path / "clips"
    source.mkdir()
    path = source / "a.mp4"
    path.write_bytes((clips / "20.mp4").read_bytes())
    gallery = Gallery.open(publish_videos(tmp_path / "g", encoder, source))
    hashed = []
    monkeypatch.setattr(
        module, "_sha256", lambda handle, right=module._sha256: hashed.append(1) or right(handle)
    )
    for touched, expected in ((False, 0), (True, 1)):
        if touched:
            path.touch()
        for _ in range(3):
            with gallery.open_content(0) as file:
                assert file.tell() == 0
                assert file.read() == path.read_bytes()
        assert len(hashed) == expected
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for _ in range(3):  # a file that is another is hashed once, too
        with pytest.raises(module.ContentError, match="no longer what was indexed"):
            gallery.open_content(0)
    assert len(hashed) == 2
    path.write_bytes(data + b"x")
    with pytest.raises(module.ContentError, match="no longer what was indexed"):
        gallery.open_content(0)
    assert len(hashed) == 2  # its length tells


def test_scores_are_compared_with_a_bound_as_they_are_sent(segments, encoder):
    query_1E = encoder.encode_texts(["a dog"])
    [hits] = search_gallery(segments, query_1E, k=5)
    score = hits[2].score
    above = np.nextafter(score, 2)
    for bound, count in ((score, 3), (above, 2), (1e300, 0), (-1e300, 5)):
        [found] = search_gallery(segments, query_1E, k=5, min_score=float(bound))
        assert len(found) == count
