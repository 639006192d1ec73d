"""Shared code of the notebooks: adapting open language models to medicine, from text to tables."""
