"""Apache Beam pipelines: the only package that imports Beam; at import, only `transforms` does."""
