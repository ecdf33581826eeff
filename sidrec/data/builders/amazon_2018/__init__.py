"""TFDS builder of Amazon reviews 2018."""
