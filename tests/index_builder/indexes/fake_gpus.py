"""GPUs that are none: FAISS's CPU indexes in their place, and memory that is only said to be."""

import faiss

from index_builder.indexes.gpu import Gpus


class OutOfMemory:
    """An index whose calls fail as FAISS's do on a full GPU."""

    def search(self, *args, **kwargs):
        raise RuntimeError("Error in StandardGpuResources.cpp: Failed to cudaMalloc: out of memory")

    train = add = search


class Broken:
    """An index whose searches fail for another reason."""

    def search(self, *args, **kwargs):
        raise RuntimeError("Error: CUDA error 719 unspecified launch failure")


class Counting:
    """Passes searches on to a CPU index, and remembers how wide they were."""

    def __init__(self, index):
        self.index = index
        self.widths = []

    def __getattr__(self, name):
        return getattr(self.index, name)

    def search(self, query_QE, width, params=None):
        self.widths.append(width)
        return self.index.search(query_QE, width, params=params)


class FakeGpus(Gpus):
    """So many GPUs with so much memory; `copies` are the indexes that were put there."""

    def __init__(self, count, *, free=64 << 30, cagra=True, fails=None):
        self._count, self._free, self._cagra, self._fails = count, free, cagra, fails
        self.copies = []

    def count(self):
        return self._count

    def free_bytes(self, gpu):
        return self._free

    def has_cagra(self):
        return self._cagra

    def to_gpu(self, index, gpu):
        self.copies.append(self._fails or Counting(index))
        return self.copies[-1], object()

    def flat(self, vectors, gpu):
        index = faiss.IndexFlatIP(vectors.shape[1])
        for block_nE in vectors.blocks():
            index.add(block_nE)
        return self.to_gpu(index, gpu)

    def to_cpu(self, index):
        return index.index

    def cagra(self, vectors, links, gpu):
        index = faiss.IndexHNSWCagra(vectors.shape[1], links, faiss.METRIC_INNER_PRODUCT)
        index.add(next(vectors.blocks(vectors.shape[0])))
        return index

    def search_parameters(self, index, effort, width):
        if isinstance(index, Counting) and effort.num_probes:
            return faiss.SearchParametersIVF(nprobe=effort.num_probes)
        return None
