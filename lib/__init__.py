"""Shared code of the notebooks: adapting open language models to medicine, from text to tables."""

import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # no progress widgets are wanted in an executed notebook
