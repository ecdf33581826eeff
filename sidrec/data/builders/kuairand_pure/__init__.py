"""TFDS builder of KuaiRand-Pure."""
