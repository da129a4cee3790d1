"""What a data set is worth before anyone trains on it: rows in, numbers out.

Nothing is imported here: the measures need `pip install 'targen-async[analysis]'`.
"""
