"""Lessons: each shows one sentence of the book or of its commentaries by measuring it.

A lesson measures figures (plain JSON values), reads findings and a table out of them, and draws them; `command` is the
door to all lessons and to the other studies. `trained` trains variants over seeds, on which many lessons stand.
"""
