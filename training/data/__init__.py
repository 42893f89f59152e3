"""Data of one's own, from the form they lie in to a `Dataset`: pictures in folders, arrays, the files of known sets.

A reader turns each form into parts; one place splits them, names their classes and lays their pixels into a file that
is mapped into memory.
"""
