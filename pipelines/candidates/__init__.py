"""Who might be a hard negative: BM25, the current student, and their union with each source's rank kept."""
