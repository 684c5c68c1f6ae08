"""The notebook series: executed, checked, stamped with its address, and turned into a static site (``python -m apnb.reading``)."""
