"""Searching vectors: exact and approximate FAISS indexes behind one interface."""
