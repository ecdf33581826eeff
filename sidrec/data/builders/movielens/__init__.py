"""TFDS builder of MovieLens."""
