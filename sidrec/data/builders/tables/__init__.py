"""TFDS builder of any folder of tables."""
