"""Index files that are damaged or made to harm: refused by name, and never a crash."""

import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest

from cots_model.errors import GalleryError
from index_builder.indexes.check import check_index
from index_builder.indexes.faiss_file import read_index, write_index
from index_builder.indexes.open import open_index
from index_builder.manifest import IndexInfo
from index_builder.vectors import StoredVectors
from tests.index_builder.indexes.conftest import built, clustered, random_unit, stored

KINDS = ("flat", "hnsw", "ivf", "ivfpq")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """2,000 vectors, and an index of each kind over them."""
    folder = tmp_path_factory.mktemp("small")
    vectors = stored(clustered(2000, 16), folder / "v.npy")
    infos = {kind: built(vectors, folder / f"{kind}.faiss", kind) for kind in KINDS}
    return folder, vectors, infos


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_ends_early_is_refused(small, tmp_path, kind):
    folder, vectors, infos = small
    whole = (folder / f"{kind}.faiss").read_bytes()
    for length in (0, 20, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.faiss").write_bytes(whole[:length])
        with pytest.raises(GalleryError, match=r"cut\.faiss is damaged.*build the gallery again"):
            open_index(tmp_path / "cut.faiss", infos[kind], vectors)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_another_kind_is_refused(small, kind):
    folder, vectors, infos = small
    for other in set(KINDS) - {kind}:
        with pytest.raises(GalleryError, match=f"which is no {kind} index"):
            open_index(folder / f"{other}.faiss", infos[kind], vectors)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_over_other_vectors_is_refused(small, tmp_path, kind):
    folder, _, infos = small
    with pytest.raises(GalleryError, match=r"over 2,000 vectors of 16, not 1,999 of 16"):
        read_index(folder / f"{kind}.faiss", infos[kind], (1999, 16))
    with pytest.raises(GalleryError, match=r"not 2,000 of 32"):
        read_index(folder / f"{kind}.faiss", infos[kind], (2000, 32))
    with pytest.raises(GalleryError, match=r"gone\.faiss is damaged: it cannot be read"):
        read_index(tmp_path / "gone.faiss", infos[kind], (2000, 16))


def test_a_file_that_is_too_long_is_refused_before_it_is_parsed(small, tmp_path):
    _, vectors, infos = small
    with (tmp_path / "long.faiss").open("wb") as handle:
        handle.truncate(1 << 40)  # sparse
    with pytest.raises(GalleryError, match="holds 1,099,511,627,776 bytes, which does not fit"):
        open_index(tmp_path / "long.faiss", infos["flat"], vectors)


def test_an_index_for_distances_is_refused(small, tmp_path):
    _, vectors, infos = small
    index = faiss.IndexFlatL2(16)
    index.add(next(vectors.blocks()))
    faiss.write_index(index, str(tmp_path / "l2.faiss"))
    with pytest.raises(GalleryError, match="which is no flat index"):
        open_index(tmp_path / "l2.faiss", infos["flat"], vectors)


def test_a_length_in_the_file_cannot_take_more_memory_than_the_file(small, tmp_path):
    folder, vectors, infos = small
    data = bytearray((folder / "flat.faiss").read_bytes())
    at = len(data) - 2000 * 16 * 4 - 8
    assert int.from_bytes(data[at : at + 8], "little") in (2000 * 16, 2000 * 16 * 4)
    data[at : at + 8] = (10**10).to_bytes(8, "little")
    (tmp_path / "greedy.faiss").write_bytes(data)
    before = faiss.get_deserialization_vector_byte_limit()
    with pytest.raises(GalleryError, match=r"greedy\.faiss is damaged.*(limit|read error)"):
        open_index(tmp_path / "greedy.faiss", infos["flat"], vectors)
    assert faiss.get_deserialization_vector_byte_limit() == before


def spoil_links(index):
    links = faiss.rev_swig_ptr(index.hnsw.neighbors.data(), index.hnsw.neighbors.size())
    links[5] = 2000


def spoil_entry_point(index):
    index.hnsw.entry_point = -5


def spoil_levels(index):
    levels = faiss.rev_swig_ptr(index.hnsw.levels.data(), index.hnsw.levels.size())
    levels[7] += 1


def spoil_upper_links(index):
    levels = faiss.vector_to_array(index.hnsw.levels)
    offsets = faiss.vector_to_array(index.hnsw.offsets)
    links = faiss.rev_swig_ptr(index.hnsw.neighbors.data(), index.hnsw.neighbors.size())
    high, low = int(np.flatnonzero(levels > 1)[0]), int(np.flatnonzero(levels == 1)[0])
    links[int(offsets[high]) + 64] = low  # level 1 of a row, to a row that has no level 1


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_links, "neighbors.* out of range|links lead outside"),
        (spoil_entry_point, "entry point|parse|failed"),
        (spoil_levels, "links are not whole|failed"),
        (spoil_upper_links, "links lead outside"),
    ],
)
def test_a_graph_that_leads_outside_is_refused(small, tmp_path, spoil, said):
    folder, vectors, infos = small
    index = faiss.read_index(str(folder / "hnsw.faiss"))
    spoil(index)
    faiss.write_index(index, str(tmp_path / "bad.faiss"))
    with pytest.raises(GalleryError, match=said):
        open_index(tmp_path / "bad.faiss", infos["hnsw"], vectors)


@pytest.mark.parametrize(
    ("wrong", "said"), [(2000, "lead outside"), (0, "not hold every row once")]
)
def test_lists_that_lead_outside_or_miss_a_row_are_refused(small, tmp_path, wrong, said):
    folder, vectors, infos = small
    for kind in ("ivf", "ivfpq"):
        index = faiss.read_index(str(folder / f"{kind}.faiss"))
        sizes = [index.invlists.list_size(number) for number in range(index.nlist)]
        number = int(np.argmax(sizes))
        ids = faiss.rev_swig_ptr(index.invlists.get_ids(number), sizes[number])
        ids[int(np.argmax(ids))] = wrong
        faiss.write_index(index, str(tmp_path / "bad.faiss"))
        with pytest.raises(GalleryError, match=said):
            open_index(tmp_path / "bad.faiss", infos[kind], vectors)


@pytest.mark.parametrize("num_codes", [1, 8])
def test_codes_of_another_length_are_refused(small, tmp_path, num_codes):
    """FAISS takes them, and would read behind the end of its lists."""
    folder, vectors, infos = small
    index = faiss.read_index(str(folder / "ivfpq.faiss"))
    assert index.pq.M == 4
    index.pq.M = num_codes
    faiss.write_index(index, str(tmp_path / "bad.faiss"))
    with pytest.raises(GalleryError, match="codes do not fit the vectors"):
        open_index(tmp_path / "bad.faiss", infos["ivfpq"], vectors)


def test_a_row_that_is_listed_twice_is_refused(small, tmp_path):
    folder, vectors, infos = small
    index = faiss.read_index(str(folder / "ivf.faiss"))
    number = int(np.argmax([index.invlists.list_size(n) for n in range(index.nlist)]))
    ids = faiss.rev_swig_ptr(index.invlists.get_ids(number), 1)
    codes = faiss.rev_swig_ptr(index.invlists.get_codes(number), index.code_size)
    again = faiss.swig_ptr(ids.copy()), faiss.swig_ptr(codes.copy())
    index.invlists.add_entries(number, 1, *again)
    faiss.write_index(index, str(tmp_path / "bad.faiss"))
    with pytest.raises(GalleryError, match="not hold every row once"):
        open_index(tmp_path / "bad.faiss", infos["ivf"], vectors)


def test_search_parameters_that_no_build_writes_are_refused(small):
    folder, vectors, infos = small
    for bad in ({"num_probes": 0}, {"num_probes": 1 << 40}, {"ef": 3}, {"refine": True}):
        info = infos["ivf"].model_copy(update={"search": bad})
        with pytest.raises(GalleryError, match="search parameter"):
            open_index(folder / "ivf.faiss", info, vectors)


def test_a_full_disk_is_an_oserror(small):
    folder, vectors, infos = small
    index = read_index(folder / "flat.faiss", infos["flat"], vectors.shape)
    with pytest.raises(OSError, match=r"/dev/full could not be written"):
        write_index(index, "/dev/full")


@pytest.mark.parametrize("kind", KINDS)
def test_check_index_notices_an_index_of_other_vectors(small, tmp_path, kind):
    folder, vectors, infos = small
    path = folder / f"{kind}.faiss"
    assert check_index(path, infos[kind], vectors) is None
    [vectors_NE] = vectors.blocks()
    swapped_NE = vectors_NE.copy()
    swapped_NE[:100] = vectors_NE[100:200]
    other = check_index(path, infos[kind], StoredVectors(swapped_NE))
    assert other is not None
    assert "other vectors than those of the gallery" in other
    (tmp_path / "junk.faiss").write_bytes(b"junk")
    assert "does not fit" in str(check_index(tmp_path / "junk.faiss", infos[kind], vectors))


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_check_index_notices_one_changed_number(small, kind):
    folder, vectors, infos = small
    [vectors_NE] = vectors.blocks()
    changed_NE = vectors_NE.copy()
    changed_NE[1999, 15] = np.nextafter(changed_NE[1999, 15], np.float32(1))
    said = check_index(folder / f"{kind}.faiss", infos[kind], StoredVectors(changed_NE))
    assert "other vectors" in str(said)


FUZZ = """
import sys
from pathlib import Path
import numpy as np
from cots_model.errors import GalleryError
from index_builder.indexes.open import open_index
from index_builder.manifest import IndexInfo
from index_builder.vectors import StoredVectors
folder, path = map(Path, sys.argv[1:3])
info = IndexInfo.model_validate_json(sys.argv[3])
vectors = StoredVectors(np.load(folder / "v.npy"))
whole, refused = path.read_bytes(), 0
for seed in range(400):
    rng = np.random.default_rng(seed)
    data = bytearray(whole)
    if seed % 3 == 0:
        for _ in range(3):
            data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    elif seed % 3 == 1:
        data[rng.integers(min(400, len(data)))] = int(rng.integers(256))
    else:
        at = int(rng.integers(len(data) - 8))
        data[at : at + 8] = (2 ** int(rng.integers(20, 63))).to_bytes(8, "little")
    spoiled = folder / f"{path.name}.spoiled"
    spoiled.write_bytes(data)
    try:
        index = open_index(spoiled, info, vectors)
        for k in (10, 300):
            assert index.search(next(vectors.blocks(5)), k)[1].max() < 2000
    except GalleryError:
        refused += 1
print(refused)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, "cagra"])
def test_no_damage_crashes_the_process(small, kind):
    """400 spoiled files of each kind are refused or searched."""
    folder, vectors, infos = small
    info = infos.get(kind)
    if info is None:
        index = faiss.IndexHNSWCagra(16, 16, faiss.METRIC_INNER_PRODUCT)
        index.add(next(vectors.blocks()))
        faiss.write_index(index, str(folder / "cagra.faiss"))
        info = IndexInfo(kind="cagra", parameters={"links": 16}, search={"ef_search": 64})
    arguments = [str(folder), str(folder / f"{kind}.faiss"), info.model_dump_json()]
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert 0 < int(done.stdout) < 400


def test_a_graph_without_upper_levels_is_refused(small, tmp_path):
    """FAISS starts each search of it at other rows."""
    _, vectors, _ = small
    index = faiss.IndexHNSWCagra(16, 16, faiss.METRIC_INNER_PRODUCT)
    index.add(next(vectors.blocks()))
    index.base_level_only = True
    faiss.write_index(index, str(tmp_path / "c.faiss"))
    info = IndexInfo(kind="cagra", parameters={"links": 16}, search={"ef_search": 64})
    with pytest.raises(GalleryError, match="no upper levels"):
        open_index(tmp_path / "c.faiss", info, StoredVectors(random_unit(2000, 16)))


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_processes_share_the_pages_of_an_index(small, kind):
    """It is mapped: /proc names the file among what is in memory."""
    folder, vectors, infos = small
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc here")
    file = str(folder / f"{kind}.faiss")
    index = read_index(folder / f"{kind}.faiss", infos[kind], vectors.shape)
    assert file in maps.read_text("utf-8")
    del index
    assert file not in maps.read_text("utf-8")
