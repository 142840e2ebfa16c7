"""Searches at Milvus's limits, and with a server that is gone, stands still or comes back."""

from __future__ import annotations

import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cots_model.errors import GalleryError, InputError
from index_builder.gallery import Gallery
from index_builder.indexes.exact import exact_scores
from index_builder.milvus import client as client_module
from index_builder.milvus import index as index_module
from index_builder.milvus.address import parse_address
from index_builder.milvus.client import MilvusError, connect
from index_builder.milvus.export import export_gallery
from index_builder.milvus.options import ExportOptions
from tests.index_builder.stores import plain_items, publish_gallery, unit_vectors

COUNT = 17_000


def export(tmp_path, url, vectors_NE):
    items = plain_items([f"{n:06d}" for n in range(len(vectors_NE))])
    source = publish_gallery(tmp_path / "source", vectors_NE, items)
    options = ExportOptions(gallery=source, to=f"{url}/photos", target=tmp_path / "target")
    export_gallery(options)
    return Gallery.open(tmp_path / "target")


def brute_force(vectors_NE, query_E, k):
    scores_N = exact_scores(query_E, vectors_NE)
    order = np.lexsort((np.arange(len(scores_N)), -scores_N))[:k]
    return scores_N[order], order


@pytest.mark.slow
def test_search_gives_more_than_milvus_does_at_once(lite, tmp_path, monkeypatch):
    """And orders more ties than it gives at once."""
    vectors_NE = unit_vectors(COUNT, dim=8)
    vectors_NE[100:16_900] = vectors_NE[100]
    gallery = export(tmp_path, lite, vectors_NE)
    query_QE = np.stack([unit_vectors(1, dim=8, seed=3)[0], vectors_NE[100]])
    for k in (3, 16_384, COUNT):
        scores_QK, rows_QK = gallery.search(query_QE, k)
        for query_E, scores_K, rows_K in zip(query_QE, scores_QK, rows_QK, strict=True):
            expected_K, expected_rows_K = brute_force(vectors_NE, query_E, k)
            assert rows_K.tolist() == expected_rows_K.tolist()
            assert scores_K.tobytes() == expected_K.tobytes()
    monkeypatch.setattr(index_module, "MAX_SCAN_ROWS", COUNT - 1)
    with pytest.raises(InputError, match="at most 16,384 results"):
        gallery.search(query_QE, 16_385)
    scores_QK, _ = gallery.search(query_QE, 3)  # the ties that are found do
    assert (
        scores_QK.tobytes()
        == np.array([brute_force(vectors_NE, query_E, 3)[0] for query_E in query_QE]).tobytes()
    )


def test_batches_too_large_for_one_answer_are_cut(lite, tmp_path, monkeypatch):
    vectors_NE = unit_vectors(200)
    gallery = export(tmp_path, lite, vectors_NE)
    monkeypatch.setattr(index_module, "MAX_ANSWER_BYTES", 42 * 4 * 16 * 3)  # three queries at k=10
    query_QE = unit_vectors(10, seed=8)
    scores_QK, rows_QK = gallery.search(query_QE, 10)
    for query_E, scores_K, rows_K in zip(query_QE, scores_QK, rows_QK, strict=True):
        expected_K, expected_rows_K = brute_force(vectors_NE, query_E, 10)
        assert rows_K.tolist() == expected_rows_K.tolist()
        assert scores_K.tobytes() == expected_K.tobytes()


def test_search_from_several_threads(lite, tmp_path):
    vectors_NE = unit_vectors(300)
    gallery = export(tmp_path, lite, vectors_NE)
    query_QE = unit_vectors(40, seed=8)
    wrong = []

    def search(start: int) -> None:
        for query_E in query_QE[start::4]:
            _, [rows_K] = gallery.search(query_E[None], 5)
            if rows_K.tolist() != brute_force(vectors_NE, query_E, 5)[1].tolist():
                wrong.append(query_E)

    threads = [threading.Thread(target=search, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


def test_server_that_is_not_there_is_an_error_soon():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_s = time.monotonic()
    with pytest.raises(MilvusError, match=r"cannot connect to Milvus at milvus://127\.0\.0\.1"):
        connect(parse_address(f"milvus://127.0.0.1:{port}/photos"))
    assert time.monotonic() - start_s < 10


def test_server_that_never_answers_is_an_error_in_time(monkeypatch):
    monkeypatch.setattr(client_module, "CONNECT_TIMEOUT_S", 1.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        start_s = time.monotonic()
        with pytest.raises(MilvusError, match="cannot connect"):
            connect(parse_address(f"milvus://127.0.0.1:{silent.getsockname()[1]}/photos"))
        assert time.monotonic() - start_s < 10


@pytest.mark.slow
def test_a_server_that_stands_still_holds_one_thread(start_server, tmp_path, monkeypatch):
    """The others are told at once, and all go on when it does."""
    server = start_server()
    gallery = export(tmp_path, server.url, unit_vectors(300))
    query_1E = unit_vectors(1, seed=8)
    monkeypatch.setattr(client_module, "READ_TIMEOUT_S", 2.0)
    server.signal(signal.SIGSTOP)
    took_s = []

    def ask():
        start_s = time.monotonic()
        with pytest.raises(GalleryError, match="Milvus at"):
            gallery.search(query_1E, 5)
        took_s.append(time.monotonic() - start_s)

    ask()
    assert 1.5 < took_s[0] < 6
    with ThreadPoolExecutor(4) as pool:
        for asked in [pool.submit(ask) for _ in range(4)]:
            asked.result()
    assert sum(took < 0.5 for took in took_s) == 3
    server.signal(signal.SIGCONT)
    with ThreadPoolExecutor(4) as pool:
        gallery.search(query_1E, 5)
        found = list(pool.map(lambda _: gallery.search(query_1E, 5), range(8)))
    assert len(found) == 8


@pytest.mark.slow
def test_gallery_outlives_a_server_that_stands_still_and_one_that_restarts(
    start_server, tmp_path, monkeypatch
):
    server = start_server()
    vectors_NE = unit_vectors(300)
    gallery = export(tmp_path, server.url, vectors_NE)
    query_1E = unit_vectors(1, seed=8)
    expected = gallery.search(query_1E, 5)[1].tolist()
    monkeypatch.setattr(client_module, "READ_TIMEOUT_S", 2.0)

    server.signal(signal.SIGSTOP)
    for call in (lambda: gallery.search(query_1E, 5), lambda: gallery.item(0)):
        start_s = time.monotonic()
        with pytest.raises(GalleryError, match="Milvus at"):
            call()
        assert time.monotonic() - start_s < 15
    server.signal(signal.SIGCONT)
    assert gallery.search(query_1E, 5)[1].tolist() == expected

    server.stop()
    start_s = time.monotonic()
    with pytest.raises(GalleryError, match="Milvus at"):
        gallery.search(query_1E, 5)
    assert time.monotonic() - start_s < 15
    server.start()
    found, last = None, ""
    end_s = time.monotonic() + 10
    while time.monotonic() < end_s:
        try:
            found = gallery.search(query_1E, 5)[1].tolist()
            break
        except GalleryError as err:
            last = str(err)
            time.sleep(0.2)
    assert found == expected, last
