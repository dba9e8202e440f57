"""Data in: a BEIR folder or Parquet triples become one checked `Dataset` of documents, queries and qrels."""
