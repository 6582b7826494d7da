"""RLDS datasets: TFRecord files read without TensorFlow."""
