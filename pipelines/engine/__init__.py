"""Where the work is done: here, in several processes, or on a cluster through Apache Beam."""
