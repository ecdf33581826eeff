"""Any raw log to tables and `dataset.json`: `python -m sidrec.data import`."""
