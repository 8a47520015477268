"""Compiled inner loops. Only modules of this folder import numba, and each is imported when its work is first needed."""
