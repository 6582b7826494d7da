"""Apache Beam pipelines: the only package that imports Beam, and only in `transforms` and `runners`."""
